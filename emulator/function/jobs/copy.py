"""The copy command."""

from __future__ import annotations

from driver_shim.protocol.commands import COPY
from emulator.chip.chip import Chip
from emulator.function.command_error import dma_error, refuse_reserved
from emulator.function.jobs.job import SLICE_BYTES, check_range, is_host
from emulator.host_memory.address_space import AddressSpace, DmaFault
from emulator.model import timing


class CopyJob:
    """copy: any of host and device to any; overlapping ranges behave like memmove."""

    __slots__ = ("_backwards", "_chip", "_done", "_from", "_from_host", "_size", "_space", "_to", "_to_host", "cost")
    runnable = True
    on_engine = False

    def __init__(self, chip: Chip, space: AddressSpace, entry: bytes) -> None:
        refuse_reserved(COPY, entry)
        (_, _, _, _, self._to, self._from, self._size, to_space, from_space) = COPY.codec.unpack(entry)
        self._chip, self._space = chip, space
        self._to_host = is_host(to_space, "copy destination")
        self._from_host = is_host(from_space, "copy source")
        check_range(chip.memory, space, self._to_host, self._to, self._size, write=True, what="copy destination")
        check_range(chip.memory, space, self._from_host, self._from, self._size, write=False, what="copy source")
        self._backwards = self._to_host == self._from_host and self._from < self._to < self._from + self._size
        self._done = 0
        self.cost = timing.copy_ticks(chip.profile, self._size, from_host=self._from_host, to_host=self._to_host)

    def advance(self) -> int | None:
        """Move the next slice."""
        size = min(SLICE_BYTES, self._size - self._done)
        at = self._size - self._done - size if self._backwards else self._done
        try:
            self._move(self._to + at, self._from + at, size)
        except DmaFault as fault:
            raise dma_error(fault, "copy") from fault
        self._done += size
        if self._done < self._size:
            return None
        self._chip.counters.bytes_copied += self._size
        return 0

    def discard(self) -> None:
        """It holds nothing."""

    def _move(self, to: int, source: int, size: int) -> None:
        memory, space = self._chip.memory.view, self._space
        if self._from_host and self._to_host:
            space.write(to, bytes(space.read(source, size)))
        elif self._from_host:
            space.copy_from(source, memory[to : to + size])
        elif self._to_host:
            space.copy_to(to, memory[source : source + size])
        else:
            memory[to : to + size] = memory[source : source + size]
