"""The core-local interruptor: `mtime`, `mtimecmp` and the software interrupt, at the offsets of SiFive's CLINT."""

from __future__ import annotations

import enum
from collections.abc import Callable

from emulator.management.riscv.csr import Interrupt
from emulator.management.riscv.peripheral import MachinePort, Peripheral


class _Register(enum.IntEnum):
    MSIP = 0x0000
    MTIMECMP = 0x4000
    MTIMECMP_HIGH = 0x4004
    MTIME = 0xBFF8
    MTIME_HIGH = 0xBFFC


_MASK = (1 << 64) - 1
_WORD_MASK = 0xFFFFFFFF


class Clint(Peripheral):
    """Drives the timer and software lines of one hart. Registers are 32 bits wide; narrower accesses see their part."""

    size_bytes = 0x10000

    def __init__(self, port: MachinePort, set_pending: Callable[[Interrupt, bool], None]) -> None:
        """`set_pending` drives a line of the hart."""
        self._port = port
        self._set_pending = set_pending
        self._software = False
        self._compare = 0
        self._timer = False
        self._offset = 0

    @property
    def time(self) -> int:
        """`mtime`."""
        return self._port.tick + self._offset & _MASK

    def reset(self) -> None:
        """`mtime` runs as it did after power-on, no software interrupt. `mtimecmp` is zero, as on QEMU's board: the
        timer interrupt is pending until the program sets it.
        """
        self._software = False
        self._compare = 0
        self._offset = 0
        self._drive()

    def read(self, offset: int, size: int) -> int:
        """See `Peripheral`."""
        word = self._read_word(offset & ~0b11)
        return word >> 8 * (offset & 0b11) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """See `Peripheral`."""
        place = offset & ~0b11
        shift, mask = 8 * (offset & 0b11), (1 << 8 * size) - 1
        word = self._read_word(place) & ~(mask << shift) | (value & mask) << shift
        match place:
            case _Register.MSIP:
                self._software = bool(word & 1)
            case _Register.MTIMECMP:
                self._compare = self._compare & ~_WORD_MASK | word
            case _Register.MTIMECMP_HIGH:
                self._compare = self._compare & _WORD_MASK | word << 32
            case _Register.MTIME:
                self._set_time(self.time & ~_WORD_MASK | word)
            case _Register.MTIME_HIGH:
                self._set_time(self.time & _WORD_MASK | word << 32)
        self._drive()

    def deadline(self) -> int | None:
        """The tick at which the timer interrupt comes."""
        if self._timer or self._compare == _MASK:
            return None
        return self._port.tick + self._compare - self.time

    def expire(self) -> None:
        """The timer interrupt has come."""
        self._drive()

    def _read_word(self, place: int) -> int:
        match place:
            case _Register.MSIP:
                return int(self._software)
            case _Register.MTIMECMP:
                return self._compare & _WORD_MASK
            case _Register.MTIMECMP_HIGH:
                return self._compare >> 32
            case _Register.MTIME:
                return self.time & _WORD_MASK
            case _Register.MTIME_HIGH:
                return self.time >> 32
        return 0

    def _set_time(self, time: int) -> None:
        self._offset = time - self._port.tick

    def _drive(self) -> None:
        self._set_pending(Interrupt.SOFTWARE, self._software)
        self._timer = self.time >= self._compare
        self._set_pending(Interrupt.TIMER, self._timer)
