"""BAR0's registers: access rules come from the declarations, behaviour from the table handed in.

Wrong width, alignment, offset or reserved bits: reads give zero, writes are ignored, and the fault is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from driver_shim.protocol.register_kinds import Access, Register, RegisterMap, ResetDomain

FaultReporter = Callable[[int, str], object]
StoredValues = dict[str, int]
"""What every register of a block stores, by name; the device's own side reads and sets it past the access rules."""
HALF_BYTES = 4


class Behaviour(NamedTuple):
    """The effects of reading and writing a register, beyond storing. Plain storage has neither."""

    read: Callable[[], int] | None = None
    """Gives the whole register's current value."""
    write: Callable[[int], None] | None = None
    """Called with the value that the host wrote, after the access rules were applied and the result stored."""


CONSTANT = Behaviour()
"""Reads its reset value for ever; only for registers without writable fields."""
STORAGE = Behaviour()
"""Reads what was written."""


def initial_values(registers: RegisterMap) -> StoredValues:
    """The values that the registers of a map store after power-on."""
    return {register.name: register.reset_value for register in registers}


class RegisterBlock:
    """All registers of a map; `behaviours` must name each of them, so that none is declared and dead."""

    def __init__(
        self,
        registers: RegisterMap,
        stored: StoredValues,
        behaviours: dict[str, Behaviour],
        report: FaultReporter,
    ) -> None:
        missing = registers.by_name.keys() ^ behaviours.keys()
        if missing:
            raise RuntimeError(f"registers and behaviours differ in {sorted(missing)}")
        self._map = registers
        self._behaviours = behaviours
        self._report = report
        self._values = stored
        self._latched_read: dict[str, int] = {}
        self._latched_write: dict[str, int] = {}

    def value(self, name: str) -> int:
        """Current value of a register, as the host would read it."""
        behaviour = self._behaviours[name]
        return behaviour.read() if behaviour.read else self._values[name]

    def reset(self, domains: set[ResetDomain]) -> None:
        """Bring the registers of these domains back to their reset values."""
        for register in self._map:
            if register.domain in domains:
                self._values[register.name] = register.reset_value
        self._latched_read.clear()
        self._latched_write.clear()

    def read(self, offset: int, size: int) -> int:
        """A host read of `size` bytes at `offset`."""
        register = self._addressed(offset, size, "read")
        if register is None:
            return 0
        if size == register.size:
            self._latched_read.pop(register.name, None)
            return self._readable(register)
        if offset == register.offset:
            value = self._readable(register)
            self._latched_read[register.name] = value >> 32
            return value & 0xFFFF_FFFF
        latched = self._latched_read.pop(register.name, None)
        return self._readable(register) >> 32 if latched is None else latched

    def write(self, offset: int, size: int, value: int) -> None:
        """A host write of `size` bytes at `offset`; a 64-bit register takes effect with its high half."""
        register = self._addressed(offset, size, "write")
        if register is None:
            return
        if size != register.size:
            if offset == register.offset:
                self._latched_write[register.name] = value
                return
            low = self._latched_write.pop(register.name, self._values[register.name] & 0xFFFF_FFFF)
            value = value << 32 | low
        else:
            self._latched_write.pop(register.name, None)
        if value & ~register.declared_mask:
            self._report(offset, f"write of {value:#x} sets reserved bits of {register.name}")
            return
        self._apply(register, value)

    def dump(self) -> bytes:
        """Registers by offset as the host would read them, from 0 to the end of the last one."""
        last = max(self._map, key=lambda register: register.offset)
        image = bytearray(last.offset + last.size)
        for register in self._map:
            value = self._readable(register)
            image[register.offset : register.offset + register.size] = value.to_bytes(register.size, "little")
        return bytes(image)

    def _addressed(self, offset: int, size: int, verb: str) -> Register | None:
        register = self._map.covering(offset)
        if register is None:
            self._report(offset, f"{verb} of {size} bytes at {offset:#x}, where no register is")
            return None
        whole = size == register.size and offset == register.offset
        half = size == HALF_BYTES and register.size == 2 * HALF_BYTES and offset % HALF_BYTES == 0
        if not (whole or half):
            self._report(offset, f"{verb} of {size} bytes at {offset:#x}; {register.name} takes {register.size}")
            return None
        return register

    def _readable(self, register: Register) -> int:
        return self.value(register.name) & ~register.mask_of(Access.WO, Access.W1S)

    def _apply(self, register: Register, value: int) -> None:
        old = self.value(register.name)
        stored = register.mask_of(Access.RW, Access.WO)
        cleared = register.mask_of(Access.RW1C)
        kept = old & ~(stored | cleared)
        self._values[register.name] = kept | (value & stored) | (old & cleared & ~value)
        behaviour = self._behaviours[register.name]
        if behaviour.write:
            behaviour.write(value)
