"""Loads and stores of exact width on mapped device memory.

A register must be reached by one access of its own width. `memoryview` items of a native format and naturally aligned
are one load or store each; `struct.pack_into` is not (it stores byte by byte), nor is slicing (a `memcpy`, in any
order and width). Values are little-endian, as is every machine type that can drive a device.
"""

from __future__ import annotations

import numpy as np

_WIDEST = 8


class MappedRegisters:
    """Registers in a mapping of a region, by byte offset.

    `view` is a contiguous writable or read-only buffer whose address is a multiple of 8 (mappings are page aligned);
    it stays exported until `release`. Accesses raise ValueError for an offset that is misaligned or outside the
    mapping, or a value that does not fit, and TypeError for a store to a read-only mapping.
    """

    def __init__(self, view: memoryview) -> None:
        """Raises ValueError where `view` is not contiguous bytes at a multiple of 8."""
        if not view.c_contiguous:
            raise ValueError("registers need a contiguous mapping, got a strided view")
        octets = view.cast("B") if view.format != "B" or view.ndim != 1 else view
        size = octets.nbytes
        if size and np.frombuffer(octets, dtype=np.uint8).ctypes.data % _WIDEST:
            raise ValueError(f"registers need a mapping aligned to {_WIDEST} bytes")
        self.size = size
        """Length of the mapping in bytes."""
        self._8 = octets[:]
        self._16 = octets[: size & ~1].cast("H")
        self._32 = octets[: size & ~3].cast("I")
        self._64 = octets[: size & ~7].cast("Q")

    def read8(self, offset: int) -> int:
        """One 8-bit load."""
        if not 0 <= offset < self.size:
            self._refuse("read", offset, 1)
        return self._8[offset]

    def read16(self, offset: int) -> int:
        """One 16-bit load."""
        if offset & 1 or not 0 <= offset <= self.size - 2:
            self._refuse("read", offset, 2)
        return self._16[offset >> 1]

    def read32(self, offset: int) -> int:
        """One 32-bit load."""
        if offset & 3 or not 0 <= offset <= self.size - 4:
            self._refuse("read", offset, 4)
        return self._32[offset >> 2]

    def read64(self, offset: int) -> int:
        """One 64-bit load."""
        if offset & 7 or not 0 <= offset <= self.size - 8:
            self._refuse("read", offset, 8)
        return self._64[offset >> 3]

    def write8(self, offset: int, value: int) -> None:
        """One 8-bit store."""
        if not 0 <= offset < self.size:
            self._refuse("write", offset, 1)
        try:
            self._8[offset] = value
        except (TypeError, ValueError) as error:
            raise self._bad_value(offset, 1, value) from error

    def write16(self, offset: int, value: int) -> None:
        """One 16-bit store."""
        if offset & 1 or not 0 <= offset <= self.size - 2:
            self._refuse("write", offset, 2)
        try:
            self._16[offset >> 1] = value
        except (TypeError, ValueError) as error:
            raise self._bad_value(offset, 2, value) from error

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit store."""
        if offset & 3 or not 0 <= offset <= self.size - 4:
            self._refuse("write", offset, 4)
        try:
            self._32[offset >> 2] = value
        except (TypeError, ValueError) as error:
            raise self._bad_value(offset, 4, value) from error

    def write64(self, offset: int, value: int) -> None:
        """One 64-bit store."""
        if offset & 7 or not 0 <= offset <= self.size - 8:
            self._refuse("write", offset, 8)
        try:
            self._64[offset >> 3] = value
        except (TypeError, ValueError) as error:
            raise self._bad_value(offset, 8, value) from error

    def release(self) -> None:
        """Let the mapping go, so that it can be unmapped; later accesses raise ValueError. Idempotent."""
        for view in (self._8, self._16, self._32, self._64):
            view.release()

    def _refuse(self, verb: str, offset: int, width: int) -> None:
        if offset % width:
            raise ValueError(f"{width}-byte {verb} at {offset:#x}: the offset is not a multiple of {width}")
        raise ValueError(f"{width}-byte {verb} at {offset:#x}: outside the mapping of {self.size:#x} bytes")

    def _bad_value(self, offset: int, width: int, value: object) -> Exception:
        where = f"{width}-byte write at {offset:#x}"
        if self._8.readonly:
            return TypeError(f"{where}: the mapping is read-only")
        if not isinstance(value, int):
            return TypeError(f"{where}: {value!r} is not an integer")
        return ValueError(f"{where}: {value:#x} does not fit {8 * width} bits")
