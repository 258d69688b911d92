"""The control and status registers of an M-mode-only hart (privileged specification 1.12, chapter 3)."""

from __future__ import annotations

import enum
from collections.abc import Callable

WORD_MASK = 0xFFFFFFFF

MSTATUS_MIE = 1 << 3
MSTATUS_MPIE = 1 << 7
MSTATUS_MPP = 0b11 << 11
"""Reads as M: there is no other mode."""

MTVEC_VECTORED = 1

INTERRUPT_BIT = 1 << 31
"""Of mcause."""


class Csr(enum.IntEnum):
    """Numbers of the registers that hold something."""

    MSTATUS = 0x300
    MISA = 0x301
    MIE = 0x304
    MTVEC = 0x305
    MSTATUSH = 0x310
    MCOUNTINHIBIT = 0x320
    MSCRATCH = 0x340
    MEPC = 0x341
    MCAUSE = 0x342
    MTVAL = 0x343
    MIP = 0x344
    MCYCLE = 0xB00
    MINSTRET = 0xB02
    MCYCLEH = 0xB80
    MINSTRETH = 0xB82
    CYCLE = 0xC00
    TIME = 0xC01
    INSTRET = 0xC02
    CYCLEH = 0xC80
    TIMEH = 0xC81
    INSTRETH = 0xC82
    MVENDORID = 0xF11
    MARCHID = 0xF12
    MIMPID = 0xF13
    MHARTID = 0xF14
    MCONFIGPTR = 0xF15


class Interrupt(enum.IntEnum):
    """Bit in mip and mie, code in mcause."""

    SOFTWARE = 3
    TIMER = 7
    EXTERNAL = 11


TIME_REGISTERS = frozenset((Csr.TIME, Csr.TIMEH))
INTERRUPT_PRIORITY = (Interrupt.EXTERNAL, Interrupt.SOFTWARE, Interrupt.TIMER)
INTERRUPT_MASK = sum(1 << interrupt for interrupt in Interrupt)

MISA_RV32IMAC = 1 << 30 | sum(1 << (ord(letter) - ord("A")) for letter in "IMAC")

_READ_ONLY_ZERO = frozenset(
    [
        Csr.MSTATUSH,
        Csr.MCOUNTINHIBIT,
        Csr.MVENDORID,
        Csr.MARCHID,
        Csr.MIMPID,
        Csr.MHARTID,
        Csr.MCONFIGPTR,
        0x180,  # satp
        0x302,  # medeleg
        0x303,  # mideleg
        0x306,  # mcounteren
        0x30A,  # menvcfg
        0x31A,  # menvcfgh
        *range(0x323, 0x340),  # mhpmevent3 to 31
        *range(0x3A0, 0x3A4),  # pmpcfg0 to 3: no region is implemented
        *range(0x3B0, 0x3C0),  # pmpaddr0 to 15
        *range(0xB03, 0xB20),  # mhpmcounter3 to 31
        *range(0xB83, 0xBA0),
        *range(0xC03, 0xC20),  # hpmcounter3 to 31
        *range(0xC83, 0xCA0),
    ]
)
"""Registers that must or may exist and hold nothing; stores to those that can be written are dropped.

The first ones in hexadecimal belong to modes that this hart lacks. Start-up code clears them unasked, so it would trap.
"""

_STORED: dict[int, tuple[int, int]] = {
    Csr.MSTATUS: (MSTATUS_MPP, MSTATUS_MIE | MSTATUS_MPIE),
    Csr.MIE: (0, INTERRUPT_MASK),
    Csr.MTVEC: (0, WORD_MASK & ~0b10),
    Csr.MSCRATCH: (0, WORD_MASK),
    Csr.MEPC: (0, WORD_MASK & ~1),
    Csr.MCAUSE: (0, WORD_MASK),
    Csr.MTVAL: (0, WORD_MASK),
}
"""Value after a reset, bits that can be written."""


class IllegalCsr(Exception):
    """No such register, or it cannot be written: an illegal instruction."""


