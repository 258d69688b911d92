"""The platform-level interrupt controller (RISC-V PLIC specification 1.0.0) with one context: the hart's M-mode."""

from __future__ import annotations

from collections.abc import Callable

from emulator.management.riscv.peripheral import Peripheral

SOURCES = 127
"""Sources 1 to 127; 0 means no interrupt."""
PRIORITY_MASK = 0b111

_PRIORITY_END = 4 * (SOURCES + 1)
_PENDING = 0x1000
_ENABLE = 0x2000
_BITMAP_BYTES = (SOURCES + 1) // 8
_THRESHOLD = 0x200000
_CLAIM = 0x200004
_WORD_MASK = 0xFFFFFFFF


class Plic(Peripheral):
    """Level-triggered sources: a request is pending until it is claimed, and comes again if its level still stands."""

    size_bytes = 0x400000

    def __init__(self, set_external: Callable[[bool], None]) -> None:
        """`set_external` drives the hart's external interrupt line."""
        self._set_external = set_external
        self._levels = 0
        self._pending = 0
        self._in_service = 0
        self._enabled = 0
        self._threshold = 0
        self._priorities = [0] * (SOURCES + 1)

    def reset(self) -> None:
        """Nothing is enabled; the levels are the sources' own."""
        self._in_service = self._enabled = self._threshold = 0
        self._priorities = [0] * (SOURCES + 1)
        self._pending = self._levels
        self._drive()

    def set_level(self, source: int, level: bool) -> None:
        """Drive one source's line; source 0 is not connected."""
        if not 0 <= source <= SOURCES:
            raise ValueError(f"interrupt source {source} does not exist; allowed: 0 (not connected) to {SOURCES}")
        bit = 1 << source & ~1
        self._levels = self._levels | bit if level else self._levels & ~bit
        if bit & self._levels & ~self._in_service:
            self._pending |= bit
            self._drive()

    def read(self, offset: int, size: int) -> int:
        """See `Peripheral`. Registers are 32 bits wide; anything else reads as zero, without effects."""
        if size != 4:
            return 0
        if offset < _PRIORITY_END:
            return self._priorities[offset // 4]
        if _PENDING <= offset < _PENDING + _BITMAP_BYTES:
            return self._pending >> 8 * (offset - _PENDING) & _WORD_MASK
        if _ENABLE <= offset < _ENABLE + _BITMAP_BYTES:
            return self._enabled >> 8 * (offset - _ENABLE) & _WORD_MASK
        if offset == _THRESHOLD:
            return self._threshold
        if offset == _CLAIM:
            return self._claim()
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """See `Peripheral`."""
        if size != 4:
            return
        if 4 <= offset < _PRIORITY_END:
            self._priorities[offset // 4] = value & PRIORITY_MASK
        elif _ENABLE <= offset < _ENABLE + _BITMAP_BYTES:
            shift = 8 * (offset - _ENABLE)
            self._enabled = (self._enabled & ~(_WORD_MASK << shift) | value << shift) & ~1
        elif offset == _THRESHOLD:
            self._threshold = value & PRIORITY_MASK
        elif offset == _CLAIM:
            self._complete(value)
        self._drive()

    def _best(self, floor: int) -> int:
        """The enabled pending source of the highest priority above `floor`, the lowest number among equals; or 0."""
        best = 0
        candidates = self._pending & self._enabled
        while candidates:
            source = (candidates & -candidates).bit_length() - 1
            candidates &= candidates - 1
            if self._priorities[source] > floor:
                best, floor = source, self._priorities[source]
        return best

    def _claim(self) -> int:
        source = self._best(floor=0)
        if source:
            self._pending &= ~(1 << source)
            self._in_service |= 1 << source
            self._drive()
        return source

    def _complete(self, source: int) -> None:
        bit = 1 << source if 1 <= source <= SOURCES else 0
        # Completion of a source that is not enabled is ignored, as the specification asks.
        if bit & self._in_service & self._enabled:
            self._in_service &= ~bit
            self._pending |= bit & self._levels

    def _drive(self) -> None:
        self._set_external(self._best(self._threshold) != 0)
