"""What is exported: the one table of register maps, each the view that somebody has of the device."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.register_kinds import RegisterMap
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR, REGISTERS, Feature, Post

CONTRACT = f"{CONTRACT_MAJOR}.{CONTRACT_MINOR}"
Enumeration = type[enum.IntEnum] | type[enum.IntFlag]


class ExportedBlock(NamedTuple):
    """Registers that lie together at `base` of a map."""

    name: str
    base: int
    registers: RegisterMap
    title: str
    interrupt: int | None = None
    """The block's input of the interrupt controller."""
    values: Mapping[str, Enumeration] = {}
    """"register.field" → the names of the field's values, or of its bits."""

    def values_of(self, register: str, field: str) -> Enumeration | None:
        """What the values of a field are called; None when they are plain numbers."""
        return self.values.get(f"{register}.{field}")


class ExportedMap(NamedTuple):
    """One address space."""

    name: str
    title: str
    blocks: tuple[ExportedBlock, ...]


_ALL = (
    ExportedMap(
        "host",
        "Registers that the host sees in BAR0",
        (
            ExportedBlock(
                "bar0",
                0,
                REGISTERS,
                "Offsets are relative to wherever BAR0 is mapped.",
                values={
                    "features.bits": Feature,
                    "boot_progress.post_code": Post,
                    "reset_cause.cause": ResetCause,
                    "black_box.cause": ResetCause,
                },
            ),
        ),
    ),
)
MAPS: dict[str, ExportedMap] = {each.name: each for each in _ALL}


def enumerations(maps: Sequence[ExportedMap]) -> Iterator[Enumeration]:
    """The enumerations that fields of these maps use, each once."""
    yield from dict.fromkeys(kind for each in maps for block in each.blocks for kind in block.values.values())
