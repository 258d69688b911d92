"""8-bit integers with scales: QLinearMatMul, QLinearConv, QuantizeLinear, DequantizeLinear.

real = (integer − zero_point) · scale. Sums of products are int32; scales are combined in float32, in the order
written here, because the last bit of the answer depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emulator.model.golden.common import Array, along, grouped_sums, operand, required


def qmatmul(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """QLinearMatMul (opset 10), weights per tensor or per column, with int32 bias and ReLU."""
    x, w = _centred(inputs, 0, 3, -1), _centred(inputs, 1, 5, -1)
    _store(attributes, _int32(x @ w), inputs, outputs[0], outputs[0].ndim - 1)


def qconv(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """QLinearConv (opset 10), weights per tensor or per output channel, with int32 bias and ReLU.

    Padding stands for real zero.
    """
    x, w = _centred(inputs, 0, 3, 0), _centred(inputs, 1, 5, 0)
    _store(attributes, _int32(grouped_sums(x, w, outputs[0].shape[2:], attributes)), inputs, outputs[0], 1)


def _centred(inputs: Sequence[Array | None], position: int, zero_point: int, axis: int) -> Array:
    """integer − zero_point, as float64: whole numbers whose sums of products stay below 2⁵³ are exact there."""
    values = required(inputs, position).astype(np.float64)
    return values - along(required(inputs, zero_point), axis % values.ndim, values.ndim).astype(np.float64)


def _int32(sums: Array) -> Array:
    """Exact sums as a 32-bit accumulator holds them."""
    return sums.astype(np.int64).astype(np.int32)


def _store(attributes: Any, sums: Array, inputs: Sequence[Array | None], y: Array, axis: int) -> None:
    """saturate(round((sums + bias) · (x_scale · w_scale) / y_scale) + zero_point); ReLU clamps at the zero point.

    Rounding is half to even. The sum of int32 accumulator and bias wraps.
    """
    x_scale, w_scale, y_scale = (required(inputs, position) for position in (2, 4, 6))
    bias = operand(inputs, 8)
    if bias is not None:
        sums = sums + along(bias, axis, y.ndim)
    multiplier = (x_scale.reshape(()) * along(w_scale, axis, y.ndim)) / y_scale.reshape(())
    zero_point = int(required(inputs, 7).reshape(()))
    limits = np.iinfo(y.dtype)
    low = zero_point if attributes.relu else limits.min
    scaled = np.nan_to_num(sums.astype(np.float32) * multiplier, nan=0.0)
    y[...] = np.rint(np.clip(scaled, low - zero_point, limits.max - zero_point)) + np.float32(zero_point)


def quantize(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """QuantizeLinear (opset 13): saturate(round(x / scale) + zero_point), half to even; NaN gives the zero point."""
    x, y = required(inputs, 0), outputs[0]
    scale = along(required(inputs, 1), attributes.axis, x.ndim)
    zero = along(required(inputs, 2), attributes.axis, x.ndim).astype(np.float32)
    limits = np.iinfo(y.dtype)
    scaled = np.nan_to_num(np.rint(x / scale), nan=0.0)
    y[...] = np.clip(scaled, limits.min - zero, limits.max - zero) + zero


def dequantize(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """DequantizeLinear (opset 13): (x − zero_point) · scale in float32; x may be int32."""
    x = required(inputs, 0)
    zero_point = operand(inputs, 2)
    centred = x.astype(np.int32)
    if zero_point is not None:
        centred = centred - along(zero_point, attributes.axis, x.ndim).astype(np.int32)
    outputs[0][...] = centred.astype(np.float32) * along(required(inputs, 1), attributes.axis, x.ndim)
