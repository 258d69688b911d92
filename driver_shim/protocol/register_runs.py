"""Runs of registers: `data_0`, `data_1` … as the one array that they are to whoever reads or writes about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from driver_shim.protocol.register_kinds import Register


class RegisterRun(NamedTuple):
    """`length` registers one after the other that differ in nothing but their number; mostly a single one."""

    name: str
    first: Register
    length: int

    @property
    def names(self) -> str:
        """For people: `scratch`, or `data_0` … `data_63`."""
        return f"`{self.first.name}`" + (f" … `{self.name}_{self.length - 1}`" if self.length > 1 else "")


def runs(registers: Iterable[Register]) -> Iterator[RegisterRun]:
    """These registers in their order, arrays taken together."""
    left = list(registers)
    while left:
        first = left[0]
        stem, _, number = first.name.rpartition("_")
        count = 1
        if number == "0":
            while count < len(left) and _is_element(left[count], first, f"{stem}_{count}", count):
                count += 1
        yield RegisterRun(stem if count > 1 else first.name, first, count)
        del left[:count]


def _is_element(register: Register, first: Register, name: str, index: int) -> bool:
    return (
        register.name == name
        and register.offset == first.offset + index * first.size
        and (register.size, register.fields) == (first.size, first.fields)
        and (register.doc, register.domain, register.valid_from) == (first.doc, first.domain, first.valid_from)
    )
