"""The little of the RISC-V encoding that the emulator must read itself (unprivileged specification)."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass

OPCODE_LOAD = 0x03
OPCODE_STORE = 0x23
OPCODE_AMO = 0x2F
OPCODE_FLOAT = 0x53
OPCODE_SYSTEM = 0x73

MRET = 0x30200073
WFI = 0x10500073

_SFENCE_VMA, _SFENCE_VMA_MASK = 0x12000073, 0xFE007FFF

FUNCT5_LOAD_RESERVED = 0b00010

CYCLE_COUNTERS = frozenset({0xC00, 0xC02, 0xC80, 0xC82})
"""`cycle`, `instret` and their upper halves."""


_FOREIGN_COMPRESSED = frozenset({(1, 0), (3, 0), (4, 0), (5, 0), (7, 0), (1, 2), (3, 2), (5, 2), (7, 2)})
"""funct3 and quadrant of floating-point loads and stores, and of what is reserved."""


def is_address_fence(instruction: int) -> bool:
    """Whether it is sfence.vma of any addresses."""
    return instruction & _SFENCE_VMA_MASK == _SFENCE_VMA


def is_compressed(instruction: int) -> bool:
    """Whether it has 16 bits."""
    return instruction & 0b11 != 0b11


def length_bytes(instruction: int) -> int:
    """2 or 4; longer encodings are reserved."""
    return 2 if is_compressed(instruction) else 4


def destination(instruction: int) -> int:
    """The register `rd` of a 32-bit instruction."""
    return instruction >> 7 & 0x1F


def first_source(instruction: int) -> int:
    """The register `rs1` of a 32-bit instruction, or the immediate of the CSR instructions that have one."""
    return instruction >> 15 & 0x1F


class CsrOperation(enum.IntEnum):
    """The two low bits of a CSR instruction's funct3."""

    WRITE = 1
    SET = 2
    CLEAR = 3


@dataclass(frozen=True)
class CsrInstruction:
    """csrrw, csrrs, csrrc and their immediate forms."""

    operation: CsrOperation
    immediate: bool
    number: int
    destination: int
    source: int
    """A register, or the value itself when `immediate`."""

    @property
    def writes(self) -> bool:
        """Setting or clearing nothing is not a write."""
        return self.operation is CsrOperation.WRITE or self.source != 0


@functools.lru_cache(maxsize=1024)
def decode_csr(instruction: int) -> CsrInstruction | None:
    """None when it is another instruction."""
    funct3 = instruction >> 12 & 0b111
    if instruction & 0x7F != OPCODE_SYSTEM or funct3 & 0b11 == 0:
        return None
    return CsrInstruction(
        operation=CsrOperation(funct3 & 0b11),
        immediate=bool(funct3 & 0b100),
        number=instruction >> 20,
        destination=destination(instruction),
        source=first_source(instruction),
    )


@dataclass(frozen=True)
class MemoryAccess:
    """What a load, store or atomic does."""

    store: bool
    """It counts as a store for the cause of its exceptions; atomics do, except lr."""
    destination: int | None
    """The register that takes what was read."""
    base: int | None = None
    """The register that holds the address, where that is all of it: atomics."""


def decode_access(instruction: int) -> MemoryAccess | None:
    """None when it accesses no memory."""
    if is_compressed(instruction):
        return _decode_compressed_access(instruction)
    opcode = instruction & 0x7F
    if opcode == OPCODE_LOAD:
        return MemoryAccess(store=False, destination=destination(instruction))
    if opcode == OPCODE_STORE:
        return MemoryAccess(store=True, destination=None)
    if opcode == OPCODE_AMO:
        return MemoryAccess(
            store=instruction >> 27 != FUNCT5_LOAD_RESERVED,
            destination=destination(instruction),
            base=first_source(instruction),
        )
    return None


def _decode_compressed_access(instruction: int) -> MemoryAccess | None:
    match instruction >> 13 & 0b111, instruction & 0b11:
        case 0b010, 0b00:  # c.lw: three bits name x8 to x15
            return MemoryAccess(store=False, destination=8 + (instruction >> 2 & 0b111))
        case 0b010, 0b10:  # c.lwsp
            return MemoryAccess(store=False, destination=destination(instruction))
        case (0b110, 0b00) | (0b110, 0b10):  # c.sw, c.swsp
            return MemoryAccess(store=True, destination=None)
    return None


def reads_cycle_counter(instruction: int) -> bool:
    """Whether it is a CSR instruction on `cycle`, `instret` or one of their upper halves."""
    return instruction & 0x7F == OPCODE_SYSTEM and instruction >> 20 in CYCLE_COUNTERS and instruction >> 12 & 0b11 != 0


def is_foreign(instruction: int) -> bool:
    """Whether unicorn runs it, to no effect, though RV32IMAC does not have it: floating point, or of 64-bit harts."""
    if not is_compressed(instruction):
        return instruction & 0x7F == OPCODE_FLOAT
    sixth_bit = bool(instruction >> 12 & 1)
    match instruction >> 13 & 0b111, instruction & 0b11:
        case 0b100, 0b01:  # shifts by 32 and more, operations on words; c.andi has its immediate's sign there
            return sixth_bit and instruction >> 10 & 0b11 != 0b10
        case 0b000, 0b10:  # c.slli by 32 and more
            return sixth_bit
        case kind:
            return kind in _FOREIGN_COMPRESSED


def intercepted_places(code: bytes) -> list[int]:
    """The offsets in straight-line code of what unicorn must not do by itself."""
    found = []
    offset = 0
    while offset + 2 <= len(code):
        instruction = int.from_bytes(code[offset : offset + 4], "little")
        if is_foreign(instruction) or reads_cycle_counter(instruction):
            found.append(offset)
        offset += length_bytes(instruction)
    return found
