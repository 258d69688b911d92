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
    Program,
    ProgramError,
    Storage,
    Tensor,
    build,
    make_attributes,
    seal,
)
from driver_shim.protocol.program_commands import ATTRIBUTES, OPERANDS, BinaryFunction, CommandKind
from driver_shim.protocol.program_parsing import parse
from emulator.engines.job import ProgramFault
from emulator.model.operators import OPERATORS
from emulator.model.verify import DeviceLimits, ProgramRejected, verify
from tests.support.programs import add_twice, execute, f32

IMAGE = build(add_twice())


def resealed(image: bytes) -> bytes:
    """With a checksum that fits, so that the checks behind it are reached."""
    data = bytearray(image)
    seal(data)
    return bytes(data)


def changed(**changes: Any) -> bytes:
    return build(dataclasses.replace(add_twice(), **changes))


def test_bytes_are_as_laid_out_by_hand() -> None:
    def tensor(storage: int, offset: int) -> bytes:
        return struct.pack("<HBB4xQQ8I8x", 1, storage, 1, offset, 16, 4, 0, 0, 0, 0, 0, 0, 0)

    def command(a: int, b: int, out: int) -> bytes:
        return struct.pack("<HBBH2x", 0x11, 2, 1, 8) + struct.pack("<H6x", 1) + struct.pack("<3I4x", a, b, out)

    tensors = tensor(3, 0) + tensor(1, 0) + tensor(2, 64) + tensor(4, 0)
    commands = (command(0, 1, 2) + command(2, 1, 3)).ljust(64, b"\0")
    bindings = (struct.pack("<IB3xII", 0, 0, 0, 1) + struct.pack("<IB3xII", 3, 1, 1, 1)).ljust(64, b"\0")
    names = b"xy".ljust(64, b"\0")
    constants = struct.pack("<4f", 1, 2, 3, 4).ljust(64, b"\0")
    places = [(1, 4, 256, 256), (2, 2, 512, 64), (3, 2, 576, 32), (4, 2, 640, 2), (5, 16, 704, 16)]
    table = b"".join(struct.pack("<IIQQ8x", *place) for place in places).ljust(192, b"\0")
    header = struct.pack("<8sHHHHQIIQ24x", b"NPUPROG\x1a", 1, 0, 0, 3, 768, 0, 5, 128)
    expected = bytearray(header + table + tensors + commands + bindings + names + constants)
    expected[24:28] = zlib.crc32(expected).to_bytes(4, "little")
    assert bytes(expected) == IMAGE


def test_parse_gives_back_what_was_built() -> None:
    parsed = parse(IMAGE)
    original = add_twice()
    assert parsed.tensors == original.tensors
    assert parsed.commands == original.commands
    assert (parsed.inputs, parsed.outputs) == (original.inputs, original.outputs)
    assert bytes(parsed.constants) == original.constants
    assert build(dataclasses.replace(parsed, constants=bytes(parsed.constants))) == IMAGE


def test_every_kind_has_attributes_operands_and_an_operator() -> None:
    assert set(ATTRIBUTES) == set(OPERANDS) == set(OPERATORS) == set(CommandKind)
    assert all(layout.size % 8 == 0 for layout in ATTRIBUTES.values())


def test_the_verified_program_runs() -> None:
    (y,), report = execute(IMAGE, [np.arange(4, dtype=np.float32)])
    assert y.tolist() == [2, 5, 8, 11]
    assert [run.kernel for run in report] == ["golden.binary", "golden.binary"]


def test_sizes_the_device_needs_to_know() -> None:
    verified = verify(IMAGE)
    assert verified.constants_bytes == 16
    assert bytes(verified.constants) == add_twice().constants
    assert verified.workspace_bytes == 128
    assert (verified.input_sizes, verified.output_sizes) == ((16,), (16,))
    assert verified.output_places == ((128, 16),)
    assert verified.scratch_bytes == 192
    assert verified.command_count == 2


def test_constants_are_read_from_device_memory() -> None:
    tampered = np.array([1, 2, 3, 5], "<f4").tobytes()
    (y,), _ = execute(IMAGE, [np.zeros(4, np.float32)], constants=tampered)
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
    inputs = [np.zeros(size, np.uint8) for size in verified.input_sizes]
    try:
        execute(image, inputs)
    except ProgramFault as fault:
        assert 0 <= fault.command_index < verified.command_count


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
COMMANDS = add_twice().commands

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
    ("within 16", {"tensors": (TENSORS[0], Tensor(f32(4), Storage.CONSTANT, 64), *TENSORS[2:])}),
    ("the output is", {"tensors": (*TENSORS[:2], Tensor(f32(5), Storage.WORKSPACE, 64), TENSORS[3])}),
    ("do not broadcast", {"tensors": (Tensor(f32(3), Storage.INPUT), *TENSORS[1:])}),
    ("shape", {"tensors": (Tensor(f32(0), Storage.INPUT), *TENSORS[1:])}),
    ("offset 0", {"tensors": (Tensor(f32(4), Storage.INPUT, 64), *TENSORS[1:])}),
    ("not bound", {"inputs": ()}),
    ("no unbound", {"inputs": (Binding("x", 0), Binding("z", 0))}),
    ("no unbound", {"inputs": (Binding("x", 1),)}),
    ("name of 0 bytes", {"inputs": (Binding("", 0),)}),
    ("bytes of memory", {"tensors": (*TENSORS[:3], Tensor(f32(4), Storage.OUTPUT)), "workspace_bytes": 1 << 33}),
]


@pytest.mark.parametrize(("reason", "changes"), REFUSED)
def test_what_does_not_make_sense_is_refused_with_its_reason(reason: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ProgramRejected, match=reason):
        verify(changed(**changes))


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
    program = Program(tensors, overlapping, (Binding("x", 0),), (Binding("y", 3),), b"", 64)
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
    program = Program(tensors, chain, (Binding("x", 0),), (Binding("y", 4),), b"", 128)
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
