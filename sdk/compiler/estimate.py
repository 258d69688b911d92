"""What a program takes on a chip, before there is one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from driver_shim.protocol.program import Command, EntryPoint, Tensor
from driver_shim.protocol.program_parsing import parse
from emulator.model import timing
from emulator.model.profile import Profile, load_profile
from emulator.model.timing import Binding, NoRate, Work
from emulator.model.work import attention_cost, work_of
from sdk.compiler.compiled import CompiledProgram


class CommandEstimate(NamedTuple):
    """What one command takes."""

    node: str
    """The node or nodes that it comes from."""
    kind: str
    macs: int
    moved_bytes: int
    """To and from device memory."""
    ticks: int
    binding: Binding
    """The term that is largest."""
    bound_ticks: int
    """What no schedule of this chip's gets below: everything at peak rates at once."""


class Estimate(NamedTuple):
    """What one run takes on a chip that does nothing else, computed from the chip's figures: a bound from below.

    Nothing in it is fitted. What the figures leave out takes time too: launches by the host, memory's refresh, what
    kernels miss of a peak.
    """

    profile: str
    latency_ticks: int
    """From the start of the program to its end; on the emulator this is what an idle device takes, to the tick."""
    latency_seconds: float
    macs: int
    moved_bytes: int
    """To and from device memory."""
    commands: tuple[CommandEstimate, ...]
    bound_ticks: int
    """What no schedule of this chip's gets below: each command at peak rates, and nothing else."""
    bound_seconds: float
    utilisation: float
    """Multiply-accumulates, of those that the engines might have done in that time at peak; 0 where there are none."""
    runs_per_second: float | None
    """Runs in a row, their copies over the link meanwhile; None where nothing takes any time."""
    binding: Binding
    """What most of the time is spent on, in such a row."""
    energy_joules: tuple[float, float] | None
    """Of a run: at least what an idle chip takes, at most what it may; None where either is not known."""
    memory_bytes: int
    """Device memory for one run at a time."""
    fits: bool
    """Whether the chip has as much."""
    bounds_only_without: tuple[str, ...]
    """Figures of the chip for lack of which `latency_ticks` is no estimate, only a bound from below."""


def estimate(
    compiled: CompiledProgram, chip: str | Path | Profile, *, context: int | None = None, rows: int | None = None
) -> Estimate:
    """One run of a program on an idle chip, which has a name, or is a file.

    For a program that attends to caches, `context` is how many tokens each sequence has when the run ends, its own
    included (else as many as there is room for), and `rows` how many of the batch have any (else all). Raises
    ValueError for a profile that there is not, and for a context or rows that the program has no room for; NoRate,
    which is one, for a chip that lacks a type that the program multiplies.
    """
    profile = chip if isinstance(chip, Profile) else load_profile(chip)
    program = parse(compiled.image)
    (entry,) = program.entries
    on_chip = profile.shared_sram_bytes or 0
    work = [_work(command, program.tensors, on_chip, context, rows) for command in entry.commands]
    named = zip(compiled.nodes, entry.commands, work, strict=True)
    commands = tuple(_command(profile, node, command.kind.name, each) for node, command, each in named)
    ticks = profile.exec_fixed_ticks + sum(each.ticks for each in commands)
    link = _link_ticks(profile, program.tensors, entry)
    bound = sum((timing.roofline_ticks(profile, each) for each in work), Fraction(0))
    peak = sum((timing.peak_ticks(profile, each) for each in work), Fraction(0))
    steady = max(ticks, link)
    return Estimate(
        profile.name,
        ticks,
        ticks / profile.tick_hz,
        sum(each.macs for each in commands),
        sum(each.moved_bytes for each in commands),
        commands,
        math.ceil(bound),
        float(bound / profile.tick_hz),
        float(peak / ticks) if ticks else 0.0,
        profile.tick_hz / steady if steady else None,
        Binding.LINK if link > ticks else _binding(profile, commands),
        _energy(profile, ticks / profile.tick_hz),
        compiled.plan.peak_bytes,
        compiled.plan.peak_bytes <= profile.memory_bytes,
        profile.bounds_only_without,
    )


def _command(profile: Profile, node: str, kind: str, work: Work) -> CommandEstimate:
    try:
        cost = timing.command_cost(profile, work)
    except NoRate as error:
        raise NoRate(profile, error.precision, f"; node {node!r} multiplies it") from None
    bound = math.ceil(timing.roofline_ticks(profile, work))
    return CommandEstimate(node, kind, work.macs, cost.moved_bytes, cost.ticks, cost.binding, bound)


def _binding(profile: Profile, commands: Sequence[CommandEstimate]) -> Binding:
    """What most ticks of a run are spent on."""
    spent = Counter({Binding.FIXED: profile.exec_fixed_ticks + len(commands) * profile.command_fixed_ticks})
    for each in commands:
        spent[each.binding] += each.ticks - profile.command_fixed_ticks
    return max(Binding, key=spent.__getitem__)


def _energy(profile: Profile, seconds: float) -> tuple[float, float] | None:
    if profile.idle_watts is None or profile.power_cap_watts is None:
        return None
    return profile.idle_watts * seconds, profile.power_cap_watts * seconds


def _link_ticks(profile: Profile, tensors: Sequence[Tensor], entry: EntryPoint) -> int:
    """What the copies of a run occupy the host link for: inputs one way, outputs the other, at once."""
    ways = (sum(tensors[each.tensor].type.size_bytes for each in bound) for bound in (entry.inputs, entry.outputs))
    return max(timing.link_ticks(profile, size) for size in ways)


def _work(
    command: Command, tensors: Sequence[Tensor], on_chip_bytes: int, context: int | None, rows: int | None
) -> Work:
    cost = attention_cost(command, tensors, on_chip_bytes)
    if cost is None:
        return work_of(command, tensors, on_chip_bytes)
    tokens = cost.capacity if context is None else context
    taken = cost.batch if rows is None else rows
    if tokens < 0 or (tokens > cost.capacity and not cost.ring):
        raise ValueError(f"a context of {tokens} tokens; 0 to {cost.capacity} are possible")
    if not 0 <= taken <= cost.batch:
        raise ValueError(f"{taken} rows; 0 to {cost.batch} are possible")
    return cost.work([cost.uniform(tokens)] * taken)
