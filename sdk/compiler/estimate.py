"""What a program takes on a chip, before there is one."""

from __future__ import annotations

from typing import NamedTuple

from driver_shim.protocol.program_parsing import parse
from emulator.model import timing
from emulator.model.profile import load_profile
from emulator.model.work import work_of
from sdk.compiler.compiled import CompiledProgram


class CommandEstimate(NamedTuple):
    """What one command takes."""

    node: str
    """The node or nodes that it comes from."""
    kind: str
    macs: int
    moved_bytes: int
    ticks: int


class Estimate(NamedTuple):
    """What one run takes on a chip that does nothing else, computed from the chip's figures."""

    profile: str
    latency_ticks: int
    """From the start of the program to its end; on the emulator this is what an idle engine takes, to the tick."""
    latency_seconds: float
    macs: int
    moved_bytes: int
    commands: tuple[CommandEstimate, ...]


def estimate(compiled: CompiledProgram, profile_name: str) -> Estimate:
    """One run of a program on an idle chip. Raises ValueError for a profile that there is not."""
    profile = load_profile(profile_name)
    program = parse(compiled.image)
    (entry,) = program.entries
    work = [work_of(command, program.tensors) for command in entry.commands]
    ticks = timing.program_ticks(profile, work)
    commands = tuple(
        CommandEstimate(node, command.kind.name, item.macs, item.bytes, timing.command_ticks(profile, item))
        for node, command, item in zip(compiled.nodes, entry.commands, work, strict=True)
    )
    return Estimate(
        profile.name,
        ticks,
        ticks / profile.tick_hz,
        sum(item.macs for item in work),
        sum(item.bytes for item in work),
        commands,
    )
