"""vfio-user messages, byte for byte: the literals below were written by hand from the specification."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver_shim.protocol import vfio_user as vu
from driver_shim.protocol.layout import FieldError, Layout
from driver_shim.protocol.vfio_user_framing import Framer, Message, encode_command, encode_error, encode_reply


def from_hex(text: str) -> bytes:
    return bytes.fromhex(text)


LITERALS: list[tuple[Layout, dict[str, Any], str]] = [
    (
        vu.HEADER,
        {"id": 0x1234, "command": 9, "size": 32, "flags": 0x10, "error": 22},
        "3412 0900 20000000 10000000 16000000",
    ),
    (vu.VERSION, {"major": 0, "minor": 2}, "0000 0200"),
    (
        vu.DMA_MAP,
        {"argsz": 32, "flags": 3, "offset": 0x1000, "address": 0x1_0000_0000, "size": 0x2000},
        "20000000 03000000 0010000000000000 0000000001000000 0020000000000000",
    ),
    (
        vu.DMA_UNMAP,
        {"argsz": 24, "flags": 0, "address": 0xFFFF_FFFF_FFFF_F000, "size": 0x1000},
        "18000000 00000000 00f0ffffffffffff 0010000000000000",
    ),
    (vu.DEVICE_INFO, {"argsz": 16, "flags": 3, "num_regions": 9, "num_irqs": 5}, "10000000 03000000 09000000 05000000"),
    (
        vu.REGION_INFO,
        {"argsz": 64, "flags": 0xF, "index": 4, "cap_offset": 32, "size": 0x4000_0000, "offset": 0},
        "40000000 0f000000 04000000 20000000 0000004000000000 0000000000000000",
    ),
    (vu.CAPABILITY, {"id": 1, "version": 1, "next": 0}, "0100 0100 00000000"),
    (vu.SPARSE_MMAP, {"id": 1, "version": 1, "next": 0, "nr_areas": 2}, "0100 0100 00000000 02000000 00000000"),
    (vu.SPARSE_AREA, {"offset": 0x1000, "size": 0x3000}, "0010000000000000 0030000000000000"),
    (vu.REGION_IO_FDS, {"argsz": 16, "flags": 0, "index": 2, "count": 0}, "10000000 00000000 02000000 00000000"),
    (vu.IRQ_INFO, {"argsz": 16, "flags": 9, "index": 2, "count": 17}, "10000000 09000000 02000000 11000000"),
    (
        vu.IRQ_SET,
        {"argsz": 20, "flags": 0x24, "index": 2, "start": 1, "count": 3},
        "14000000 24000000 02000000 01000000 03000000",
    ),
    (vu.REGION_ACCESS, {"offset": 0x10, "region": 7, "count": 4}, "1000000000000000 07000000 04000000"),
    (vu.DMA_ACCESS, {"address": 0x1000, "count": 0x100}, "0010000000000000 0001000000000000"),
    (vu.WRITE_MULTI, {"wr_cnt": 2}, "0200000000000000"),
    (
        vu.WRITE_ONE,
        {"offset": 0x4, "region": 2, "count": 4, "data": b"\x78\x56\x34\x12"},
        "0400000000000000 02000000 04000000 7856341200000000",
    ),
    (
        vu.REGION_MESSAGE,
        {"id": 1, "command": 9, "size": 32, "flags": 0, "error": 0, "offset": 8, "region": 0, "count": 4},
        "0100 0900 20000000 00000000 00000000 0800000000000000 00000000 04000000",
    ),
]


@pytest.mark.parametrize(("layout", "values", "literal"), LITERALS, ids=[entry[0].name for entry in LITERALS])
def test_structures_are_the_bytes_of_the_specification(layout: Layout, values: dict[str, Any], literal: str) -> None:
    expected = from_hex(literal)
    assert layout.build(**values) == expected
    assert layout.pack(*values.values()) == expected
    assert layout.unpack_from(expected)[: len(values)] == tuple(
        value.ljust(8, b"\0") if isinstance(value, bytes) else value for value in values.values()
    )


def test_every_structure_of_the_protocol_has_a_literal() -> None:
    declared = {name for name, value in vars(vu).items() if isinstance(value, Layout)}
    covered = {name for name, value in vars(vu).items() if value in [entry[0] for entry in LITERALS]}
    assert declared == covered


def test_a_field_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(FieldError, match="count"):
        vu.REGION_ACCESS.pack(0, 0, 1 << 32)


def test_commands_replies_and_errors_have_the_headers_of_the_specification() -> None:
    assert encode_command(1, vu.Command.DEVICE_RESET) == from_hex("0100 0d00 10000000 00000000 00000000")
    assert encode_command(2, vu.Command.REGION_WRITE, b"ab", no_reply=True) == from_hex(
        "0200 0a00 12000000 10000000 00000000 6162"
    )
    assert encode_reply(3, vu.Command.DMA_MAP) == from_hex("0300 0200 10000000 01000000 00000000")
    assert encode_error(4, vu.Command.DMA_UNMAP, 2) == from_hex("0400 0300 10000000 21000000 02000000")


# --- framing -----------------------------------------------------------------------------------------------------

STREAM = [
    encode_command(1, vu.Command.DEVICE_RESET),
    encode_command(2, vu.Command.REGION_WRITE, b"payload"),
    encode_reply(3, vu.Command.DMA_READ, bytes(100)),
]


def drain(framer: Framer) -> list[Message]:
    found = []
    while (message := framer.next_message()) is not None:
        found.append(message)
    return found


@pytest.mark.parametrize("split", range(sum(map(len, STREAM)) + 1))
def test_messages_are_found_wherever_the_stream_is_cut(split: int) -> None:
    whole = b"".join(STREAM)
    framer = Framer()
    found = []
    for part in (whole[:split], whole[split:]):
        framer.feed(part)
        found += drain(framer)
    assert [message.payload for message in found] == [b"", b"payload", bytes(100)]
    assert [(message.id, message.is_reply, message.wants_reply) for message in found] == [
        (1, False, True),
        (2, False, True),
        (3, True, False),
    ]
    assert len(framer) == 0


def test_messages_are_found_byte_by_byte() -> None:
    framer = Framer()
    found = []
    for value in b"".join(STREAM):
        framer.feed(bytes([value]))
        found += drain(framer)
    assert [message.id for message in found] == [1, 2, 3]


@pytest.mark.parametrize("cut", range(1, len(STREAM[1]) + 1))
def test_descriptors_belong_to_the_message_whose_bytes_they_came_with(cut: int) -> None:
    framer = Framer()
    framer.feed(STREAM[0] + STREAM[1][:cut], [7, 8])
    found = drain(framer)
    framer.feed(STREAM[1][cut:] + STREAM[2])
    found += drain(framer)
    assert [message.fds for message in found] == [[], [7, 8], []]


@pytest.mark.parametrize("size", [0, 15, vu.MAX_MESSAGE_BYTES + 1, 0xFFFF_FFFF])
def test_a_message_of_impossible_size_ends_the_stream(size: int) -> None:
    framer = Framer()
    framer.feed(vu.HEADER.pack(1, 9, size, 0, 0), [5])
    with pytest.raises(vu.ProtocolError, match=f"of {size} bytes"):
        framer.next_message()
    assert framer.abandon() == [5]


def test_the_largest_message_is_accepted() -> None:
    framer = Framer()
    framer.feed(encode_command(1, vu.Command.REGION_WRITE, bytes(vu.MAX_MESSAGE_BYTES - vu.HEADER.size)))
    assert len(drain(framer)) == 1


def test_descriptors_cannot_be_piled_up_on_an_incomplete_message() -> None:
    framer = Framer(max_fds=4)
    for fd in range(4):
        framer.feed(b"\x01", [fd])
        assert framer.next_message() is None
    framer.feed(b"\x01", [4])
    with pytest.raises(vu.ProtocolError, match="5 file descriptors"):
        framer.next_message()
    assert framer.abandon() == [0, 1, 2, 3, 4]


@given(st.lists(st.tuples(st.binary(max_size=80), st.lists(st.integers(3, 900), max_size=3)), max_size=30))
def test_no_descriptor_is_lost_whatever_arrives(chunks: list[tuple[bytes, list[int]]]) -> None:
    framer = Framer()
    taken: list[int] = []
    given_so_far: list[int] = []
    try:
        for data, fds in chunks:
            if data:
                framer.feed(data, fds)
                given_so_far += fds
            for message in drain(framer):
                taken += message.fds
    except vu.ProtocolError:
        pass
    assert taken + framer.abandon() == given_so_far


# --- VERSION -----------------------------------------------------------------------------------------------------


def version(text: str, major: int = 0, minor: int = 0) -> bytes:
    return vu.VERSION.pack(major, minor) + text.encode() + b"\0"


def test_a_version_message_is_numbers_and_json() -> None:
    payload = vu.encode_version(0, 0, vu.OURS, ["max_msg_fds", "write_multiple"])
    assert payload == b'\0\0\0\0{"capabilities":{"max_msg_fds":16,"write_multiple":true}}\0'
    assert vu.decode_version(payload) == vu.Version(
        0, 0, vu.Capabilities(max_msg_fds=16, write_multiple=True), frozenset({"max_msg_fds", "write_multiple"})
    )


@pytest.mark.parametrize(
    "text", [None, "{}", '{"capabilities":{}}', '{"capabilities":{"twin_socket":{"supported":true}}}']
)
def test_absent_capabilities_mean_the_defaults_of_the_specification(text: str | None) -> None:
    payload = vu.VERSION.pack(0, 1) if text is None else version(text, minor=1)
    found = vu.decode_version(payload)
    assert (found.major, found.minor) == (0, 1)
    assert found.capabilities == vu.Capabilities(1, 1_048_576, 65_535, 4096, False)
    assert found.stated == frozenset()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0{}",
        version("{"),
        version("[]"),
        version("null"),
        version('{"capabilities":[]}'),
        version('{"capabilities":{"max_msg_fds":-1}}'),
        version('{"capabilities":{"max_msg_fds":true}}'),
        version('{"capabilities":{"max_msg_fds":1.5}}'),
        version('{"capabilities":{"max_data_xfer_size":"1"}}'),
        version('{"capabilities":{"pgsizes":NaN}}'),
        version('{"capabilities":{"max_dma_maps":' + "9" * 5000 + "}}"),
        version('{"capabilities":{"write_multiple":1}}'),
        version("[" * 100_000),
        b"\0\0\0\0\xff\xfe\0",
    ],
)
def test_a_malformed_version_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(vu.ProtocolError, match="VERSION"):
        vu.decode_version(payload)


@given(st.binary(max_size=200))
def test_random_version_data_is_read_or_refused(data: bytes) -> None:
    try:
        vu.decode_version(data)
    except vu.ProtocolError as error:
        assert "VERSION" in str(error)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.dictionaries(st.sampled_from(["capabilities", *vu.Capabilities._fields]), x),
    )
)
def test_any_json_document_is_read_or_refused(document: Any) -> None:
    try:
        found = vu.decode_version(version(json.dumps(document)))
    except vu.ProtocolError:
        return
    assert all(value >= 0 for value in found.capabilities)


# --- regions -----------------------------------------------------------------------------------------------------

SPARSE = vu.RegionDescription(4, 0x10000, 7, 0, ((0, 0x4000), (0x8000, 0x1000)))
SPARSE_LITERAL = from_hex(
    "50000000 0f000000 04000000 20000000 0000010000000000 0000000000000000"  # region info, argsz 80, CAPS at 32
    "0100 0100 00000000 02000000 00000000"  # sparse mmap, version 1, last, two areas
    "0000000000000000 0040000000000000"
    "0080000000000000 0010000000000000"
)


def test_a_sparse_region_is_described_by_a_capability_behind_its_info() -> None:
    assert vu.encode_region_info(SPARSE, 80) == (SPARSE_LITERAL, True)
    described, argsz = vu.decode_region_info(SPARSE_LITERAL)
    assert argsz == 80
    assert described == SPARSE._replace(flags=15)


def test_a_client_with_too_little_room_learns_the_size_it_needs() -> None:
    payload, complete = vu.encode_region_info(SPARSE, 79)
    assert not complete
    assert payload == from_hex("50000000 07000000 04000000 00000000 0000010000000000 0000000000000000")


def test_a_region_without_areas_is_its_info_alone() -> None:
    payload, complete = vu.encode_region_info(vu.RegionDescription(0, 0x1000, 3), 32)
    assert complete
    assert payload == from_hex("20000000 03000000 00000000 00000000 0010000000000000 0000000000000000")


def hostile(at: int, replacement: bytes) -> bytes:
    return SPARSE_LITERAL[:at] + replacement + SPARSE_LITERAL[at + len(replacement) :]


@pytest.mark.parametrize(
    "payload",
    [
        SPARSE_LITERAL[:31],
        SPARSE_LITERAL[:39],
        SPARSE_LITERAL[:47],
        SPARSE_LITERAL[:79],
        hostile(12, b"\x08\0\0\0"),  # capability inside the info itself
        hostile(12, b"\xff\xff\xff\xff"),
        hostile(36, b"\x20\0\0\0"),  # capability that follows itself
        hostile(36, b"\x24\0\0\0\xff\xff\xff\xff"),
        hostile(40, b"\xff\xff\xff\xff"),  # number of areas
        hostile(48, b"\x01"),  # not on a page
        hostile(56, b"\0\x90"),  # overlaps the second
        hostile(56, bytes(8)),  # empty
        hostile(64, b"\0\0\x01"),  # outside the region
        hostile(72, b"\xff" * 8),
    ],
)
def test_a_hostile_region_description_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(vu.ProtocolError, match="region"):
        vu.decode_region_info(payload)


@given(st.binary(max_size=160))
def test_random_region_descriptions_are_read_or_refused(tail: bytes) -> None:
    try:
        described, _ = vu.decode_region_info(SPARSE_LITERAL[:32] + tail)
    except vu.ProtocolError:
        return
    assert all(offset + size <= described.size for offset, size in described.areas)


# --- REGION_WRITE_MULTI ------------------------------------------------------------------------------------------


def test_coalesced_writes_are_read_in_order() -> None:
    literal = from_hex(
        "0200000000000000"
        "0400000000000000 02000000 04000000 7856341200000000"
        "0000000000000000 00000000 08000000 0102030405060708"
    )
    writes = [vu.RegionWrite(4, 2, b"\x78\x56\x34\x12"), vu.RegionWrite(0, 0, bytes(range(1, 9)))]
    assert vu.decode_writes(literal) == writes


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        from_hex("0100000000000000"),
        from_hex("ffffffffffffffff"),
        from_hex("0100000000000000 0400000000000000 02000000 09000000 7856341200000000"),
        from_hex("0100000000000000 0400000000000000 02000000 04000000 7856341200000000 00"),
    ],
)
def test_malformed_coalesced_writes_are_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(vu.ProtocolError, match="REGION_WRITE_MULTI"):
        vu.decode_writes(payload)