class ControlRegisters:
    """The registers' values. Whose clock they count by is the hart's to say."""

    def __init__(self, cycle: Callable[[], int], retired: Callable[[], int], time: Callable[[], int]) -> None:
        """The three give cycles, retired instructions and `mtime` before the current instruction."""
        self._cycle = cycle
        self._retired = retired
        self.pending = 0
        """`mip`: the levels of the interrupt lines, driven from outside."""
        self._computed: dict[int, Callable[[], int]] = {
            Csr.MIP: lambda: self.pending,
            Csr.MISA: lambda: MISA_RV32IMAC,
            **dict.fromkeys((Csr.MCYCLE, Csr.CYCLE), lambda: cycle() + self._cycle_offset),
            **dict.fromkeys((Csr.MCYCLEH, Csr.CYCLEH), lambda: cycle() + self._cycle_offset >> 32),
            **dict.fromkeys((Csr.MINSTRET, Csr.INSTRET), lambda: retired() + self._retired_offset),
            **dict.fromkeys((Csr.MINSTRETH, Csr.INSTRETH), lambda: retired() + self._retired_offset >> 32),
            Csr.TIME: time,
            Csr.TIMEH: lambda: time() >> 32,
        }
        self.reset()

    def reset(self) -> None:
        """Every register takes its first value; the counters start at zero."""
        self.values: dict[int, int] = {number: first for number, (first, _) in _STORED.items()}
        self._cycle_offset = -self._cycle()
        self._retired_offset = -self._retired()

    def deliverable(self) -> Interrupt | None:
        """The interrupt that the hart must take now."""
        waiting = self.pending and self.pending & self.values[Csr.MIE]
        if not waiting or not self.values[Csr.MSTATUS] & MSTATUS_MIE:
            return None
        return next(interrupt for interrupt in INTERRUPT_PRIORITY if waiting >> interrupt & 1)

    def wakes(self) -> bool:
        """Whether an interrupt ends wfi; mstatus.MIE does not matter for that."""
        return bool(self.pending & self.values[Csr.MIE])

    def enter_trap(self, cause: int, value: int, pc: int) -> int:
        """An exception's or interrupt's entry; where the handler is."""
        values = self.values
        values[Csr.MEPC] = pc & ~1
        values[Csr.MCAUSE] = cause
        values[Csr.MTVAL] = value & WORD_MASK
        enabled = values[Csr.MSTATUS] & MSTATUS_MIE
        values[Csr.MSTATUS] = MSTATUS_MPP | (MSTATUS_MPIE if enabled else 0)
        vector = values[Csr.MTVEC]
        base = vector & ~0b11
        if cause & INTERRUPT_BIT and vector & MTVEC_VECTORED:
            base += 4 * (cause & ~INTERRUPT_BIT)
        return base & WORD_MASK

    def leave_trap(self) -> int:
        """`mret`: where the program goes on."""
        enabled = self.values[Csr.MSTATUS] & MSTATUS_MPIE
        self.values[Csr.MSTATUS] = MSTATUS_MPP | MSTATUS_MPIE | (MSTATUS_MIE if enabled else 0)
        return self.values[Csr.MEPC]

    def read(self, number: int) -> int:
        """The value. Raises IllegalCsr when there is no such register."""
        stored = self.values.get(number)
        if stored is not None:
            return stored
        if number in _READ_ONLY_ZERO:
            return 0
        reader = self._computed.get(number)
        if reader is not None:
            return reader() & WORD_MASK
        raise IllegalCsr(f"there is no CSR {number:#x}")

    def write(self, number: int, value: int) -> None:
        """Store the bits that can be written. Raises IllegalCsr when the register is absent or read-only."""
        if number >> 10 == 0b11:
            raise IllegalCsr(f"CSR {number:#x} is read-only")
        described = _STORED.get(number)
        if described is not None:
            first, mask = described
            self.values[number] = first & ~mask | value & mask
            return
        match number:
            case Csr.MCYCLE | Csr.MCYCLEH:
                self._cycle_offset = _offset_for(number == Csr.MCYCLEH, value, self._cycle(), self._cycle_offset)
            case Csr.MINSTRET | Csr.MINSTRETH:
                self._retired_offset = _offset_for(
                    number == Csr.MINSTRETH, value, self._retired(), self._retired_offset
                )
            case _:
                self.read(number)


def _offset_for(upper: bool, value: int, now: int, offset: int) -> int:
    """The offset at which the next instruction reads what was written."""
    count = now + offset
    if upper:
        return (value << 32 | count & WORD_MASK) - now
    # A write of the lower half stands in for the increment of the instruction that writes.
    return (count & (WORD_MASK << 32) | value) - (now + 1)
