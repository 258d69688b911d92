"""The program container: its bytes against literals, and that nothing malformed gets through `parse` and `verify`."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_shim.protocol.program import (
    Binding,
    Command,
    EntryPoint,
    Program,
    ProgramError,
    Storage,
    Tensor,
    TensorType,
    build,
    make_attributes,
    seal,
)
from driver_shim.protocol.program_commands import ATTRIBUTES, OPERANDS, BinaryFunction, CommandKind
from driver_shim.protocol.program_parsing import parse
from driver_shim.protocol.types import WireType
from emulator.engines.job import ProgramFault
from emulator.model.operators import OPERATORS
from emulator.model.verify import DeviceLimits, ProgramRejected, verify
from tests.support.programs import ADDED, add_twice, execute, f32, one_entry

IMAGE = build(add_twice())


def resealed(image: bytes) -> bytes:
    """With a checksum that fits, so that the checks behind it are reached."""
    data = bytearray(image)
    seal(data)
    return bytes(data)


def changed(**changes: Any) -> bytes:
    """The program with other tensors, or another entry point."""
    program = add_twice()
    tensors = changes.pop("tensors", program.tensors)
    return build(Program(tensors, (dataclasses.replace(program.entries[0], **changes),)))


def test_bytes_are_as_laid_out_by_hand() -> None:
    def tensor(storage: int, offset: int) -> bytes:
        return struct.pack("<HBB4xQQ8I8x", 1, storage, 1, offset, 16, 4, 0, 0, 0, 0, 0, 0, 0)

    def command(a: int, b: int, out: int) -> bytes:
        return struct.pack("<HBBH2x", 0x11, 2, 1, 8) + struct.pack("<H6x", 1) + struct.pack("<3I4x", a, b, out)

    tensors = tensor(3, 0) + tensor(1, 0) + tensor(2, 64) + tensor(4, 0)
    commands = (command(0, 1, 2) + command(2, 1, 3)).ljust(64, b"\0")
    entries = struct.pack("<6IQ32x", 0, 2, 0, 2, 2, 4, 128)
    bindings = (struct.pack("<IB3xII", 0, 0, 0, 1) + struct.pack("<IB3xII", 3, 1, 1, 1)).ljust(64, b"\0")
    names = b"xymain".ljust(64, b"\0")
    places = [(1, 4, 256, 256), (2, 2, 512, 64), (3, 1, 576, 64), (4, 2, 640, 32), (5, 6, 704, 6)]
    table = b"".join(struct.pack("<IIQQ8x", *place) for place in places).ljust(192, b"\0")
    header = struct.pack("<8sHHHHQII32x", b"NPUPROG\x1a", 2, 1, 0, 5, 768, 0, 5)
    expected = bytearray(header + table + tensors + commands + entries + bindings + names)
    expected[24:28] = zlib.crc32(expected).to_bytes(4, "little")
    assert bytes(expected) == IMAGE


def test_parse_gives_back_what_was_built() -> None:
    parsed = parse(IMAGE)
    assert parsed == add_twice()
    assert build(parsed) == IMAGE


def test_every_kind_has_attributes_operands_and_an_operator() -> None:
    assert set(ATTRIBUTES) == set(OPERANDS) == set(OPERATORS) == set(CommandKind)
    assert all(layout.size % 8 == 0 for layout in ATTRIBUTES.values())


def test_the_verified_program_runs() -> None:
    (y,), report = execute(IMAGE, [np.arange(4, dtype=np.float32)], constants=[ADDED])
    assert y.tolist() == [2, 5, 8, 11]
    assert [run.kernel for run in report] == ["golden.binary", "golden.binary"]


def test_sizes_the_device_needs_to_know() -> None:
    verified = verify(IMAGE)
    assert verified.constant_sizes == (16,)
    (entry,) = verified.entries
    assert entry.workspace_bytes == 128
    assert (entry.input_sizes, entry.state_sizes) == ((16,), ())
    assert entry.output_places == ((128, 16),)
    assert entry.scratch_bytes == 192
    assert entry.command_count == 2


def test_constants_are_read_from_device_memory() -> None:
    (y,), _ = execute(IMAGE, [np.zeros(4, np.float32)], constants=[np.array([1, 2, 3, 5], "<f4")])
    assert y.tolist() == [2, 4, 6, 10]


@pytest.mark.parametrize("length", range(0, len(IMAGE), 7))
def test_truncations_are_refused(length: int) -> None:
    with pytest.raises(ProgramError):
        parse(IMAGE[:length])
    with pytest.raises(ProgramRejected):
        verify(IMAGE[:length])


def test_every_changed_bit_fails_the_checksum_or_an_earlier_check() -> None:
    for position in range(len(IMAGE)):
        data = bytearray(IMAGE)
        data[position] ^= 1 << position % 8
        with pytest.raises(ProgramError):
            parse(bytes(data))


def accept_or_refuse(image: bytes) -> None:
    """Whatever the bytes are: refused with ProgramRejected, or run to its end or to a fault."""
    try:
        verified = verify(image, device_limits=DeviceLimits(memory_bytes=1 << 24, effort=1 << 28))
    except ProgramRejected as error:
        assert str(error)
        return
    constants = [np.zeros(size, np.uint8) for size in verified.constant_sizes]
    for entry in verified.entries:
        inputs = [np.zeros(size, np.uint8) for size in entry.input_sizes]
        try:
            execute(image, inputs, constants=constants)
        except ProgramFault as fault:
            assert 0 <= fault.command_index < entry.command_count


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(IMAGE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutations_behind_a_good_checksum_are_refused_or_harmless(edits: list[tuple[int, int]]) -> None:
    data = bytearray(IMAGE)
    for position, value in edits:
        data[position] = value
    accept_or_refuse(resealed(bytes(data)))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=1024))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProgramError):
        parse(data)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(IMAGE)), st.binary(min_size=1, max_size=64))
def test_insertions_are_refused(at: int, junk: bytes) -> None:
    data = IMAGE[:at] + junk + IMAGE[at:]
    accept_or_refuse(resealed(data) if len(data) > 64 else data)


def test_every_single_byte_change_behind_a_good_checksum_is_refused_or_harmless() -> None:
    for position in range(len(IMAGE)):
        for value in (0x00, 0x01, 0x7F, 0xFF):
            data = bytearray(IMAGE)
            data[position] = value
            accept_or_refuse(resealed(bytes(data)))


ADD = make_attributes(CommandKind.BINARY, function=BinaryFunction.ADD)
TENSORS = add_twice().tensors
COMMANDS = add_twice().entries[0].commands

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("before it is written", {"commands": (COMMANDS[1], COMMANDS[0])}),
    ("a second time", {"commands": (*COMMANDS, COMMANDS[1])}),
    ("read-only", {"commands": (*COMMANDS, Command(CommandKind.BINARY, ADD, (0, 1), (0,)))}),
    ("read-only", {"commands": (*COMMANDS, Command(CommandKind.BINARY, ADD, (0, 1), (1,)))}),
    ("never written", {"commands": COMMANDS[:1]}),
    ("tensor 9", {"commands": (Command(CommandKind.BINARY, ADD, (0, 9), (2,)), COMMANDS[1])}),
    ("1 inputs", {"commands": (Command(CommandKind.BINARY, ADD, (0,), (2,)), COMMANDS[1])}),
    ("within 128", {"tensors": (*TENSORS[:2], Tensor(f32(4), Storage.WORKSPACE, 128), TENSORS[3])}),
    ("multiple of 64", {"tensors": (*TENSORS[:2], Tensor(f32(4), Storage.WORKSPACE, 32), TENSORS[3])}),
    ("offset 0", {"tensors": (TENSORS[0], Tensor(f32(4), Storage.CONSTANT, 64), *TENSORS[2:])}),
    ("the output is", {"tensors": (*TENSORS[:2], Tensor(f32(5), Storage.WORKSPACE, 64), TENSORS[3])}),
    ("do not broadcast", {"tensors": (Tensor(f32(3), Storage.INPUT), *TENSORS[1:])}),
    ("do not broadcast", {"tensors": (Tensor(f32(0), Storage.INPUT), *TENSORS[1:])}),
    ("offset 0", {"tensors": (Tensor(f32(4), Storage.INPUT, 64), *TENSORS[1:])}),
    ("not bound", {"inputs": ()}),
    ("bound twice", {"inputs": (Binding("x", 0), Binding("z", 0))}),
    ("no input tensor", {"inputs": (Binding("x", 1),)}),
    ("no output and no state", {"outputs": (), "commands": COMMANDS[:1], "tensors": TENSORS[:3]}),
    ("name of 0 bytes", {"inputs": (Binding("", 0),)}),
    ("bytes of memory", {"tensors": (*TENSORS[:3], Tensor(f32(4), Storage.OUTPUT)), "workspace_bytes": 1 << 33}),
    ("exceeds", {"workspace_bytes": 1 << 41}),
]


@pytest.mark.parametrize(("reason", "changes"), REFUSED)
def test_what_does_not_make_sense_is_refused_with_its_reason(reason: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ProgramRejected, match=reason):
        verify(changed(**changes), device_limits=DeviceLimits(memory_bytes=1 << 32))


def two_entries() -> Program:
    """h = x + c and y = (h + c) + c, each an entry point of its own, over one table."""
    kind = f32(4)
    tensors = (
        Tensor(kind, Storage.INPUT),
        Tensor(kind, Storage.CONSTANT),
        Tensor(kind, Storage.OUTPUT),
        Tensor(kind, Storage.WORKSPACE),
        Tensor(kind, Storage.OUTPUT),
    )
    once = EntryPoint((Command(CommandKind.BINARY, ADD, (0, 1), (2,)),), (Binding("x", 0),), (Binding("h", 2),))
    twice = EntryPoint(
        (Command(CommandKind.BINARY, ADD, (0, 1), (3,)), Command(CommandKind.BINARY, ADD, (3, 1), (4,))),
        (Binding("x", 0),),
        (Binding("y", 4),),
        64,
        name="twice",
    )
    return Program(tensors, (once, twice))


def test_entry_points_share_tensors_and_constants() -> None:
    image = build(two_entries())
    assert parse(image) == two_entries()
    for entry, expected in ((0, [2, 3, 4, 5]), (1, [3, 5, 7, 9])):
        (y,), report = execute(image, [np.ones(4, np.float32)], constants=[ADDED], entry=entry)
        assert y.tolist() == expected
        assert len(report) == entry + 1


def test_an_entry_point_reaches_only_what_is_bound_for_it() -> None:
    once, twice = two_entries().entries
    stray = dataclasses.replace(once, commands=(Command(CommandKind.BINARY, ADD, (2, 1), (2,)),), inputs=twice.inputs)
    for entries, reason in (
        ((stray, twice), "entry 'main': command 0 .* reads tensor 2 before"),
        ((once, dataclasses.replace(twice, outputs=once.outputs)), "tensor 4 is not bound"),
        ((once, dataclasses.replace(twice, workspace_bytes=0)), "must lie within 0"),
        ((once, dataclasses.replace(twice, name="main")), "the name 'main' occurs twice"),
        ((), "tensor 0 is not bound"),
    ):
        with pytest.raises(ProgramRejected, match=reason):
            verify(build(dataclasses.replace(two_entries(), entries=entries)))


@pytest.mark.parametrize("storage", [Storage.INPUT, Storage.WORKSPACE, Storage.OUTPUT])
def test_only_constants_are_of_4_bit_integers(storage: Storage) -> None:
    program = add_twice()
    at = next(i for i, tensor in enumerate(program.tensors) if tensor.storage is storage)
    tensors = list(program.tensors)
    tensors[at] = dataclasses.replace(tensors[at], type=TensorType(WireType.INT4, (4,)))
    with pytest.raises(ProgramError, match=f"storage {storage.name.lower()}; only constants"):
        parse(build(dataclasses.replace(program, tensors=tuple(tensors))))


def test_tensors_may_be_empty() -> None:
    tensors = (
        Tensor(f32(0, 3), Storage.INPUT),
        Tensor(f32(0, 3), Storage.WORKSPACE),
        Tensor(f32(0, 3), Storage.OUTPUT),
    )
    commands = (Command(CommandKind.BINARY, ADD, (0, 0), (1,)), Command(CommandKind.BINARY, ADD, (1, 1), (2,)))
    image = build(one_entry(tensors, commands, (Binding("x", 0),), (Binding("y", 2),)))
    (y,), _ = execute(image, [np.empty((0, 3), np.float32)])
    assert y.shape == (0, 3)


def test_tensors_that_live_at_one_time_must_not_overlap() -> None:
    kind = f32(4)
    tensors = (
        Tensor(kind, Storage.INPUT),
        Tensor(kind, Storage.WORKSPACE, 0),
        Tensor(kind, Storage.WORKSPACE, 0),
        Tensor(kind, Storage.OUTPUT),
    )
    overlapping = (
        Command(CommandKind.BINARY, ADD, (0, 0), (1,)),
        Command(CommandKind.BINARY, ADD, (1, 0), (2,)),
        Command(CommandKind.BINARY, ADD, (2, 0), (3,)),
    )
    program = one_entry(tensors, overlapping, (Binding("x", 0),), (Binding("y", 3),), 64)
    with pytest.raises(ProgramRejected, match="overwrites tensor 1, still needed"):
        verify(build(program))


def test_a_place_is_free_again_after_the_last_read() -> None:
    kind = f32(4)
    places = (0, 64, 0)
    tensors = (
        Tensor(kind, Storage.INPUT),
        *(Tensor(kind, Storage.WORKSPACE, place) for place in places),
        Tensor(kind, Storage.OUTPUT),
    )
    chain = tuple(Command(CommandKind.BINARY, ADD, (i, 0), (i + 1,)) for i in range(4))
    program = one_entry(tensors, chain, (Binding("x", 0),), (Binding("y", 4),), 128)
    (y,), _ = execute(build(program), [np.ones(4, np.float32)])
    assert y.tolist() == [5, 5, 5, 5]


def test_work_is_bounded() -> None:
    with pytest.raises(ProgramRejected, match="its commands cost"):
        verify(IMAGE, device_limits=DeviceLimits(effort=10))


def test_other_versions_are_refused() -> None:
    for offset, what in ((8, "container version"), (12, "contract version")):
        data = bytearray(IMAGE)
        data[offset] ^= 0x40
        with pytest.raises(ProgramError, match=what):
            parse(resealed(bytes(data)))
