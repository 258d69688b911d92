"""Pooling, and MaxUnpool, its inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind, PoolFunction
from driver_shim.protocol.types import FLOATS, QUANTISED, WireType
from emulator.model.operators.arrays import Array, KernelFault, is_float, required, widen, windows
from emulator.model.operators.operator import STEP_EFFORT, Operator, Types, function, given, one_type
from emulator.model.operators.shapes import need, shape_of, window_shape

POWER_EFFORT = 16
"""Of a power, for each byte."""


def pooled_shape(x: TensorType, attributes: Any) -> tuple[int, ...]:
    """The shape of what pooling gives. Raises SemanticError."""
    rank = len(x.shape) - 2
    kernel = tuple(attributes.kernel[:rank]) if rank > 0 else ()
    shape = window_shape(x, kernel, attributes, ceil=bool(attributes.ceil_mode))
    need(all(k == 1 for k in attributes.kernel[rank:]), "unused spatial dimensions must have kernel 1")
    for i in range(rank):
        reach = (kernel[i] - 1) * attributes.dilations[i] + 1
        pads = max(attributes.pads_begin[i], attributes.pads_end[i])
        need(pads < reach, f"padding {pads} with a window of {reach}: a window would see only padding")
    return (*x.shape[:2], *shape)


class Pool(Operator):
    """POOL. A second output has the places of maxima."""

    kind = CommandKind.POOL
    flags = ("count_include_pad", "ceil_mode", "column_major")

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        named = function(PoolFunction, attributes.function)
        one_type(inputs, FLOATS | QUANTISED if named is PoolFunction.MAX else FLOATS)
        need((attributes.p > 0) is (named is PoolFunction.LP), f"p is {attributes.p} for {named.name}")
        result = TensorType(x.dtype, pooled_shape(x, attributes))
        return [result, TensorType(WireType.INT64, result.shape)] if named is PoolFunction.MAX else [result]

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        taps: int = math.prod(attributes.kernel)
        moved = self.work(attributes, inputs, outputs).bytes
        per_tap = sum(output.size_bytes for output in outputs) + STEP_EFFORT
        return moved * (POWER_EFFORT if attributes.p else 1) + taps * per_tap

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """MaxPool (opset 12), AveragePool (opset 19), LpPool (opset 18). Padding never wins a maximum.

        An average divides by the number of elements under the window; padding that the attributes name counts when
        `count_include_pad` is set, what ceil mode adds beyond it never does. LpPool: the sum of |x|^p, to the power of
        1 / p. The place of a maximum is its first one under the window, counted through the whole data, spatial
        dimensions the other way round with `column_major`.
        """
        x = widen(required(inputs, 0))
        if attributes.function == PoolFunction.MAX:
            _maximum(x, attributes, outputs)
        elif attributes.function == PoolFunction.AVERAGE:
            average(x, attributes, outputs[0])
        else:
            sums = np.zeros(outputs[0].shape, np.float32)
            powers = np.power(np.abs(x), np.float32(attributes.p))
            for _, x_tap in windows(powers, *_extents(attributes, outputs[0]), attributes, 0):
                sums += x_tap
            outputs[0][...] = np.power(sums, np.float32(1 / attributes.p))


def _extents(attributes: Any, y: Array) -> tuple[list[int], tuple[int, ...]]:
    """(kernel, output) of a window, by spatial dimension."""
    output = y.shape[2:]
    return list(attributes.kernel[: len(output)]), output


def _maximum(x: Array, attributes: Any, outputs: Sequence[Array]) -> None:
    lowest = -np.inf if is_float(x) else np.iinfo(x.dtype).min
    best = np.full(outputs[0].shape, lowest, x.dtype)
    extents = _extents(attributes, outputs[0])
    taps = windows(x, *extents, attributes, lowest)
    if len(outputs) == 1:
        for _, x_tap in taps:
            np.maximum(best, x_tap, out=best)
    else:
        places = np.full(outputs[0].shape, -1, np.int64)
        for (_, x_tap), (_, place) in zip(taps, windows(_places(x, attributes), *extents, attributes, -1), strict=True):
            # NaN wins, as in np.maximum; outside of the data nothing does, not even over minus infinity.
            larger = (x_tap > best) | ((x_tap != x_tap) & (best == best)) | (places < 0)
            larger &= place >= 0
            np.copyto(best, x_tap, where=larger)
            np.copyto(places, place, where=larger)
        outputs[1][...] = places
    outputs[0][...] = best


def _places(x: Array, attributes: Any) -> Array:
    """Each element's place in the data: [N, C, *spatial] int64."""
    if not attributes.column_major:
        return np.arange(x.size, dtype=np.int64).reshape(x.shape)
    turned = np.arange(x.size, dtype=np.int64).reshape(*x.shape[:2], *reversed(x.shape[2:]))
    return turned.transpose(0, 1, *range(x.ndim - 1, 1, -1))


def average(x: Array, attributes: Any, y: Array) -> None:
    """AveragePool of float32."""
    kernel, output = _extents(attributes, y)
    sums = np.zeros(y.shape, np.float32)
    counts = np.zeros((1, 1, *output), np.float32)
    for _, x_tap in windows(x, kernel, output, attributes, 0):
        sums += x_tap
    for _, counted in windows(_counted(x, attributes), kernel, output, _inside(attributes), 0):
        counts += counted
    y[...] = sums / counts


def _counted(x: Array, attributes: Any) -> Array:
    """Ones where a position counts: [1, 1, *spatial], the named padding included."""
    rank = x.ndim - 2
    inside = np.ones((1, 1, *x.shape[2:]), np.float32)
    margins = [(0, 0), (0, 0), *zip(attributes.pads_begin[:rank], attributes.pads_end[:rank], strict=True)]
    return np.pad(inside, margins, constant_values=1 if attributes.count_include_pad else 0)


def _inside(attributes: Any) -> Any:
    """The same window over an array that holds its padding already."""
    return type(attributes)({**attributes, "pads_begin": [0] * len(attributes.pads_begin)})


class Unpool(Operator):
    """UNPOOL."""

    kind = CommandKind.UNPOOL

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, places = given(inputs, 0), given(inputs, 1)
        need(places.dtype is WireType.INT64 and places.shape == x.shape, f"indices {places} for data {x}")
        return [TensorType(x.dtype, shape_of(attributes))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """MaxUnpool (opset 11): each element at its place in the output, counted through all of it; zeros elsewhere."""
        x, places, y = required(inputs, 0), required(inputs, 1), outputs[0]
        if not np.all((places >= 0) & (places < y.size)):
            raise KernelFault(Status.INDEX_OUT_OF_RANGE, f"an index lies outside [0, {y.size - 1}]")
        y[...] = 0
        y.reshape(-1)[places.ravel()] = x.ravel()


OPERATORS: tuple[Operator, ...] = (Pool(), Unpool())
