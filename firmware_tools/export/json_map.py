"""The register maps as plain data for JSON: addresses and register values are strings, counts are numbers."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from driver_shim.protocol.register_kinds import Field, Register
from firmware_tools.export.maps import Enumeration, ExportedBlock, ExportedMap


def json_maps(maps: Sequence[ExportedMap]) -> list[dict[str, Any]]:
    """These maps, each with its blocks, registers and fields."""
    return [
        {
            "name": each.name,
            "title": each.title,
            "constants": {name: hex(value) for name, value in each.constants.items()},
            "enumerations": [_values(kind) for kind in each.enumerations],
            "blocks": [_block(block) for block in each.blocks],
        }
        for each in maps
    ]


def _block(block: ExportedBlock) -> dict[str, Any]:
    return {
        "name": block.name,
        "base": _hexadecimal(block.base, 4),
        "size_bytes": block.registers.size,
        "interrupt": block.interrupt,
        "description": block.title,
        "registers": [_register(block, register) for register in block.registers],
    }


def _register(block: ExportedBlock, register: Register) -> dict[str, Any]:
    return {
        "name": register.name,
        "offset": _hexadecimal(register.offset, 2),
        "size_bytes": register.size,
        "reset": _hexadecimal(register.reset_value, register.size),
        "reset_domain": register.domain.value,
        "valid_from": register.valid_from.value,
        "description": register.doc,
        "fields": [_field(field, block.values_of(register.name, field.name)) for field in register.fields.values()],
    }


def _field(field: Field, values: Enumeration | None) -> dict[str, Any]:
    return {
        "name": field.name,
        "lsb": field.lsb,
        "width_bits": field.width,
        "access": field.access.value,
        "reset": hex(field.reset),
        "description": field.doc,
        "values": None if values is None else _values(values),
    }


def _values(kind: Enumeration) -> dict[str, Any]:
    return {
        "name": kind.__name__,
        "flags": issubclass(kind, enum.IntFlag),
        "members": {member.name: hex(member) for member in kind},
    }


def _hexadecimal(value: int, size: int) -> str:
    return f"0x{value:0{2 * size}x}"
