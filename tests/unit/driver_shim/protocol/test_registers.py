"""The register map: hot-path codecs equal the Construct declarations; literal bytes; wrong declarations fail."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_shim.protocol.layout import FieldError, LayoutError
from driver_shim.protocol.register_kinds import Access, Field, Register, RegisterMap, ResetDomain
from driver_shim.protocol.registers import FROZEN_BYTES, REGISTERS
from firmware_tools.export.reference_page import render
from tests.support.paths import DOCS

RO, RW = Access.RO, Access.RW
EXAMPLES = 25
REFERENCE = DOCS / "registers.md"
each_register = pytest.mark.parametrize("register", list(REGISTERS), ids=lambda register: register.name)

OFFSETS = {
    0x000: "identity",
    0x004: "contract",
    0x008: "features",
    0x010: "revision",
    0x014: "capabilities",
    0x018: "control",
    0x01C: "status",
    0x020: "boot_progress",
    0x024: "reset_cause",
    0x028: "firmware_version",
    0x030: "admin_queue_size",
    0x038: "admin_submission_base",
    0x040: "admin_completion_base",
    0x048: "firmware_build_id",
    0x050: "interrupt_status",
    0x054: "interrupt_mask",
    0x060: "fault_status",
    0x064: "fault_count",
    0x068: "fault_address",
    0x070: "device_memory_bytes",
    0x078: "tick_hertz",
    0x080: "clock_snapshot",
    0x088: "tick_snapshot",
    0x090: "wall_snapshot",
    0x0A0: "scratch",
    0x0A8: "scratch_wide",
    0x0B0: "reset_history",
    0x0B8: "black_box",
    0x100: "counter_snapshot",
    0x108: "commands_completed",
    0x110: "bytes_moved",
    0x118: "busy_ticks",
    0x200: "core_control",
    0x280: "sensor_temperature",
    0x284: "sensor_power",
    0x288: "sensor_voltage",
    0x28C: "sensor_age",
    0x290: "throttle",
    0x300: "console_written",
    0x308: "console_input",
    0x30C: "console_room",
    0x400: "mailbox_control",
    0x404: "mailbox_status",
    **{0x500 + 8 * i: f"mailbox_data_{i}" for i in range(32)},
}


def test_registers_lie_where_they_always_did() -> None:
    assert {register.offset: register.name for register in REGISTERS} == OFFSETS


def test_what_must_work_at_any_contract_mismatch_lies_in_the_frozen_part() -> None:
    frozen = {register.name for register in REGISTERS if register.offset + register.size <= FROZEN_BYTES}
    assert frozen >= {"identity", "contract", "features", "revision", "control", "status", "reset_cause", "scratch"}


@each_register
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_codecs_equal_the_declaration_both_ways(register: Register, data: st.DataObject) -> None:
    fields = {
        name: data.draw(st.integers(0, (1 << field.width) - 1), label=name) for name, field in register.fields.items()
    }
    value = register.encode(**fields)
    octets = value.to_bytes(register.size, "little")
    assert register.construct.build(fields) == octets
    parsed = register.construct.parse(octets)
    assert {name: parsed[name] for name in fields} == fields == register.decode(value)
    assert {name: register.extract(value, name) for name in fields} == fields
    assert value & ~register.declared_mask == 0


@each_register
def test_values_one_too_wide_raise_naming_field_width_and_value(register: Register) -> None:
    for name, field in register.fields.items():
        for bad in (1 << field.width, -1):
            with pytest.raises(FieldError, match=rf"{register.name}\.{name}: {bad} does not fit {field.width} bits"):
                register.encode(**{name: bad})
    with pytest.raises(FieldError, match=f"{register.name}: .* does not fit {8 * register.size} bits"):
        register.decode(1 << 8 * register.size)
    with pytest.raises(FieldError, match=f"{register.name} has no field 'nonsense'"):
        register.encode(nonsense=1)


@each_register
def test_each_says_what_it_is_and_reads_its_reset_value(register: Register) -> None:
    assert register.doc.endswith(".") and all(field.doc.endswith(".") for field in register.fields.values())
    assert register.decode(register.reset_value) == {name: field.reset for name, field in register.fields.items()}
    assert register.mask_of(*Access) == register.declared_mask


@pytest.mark.parametrize(
    ("name", "fields", "octets"),
    [
        ("identity", {"magic": 0x5550_4E31}, "314e5055"),
        ("contract", {"major": 0, "minor": 1}, "01000000"),
        ("revision", {"major": 1, "minor": 2}, "02010000"),
        # 2**13 entries, 31 queues, 2**6 and 2**5 byte entries, 20 * 100 ms
        (
            "capabilities",
            {
                "max_queue_entries_log2": 13,
                "max_io_queues": 31,
                "submission_bytes_log2": 6,
                "completion_bytes_log2": 5,
                "ready_timeout": 20,
            },
            "fd614501",
        ),
        ("status", {"ready": 1, "fatal": 0, "config_error": 1, "bus_master": 1}, "0d000000"),
        ("reset_cause", {"cause": 3, "count": 0x010203}, "03030201"),
        ("admin_queue_size", {"submission_entries": 64, "completion_entries": 128}, "40008000"),
        ("admin_submission_base", {"address": 0x1122334455667788}, "8877665544332211"),
        ("fault_status", {"register": 1, "queue": 1, "client": 1}, "49000000"),
        ("scratch_wide", {"value": 1}, "0100000000000000"),
    ],
)
def test_literal_bytes(name: str, fields: dict[str, int], octets: str) -> None:
    register = REGISTERS[name]
    assert register.encode(**fields).to_bytes(register.size, "little") == bytes.fromhex(octets)
    decoded = register.decode(int.from_bytes(bytes.fromhex(octets), "little"))
    assert decoded == {**dict.fromkeys(register.fields, 0), **fields}


def test_reset_values_that_drivers_rest_on() -> None:
    assert REGISTERS["identity"].reset_value == 0x5550_4E31
    assert REGISTERS["capabilities"].reset_value == 0x014561FD
    assert REGISTERS["control"].reset_value == 0
    assert REGISTERS["features"].reset_value == 7


@pytest.mark.parametrize("domain", [ResetDomain.COLD, ResetDomain.FUNCTION])
def test_what_a_post_mortem_needs_is_cold(domain: ResetDomain) -> None:
    names = {register.name for register in REGISTERS if register.domain is domain}
    if domain is ResetDomain.COLD:
        assert names >= {"reset_cause", "fault_status", "fault_count", "fault_address", "busy_ticks"}
    else:
        assert names >= {"control", "status", "admin_queue_size", "interrupt_mask", "scratch", "scratch_wide"}


def field(name: str, lsb: int, width: int, reset: int = 0) -> Field:
    return Field(name, lsb, width, RW, "A field.", reset)


@pytest.mark.parametrize(
    ("offset", "size", "fields", "message"),
    [
        (0, 2, (), "not a naturally aligned"),
        (4, 8, (), "not a naturally aligned"),
        (0, 4, (field("a", 0, 8), field("b", 7, 2)), r"x\.b: overlaps"),
        (0, 4, (field("a", 31, 2),), r"x\.a: overlaps another field or exceeds 32 bits"),
        (0, 4, (field("a", 0, 2), field("a", 4, 2)), r"x\.a: declared twice"),
        (0, 4, (field("a", 0, 2, 4),), r"x\.a: reset value 0x4 exceeds 2 bits"),
    ],
)
def test_registers_that_do_not_hold_together_fail(
    offset: int, size: int, fields: tuple[Field, ...], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        Register("x", offset, size, "A register.", *fields)


def test_maps_refuse_overlaps_duplicates_and_registers_beyond_their_end() -> None:
    wide, narrow = Register("wide", 0, 8, "Wide."), Register("narrow", 4, 4, "Narrow.")
    with pytest.raises(LayoutError, match="narrow at 0x4 overlaps"):
        RegisterMap(16, wide, narrow)
    with pytest.raises(LayoutError, match="wide: declared twice"):
        RegisterMap(32, wide, Register("wide", 8, 8, "Wide."))
    with pytest.raises(LayoutError, match="wide ends at 0x8, the region at 0x4"):
        RegisterMap(4, wide)


def test_every_byte_finds_the_register_that_holds_it() -> None:
    owner = {at: register for register in REGISTERS for at in range(register.offset, register.offset + register.size)}
    for at in range(0x140):
        assert REGISTERS.covering(at) is owner.get(at)


def test_the_reference_is_not_stale() -> None:
    assert REFERENCE.read_text("utf-8") == render(), (
        "run: python -m firmware_tools.export.reference_page > docs/registers.md"
    )
