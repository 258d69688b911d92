"""Rotary position embedding: pairs of elements of queries and keys turned by their position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import FLOATS, WireType
from emulator.model.operators.arrays import Array, KernelFault, optional, required, widen
from emulator.model.operators.attention import by_head
from emulator.model.operators.operator import Operator, Types, given, one_type
from emulator.model.operators.shapes import need

POSITIONS = 3
"""Position of the operand that says which rows of the caches are meant."""
_PASSES = 8


class Rotary(Operator):
    """ROTARY."""

    kind = CommandKind.ROTARY
    flags = ("interleaved",)

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, cos, sin, positions = given(inputs, 0), given(inputs, 1), given(inputs, 2), optional(inputs, POSITIONS)
        dtype = one_type(inputs[:POSITIONS], FLOATS)
        heads = attributes.heads
        need(len(x.shape) == (3 if heads else 4), f"{x} in {heads} heads; rank 4 and none, or rank 3 and some")
        need(not heads or x.shape[2] % heads == 0, f"{x} in {heads} heads")
        batch, length = x.shape[0], x.shape[1 if heads else 2]
        size = x.shape[-1] // max(1, heads)
        turned = 2 * cos.shape[-1] if cos.shape else 0
        need(0 < turned <= size, f"{turned} of {size} elements are turned")
        need(cos.shape == sin.shape, f"cosines {cos} and sines {sin}")
        if positions is None:
            need(cos.shape[:-1] == (batch, length), f"cosines {cos} for {batch} samples of {length} places")
        else:
            need(len(cos.shape) == 2, f"cosines {cos} with positions; their rank is 2")
            good = positions.dtype is WireType.INT64 and positions.shape == (batch, length)
            need(good, f"positions {positions}; they are int64[{batch}, {length}]")
        return [TensorType(dtype, x.shape)]

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return _PASSES

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """RotaryEmbedding (opset 23): (a, b) becomes (a · cos - b · sin, a · sin + b · cos), in float32.

        Pairs are neighbours where `interleaved`, else the halves of what is turned; the rest of a head stays as it is.
        x is [batch, heads, length, size], or [batch, length, heads · size] where heads are given.
        """
        x, y, positions = required(inputs, 0), outputs[0], optional(inputs, POSITIONS)
        if attributes.heads:
            x, y = by_head(x, attributes.heads), by_head(y, attributes.heads)
        cos, sin = (rows_of_places(widen(required(inputs, i)), positions) for i in (1, 2))
        half = cos.shape[-1]
        stop = 2 * half
        first, second = (
            (slice(0, stop, 2), slice(1, stop, 2)) if attributes.interleaved else (slice(half), slice(half, stop))
        )
        a, b = widen(x[..., first]), widen(x[..., second])
        y[..., stop:] = x[..., stop:]
        y[..., first] = a * cos - b * sin
        y[..., second] = a * sin + b * cos


def rows_of_places(cache: Array, positions: Array | None) -> Array:
    """The rows of a cache for all places: [batch, 1, length, pairs]. Raises KernelFault."""
    if positions is None:
        return cache[:, None]
    if np.any((positions < 0) | (positions >= len(cache))):
        raise KernelFault(Status.INDEX_OUT_OF_RANGE, f"a position is outside 0 to {len(cache) - 1}")
    return cache[positions][:, None]


OPERATORS: tuple[Operator, ...] = (Rotary(),)
