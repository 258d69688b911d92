"""8-bit integers with scales: QLinearMatMul, QLinearConv, QuantizeLinear, DequantizeLinear.

real = (integer − zero_point) · scale. Sums of products are int32; scales are combined in float32, in the order
written here, because the last bit of the answer depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import QUANTISED, WireType
from emulator.model.operators.arrays import Array, along, grouped_sums, operand, required
from emulator.model.operators.operator import Operator, Types, checked_axis, given, optional
from emulator.model.operators.products import need_bias
from emulator.model.operators.shapes import conv_shape, matmul_shape, need
from emulator.model.timing import Precision


def _need_scalar(tensor: TensorType, dtype: WireType, what: str) -> None:
    need(tensor.dtype is dtype and tensor.elements == 1, f"{what} is {tensor}, must be one {dtype.text}")


def _need_vector(tensor: TensorType, dtype: WireType, length: int, what: str) -> None:
    good = tensor.dtype is dtype and len(tensor.shape) <= 1 and tensor.elements in (1, length)
    need(good, f"{what} is {tensor}, must be one or {length} of {dtype.text}")


def _need_scales(attributes: Any, x: TensorType, scale: TensorType, zero: TensorType | None, kind: WireType) -> None:
    axis = checked_axis(attributes.axis, len(x.shape)) if x.shape else 0
    channels = x.shape[axis] if x.shape else 1
    _need_vector(scale, WireType.FLOAT32, channels, "scale")
    if zero is not None:
        _need_vector(zero, kind, channels, "zero_point")


class _Product(Operator):
    """A quantised sum of products: x, w, x_scale, x_zero_point, w_scale, w_zero_point, y_scale, y_zero_point, bias."""

    flags = ("relu",)

    def precision(self, inputs: Types, outputs: Sequence[TensorType]) -> Precision:
        return Precision.INT8

    def _result(self, inputs: Types, shape: tuple[int, ...], channels: int) -> Sequence[TensorType]:
        x, w, x_scale, x_zero, w_scale, w_zero, y_scale, y_zero = (given(inputs, i) for i in range(8))
        need(
            x.dtype in QUANTISED and w.dtype in QUANTISED and y_zero.dtype in QUANTISED,
            "operands must be int8 or uint8",
        )
        _need_scalar(x_scale, WireType.FLOAT32, "x_scale")
        _need_scalar(y_scale, WireType.FLOAT32, "y_scale")
        _need_scalar(x_zero, x.dtype, "x_zero_point")
        _need_scalar(y_zero, y_zero.dtype, "y_zero_point")
        _need_vector(w_scale, WireType.FLOAT32, channels, "w_scale")
        _need_vector(w_zero, w.dtype, channels, "w_zero_point")
        bias = optional(inputs, 8)
        need_bias(bias, channels)
        need(bias is None or bias.dtype is WireType.INT32, f"bias is {bias}, must be int32")
        return [TensorType(y_zero.dtype, shape)]


class QMatMul(_Product):
    """QMATMUL."""

    kind = CommandKind.QMATMUL

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        shape = matmul_shape(given(inputs, 0).shape, given(inputs, 1).shape)
        return self._result(inputs, shape, shape[-1])

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return outputs[0].elements * given(inputs, 0).shape[-1]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """QLinearMatMul (opset 10), weights per tensor or per column, with int32 bias and ReLU."""
        x, w = _centred(inputs, 0, 3, -1), _centred(inputs, 1, 5, -1)
        _store(attributes, _int32(x @ w), inputs, outputs[0], outputs[0].ndim - 1)


class QConv(_Product):
    """QCONV."""

    kind = CommandKind.QCONV

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        shape = conv_shape(given(inputs, 0), given(inputs, 1), attributes)
        return self._result(inputs, shape, shape[1])

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return outputs[0].elements * math.prod(given(inputs, 1).shape[1:])

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return math.prod(given(inputs, 1).shape[2:])

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
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


class Quantize(Operator):
    """QUANTIZE: to the type of the zero point."""

    kind = CommandKind.QUANTIZE

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, zero = given(inputs, 0), given(inputs, 2)
        need(
            x.dtype is WireType.FLOAT32 and zero.dtype in QUANTISED,
            f"{x} to {zero.dtype.text}: float32 to int8 or uint8",
        )
        _need_scales(attributes, x, given(inputs, 1), zero, zero.dtype)
        return [TensorType(zero.dtype, x.shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """QuantizeLinear (opset 13): saturate(round(x / scale) + zero_point), half to even.

        NaN gives the zero point.
        """
        x, y = required(inputs, 0), outputs[0]
        scale = along(required(inputs, 1), attributes.axis, x.ndim)
        zero = along(required(inputs, 2), attributes.axis, x.ndim).astype(np.float32)
        limits = np.iinfo(y.dtype)
        scaled = np.nan_to_num(np.rint(x / scale), nan=0.0)
        y[...] = np.clip(scaled, limits.min - zero, limits.max - zero) + zero


class Dequantize(Operator):
    """DEQUANTIZE."""

    kind = CommandKind.DEQUANTIZE

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        need(x.dtype in QUANTISED | {WireType.INT32}, f"{x}: only int8, uint8 and int32 can be dequantised")
        _need_scales(attributes, x, given(inputs, 1), optional(inputs, 2), x.dtype)
        return [TensorType(WireType.FLOAT32, x.shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """DequantizeLinear (opset 13): (x − zero_point) · scale in float32; x may be int32."""
        x = required(inputs, 0)
        zero_point = operand(inputs, 2)
        centred = x.astype(np.int32)
        if zero_point is not None:
            centred = centred - along(zero_point, attributes.axis, x.ndim).astype(np.int32)
        outputs[0][...] = centred.astype(np.float32) * along(required(inputs, 1), attributes.axis, x.ndim)


OPERATORS: tuple[Operator, ...] = (QMatMul(), QConv(), Quantize(), Dequantize())
