"""What verification demands of the places of a cache's operands, beside what the kinds demand of their types."""

from __future__ import annotations

import dataclasses

import pytest

from driver_shim.protocol.program import Command, build
from driver_shim.protocol.program_commands import CommandKind
from emulator.model.verify import DeviceLimits, ProgramRejected, verify
from tests.support.cache_programs import CacheProgram

PLAIN = CacheProgram(spare=True)


def test_a_program_that_appends_and_attends_is_accepted() -> None:
    (entry,) = verify(PLAIN.image()).entries
    assert entry.command_count == 3


def changed(kind: CommandKind, **places: int) -> bytes:
    """The program whose commands of one kind have other operands, by position, or another output."""
    program = PLAIN.program()
    (entry,) = program.entries
    commands = []
    for command in entry.commands:
        if command.kind is kind:
            inputs = [places.get(f"input{at}", tensor) for at, tensor in enumerate(command.inputs)]
            command = Command(kind, command.attributes, tuple(inputs), (places.get("output", command.outputs[0]),))
        commands.append(command)
    return build(dataclasses.replace(program, entries=(dataclasses.replace(entry, commands=tuple(commands)),)))


@pytest.mark.parametrize(
    ("kind", "places", "reason"),
    [
        (CommandKind.CACHE_APPEND, {"input0": PLAIN.tensor("copy")}, "cache is tensor .*, which is no STATE"),
        (CommandKind.CACHE_ATTENTION, {"input1": PLAIN.tensor("copy")}, "keys is tensor .*, which is no STATE"),
        (CommandKind.CACHE_ATTENTION, {"input2": PLAIN.tensor("copy")}, "values is tensor .*, which is no STATE"),
        (CommandKind.CACHE_APPEND, {"input2": PLAIN.tensor("fixed_tables")}, "tables is tensor .*, which is no INPUT"),
        (CommandKind.CACHE_ATTENTION, {"input4": PLAIN.tensor("fixed_rows")}, "rows is tensor .*, which is no INPUT"),
        (CommandKind.CACHE_APPEND, {"output": PLAIN.tensor("scratch")}, "it can only update its state"),
        (CommandKind.CACHE_APPEND, {"output": PLAIN.tensor("other")}, "it can only update its state"),
        (CommandKind.CACHE_ATTENTION, {"output": PLAIN.tensor("cache")}, "the output is"),
        (CommandKind.CACHE_APPEND, {"input3": PLAIN.tensor("tables")}, "rows are int32"),
    ],
)
def test_operands_in_other_places_are_refused(kind: CommandKind, places: dict[str, int], reason: str) -> None:
    with pytest.raises(ProgramRejected, match=reason):
        verify(changed(kind, **places))


@pytest.mark.parametrize("plane", [2, 1 << 31])
def test_a_plane_that_a_cache_has_not_is_refused(plane: int) -> None:
    with pytest.raises(ProgramRejected, match=f"plane {plane} of"):
        verify(CacheProgram(key_plane=plane).image())


def test_a_ring_without_room_for_window_and_tokens_is_refused() -> None:
    assert verify(CacheProgram(ring=8, left_window=6).image())
    with pytest.raises(ProgramRejected, match="a ring of 7 tokens; 8 must fit"):
        verify(CacheProgram(ring=7, left_window=6).image())
    with pytest.raises(ProgramRejected, match="left_window is open"):
        verify(CacheProgram(ring=8).image())


def test_rows_that_the_device_would_have_to_read_are_bounded() -> None:
    program = CacheProgram(batch=8)
    assert verify(program.image(), device_limits=DeviceLimits(rows=8))
    with pytest.raises(ProgramRejected, match="have 8 rows; at most 7"):
        verify(program.image(), device_limits=DeviceLimits(rows=7))
