"""Ctrl-C where it ends what is going on, and not the verb."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def let_ctrl_c_raise() -> None:
    """From now on Ctrl-C ends what goes on with a KeyboardInterrupt, which lets it clean up, instead of at once."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def left_to_the_work() -> Iterator[None]:
    """On a terminal, Ctrl-C does nothing to the tool's own process: the work, which gets it too, knows what it means.

    Ctrl-\\ still ends both.
    """
    if not sys.stdin.isatty() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    previous = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class StopButton:
    """Ctrl-C as a wish, which whoever works looks at. While a line is read it interrupts, and when pressed again."""

    def __init__(self) -> None:
        self.pressed = False
        self._reading = False
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._press)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A line is read meanwhile: KeyboardInterrupt is raised. What was pressed before is forgotten."""
        self._reading = True
        try:
            yield
        finally:
            self.pressed = self._reading = False

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._reading or self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
