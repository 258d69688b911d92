"""Serial NOR flash: sectors that are erased to ones, pages whose bits are programmed to zeros, and wear.

An operation can be journalled with what was there before: from one recorded run follows what flash holds when power is
cut before, inside or after each operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from driver_shim.protocol.firmware_slots import ERASED, FLASH_BYTES, PAGE_BYTES, SECTOR_BYTES

SECTORS = FLASH_BYTES // SECTOR_BYTES
ENDURANCE_CYCLES = 100_000
"""Erases of one sector that the makers of such parts promise (Winbond W25Q32JV, 1)."""


class FlashError(Exception):
    """An operation was refused or did not take; flash is as the operation's rules leave it."""


class FlashOperation(NamedTuple):
    """One operation as it was carried out."""

    offset: int
    before: bytes
    after: bytes

    @property
    def erases(self) -> bool:
        """Whether it was a sector's erase."""
        return len(self.after) == SECTOR_BYTES


class Flash:
    """The whole chip, over memory that outlives the process that uses it."""

    def __init__(self, memory: memoryview, wear: memoryview) -> None:
        """`memory` is FLASH_BYTES of octets, `wear` SECTORS of 32-bit erase counts."""
        self._memory = memory
        self._wear = wear
        self.journal: list[FlashOperation] | None = None
        """Where operations are recorded; not unless a list is put here."""
        self.on_change: Callable[[int, int], None] = lambda _offset, _size: None
        """Told of what was changed."""

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of flash. Raises FlashError outside."""
        self._check(offset, size)
        return bytes(self._memory[offset : offset + size])

    def erase(self, offset: int) -> None:
        """Set a sector to ones. Raises FlashError when it is worn out or no sector begins there."""
        self._check(offset, SECTOR_BYTES)
        if offset % SECTOR_BYTES:
            raise FlashError(f"no sector begins at {offset:#x}")
        sector = offset // SECTOR_BYTES
        if self._wear[sector] >= ENDURANCE_CYCLES:
            raise FlashError(f"the sector at {offset:#x} is worn out: {ENDURANCE_CYCLES} erases")
        self._wear[sector] += 1
        self._apply(offset, bytes([ERASED]) * SECTOR_BYTES)

    def program(self, offset: int, data: bytes) -> None:
        """Clear a page's bits where `data` has zeros. Raises FlashError when a one was asked for where a zero is."""
        self._check(offset, PAGE_BYTES)
        if offset % PAGE_BYTES or len(data) != PAGE_BYTES:
            raise FlashError(f"no page of {len(data)} bytes begins at {offset:#x}")
        before = self.read(offset, PAGE_BYTES)
        after = (int.from_bytes(before, "little") & int.from_bytes(data, "little")).to_bytes(PAGE_BYTES, "little")
        self._apply(offset, after)
        if after != data:
            raise FlashError(f"the page at {offset:#x} was not erased")

    def _apply(self, offset: int, after: bytes) -> None:
        if self.journal is not None:
            self.journal.append(FlashOperation(offset, self.read(offset, len(after)), after))
        self._memory[offset : offset + len(after)] = after
        self.on_change(offset, len(after))

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > FLASH_BYTES:
            raise FlashError(f"{size} bytes at {offset:#x} lie outside flash, which has {FLASH_BYTES:#x}")
