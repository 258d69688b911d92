"""How rows and tokens of a step are divided among the programs that were loaded for it by name."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

MOST_CHUNKS = 256
"""Of one step: all its commands go into the queue at one time."""


class Chunk(NamedTuple):
    """A part of a step's tokens, in one execution."""

    width: int
    """Tokens that its program takes."""
    tokens: int
    """Those of them that there are; the rest is masked."""


class StepWidths:
    """The shapes of steps that `load(shapes=...)` named, as rows and tokens: programs for them are there."""

    def __init__(self, primary: str, *, idle_rows: bool, masks: bool) -> None:
        """`primary` is the input that has rows and tokens, for errors.

        `idle_rows`: whether a call may have fewer rows than the program that it takes; `masks`: whether a program may
        be given fewer tokens than it takes.
        """
        self._primary = primary
        self._idle_rows = idle_rows
        self._masks = masks
        self._widths: dict[int, list[int]] = {}
        """Tokens, from few to many, by rows."""

    def add(self, rows: int, tokens: int) -> None:
        """One more shape."""
        widths = self._widths.setdefault(rows, [])
        if tokens not in widths:
            bisect.insort(widths, tokens)

    def is_named(self, rows: int, tokens: int) -> bool:
        """Whether there is a program for just this."""
        return tokens in self._widths.get(rows, ())

    def rows_for(self, rows: int) -> int:
        """Rows of the program for a call of so many. Raises ValueError where only larger ones are loaded."""
        larger = min((each for each in self._widths if each > rows), default=None)
        if rows in self._widths or larger is None:
            return rows
        if not self._idle_rows:
            raise ValueError(
                f"{rows} rows of input {self._primary!r}; programs are loaded for {sorted(self._widths)}:"
                f" load with idle_rows=True to have {larger - rows} of {larger} rows idle, or name a shape of {rows}"
            )
        return larger

    def chunks(self, rows: int, tokens: int) -> list[Chunk]:
        """The widest that is loaded, again and again, and the rest. Raises ValueError for too many.

        The rest is the narrowest that takes it; where a masked token would leave its mark, narrower ones, all full.
        """
        widths = self._widths.get(rows)
        if not widths or tokens in widths:
            return [Chunk(tokens, tokens)]
        chunks = _filled(widths, tokens) if self._masks else _exact(widths, tokens)
        if len(chunks) > MOST_CHUNKS:
            raise ValueError(
                f"{tokens} tokens take {len(chunks)} chunks of the widest shape that is loaded; at most {MOST_CHUNKS}:"
                " name a wider one in load(shapes=...), or give the tokens in several calls"
            )
        return chunks


def _filled(widths: Sequence[int], tokens: int) -> list[Chunk]:
    whole, rest = divmod(tokens, widths[-1])
    chunks = [Chunk(widths[-1], widths[-1])] * whole
    if rest:
        chunks.append(Chunk(next(width for width in widths if width >= rest), rest))
    return chunks


def _exact(widths: Sequence[int], tokens: int) -> list[Chunk]:
    chunks, rest = [], tokens
    for width in reversed(widths):
        count, rest = divmod(rest, width)
        chunks += [Chunk(width, width)] * count
    if rest:
        chunks.append(Chunk(rest, rest))
    return chunks
