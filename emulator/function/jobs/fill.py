"""The fill command."""

from __future__ import annotations

import numpy as np

from driver_shim.protocol.commands import FILL, PATTERN_SIZES, Status
from emulator.chip.chip import Chip
from emulator.function.command_error import CommandError, dma_error, refuse_reserved
from emulator.function.jobs.job import SLICE_BYTES, check_range, is_host
from emulator.host_memory.address_space import AddressSpace, DmaFault
from emulator.model import timing


class FillJob:
    """fill: a pattern of 1, 2, 4 or 8 bytes repeated over a range."""

    runnable = True
    on_engine = False

    def __init__(self, chip: Chip, space: AddressSpace, entry: bytes) -> None:
        refuse_reserved(FILL, entry)
        (_, _, _, _, self._to, self._size, to_space, pattern_size, pattern) = FILL.codec.unpack(entry)
        if pattern_size not in PATTERN_SIZES:
            raise CommandError(
                Status.INVALID_FIELD, f"fill: a pattern of {pattern_size} bytes; 1, 2, 4 or 8 are possible"
            )
        if pattern >> 8 * pattern_size:
            raise CommandError(Status.INVALID_FIELD, f"fill: pattern {pattern:#x} exceeds {pattern_size} bytes")
        if self._size % pattern_size or self._to % pattern_size:
            raise CommandError(Status.MISALIGNED, f"fill: address and size must be multiples of {pattern_size}")
        self._chip, self._space = chip, space
        self._to_host = is_host(to_space, "fill destination")
        check_range(chip.memory, space, self._to_host, self._to, self._size, write=True, what="fill destination")
        self._element = np.dtype(f"<u{pattern_size}")
        self._pattern = pattern
        self._done = 0
        self.cost = timing.fill_ticks(chip.profile, self._size, to_host=self._to_host)

    def advance(self) -> int | None:
        """Fill the next slice."""
        size = min(SLICE_BYTES, self._size - self._done)
        to = self._to + self._done
        if self._to_host:
            block = np.full(size // self._element.itemsize, self._pattern, self._element)
            try:
                self._space.write(to, block.tobytes())
            except DmaFault as fault:
                raise dma_error(fault, "fill") from fault
        else:
            target = np.frombuffer(self._chip.memory.view, self._element, size // self._element.itemsize, to)
            target.fill(self._pattern)
        self._done += size
        if self._done < self._size:
            return None
        self._chip.counters.bytes_filled += self._size
        return 0

    def discard(self) -> None:
        """It holds nothing."""
