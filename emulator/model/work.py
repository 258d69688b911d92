"""The work of each command of a program: multiply-accumulates and bytes, from its operands alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from driver_shim.protocol.program import Command, Program, Tensor, TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType
from emulator.model.timing import Precision, Work

_QUANTISED_KINDS = frozenset({CommandKind.QMATMUL, CommandKind.QCONV})
_MATRIX_KINDS = frozenset({CommandKind.MATMUL, CommandKind.QMATMUL})
_CONV_KINDS = frozenset({CommandKind.CONV, CommandKind.QCONV})
_HALVES = frozenset({WireType.FLOAT16, WireType.BFLOAT16})


def work_of(command: Command, tensors: Sequence[Tensor]) -> Work:
    """Work of one command: each operand is read once, each output written once."""
    inputs = [tensors[i].type if i is not None else None for i in command.inputs]
    output = tensors[command.outputs[0]].type
    moved = output.size_bytes + sum(operand.size_bytes for operand in inputs if operand is not None)
    if command.kind in _QUANTISED_KINDS:
        precision = Precision.INT8
    else:
        precision = Precision.FP16 if output.dtype in _HALVES else Precision.FP32
    return Work(_macs(command, inputs, output), moved, precision)


def program_work(program: Program) -> tuple[Work, ...]:
    """Work of every command, in order."""
    return tuple(work_of(command, program.tensors) for command in program.commands)


def _macs(command: Command, inputs: Sequence[TensorType | None], output: TensorType) -> int:
    if command.kind in _MATRIX_KINDS and inputs[0] is not None:
        transposed = command.kind is CommandKind.MATMUL and command.attributes.transpose_a
        return output.elements * inputs[0].shape[-2 if transposed else -1]
    if command.kind in _CONV_KINDS and inputs[1] is not None:
        return output.elements * math.prod(inputs[1].shape[1:])
    return 0
