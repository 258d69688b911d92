"""What a program takes on a chip, before there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from driver_shim.protocol.program import Command, Tensor
from driver_shim.protocol.program_parsing import parse
from emulator.model import timing
from emulator.model.profile import load_profile
from emulator.model.timing import Work
from emulator.model.work import attention_cost, work_of
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


def estimate(
    compiled: CompiledProgram, profile_name: str, *, context: int | None = None, rows: int | None = None
) -> Estimate:
    """One run of a program on an idle chip.

    For a program that attends to caches, `context` is how many tokens each sequence has when the run ends, its own
    included (else as many as there is room for), and `rows` how many of the batch have any (else all). Raises
    ValueError for a profile that there is not, and for a context or rows that the program has no room for.
    """
    profile = load_profile(profile_name)
    program = parse(compiled.image)
    (entry,) = program.entries
    work = [_work(command, program.tensors, context, rows) for command in entry.commands]
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


def _work(command: Command, tensors: Sequence[Tensor], context: int | None, rows: int | None) -> Work:
    cost = attention_cost(command, tensors)
    if cost is None:
        return work_of(command, tensors)
    tokens = cost.capacity if context is None else context
    taken = cost.batch if rows is None else rows
    if tokens < 0 or (tokens > cost.capacity and not cost.ring):
        raise ValueError(f"a context of {tokens} tokens; 0 to {cost.capacity} are possible")
    if not 0 <= taken <= cost.batch:
        raise ValueError(f"{taken} rows; 0 to {cost.batch} are possible")
    return cost.work([cost.uniform(tokens)] * taken)
