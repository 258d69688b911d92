"""The kinds of command: each one object that knows the types it gives, its work, its limits and its golden kernel.

A golden kernel is the reference semantics, plain numpy to be read beside the ONNX operator specification; silicon and
the faster kernels must equal it. float16 and bfloat16 are widened to float32, computed with, and rounded once when
stored. A command whose outputs have no elements is not run.
"""

from __future__ import annotations

from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators import (
    attention,
    elementwise,
    indexing,
    integer_products,
    linear_attention,
    movement,
    normalise,
    packed_products,
    pooling,
    products,
    quantised,
    quantised_elementwise,
    quantised_pooling,
    recurrent,
    reductions,
    resizing,
    rotary,
    sampling,
    states,
)
from emulator.model.operators.arrays import KernelFault
from emulator.model.operators.operator import Operator
from emulator.model.operators.shapes import SemanticError

OPERATORS: dict[CommandKind, Operator] = {
    operator.kind: operator
    for room in (
        products,
        pooling,
        quantised,
        integer_products,
        packed_products,
        quantised_elementwise,
        quantised_pooling,
        elementwise,
        reductions,
        normalise,
        movement,
        indexing,
        resizing,
        sampling,
        recurrent,
        attention,
        rotary,
        states,
        linear_attention,
    )
    for operator in room.OPERATORS
}
"""What there is, by kind."""

__all__ = ["OPERATORS", "KernelFault", "Operator", "SemanticError"]
