"""The table of exported maps, registers that are arrays, and the maps as JSON."""

from __future__ import annotations

from typing import Any

import pytest

from driver_shim.protocol.management_registers import MANAGEMENT_BLOCKS
from driver_shim.protocol.register_kinds import Access, Field, Register, ResetDomain
from driver_shim.protocol.register_runs import runs
from driver_shim.protocol.registers import REGISTERS
from firmware_tools.export.json_map import json_maps
from firmware_tools.export.maps import MAPS, ExportedBlock, named_maps
from firmware_tools.export.reference_page import render

BLOCKS = [block for each in MAPS.values() for block in each.blocks]


def test_every_declared_block_is_exported() -> None:
    assert [block.registers for block in BLOCKS] == [REGISTERS, *(block.registers for block in MANAGEMENT_BLOCKS)]
    assert [block.base for block in MAPS["management"].blocks] == [block.base for block in MANAGEMENT_BLOCKS]
    assert all(block.interrupt != 0 for block in BLOCKS)


def test_maps_are_named_in_any_order_and_exported_once() -> None:
    assert named_maps(["management", "host", "management"]) == [MAPS["management"], MAPS["host"]]
    assert named_maps([]) == list(MAPS.values())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_named_values_fit_fields_that_exist(block: ExportedBlock) -> None:
    for place, kind in block.values.items():
        register, _, field = place.partition(".")
        width = block.registers[register].fields[field].width
        assert all(0 <= int(member) < 1 << width for member in kind), place


def word(name: str, offset: int, access: Access = Access.RW, domain: ResetDomain = ResetDomain.COLD) -> Register:
    return Register(name, offset, 4, "A word.", Field("value", 0, 32, access, "A value."), domain=domain)


@pytest.mark.parametrize(
    ("registers", "expected"),
    [
        ([word("a", 0), word("b", 4)], [("a", 1), ("b", 1)]),
        ([word("a_0", 0), word("a_1", 4), word("a_2", 8)], [("a", 3)]),
        ([word("a_0", 0)], [("a_0", 1)]),
        ([word("a_1", 0), word("a_2", 4)], [("a_1", 1), ("a_2", 1)]),
        ([word("a_0", 0), word("a_1", 8)], [("a_0", 1), ("a_1", 1)]),
        ([word("a_0", 0), word("a_1", 4, Access.RO)], [("a_0", 1), ("a_1", 1)]),
        ([word("a_0", 0), word("a_1", 4, domain=ResetDomain.ENGINE)], [("a_0", 1), ("a_1", 1)]),
        ([word("a_0", 0), word("a_1", 4), word("b_0", 8), word("b_1", 12)], [("a", 2), ("b", 2)]),
    ],
)
def test_only_registers_that_differ_in_their_number_are_an_array(
    registers: list[Register], expected: list[tuple[str, int]]
) -> None:
    assert [(run.name, run.length) for run in runs(registers)] == expected
    assert sum(run.length for run in runs(registers)) == len(registers)


def test_the_json_says_what_the_declarations_say() -> None:
    for each, block in zip(
        [block for found in json_maps(list(MAPS.values())) for block in found["blocks"]], BLOCKS, strict=True
    ):
        assert (each["name"], int(each["base"], 16), each["interrupt"]) == (block.name, block.base, block.interrupt)
        assert [entry["name"] for entry in each["registers"]] == list(block.registers.by_name)
        for entry in each["registers"]:
            assert restored(entry) == facts(block.registers[entry["name"]])


def restored(entry: dict[str, Any]) -> tuple[Any, ...]:
    fields = [
        Field(
            field["name"],
            field["lsb"],
            field["width_bits"],
            Access(field["access"]),
            field["description"],
            int(field["reset"], 16),
        )
        for field in entry["fields"]
    ]
    numbers = (int(entry["offset"], 16), entry["size_bytes"], int(entry["reset"], 16))
    return (*numbers, entry["reset_domain"], entry["valid_from"], entry["description"], fields)


def facts(register: Register) -> tuple[Any, ...]:
    numbers = (register.offset, register.size, register.reset_value)
    when = (register.domain.value, register.valid_from.value)
    return (*numbers, *when, register.doc, list(register.fields.values()))


def test_the_json_names_values() -> None:
    (host, management) = json_maps(list(MAPS.values()))
    features = next(entry for entry in host["blocks"][0]["registers"] if entry["name"] == "features")
    assert features["fields"][0]["values"] == {
        "name": "Feature",
        "flags": True,
        "members": {"SHADOW_DOORBELLS": "0x1", "APERTURE": "0x2", "BLACK_BOX": "0x4"},
    }
    assert management["constants"]["ram_base"] == "0x80000000"
    assert "MailboxCommand" in [entry["name"] for entry in management["enumerations"]]


def test_the_reference_has_a_section_for_every_block() -> None:
    text = render()
    for block in MANAGEMENT_BLOCKS:
        interrupt = f", interrupt {block.interrupt}" if block.interrupt else ""
        assert f"\n### `{block.name}` at {block.base:#010x}{interrupt}\n\n{block.doc}\n" in text
        for run in runs(block.registers):
            assert f"\n#### {run.names}\n" in text
