"""The kinds of command: each one object that knows the types it gives, its work, its limits and its golden kernel.

A golden kernel is the reference semantics, plain numpy to be read beside the ONNX operator specification; silicon and
the faster kernels must equal it. float16 and bfloat16 are widened to float32, computed with, and rounded once when
stored. A command whose outputs have no elements is not run.
"""

from __future__ import annotations

from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators import (
    attention,
    caches,
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

_FAMILIES = (
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
    caches,
    linear_attention,
)
OPERATORS: dict[CommandKind, Operator] = {each.kind: each for family in _FAMILIES for each in family.OPERATORS}
"""What there is, by kind."""

if len(OPERATORS) < sum(len(family.OPERATORS) for family in _FAMILIES):
    raise ImportError("a kind of command is in the tables of two families")

__all__ = ["OPERATORS", "KernelFault", "Operator", "SemanticError"]
