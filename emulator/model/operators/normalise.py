"""Normalisation over dimensions of a tensor, with its scale and bias in one command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import FLOATS, WireType
from emulator.model.operators.arrays import Array, optional, required, widen
from emulator.model.operators.operator import Operator, Types, given, one_type
from emulator.model.operators.reductions import axes_of
from emulator.model.operators.shapes import broadcast, need, reduced_shape

_PASSES = 6
"""Array operations over the data: mean, centring, square, its mean, product, scale and bias."""


class LayerNorm(Operator):
    """LAYER_NORM."""

    kind = CommandKind.LAYER_NORM
    flags = ("root_mean_square",)

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        dtype = one_type(inputs, FLOATS)
        need(attributes.axes >> len(x.shape) == 0, f"axes mask {attributes.axes:#x} for rank {len(x.shape)}")
        need(attributes.epsilon >= 0, f"epsilon is {attributes.epsilon}; it must not be negative")
        for place in (1, 2):
            found = optional(inputs, place)
            fits = found is None or broadcast(found.shape, x.shape) == x.shape
            need(fits, f"operand {place} is {found}, which does not broadcast to {x}")
        statistics = TensorType(WireType.FLOAT32, reduced_shape(x.shape, axes_of(attributes.axes), keep=True))
        return [TensorType(dtype, x.shape), statistics, statistics]

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return _PASSES

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return super().effort(attributes, inputs, outputs) + _PASSES * given(inputs, 0).size_bytes

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """LayerNormalization (opset 17), RMSNormalization (23), over the dimensions in `axes`; all in float32.

        y = (x - mean) / sqrt(variance + epsilon) · scale + bias with the variance of a population; of a root mean
        square, the mean is 0. Mean and 1 / sqrt(variance + epsilon) are float32, with reduced dimensions as ones.
        """
        x, axes = widen(required(inputs, 0)), axes_of(attributes.axes)
        scale, bias = optional(inputs, 1), optional(inputs, 2)
        mean = _mean(x, axes)
        if attributes.root_mean_square:
            mean = np.zeros_like(mean)
        centred = x - mean
        variance = _mean(centred * centred, axes)
        inverse = 1 / np.sqrt(variance + np.float32(attributes.epsilon))
        y: Array = centred * inverse
        if scale is not None:
            y = y * widen(scale)
        if bias is not None:
            y = y + widen(bias)
        for output, values in zip(outputs, (y, mean, inverse), strict=False):
            output[...] = values


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    """The mean with reduced dimensions as ones; NaN of no elements."""
    count = math.prod(x.shape[axis] for axis in axes)
    return np.asarray(np.sum(x, axes, np.float32, keepdims=True)) / np.float32(count)


OPERATORS: tuple[Operator, ...] = (LayerNorm(),)
