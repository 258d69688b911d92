"""Every structure of the protocol: declaration, hot-path codec and numpy dtype agree; hand-derived bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_shim.protocol import commands as c
from driver_shim.protocol.layout import (
    FieldError,
    Layout,
    LayoutError,
    array,
    i64,
    raw,
    reserved,
    u8,
    u16,
    u16be,
    u32,
    u64,
)
from driver_shim.protocol.layout import union_dtype as union
from tests.support.layouts import bounds, every_layout, is_bytes, is_float, values_of

LAYOUTS = every_layout()
EXAMPLES = 25
by_name = pytest.mark.parametrize("name", LAYOUTS)


def flat(layout: Layout, values: dict[str, Any]) -> list[Any]:
    """Values in declaration order, arrays flattened: what `pack` takes."""
    result: list[Any] = []
    for name, spec in layout.fields.items():
        result += values[name] if spec.elements > 1 else [values[name]]
    return result


def test_the_walk_finds_what_each_module_declares() -> None:
    modules = {name.split(".")[0] for name in LAYOUTS}
    assert {"commands", "config_space", "program", "vfio_user"} <= modules
    names = {layout.name for layout in LAYOUTS.values()}
    assert {layout.name for layout in c.ALL_LAYOUTS} <= names
    assert {"TYPE_0_HEADER", "program_section", "qconv", "vfio_user_header"} <= names


@by_name
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_declaration_codec_and_dtype_agree_both_ways(name: str, data: st.DataObject) -> None:
    layout = LAYOUTS[name]
    values = data.draw(values_of(layout))
    encoded = layout.build(**values)
    assert len(encoded) == layout.size == layout.codec.size == layout.dtype.itemsize == layout.construct.sizeof()
    assert layout.pack(*flat(layout, values)) == encoded

    parsed = layout.parse(encoded)
    assert {field: _plain(parsed[field]) for field in layout.fields} == values
    assert list(layout.unpack_from(encoded)) == flat(layout, values)

    row = layout.view(encoded)[0]
    target = np.zeros(1, layout.dtype)
    for field in layout.fields:
        value = row[field].tobytes() if is_bytes(layout.fields[field]) else row[field].tolist()
        assert value == values[field]
        target[field] = np.void(values[field]) if is_bytes(layout.fields[field]) else values[field]
    assert target.tobytes() == encoded


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


@by_name
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_any_bytes_decode_alike_and_encode_back_but_for_reserved_ones(name: str, data: st.DataObject) -> None:
    layout = LAYOUTS[name]
    blob = data.draw(st.binary(min_size=layout.size, max_size=layout.size))
    parsed, unpacked = layout.parse(blob), layout.unpack_from(blob)
    assert repr(flat(layout, {field: _plain(parsed[field]) for field in layout.fields})) == repr(list(unpacked))
    kept = bytearray(layout.size)
    for spec in layout.fields.values():
        kept[spec.offset : spec.offset + spec.size] = blob[spec.offset : spec.offset + spec.size]
    assert layout.reserved_clear(blob) is (kept == blob)
    if not any(is_float(spec) for spec in layout.fields.values()):  # a signalling NaN may come back quiet
        assert layout.pack(*unpacked) == kept


@by_name
def test_offsets_sizes_and_reserved_bytes_tile_the_structure(name: str) -> None:
    layout = LAYOUTS[name]
    places: Any = layout.dtype.fields
    owner = [0] * layout.size
    for spec in layout.fields.values():
        for at in range(spec.offset, spec.offset + spec.size):
            owner[at] += 1
        assert layout.offset_of(spec.name) == spec.offset == places[spec.name][1]
    assert layout.reserved_clear(bytes(layout.size))
    for at, count in enumerate(owner):
        one_set = bytes(at) + b"\x80" + bytes(layout.size - at - 1)
        assert count == layout.reserved_clear(one_set)


@by_name
def test_values_one_too_wide_raise_naming_field_width_and_value(name: str) -> None:
    layout = LAYOUTS[name]
    for field, spec in layout.fields.items():
        if is_float(spec):
            continue
        if is_bytes(spec):
            with pytest.raises(FieldError, match=rf"{layout.name}\.{field}: .* does not fit {spec.size} bytes"):
                layout.build(**{field: bytes(spec.size + 1)})
            continue
        low, high = bounds(spec)
        for bad in (low - 1, high + 1):
            value: Any = [0] * (spec.elements - 1) + [bad] if spec.elements > 1 else bad
            message = rf"{layout.name}\.{field}: {bad} does not fit {spec.bits} bits"
            with pytest.raises(FieldError, match=message):
                layout.build(**{field: value})
            everything = {other: _zero(layout, other) for other in layout.fields} | {field: value}
            with pytest.raises(FieldError, match=message):
                layout.pack(*flat(layout, everything))
            with pytest.raises(FieldError, match=message):
                layout.pack_into(bytearray(layout.size), 0, *flat(layout, everything))


def _zero(layout: Layout, field: str) -> Any:
    spec = layout.fields[field]
    return bytes(spec.size) if is_bytes(spec) else [0] * spec.elements if spec.elements > 1 else 0


@by_name
def test_wrong_lengths_and_unknown_fields_are_refused(name: str) -> None:
    layout = LAYOUTS[name]
    for length in (0, layout.size - 1, layout.size + 1):
        with pytest.raises(FieldError, match=f"{layout.name} is {layout.size} bytes, got {length}"):
            layout.parse(bytes(length))
    with pytest.raises(FieldError, match="no field 'nonsense'"):
        layout.build(nonsense=1)


def test_too_few_values_name_the_missing_field() -> None:
    with pytest.raises(FieldError, match=r"binding\.size: no value given"):
        c.BINDING.pack(1)


@pytest.mark.parametrize(
    ("size", "fields", "message"),
    [
        (8, ("a" / u32,), "add up to 4 bytes, declared 8"),
        (4, ("a" / u32, reserved(1)), "add up to 5 bytes, declared 4"),
        (8, ("a" / u32, "a" / u32), "duplicate field name"),
        (2, ("a" / array(2, array(1, u8)),), "no fixed hot-path form"),
    ],
)
def test_declarations_that_do_not_hold_together_fail(size: int, fields: tuple[Any, ...], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout("wrong", size, *fields)


def test_numbers_of_the_wrong_kind_are_refused() -> None:
    layout = Layout("kinds", 26, "n" / u64, "s" / i64, "blob" / raw(4), "three" / array(3, u16))
    for field, value in (("n", 1.0), ("n", "1"), ("s", 2**63), ("blob", 4), ("three", [1, 2])):
        with pytest.raises(FieldError, match=rf"kinds\.{field}"):
            layout.build(**{field: value})


def test_a_union_refuses_namesakes_that_differ_and_other_sizes() -> None:
    one = Layout("one", 8, "a" / u32, "b" / u32)
    with pytest.raises(LayoutError, match="disagrees with its namesake"):
        union(8, [one, Layout("two", 8, "b" / u32, "a" / u32)])
    with pytest.raises(LayoutError, match="4 bytes, the union 8"):
        union(8, [one, Layout("two", 4, "a" / u32)])


def test_the_descriptor_dtype_has_each_io_commands_fields_in_their_places() -> None:
    assert c.DESCRIPTOR.itemsize == 64
    for layout in c.IO_COMMANDS.values():
        for name, spec in layout.fields.items():
            assert c.DESCRIPTOR.fields is not None
            kind, offset = c.DESCRIPTOR.fields[name][:2]
            assert (offset, kind.itemsize) == (spec.offset, spec.size)


LITERALS: list[tuple[Layout, dict[str, Any], str]] = [
    (c.NOP, {"opcode": 0, "command_id": 0x1234}, "00 00 3412 00000000" + "00" * 56),
    (c.BARRIER, {"opcode": 4, "flags": 1, "command_id": 2, "context": 3}, "04 01 0200 03000000" + "00" * 56),
    (
        c.COPY,
        {
            "opcode": 1,
            "command_id": 0xFFFF,
            "destination": 0x1122334455667788,
            "source": 0x99AABBCCDDEEFF00,
            "size": 0x100000,
            "destination_space": 1,
        },
        "01 00 ffff 00000000 8877665544332211 00ffeeddccbbaa99 0000100000000000 01 00" + "00" * 30,
    ),
    (
        c.FILL,
        {"opcode": 2, "destination": 0x40, "size": 8, "destination_space": 1, "pattern_size": 4, "pattern": 0xDEADBEEF},
        "02 00 0000 00000000 4000000000000000 0000000000000000 0800000000000000"
        "01 00 04 0000000000 efbeadde00000000" + "00" * 16,
    ),
    (
        c.EXEC,
        {"opcode": 3, "entry": 1, "program": 7, "binding_count": 2, "bindings": 0x10000, "workspace": 0x2000},
        "03 00 0000 00000000" + "00" * 24 + "01000000 00000000 07000000 02000000 0000010000000000 0020000000000000",
    ),
    (
        c.IDENTIFY,
        {"opcode": 0x80, "destination": 0x1000, "size": 512},
        "80 00 0000 00000000 0010000000000000 0002000000000000" + "00" * 40,
    ),
    (
        c.CREATE_QUEUE,
        {
            "opcode": 0x81,
            "submission_base": 0x1000,
            "completion_base": 0x3000,
            "submission_entries": 64,
            "completion_entries": 128,
            "queue": 5,
            "vector": 6,
        },
        "81 00 0000 00000000 0010000000000000 0030000000000000 40000000 80000000 0500 0600" + "00" * 28,
    ),
    (c.DELETE_QUEUE, {"opcode": 0x82, "queue": 5}, "82 00 0000 00000000" + "00" * 24 + "0500" + "00" * 30),
    (
        c.CONFIGURE_SHADOWS,
        {"opcode": 0x83, "shadows": 0x1000, "events": 0x2000},
        "83 00 0000 00000000 0010000000000000 0020000000000000" + "00" * 40,
    ),
    (
        c.GET_LOG_PAGE,
        {"opcode": 0x84, "destination": 0x1000, "size": 0x100, "page": 3, "offset": 0x20},
        "84 00 0000 00000000 0010000000000000 0001000000000000 03 00000000000000 2000000000000000" + "00" * 24,
    ),
    (
        c.LOAD_PROGRAM,
        {"opcode": 0x85, "source": 0x1000, "size": 0x100, "constants": 0x40, "constant_count": 2},
        "85 00 0000 00000000 0010000000000000 0001000000000000 4000000000000000 02000000" + "00" * 28,
    ),
    (c.UNLOAD_PROGRAM, {"opcode": 0x86, "program": 9}, "86 00 0000 00000000" + "00" * 24 + "09000000" + "00" * 28),
    (
        c.GET_PROGRAM_REPORT,
        {"opcode": 0x87, "destination": 0x1000, "size": 96, "program": 9, "offset": 48},
        "87 00 0000 00000000 0010000000000000 6000000000000000 09000000 00000000 3000000000000000" + "00" * 24,
    ),
    (c.COMMAND_RUN, {"wall_ns": 258, "kernel": b"golden.copy"}, "0201000000000000" + b"golden.copy".hex() + "00" * 29),
    (
        c.COMPLETION,
        {"submission_head": 3, "command_id": 2, "status": 4, "phase": 1, "result": 5, "start_tick": 6, "end_tick": 7},
        "03000000 0200 04 01 0500000000000000 0600000000000000 0700000000000000",
    ),
    (c.BINDING, {"address": 0x40, "size": 0x10}, "4000000000000000 1000000000000000"),
    (
        c.HOST_LINE,
        {"sq_tail": 1, "cq_head": 2, "interrupt_index": 0xFFFFFFFF},
        "01000000 02000000 ffffffff" + "00" * 52,
    ),
    (c.DEVICE_LINE, {"sq_event": 1, "cq_event": 2}, "01000000 02000000" + "00" * 56),
    (
        c.IDENTIFY_DATA,
        {
            "contract_minor": 1,
            "silicon_revision": 0x100,
            "features": 7,
            "serial": b"S1",
            "profile": b"generic",
            "kernels": b"auto",
            "memory_bytes": 1 << 30,
            "tick_hertz": 1_000_000_000,
            "max_queue_entries": 8192,
            "max_io_queues": 31,
            "engines": 2,
            "max_programs": 64,
            "max_bindings": 256,
            "emulated": 1,
            "max_program_bytes": 1 << 30,
        },
        "0000 0100 00010000 0700000000000000"
        + "5331".ljust(64, "0")
        + "67656e65726963".ljust(64, "0")
        + "00" * 32
        + "6175746f".ljust(32, "0")
        + "0000004000000000 00ca9a3b00000000 00200000 1f000000 02000000 40000000 00010000 01 000000 0000004000000000"
        + "00" * 336,
    ),
    (c.ERROR_LOG_HEADER, {"total": 258, "entries": 64}, "0201000000000000 40000000" + "00" * 20),
    (
        c.ERROR_ENTRY,
        {
            "sequence": 1,
            "tick": 2,
            "wall_nanoseconds": 3,
            "address": 4,
            "count": 5,
            "source": 6,
            "status": 7,
            "opcode": 8,
            "queue": 9,
            "command_id": 10,
            "command_index": 11,
            "message": b"no",
        },
        "0100000000000000 0200000000000000 0300000000000000 0400000000000000 05000000 06 07 08 00"
        "0900 0a00 0b000000" + "00" * 8 + "6e6f" + "00" * 166,
    ),
    (
        c.ACTIVITY_LOG,
        {"commands": 1, "bytes_copied": 2, "fast_program_commands": 3},
        "0100000000000000" + "00" * 56 + "0200000000000000" + "00" * 48 + "0300000000000000",
    ),
    (
        c.BLACK_BOX,
        {
            "present": 1,
            "cause": 4,
            "tick": 5,
            "wall_nanoseconds": 6,
            "register_bytes": 0x120,
            "queue_count": 2,
            "descriptor_count": 3,
            "completion_count": 4,
            "error_count": 5,
        },
        "01000000 04000000 0500000000000000 0600000000000000 20010000 02000000 03000000 04000000 05000000" + "00" * 20,
    ),
    (
        c.BLACK_BOX_QUEUE,
        {
            "queue": 1,
            "state": 1,
            "submission_entries": 64,
            "completion_entries": 64,
            "sq_head": 1,
            "sq_tail": 2,
            "cq_head": 3,
            "cq_tail": 4,
            "vector": 5,
            "submission_base": 0x1000,
            "completion_base": 0x2000,
        },
        "0100 0100 40000000 40000000 01000000 02000000 03000000 04000000 05000000 0010000000000000 0020000000000000"
        + "00" * 16,
    ),
    (c.BLACK_BOX_DESCRIPTOR, {"queue": 2, "descriptor": b"\x04"}, "0200" + "00" * 6 + "04" + "00" * 63),
    (c.BLACK_BOX_COMPLETION, {"queue": 2, "completion": b"\x01"}, "0200" + "00" * 6 + "01" + "00" * 31),
]


@pytest.mark.parametrize(("layout", "values", "text"), LITERALS, ids=[layout.name for layout, *_ in LITERALS])
def test_literal_bytes(layout: Layout, values: dict[str, Any], text: str) -> None:
    expected = bytes.fromhex(text)
    assert layout.build(**values) == expected
    parsed = layout.parse(expected)
    for name, value in values.items():
        assert parsed[name] == (value.ljust(layout.fields[name].size, b"\0") if isinstance(value, bytes) else value)


def test_every_structure_of_the_command_set_has_literal_bytes() -> None:
    assert {layout.name for layout in c.ALL_LAYOUTS} == {layout.name for layout, *_ in LITERALS}


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (c.IoOpcode, {0: "NOP", 1: "COPY", 2: "FILL", 3: "EXEC", 4: "BARRIER"}),
        (
            c.AdminOpcode,
            {
                0x80: "IDENTIFY",
                0x81: "CREATE_QUEUE",
                0x82: "DELETE_QUEUE",
                0x83: "CONFIGURE_SHADOWS",
                0x84: "GET_LOG_PAGE",
                0x85: "LOAD_PROGRAM",
                0x86: "UNLOAD_PROGRAM",
                0x87: "GET_PROGRAM_REPORT",
            },
        ),
        (c.Space, {0: "HOST", 1: "DEVICE"}),
        (c.LogPage, {1: "ERRORS", 2: "ACTIVITY", 3: "BLACK_BOX"}),
        (
            c.ResetCause,
            {0: "POWER_ON", 1: "CONTROLLER_DISABLE", 2: "FLR", 3: "DEVICE_RESET", 4: "CLIENT_LOST", 5: "FATAL"},
        ),
    ],
)
def test_numbers_on_the_wire_never_move(kind: Any, numbers: dict[int, str]) -> None:
    assert {int(member): member.name for member in kind} == numbers


def test_unknown_statuses_have_a_name_too() -> None:
    assert c.status_slug(0x04) == "dma-fault"
    assert c.status_slug(0x55) == "status-0x55"


def test_a_layout_has_the_byte_order_of_its_fields() -> None:
    big = Layout("big", 9, "a" / u16be, "b" / u8, "c" / array(2, u16be), reserved(2))
    encoded = bytes([1, 2, 3, 4, 5, 6, 7, 0, 0])
    assert big.build(a=0x0102, b=3, c=[0x0405, 0x0607]) == encoded
    assert big.pack(0x0102, 3, 0x0405, 0x0607) == encoded
    assert big.view(encoded)[0]["a"] == 0x0102
    with pytest.raises(LayoutError, match="mixes"):
        Layout("both", 6, "a" / u16be, "b" / u32)
