"""Integers with scales: QLinearMatMul, QLinearConv, QuantizeLinear and its relatives.

real = (integer − zero_point) · scale. Sums of products are int32; scales are combined in float32, in the order
written here, because the last bit of the answer depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import FLOATS, PACKED, QUANTISED, WireType
from emulator.model.operators.arrays import (
    Array,
    along,
    blocks,
    exact,
    grouped_sums,
    optional,
    required,
    widen,
    wrapped,
)
from emulator.model.operators.operator import Operator, Types, checked_axis, given
from emulator.model.operators.products import Convolution, MatrixProduct, need_bias
from emulator.model.operators.shapes import conv_shape, matmul_shape, need
from emulator.model.timing import Precision

_STORED = QUANTISED | {WireType.INT16}
"""What QUANTIZE gives."""


def need_scalar(tensor: TensorType, dtype: WireType, what: str) -> None:
    """Raise SemanticError unless the operand is a single element of this type."""
    need(tensor.dtype is dtype and tensor.elements == 1, f"{what} is {tensor}, must be one {dtype.text}")


def need_vector(tensor: TensorType, dtype: WireType, length: int, what: str) -> None:
    """Raise SemanticError unless the operand is one element of this type, or one for each channel."""
    good = tensor.dtype is dtype and len(tensor.shape) <= 1 and tensor.elements in (1, length)
    need(good, f"{what} is {tensor}, must be one or {length} of {dtype.text}")


def need_rows(tensor: TensorType, dtype: WireType, matrix: TensorType, what: str) -> None:
    """Raise SemanticError unless the operand is one element of this type, or one for each row of a matrix operand."""
    rows = (*matrix.shape[:-1], 1)
    good = tensor.dtype is dtype and (tensor.elements == 1 or tensor.shape == rows)
    need(good, f"{what} is {tensor}, must be one {dtype.text}, or a column {list(rows)} of them")


def need_columns(tensor: TensorType, dtype: WireType, matrix: TensorType, what: str) -> None:
    """Raise SemanticError unless the operand is one element of this type, or one for each column."""
    columns = (*matrix.shape[:-2], 1, matrix.shape[-1])
    if tensor.shape != columns or tensor.dtype is not dtype:
        need_vector(tensor, dtype, matrix.shape[-1], what)


def _need_scales(attributes: Any, x: TensorType, scale: TensorType, zero: TensorType | None, kind: WireType) -> None:
    """The scales and zero points that QUANTIZE and DEQUANTIZE take. Raises SemanticError."""
    need(scale.dtype in FLOATS, f"scale is {scale}, must be of a floating-point type")
    axis = checked_axis(attributes.axis, len(x.shape)) if x.shape else 0
    operands = [(scale, scale.dtype, "scale")] + ([] if zero is None else [(zero, kind, "zero_point")])
    if not attributes.block:
        channels = x.shape[axis] if x.shape else 1
        for tensor, dtype, what in operands:
            need_vector(tensor, dtype, channels, what)
        return
    need(bool(x.shape), f"blocks of {x}, which has no axis")
    need(attributes.block <= max(1, x.shape[axis]), f"blocks of {attributes.block} along an axis of {x.shape[axis]}")
    shape = (*x.shape[:axis], -(-x.shape[axis] // attributes.block), *x.shape[axis + 1 :])
    for tensor, dtype, what in operands:
        good = tensor.dtype is dtype and tensor.shape == shape
        need(good, f"{what} is {tensor}, must be {list(shape)} of {dtype.text}")


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
        need_scalar(y_scale, WireType.FLOAT32, "y_scale")
        need_scalar(y_zero, y_zero.dtype, "y_zero_point")
        self._need_operand_scales((x, x_scale, x_zero), (w, w_scale, w_zero))
        bias = optional(inputs, 8)
        need_bias(bias, channels)
        need(bias is None or bias.dtype is WireType.INT32, f"bias is {bias}, must be int32")
        return [TensorType(y_zero.dtype, shape)]

    def _need_operand_scales(self, x: _Scaled, w: _Scaled) -> None:
        raise NotImplementedError


_Scaled = tuple[TensorType, TensorType, TensorType]
"""An operand, its scale, its zero point."""


class QMatMul(_Product, MatrixProduct):
    """QMATMUL."""

    kind = CommandKind.QMATMUL

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        shape = matmul_shape(given(inputs, 0).shape, given(inputs, 1).shape)
        return self._result(inputs, shape, shape[-1])

    def _need_operand_scales(self, x: _Scaled, w: _Scaled) -> None:
        need_rows(x[1], WireType.FLOAT32, x[0], "x_scale")
        need_rows(x[2], x[0].dtype, x[0], "x_zero_point")
        need_columns(w[1], WireType.FLOAT32, w[0], "w_scale")
        need_columns(w[2], w[0].dtype, w[0], "w_zero_point")

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """QLinearMatMul (opset 10), data per tensor or row, weights per tensor or column, with int32 bias and ReLU."""
        x, w = exact(inputs, 0, 3, -1), exact(inputs, 1, 5, -1)
        _store(attributes, wrapped(x @ w), inputs, outputs[0], outputs[0].ndim - 1)


class QConv(_Product, Convolution):
    """QCONV."""

    kind = CommandKind.QCONV

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        shape = conv_shape(given(inputs, 0), given(inputs, 1), attributes)
        return self._result(inputs, shape, shape[1])

    def _need_operand_scales(self, x: _Scaled, w: _Scaled) -> None:
        need_scalar(x[1], WireType.FLOAT32, "x_scale")
        need_scalar(x[2], x[0].dtype, "x_zero_point")
        need_vector(w[1], WireType.FLOAT32, w[0].shape[0], "w_scale")
        need_vector(w[2], w[0].dtype, w[0].shape[0], "w_zero_point")

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """QLinearConv (opset 10), weights per tensor or per output channel, with int32 bias and ReLU.

        Padding stands for real zero.
        """
        x, w = exact(inputs, 0, 3, 0), exact(inputs, 1, 5, 0)
        _store(attributes, wrapped(grouped_sums(x, w, outputs[0].shape[2:], attributes)), inputs, outputs[0], 1)


def _store(attributes: Any, sums: Array, inputs: Sequence[Array | None], y: Array, axis: int) -> None:
    """saturate(round((sums + bias) · (x_scale · w_scale) / y_scale) + zero_point); ReLU clamps at the zero point.

    Rounding is half to even. The sum of int32 accumulator and bias wraps.
    """
    x_scale, w_scale, y_scale = (required(inputs, position) for position in (2, 4, 6))
    bias = optional(inputs, 8)
    if bias is not None:
        sums = sums + along(bias, axis, y.ndim)
    multiplier = (along(x_scale, axis, y.ndim) * along(w_scale, axis, y.ndim)) / y_scale.reshape(())
    zero_point = int(required(inputs, 7).reshape(()))
    limits = np.iinfo(y.dtype)
    low = zero_point if attributes.relu else limits.min
    scaled = np.nan_to_num(sums.astype(np.float32) * multiplier, nan=0.0)
    y[...] = np.rint(np.clip(scaled, low - zero_point, limits.max - zero_point)) + np.float32(zero_point)


class Quantize(Operator):
    """QUANTIZE: to the type of the zero point."""

    kind = CommandKind.QUANTIZE

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, scale, zero = given(inputs, 0), given(inputs, 1), given(inputs, 2)
        need(x.dtype is scale.dtype, f"{x} with scales of {scale.dtype.text}")
        need(zero.dtype in _STORED, f"{x} to {zero.dtype.text}: int8, uint8 and int16 are possible")
        _need_scales(attributes, x, scale, zero, zero.dtype)
        return [TensorType(zero.dtype, x.shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """QuantizeLinear (opset 23): saturate(round(x / scale) + zero_point), half to even.

        The quotient has the type of x and scale. NaN gives the zero point.
        """
        x, y = required(inputs, 0), outputs[0]
        scale = widen(blocks(required(inputs, 1), attributes, x.shape))
        zero = blocks(required(inputs, 2), attributes, x.shape).astype(np.float32)
        limits = np.iinfo(y.dtype)
        quotient = widen((widen(x) / scale).astype(x.dtype))
        scaled = np.nan_to_num(np.rint(quotient), nan=0.0)
        y[...] = np.clip(scaled, limits.min - zero, limits.max - zero) + zero


class Dequantize(Operator):
    """DEQUANTIZE."""

    kind = CommandKind.DEQUANTIZE
    takes_packed = True

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        good = x.dtype in _STORED | PACKED | {WireType.INT32}
        need(good, f"{x}: only integers of 4 and 8 bits, int16 and int32 can be dequantised")
        _need_scales(attributes, x, given(inputs, 1), optional(inputs, 2), x.dtype)
        return [TensorType(given(inputs, 1).dtype, x.shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """DequantizeLinear (opset 21): (x − zero_point) · scale in float32, rounded to the type of the scale."""
        x = required(inputs, 0)
        zero_point = optional(inputs, 2)
        centred = x.astype(np.int32)
        if zero_point is not None:
            centred = centred - blocks(zero_point, attributes, x.shape).astype(np.int32)
        outputs[0][...] = centred.astype(np.float32) * widen(blocks(required(inputs, 1), attributes, x.shape))


class DynamicQuantize(Operator):
    """DYNAMIC_QUANTIZE: gives integers, scale, zero point."""

    kind = CommandKind.DYNAMIC_QUANTIZE

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        need(x.dtype is WireType.FLOAT32, f"{x} to uint8: only float32 can be quantised by its own range")
        return [TensorType(WireType.UINT8, x.shape), TensorType(WireType.FLOAT32, ()), TensorType(WireType.UINT8, ())]

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return 2

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """DynamicQuantizeLinear (opset 11): the range of x, widened to hold 0, spread over 0 to 255.

        Data that are 0 throughout have the scale 1. NaN has no part in the range and gives the zero point.
        """
        x = required(inputs, 0)
        scale, zero = dynamic_range(x)
        for output, value in zip(outputs[1:], (scale, zero), strict=False):
            output[...] = value
        scaled = np.nan_to_num(np.rint(x / scale), nan=0.0)
        outputs[0][...] = np.clip(scaled, -zero, 255 - zero) + zero


def dynamic_range(x: Array) -> tuple[np.float32, np.float32]:
    """(scale, zero point) of DynamicQuantizeLinear, in float32."""
    low = np.float32(np.fmin.reduce(x, axis=None, initial=np.float32(0)))
    high = np.float32(np.fmax.reduce(x, axis=None, initial=np.float32(0)))
    scale = np.float32(1) if low == high else np.float32((high - low) / np.float32(255))
    return scale, np.float32(np.rint(np.clip(np.nan_to_num(-low / scale), 0, 255)))


OPERATORS: tuple[Operator, ...] = (QMatMul(), QConv(), Quantize(), Dequantize(), DynamicQuantize())
