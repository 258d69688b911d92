"""The work of each command of a program: multiply-accumulates and bytes, from its operands alone."""

from __future__ import annotations

from collections.abc import Sequence

from driver_shim.protocol.program import Command, Program, Tensor, TensorType
from emulator.model.operators import OPERATORS
from emulator.model.timing import Work


def types_of(command: Command, tensors: Sequence[Tensor]) -> tuple[list[TensorType | None], list[TensorType]]:
    """The types of a command's operands (None for one that is absent) and outputs."""
    inputs = [tensors[i].type if i is not None else None for i in command.inputs]
    return inputs, [tensors[i].type for i in command.outputs]


def work_of(command: Command, tensors: Sequence[Tensor]) -> Work:
    """Work of one command: each operand is read once, each output written once."""
    return OPERATORS[command.kind].work(command.attributes, *types_of(command, tensors))


def program_work(program: Program) -> tuple[Work, ...]:
    """Work of every command, in order."""
    return tuple(work_of(command, program.tensors) for command in program.commands)
