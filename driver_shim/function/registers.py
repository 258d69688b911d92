"""Typed access to the registers of an open function: `regs.status.ready`, `regs.control.write(enable=1)`."""

from __future__ import annotations

from collections.abc import Iterator

from driver_shim.errors import DeviceLost
from driver_shim.protocol.register_kinds import Register
from driver_shim.protocol.registers import ALL_ONES_32, BAR0, IDENTITY, REGISTERS
from driver_shim.transport.base import Transport


class RegisterAccess:
    """One register of a device. Reading an attribute named like a field reads the register and extracts it."""

    def __init__(self, transport: Transport, register: Register) -> None:
        self._transport = transport
        self.declaration = register

    def __getattr__(self, field: str) -> int:
        declaration = self.__dict__["declaration"]
        if field not in declaration.fields:
            raise AttributeError(f"{declaration.name} has no field {field!r}; it has {', '.join(declaration.fields)}")
        return int(declaration.extract(self.read(), field))

    def __repr__(self) -> str:
        return f"RegisterAccess({self.declaration.name!r})"

    def read(self) -> int:
        """The whole register. Raises DeviceLost."""
        return self._transport.read(BAR0, self.declaration.offset, self.declaration.size)

    def fields(self) -> dict[str, int]:
        """All fields from one read."""
        return self.declaration.decode(self.read())

    def write(self, **fields: int) -> None:
        """Write these fields, all others zero. Raises FieldError when a value does not fit."""
        self.write_value(self.declaration.encode(**fields))

    def write_value(self, value: int) -> None:
        """Write the whole register. Raises ValueError when the value does not fit."""
        self.declaration.decode(value)
        self._transport.write(BAR0, self.declaration.offset, value, self.declaration.size)


class Registers:
    """All registers of a function, by name."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._by_name = {register.name: RegisterAccess(transport, register) for register in REGISTERS}

    def __getattr__(self, name: str) -> RegisterAccess:
        try:
            return self.__dict__["_by_name"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"no register {name!r}; see docs/registers.md") from None

    def __getitem__(self, name: str) -> RegisterAccess:
        return self._by_name[name]

    def __iter__(self) -> Iterator[RegisterAccess]:
        return iter(self._by_name.values())

    def check_alive(self) -> None:
        """Raise DeviceLost unless the identity register answers as it must."""
        value = self.identity.read()
        if value != IDENTITY:
            seen = "all ones" if value == ALL_ONES_32 else f"{value:#010x}"
            raise DeviceLost(
                f"{self._transport.address}: the identity register reads {seen}, not {IDENTITY:#010x}",
                device=self._transport.address,
                subsystem="registers",
                remedy="the device is gone or is not one of ours; check power and link, then open it again",
            )
