"""A very small assembler: the instructions that the tests of the management core are written in, as 32-bit words.

Encodings are those of the RISC-V unprivileged specification, chapter 34 (instruction set listings).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from emulator.management.riscv.board import Board, default_board
from emulator.management.riscv.csr import WORD_MASK
from emulator.management.riscv.machine import Machine, ModelFactory, Stop, StopReason

RAM = 0x8000_0000
CLINT = 0x0200_0000
PLIC = 0x0C00_0000
UART = 0x1000_0000
POWER_OFF = 0x0010_0000
_MTIMECMP = 0x4000
NOTHING = 0x0A00_0000
"""An address at which the default board has nothing."""

MSTATUS, MISA, MIE, MTVEC = 0x300, 0x301, 0x304, 0x305
MSCRATCH, MEPC, MCAUSE, MTVAL, MIP = 0x340, 0x341, 0x342, 0x343, 0x344
MCYCLE, MINSTRET, MCYCLEH, MINSTRETH = 0xB00, 0xB02, 0xB80, 0xB82
CYCLE, TIME, INSTRET, CYCLEH, TIMEH, INSTRETH = 0xC00, 0xC01, 0xC02, 0xC80, 0xC81, 0xC82

ECALL = 0x00000073
EBREAK = 0x00100073
MRET = 0x30200073
WFI = 0x10500073
FENCE_I = 0x0000100F
NOP = 0x00000013
C_NOP = 0x0001
"""Sixteen bits: two of them make a word, see `pair`."""
HERE = 0x0000006F
"""j ."""


def pair(low: int, high: int) -> int:
    """Two compressed instructions as one word."""
    return high << 16 | low


def addi(rd: int, rs1: int, immediate: int) -> int:
    """addi rd, rs1, immediate"""
    return (immediate & 0xFFF) << 20 | rs1 << 15 | rd << 7 | 0x13


def lui(rd: int, upper: int) -> int:
    """lui rd, upper >> 12"""
    return upper & 0xFFFFF000 | rd << 7 | 0x37


def li(rd: int, value: int) -> list[int]:
    """lui and addi: any 32-bit value."""
    return [lui(rd, value + 0x800), addi(rd, rd, value)]


def lw(rd: int, rs1: int, offset: int = 0) -> int:
    """lw rd, offset(rs1)"""
    return (offset & 0xFFF) << 20 | rs1 << 15 | 0b010 << 12 | rd << 7 | 0x03


def lbu(rd: int, rs1: int, offset: int = 0) -> int:
    """lbu rd, offset(rs1)"""
    return (offset & 0xFFF) << 20 | rs1 << 15 | 0b100 << 12 | rd << 7 | 0x03


def _store(width: int, rs2: int, rs1: int, offset: int) -> int:
    return (offset >> 5 & 0x7F) << 25 | rs2 << 20 | rs1 << 15 | width << 12 | (offset & 0x1F) << 7 | 0x23


def sw(rs2: int, rs1: int, offset: int = 0) -> int:
    """sw rs2, offset(rs1)"""
    return _store(0b010, rs2, rs1, offset)


def sb(rs2: int, rs1: int, offset: int = 0) -> int:
    """sb rs2, offset(rs1)"""
    return _store(0b000, rs2, rs1, offset)


def j(offset: int) -> int:
    """j . + offset"""
    bits = offset & 0x1FFFFF
    return (bits >> 20) << 31 | (bits >> 1 & 0x3FF) << 21 | (bits >> 11 & 1) << 20 | (bits >> 12 & 0xFF) << 12 | 0x6F


def beq(rs1: int, rs2: int, offset: int) -> int:
    """beq rs1, rs2, . + offset"""
    bits = offset & 0x1FFF
    high, low = (bits >> 12) << 6 | bits >> 5 & 0x3F, (bits >> 1 & 0xF) << 1 | bits >> 11 & 1
    return high << 25 | rs2 << 20 | rs1 << 15 | low << 7 | 0x63


def jr(rs1: int) -> int:
    """jr rs1"""
    return rs1 << 15 | 0x67


def csrrw(rd: int, csr: int, rs1: int) -> int:
    """csrrw rd, csr, rs1"""
    return csr << 20 | rs1 << 15 | 0b001 << 12 | rd << 7 | 0x73


def csrrs(rd: int, csr: int, rs1: int) -> int:
    """csrrs rd, csr, rs1"""
    return csr << 20 | rs1 << 15 | 0b010 << 12 | rd << 7 | 0x73


def csrrc(rd: int, csr: int, rs1: int) -> int:
    """csrrc rd, csr, rs1"""
    return csr << 20 | rs1 << 15 | 0b011 << 12 | rd << 7 | 0x73


def csrrwi(rd: int, csr: int, value: int) -> int:
    """csrrwi rd, csr, value"""
    return csr << 20 | value << 15 | 0b101 << 12 | rd << 7 | 0x73


def csrrsi(rd: int, csr: int, value: int) -> int:
    """csrrsi rd, csr, value"""
    return csr << 20 | value << 15 | 0b110 << 12 | rd << 7 | 0x73


def csrr(rd: int, csr: int) -> int:
    """csrr rd, csr"""
    return csrrs(rd, csr, 0)


def csrw(csr: int, rs1: int) -> int:
    """csrw csr, rs1"""
    return csrrw(0, csr, rs1)


def _atomic(funct5: int, rd: int, rs2: int, rs1: int) -> int:
    return funct5 << 27 | rs2 << 20 | rs1 << 15 | 0b010 << 12 | rd << 7 | 0x2F


def amoadd(rd: int, rs2: int, rs1: int) -> int:
    """amoadd.w rd, rs2, (rs1)"""
    return _atomic(0b00000, rd, rs2, rs1)


def lr(rd: int, rs1: int) -> int:
    """lr.w rd, (rs1)"""
    return _atomic(0b00010, rd, 0, rs1)


def sc(rd: int, rs2: int, rs1: int) -> int:
    """sc.w rd, rs2, (rs1)"""
    return _atomic(0b00011, rd, rs2, rs1)


def code(*words: int) -> bytes:
    """Words as the bytes of a program."""
    return struct.pack(f"<{len(words)}I", *words)


HANDLER = RAM + 0x400
"""Where `Rig` puts the trap handler: a jump to itself, unless a test stores another."""


class Rig:
    """A machine with the default board, a program at the beginning of RAM and a trap handler that stands still."""

    def __init__(
        self,
        *program: int,
        board: Board | None = None,
        models: dict[str, ModelFactory] | None = None,
        handler: tuple[int, ...] = (HERE,),
        transmit: Callable[[bytes], None] | None = None,
        access_cycles: int = 0,
    ) -> None:
        self.machine = Machine(board or default_board(), models=models, transmit=transmit, access_cycles=access_cycles)
        self.hart = self.machine.hart
        self.put(RAM, *program, HERE)
        self.put(HANDLER, *handler)
        self.write(MTVEC, HANDLER)
        for half in (_MTIMECMP, _MTIMECMP + 4):  # as programs do first: it is zero
            self.machine.clint.write(half, 4, WORD_MASK)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.machine.close()

    def put(self, address: int, *words: int) -> None:
        """Store a program."""
        self.machine.load_memory(address, code(*words))

    def run(self, instructions: int = 1000) -> Stop:
        """Run so many."""
        return self.machine.run(instructions)

    def run_to_trap(self) -> tuple[int, int, int]:
        """mcause, mepc and mtval of the first trap."""
        for _ in range(1000):
            if self.hart.pc == HANDLER:
                return self.read(MCAUSE), self.read(MEPC), self.read(MTVAL)
            assert self.machine.run(1).reason is StopReason.RUNNING
        raise AssertionError(f"no trap; the pc is {self.hart.pc:#x}")

    def read(self, csr: int) -> int:
        """A CSR between two instructions."""
        return self.hart.csrs.read(csr)

    def write(self, csr: int, value: int) -> None:
        """A CSR between two instructions."""
        self.hart.csrs.write(csr, value)

    def x(self, number: int) -> int:
        """A register."""
        return self.hart.read_register(number)
