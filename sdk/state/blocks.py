"""Which blocks of a model's caches are whose. Numbers alone: nothing here knows of a device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

ERASED_AHEAD = 16
"""Blocks, one with those behind it, that are erased at a time."""


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"{wanted} blocks asked for; {free} are free")
        self.wanted = wanted
        self.free = free


class Blocks:
    """The blocks 0 … count − 1, each with the number of states that share it. The caller serialises.

    A sequence gets adjacent blocks where that is possible, since engines then read its past as one piece: the block
    behind its last one, and for a new sequence a place with room behind it.
    """

    def __init__(self, count: int) -> None:
        self._holders = np.zeros(count, np.int32)
        self._used = np.zeros(count, np.bool_)
        """Whether somebody had it before."""
        self.free = count

    def __len__(self) -> int:
        return len(self._holders)

    def take(self, count: int, behind: int | None = None) -> list[int]:
        """So many free blocks, the first behind the block `behind` if possible. Raises OutOfBlocks and takes none."""
        if count > self.free:
            raise OutOfBlocks(count, self.free)
        taken: list[int] = []
        while len(taken) < count:
            last = taken[-1] if taken else behind
            start = self._place(count - len(taken)) if last is None or not self._is_free(last + 1) else last + 1
            found = self._run_from(start, count - len(taken))
            self._holders[found.start : found.stop] = 1
            taken += found
        self.free -= count
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more state has these."""
        for block in blocks:
            self._holders[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether several states have it."""
        return bool(self._holders[block] > 1)

    def give(self, blocks: Iterable[int]) -> None:
        """A state has these no more; they are free when nobody has."""
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                self._used[block] = True
                self.free += 1

    def used_from(self, blocks: Sequence[int]) -> list[int]:
        """Those of these that another state had before, and free ones behind the last; from now on they count as new.

        What is to be erased is so in long runs, and not block by block as a sequence grows.
        """
        used = [block for block in blocks if self._used[block]]
        if used and used[-1] == blocks[-1]:
            ahead = range(used[-1] + 1, min(used[-1] + ERASED_AHEAD, len(self._used)))
            used += itertools.takewhile(lambda block: self._used[block] and self._is_free(block), ahead)
        self._used[used] = False
        return used

    def still_used(self, blocks: Iterable[int]) -> None:
        """What `used_from` told was not erased after all."""
        self._used[list(blocks)] = True

    def _is_free(self, block: int) -> bool:
        return block < len(self._holders) and not self._holders[block]

    def _run_from(self, start: int, most: int) -> range:
        """The free blocks from `start` on that follow each other."""
        window = self._holders[start : start + most]
        taken = np.flatnonzero(window)
        return range(start, start + (int(taken[0]) if len(taken) else len(window)))

    def _place(self, count: int) -> int:
        """Where `count` blocks go that continue nothing: into the largest free run, away from what may grow into it."""
        edges = np.diff(np.concatenate(([0], self._holders == 0, [0])).astype(np.int8))
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        largest = int(np.argmax(ends - starts))
        start, room = int(starts[largest]), int(ends[largest] - starts[largest])
        return start if start == 0 else start + max(0, room - count) // 2


def runs(blocks: Sequence[int]) -> list[range]:
    """The blocks in order, adjacent ones together."""
    found: list[range] = []
    for block in blocks:
        if found and found[-1].stop == block:
            found[-1] = range(found[-1].start, block + 1)
        else:
            found.append(range(block, block + 1))
    return found
