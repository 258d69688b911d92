"""A ReLU or Clip before a quantisation whose integers end where it does is left to their saturation."""

from __future__ import annotations

import math

from driver_shim.protocol.program_commands import CommandKind, UnaryFunction
from sdk.compiler.ir import Operation, fields_of
from sdk.compiler.passes.quantisation import saturates, target
from sdk.compiler.passes.rewriting import Rewriting


def skip_clamp(program: Rewriting) -> None:
    """Quantise what was limited to the integers' own range as it was before."""
    for position, operation in enumerate(program.operations):
        wanted = target(operation)
        clamp = program.sole(operation.inputs[0]) if wanted is not None else None
        limits = _limits(clamp)
        if wanted is None or clamp is None or limits is None or not saturates(wanted, *limits):
            continue
        operands = [clamp.inputs[0], *operation.inputs[1:]]
        program.replace(position, CommandKind.QUANTIZE, operands, fields_of(operation), [clamp])


def _limits(operation: Operation | None) -> tuple[float, float] | None:
    if operation is None or operation.kind is not CommandKind.UNARY:
        return None
    fields = operation.attributes
    if fields.function == UnaryFunction.RELU:
        return 0.0, math.inf
    return (fields.alpha, fields.beta) if fields.function == UnaryFunction.CLIP else None
