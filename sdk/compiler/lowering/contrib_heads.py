"""What onnxruntime's operators of attention share: heads, packed operands, masks of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from driver_shim.protocol.types import WireType
from sdk.compiler.context import NodeContext
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import binary, cast
from sdk.compiler.lowering.movement import part, transposed

_FILTER = -10000.0
"""Added to the scores of keys that a mask leaves out, unless a node says otherwise."""


class Heads(NamedTuple):
    """Queries, keys and values: all [batch, length, heads · size], or all [batch, heads, length, size]."""

    query: Value
    key: Value
    value: Value


class Lengths(NamedTuple):
    """How many of what one attention is over."""

    batch: int
    queries: int
    total: int
    """Keys with those of the past."""
    size: int
    """Of a head."""


def refuse_operands(node: NodeContext, **positions: int) -> None:
    """Refuse operands that are not supported."""
    for name, position in positions.items():
        if node.optional(position) is not None:
            raise Refused(f"its input {name} is not supported")


def heads_apart(builder: Builder, x: Value, heads: int) -> Value:
    """[batch, length, heads · size] as [batch, heads, length, size]."""
    batch, length, width = x.shape
    return transposed(builder, builder.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def heads_beside(builder: Builder, x: Value) -> Value:
    """[batch, heads, length, size] as [batch, length, heads · size]."""
    batch, heads, length, size = x.shape
    return builder.reshape(transposed(builder, x, (0, 2, 1, 3)), (batch, length, heads * size))


def taken_apart(builder: Builder, joint: Value, sizes: Sequence[int]) -> Heads:
    """Queries, keys and values that are side by side in one tensor of rank 3, so wide each."""
    starts = (0, sizes[0], sizes[0] + sizes[1])
    return Heads(*(part(builder, joint, 2, start, size) for start, size in zip(starts, sizes, strict=True)))


def lengths_of(operands: Heads, past: Value | None, heads: int) -> Lengths:
    """Those of operands with their heads side by side, or apart, and of the past."""
    beside = len(operands.query.shape) == 3
    axis = 1 if beside else 2
    size = operands.query.shape[-1] // (heads if beside else 1)
    earlier = past.shape[2] if past is not None and len(past.shape) == 4 else 0
    return Lengths(operands.query.shape[0], operands.query.shape[axis], operands.key.shape[axis] + earlier, size)


def key_bias(node: NodeContext, mask: Value | None, like: Value, lengths: Lengths) -> Value | None:
    """What a mask of keys adds to scores: nothing, or `mask_filter_value`.

    It is [batch] counts of keys, or [batch, keys] or [batch, queries, keys] of what is unequal 0 where a key counts.
    """
    if mask is None:
        return None
    builder, (batch, queries, total, _) = node.builder, lengths
    if mask.shape == (batch,):
        places = builder.constant(np.arange(total, dtype=np.int32))
        counts = builder.reshape(cast(builder, mask, WireType.INT32), (batch, 1, 1, 1))
        counted = binary(builder, BinaryFunction.LESS, places, counts)
    elif mask.shape in ((batch, total), (batch, queries, total)):
        rows = queries if len(mask.shape) == 3 else 1
        counted = cast(builder, builder.reshape(mask, (batch, 1, rows, total)), WireType.BOOL)
    else:
        raise Refused(f"the mask {mask.type} for {batch} samples of {queries} queries and {total} keys")
    nothing = builder.scalar(0, like.dtype)
    left_out = builder.scalar(node.attribute("mask_filter_value", _FILTER), like.dtype)
    return builder.emit(CommandKind.WHERE, [counted, nothing, left_out])


def added(builder: Builder, a: Value | None, b: Value | None) -> Value | None:
    """The sum of what is there of two values."""
    if a is None or b is None:
        return b if a is None else a
    return binary(builder, BinaryFunction.ADD, a, b)
