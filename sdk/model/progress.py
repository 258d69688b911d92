"""How far a load is: told in one scale over all that is compiled and sent, to whoever asked for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

_T = TypeVar("_T")
Tell = Callable[[int, int], object]
"""Told (done, of). What it raises ends the load."""

OF = 1000
"""What a whole load counts, however many programs it makes. Compiling is half of each, sending its weights half."""


class LoadProgress:
    """The progress of one load. Tells of what is new alone, and never of less than before."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._before = 0
        """What the programs count that are there."""
        self._left = 1
        self._told = -1

    def expect(self, programs: int) -> None:
        """So many programs will be made."""
        self._left = max(programs, 1)

    def compiling(self, done: int, of: int) -> None:
        """So much of a program is compiled."""
        self._to(self._before + self._share * done // max(2 * of, 1))

    def sending(self, done: int, of: int) -> None:
        """So much of its weights is there."""
        self._to(self._before + self._share * (of + done) // max(2 * of, 1))

    def loaded(self) -> None:
        """The program is there."""
        self._before += self._share
        self._left = max(self._left - 1, 1)
        self._to(self._before)

    def end(self) -> None:
        """All of them are."""
        self._to(OF)

    @property
    def _share(self) -> int:
        """What the next program counts."""
        return (OF - self._before) // self._left

    def _to(self, reached: int) -> None:
        if reached > self._told:
            self._told = reached
            self._tell(reached, OF)


class _Untold(LoadProgress):
    """Where nobody asked."""

    def __init__(self) -> None:
        super().__init__(lambda _done, _of: None)

    def expect(self, programs: int) -> None:
        """Nobody is told."""

    def loaded(self) -> None:
        """Nobody is told."""

    def _to(self, reached: int) -> None:
        pass


_UNTOLD = _Untold()
_current: ContextVar[LoadProgress] = ContextVar("load-progress", default=_UNTOLD)


def current() -> LoadProgress:
    """That of the load that this thread is at."""
    return _current.get()


def expected(shapes: Sequence[_T], programs_each: int = 1) -> Sequence[_T]:
    """The shapes, for which so many programs each are about to be made."""
    current().expect(len(shapes) * programs_each)
    return shapes


@contextlib.contextmanager
def told(tell: Tell | None) -> Iterator[None]:
    """The progress of what the block loads, of which `tell` is told if it is there."""
    progress = _UNTOLD if tell is None else LoadProgress(tell)
    token = _current.set(progress)
    try:
        yield
        progress.end()
    finally:
        _current.reset(token)
