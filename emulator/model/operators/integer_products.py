"""Sums of products of 8-bit integers as they are, in int32: MatMulInteger, ConvInteger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import QUANTISED, WireType
from emulator.model.operators.arrays import Array, exact, grouped_sums, optional, wrapped
from emulator.model.operators.operator import Operator, Types, given
from emulator.model.operators.products import Convolution, MatrixProduct
from emulator.model.operators.quantised import need_columns, need_rows, need_scalar, need_vector
from emulator.model.operators.shapes import conv_shape, matmul_shape, need
from emulator.model.timing import Precision


class _IntegerProduct(Operator):
    """A sum of products of two operands less their zero points, which may be left out. The sum wraps."""

    def precision(self, inputs: Types, outputs: Sequence[TensorType]) -> Precision:
        return Precision.INT8


def _need_bytes(a: TensorType, b: TensorType) -> None:
    need(a.dtype in QUANTISED and b.dtype in QUANTISED, f"operands {a} and {b}, must be int8 or uint8")


class MatMulInteger(_IntegerProduct, MatrixProduct):
    """MATMUL_INTEGER."""

    kind = CommandKind.MATMUL_INTEGER

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        a, b, a_zero, b_zero = given(inputs, 0), given(inputs, 1), optional(inputs, 2), optional(inputs, 3)
        _need_bytes(a, b)
        shape = matmul_shape(a.shape, b.shape)
        if a_zero is not None:
            need_rows(a_zero, a.dtype, a, "a_zero_point")
        if b_zero is not None:
            need_columns(b_zero, b.dtype, b, "b_zero_point")
        return [TensorType(WireType.INT32, shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """MatMulInteger (opset 10): zero points for all, for rows of a, for columns of b."""
        outputs[0][...] = wrapped(exact(inputs, 0, 2, -1) @ exact(inputs, 1, 3, -1))


class ConvInteger(_IntegerProduct, Convolution):
    """CONV_INTEGER."""

    kind = CommandKind.CONV_INTEGER

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, w, x_zero, w_zero = given(inputs, 0), given(inputs, 1), optional(inputs, 2), optional(inputs, 3)
        _need_bytes(x, w)
        shape = conv_shape(x, w, attributes)
        if x_zero is not None:
            need_scalar(x_zero, x.dtype, "x_zero_point")
        if w_zero is not None:
            need_vector(w_zero, w.dtype, w.shape[0], "w_zero_point")
        return [TensorType(WireType.INT32, shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """ConvInteger (opset 10). Padding stands for the zero point of x, which adds nothing."""
        x, w = exact(inputs, 0, 2, 0), exact(inputs, 1, 3, 0)
        outputs[0][...] = wrapped(grouped_sums(x, w, outputs[0].shape[2:], attributes))


OPERATORS: tuple[Operator, ...] = (MatMulInteger(), ConvInteger())
