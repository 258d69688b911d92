"""Declarations of registers: fields with access, reset value, reset domain, first valid stage and a sentence.

A `Register` is a Construct `BitStruct`; shift-and-mask codecs for hot paths are derived from it, and a value that
does not fit raises `FieldError`. The map itself is in `registers.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, NamedTuple

import construct

from driver_shim.protocol.layout import FieldError, LayoutError


class Access(enum.Enum):
    """What a host access does to a field. There is no read-to-clear: looking must not change what is looked at."""

    RO = "RO"
    RW = "RW"
    RW1C = "RW1C"
    """Writing one clears the bit, zero leaves it."""
    W1S = "W1S"
    """Writing one starts or sets; reads as the device defines; zero leaves it."""
    WO = "WO"
    """Reads zero."""


class ResetDomain(enum.Enum):
    """Which reset brings a register back to its reset value (docs/reset.md)."""

    COLD = "cold"
    FUNCTION = "function"
    ENGINE = "engine"
    CONTEXT = "context"


class ValidFrom(enum.Enum):
    """Earliest boot stage at which a register means something."""

    POWER_ON = "power-on"
    BOOT_ROM = "boot ROM"
    FIRMWARE = "firmware"
    READY = "ready"


class Field(NamedTuple):
    """Bits `lsb` to `lsb + width - 1` of a register."""

    name: str
    lsb: int
    width: int
    access: Access
    doc: str
    reset: int = 0

    @property
    def mask(self) -> int:
        """Ones at the field's bits."""
        return ((1 << self.width) - 1) << self.lsb


class Register:
    """One register: `size` bytes at `offset` of BAR0."""

    def __init__(
        self,
        name: str,
        offset: int,
        size: int,
        doc: str,
        *fields: Field,
        domain: ResetDomain = ResetDomain.FUNCTION,
        valid_from: ValidFrom = ValidFrom.POWER_ON,
    ) -> None:
        if size not in (4, 8) or offset % size:
            raise LayoutError(f"{name}: {size} bytes at {offset:#x} is not a naturally aligned 32- or 64-bit register")
        self.name, self.offset, self.size, self.doc = name, offset, size, doc
        self.domain, self.valid_from = domain, valid_from
        self.fields: dict[str, Field] = {}
        taken = 0
        for field in sorted(fields, key=lambda field: field.lsb):
            if field.name in self.fields:
                raise LayoutError(f"{name}.{field.name}: declared twice")
            if taken & field.mask or field.mask >> 8 * size:
                raise LayoutError(f"{name}.{field.name}: overlaps another field or exceeds {8 * size} bits")
            if field.reset >> field.width:
                raise LayoutError(f"{name}.{field.name}: reset value {field.reset:#x} exceeds {field.width} bits")
            taken |= field.mask
            self.fields[field.name] = field
        self.declared_mask = taken
        self.reset_value = sum(field.reset << field.lsb for field in self.fields.values())
        self.construct = self._bit_struct()

    def __repr__(self) -> str:
        return f"Register({self.name!r}, {self.offset:#06x})"

    def _bit_struct(self) -> Any:
        """The Construct declaration: most significant bits first, byte-swapped to little-endian."""
        parts: list[Any] = []
        top = 8 * self.size
        for field in reversed(self.fields.values()):
            if gap := top - field.lsb - field.width:
                parts.append(construct.Padding(gap))
            parts.append(field.name / construct.BitsInteger(field.width))
            top = field.lsb
        if top:
            parts.append(construct.Padding(top))
        return construct.ByteSwapped(construct.BitStruct(*parts))

    def mask_of(self, *accesses: Access) -> int:
        """Ones at all bits whose field has one of these accesses."""
        return sum(field.mask for field in self.fields.values() if field.access in accesses)

    def encode(self, **values: int) -> int:
        """The register value with these fields, all others zero. Raises FieldError naming field, width, value."""
        result = 0
        for name, value in values.items():
            field = self.fields.get(name)
            if field is None:
                raise FieldError(f"{self.name} has no field {name!r}; it has {', '.join(self.fields)}")
            if not isinstance(value, int) or value < 0 or value >> field.width:
                raise FieldError(f"{self.name}.{name}: {value!r} does not fit {field.width} bits")
            result |= value << field.lsb
        return result

    def decode(self, value: int) -> dict[str, int]:
        """All fields of a register value."""
        if value < 0 or value >> 8 * self.size:
            raise FieldError(f"{self.name}: {value:#x} does not fit {8 * self.size} bits")
        return {name: (value & field.mask) >> field.lsb for name, field in self.fields.items()}

    def extract(self, value: int, field_name: str) -> int:
        """One field of a register value."""
        field = self.fields[field_name]
        return (value & field.mask) >> field.lsb


class RegisterMap:
    """Registers of one region by name and by offset; overlaps are refused at import."""

    def __init__(self, size: int, *registers: Register) -> None:
        self.size = size
        self.by_name: dict[str, Register] = {}
        self.by_offset: dict[int, Register] = {}
        end = 0
        for register in sorted(registers, key=lambda register: register.offset):
            if register.offset < end:
                raise LayoutError(f"{register.name} at {register.offset:#x} overlaps the register before it")
            if register.name in self.by_name:
                raise LayoutError(f"{register.name}: declared twice")
            end = register.offset + register.size
            if end > size:
                raise LayoutError(f"{register.name} ends at {end:#x}, the region at {size:#x}")
            self.by_name[register.name] = register
            self.by_offset[register.offset] = register

    def __iter__(self) -> Iterator[Register]:
        return iter(self.by_offset.values())

    def __getitem__(self, name: str) -> Register:
        return self.by_name[name]

    def covering(self, offset: int) -> Register | None:
        """The register that holds the byte at `offset`, if any."""
        for start in (offset & ~3, offset & ~7):
            register = self.by_offset.get(start)
            if register is not None and offset < start + register.size:
                return register
        return None
