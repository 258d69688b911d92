"""The work of each command of a program: multiply-accumulates and bytes.

It follows from the operands' types alone, but for commands that attend to what sequences have: theirs follows from the
rows that an execution gives them, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from driver_shim.protocol.program import Command, EntryPoint, Program, Storage, Tensor, TensorType
from emulator.model import timing
from emulator.model.operators import OPERATORS
from emulator.model.operators.caches import AttentionCost, CacheAttention
from emulator.model.profile import Profile
from emulator.model.timing import Work


def types_of(command: Command, tensors: Sequence[Tensor]) -> tuple[list[TensorType | None], list[TensorType]]:
    """The types of a command's operands (None for one that is absent) and outputs."""
    inputs = [tensors[i].type if i is not None else None for i in command.inputs]
    return inputs, [tensors[i].type for i in command.outputs]


def work_of(command: Command, tensors: Sequence[Tensor], on_chip_bytes: int = 0) -> Work:
    """Work of one command: each operand is read once, each output written once.

    What the memory plan has within the first `on_chip_bytes` of the workspace stays on the chip, and moves no bytes.
    """
    work = OPERATORS[command.kind].work(command.attributes, *types_of(command, tensors))
    return work._replace(bytes=max(0, work.bytes - _resident_bytes(command, tensors, on_chip_bytes)))


def _resident_bytes(command: Command, tensors: Sequence[Tensor], on_chip_bytes: int) -> int:
    """Bytes of a command's operands and outputs that stay on the chip."""
    operands = (tensors[i] for i in (*command.inputs, *command.outputs) if i is not None)
    within = (each for each in operands if each.storage is Storage.WORKSPACE)
    return sum(each.type.size_bytes for each in within if each.offset + each.type.size_bytes <= on_chip_bytes)


def program_work(program: Program) -> tuple[Work, ...]:
    """Work of every command, in order."""
    return tuple(work_of(command, program.tensors) for command in program.commands)


class RowCost(NamedTuple):
    """Commands of an entry point that are alike, and whose work follows from the rows of one input."""

    input: int
    """Position of the input among those that are bound."""
    times: int
    """How many commands."""
    cost: AttentionCost


def attention_cost(command: Command, tensors: Sequence[Tensor], on_chip_bytes: int = 0) -> AttentionCost | None:
    """What the work of a command follows from beside its rows; None for one whose work does not follow from rows."""
    operator = OPERATORS[command.kind]
    if not isinstance(operator, CacheAttention):
        return None
    cost = operator.cost(command.attributes, *types_of(command, tensors))
    moved = cost.outer_bytes - _resident_bytes(command, tensors, on_chip_bytes)
    return cost._replace(outer_bytes=max(0, moved))


def row_costs(tensors: Sequence[Tensor], entry: EntryPoint, on_chip_bytes: int = 0) -> tuple[RowCost, ...]:
    """The commands of an entry point whose work follows from rows."""
    found: Counter[tuple[int, AttentionCost]] = Counter()
    places = {binding.tensor: position for position, binding in enumerate(entry.inputs)}
    for command in entry.commands:
        cost = attention_cost(command, tensors, on_chip_bytes)
        rows = command.inputs[-1]
        if cost is not None and rows is not None:
            found[places[rows], cost] += 1
    return tuple(RowCost(position, times, cost) for (position, cost), times in found.items())


def known_work(tensors: Sequence[Tensor], entry: EntryPoint, on_chip_bytes: int = 0) -> list[Work]:
    """Work of the other commands, in order."""
    return [work_of(each, tensors, on_chip_bytes) for each in entry.commands if attention_cost(each, tensors) is None]


Rows = Iterable[Sequence[int]]
"""(slot, past, count) of each row, as the host wrote them."""


def row_ticks(profile: Profile, costs: Iterable[RowCost], rows_of: Callable[[RowCost], Rows]) -> int:
    """What commands take whose work follows from rows; one that is impossible costs what the nearest possible does."""
    ticks = 0
    for each in costs:
        work = each.cost.work([each.cost.clipped(past, count) for _, past, count in rows_of(each)])
        ticks += each.times * timing.command_ticks(profile, work)
    return ticks
