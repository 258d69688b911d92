"""8-bit integers with scales, element by element: sums, products, and functions of one operand as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind, QBinaryFunction
from driver_shim.protocol.types import QUANTISED, WireType
from emulator.model.operators.arrays import Array, required
from emulator.model.operators.operator import Operator, Types, function, given, one_type
from emulator.model.operators.quantised import need_scalar
from emulator.model.operators.shapes import broadcast, need

VALUES = 256
"""Of an 8-bit integer."""


class QBinary(Operator):
    """QBINARY: a, b, a_scale, a_zero_point, b_scale, b_zero_point, y_scale, y_zero_point."""

    kind = CommandKind.QBINARY

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        function(QBinaryFunction, attributes.function)
        a, b = given(inputs, 0), given(inputs, 1)
        dtype = one_type([a, b], QUANTISED)
        for position, name in ((2, "a"), (4, "b"), (6, "y")):
            need_scalar(given(inputs, position), WireType.FLOAT32, f"{name}_scale")
            need_scalar(given(inputs, position + 1), dtype, f"{name}_zero_point")
        return [TensorType(dtype, broadcast(a.shape, b.shape))]

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return 4

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """onnxruntime's QLinearAdd and QLinearMul."""
        combine(attributes, required(inputs, 0), required(inputs, 1), inputs, outputs[0])


def combine(attributes: Any, a: Array, b: Array, inputs: Sequence[Array | None], y: Array) -> None:
    """saturate(round(…)), half to even, of (a − a_zero) · a_scale ∘ (b − b_zero) · b_scale, over y_scale, + y_zero.

    The order of the float32 operations is onnxruntime's (on processors that multiply and add in one rounding), because
    the last bit depends on it. A product and its addend are rounded once: float64 holds them exactly.
    """
    a_scale, b_scale, y_scale = (required(inputs, i).reshape(()) for i in (2, 4, 6))
    a_zero, b_zero, y_zero = (required(inputs, i).reshape(()).astype(np.float32) for i in (3, 5, 7))
    if attributes.function == QBinaryFunction.ADD:
        a_ratio, b_ratio = a_scale / y_scale, b_scale / y_scale
        offset = y_zero - _fused(a_ratio, a_zero, b_ratio * b_zero)
        result = _fused(a_ratio, a, _fused(b_ratio, b, offset))
    else:
        products = (a.astype(np.float32) - a_zero) * (b.astype(np.float32) - b_zero)
        result = products * (a_scale * b_scale / y_scale) + y_zero
    limits = np.iinfo(y.dtype)
    y[...] = np.rint(np.clip(np.nan_to_num(result, nan=float(y_zero)), limits.min, limits.max))


def _fused(a: Array, b: Array, c: Array) -> Array:
    """a · b + c, rounded to float32 once."""
    return np.asarray(a.astype(np.float64) * b.astype(np.float64) + c, np.float32)


class Lookup(Operator):
    """LOOKUP."""

    kind = CommandKind.LOOKUP

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, table = given(inputs, 0), given(inputs, 1)
        need(x.dtype in QUANTISED, f"{x}, must be int8 or uint8")
        need(table.shape == (VALUES,), f"the table is {table}, must have {VALUES} elements")
        return [TensorType(table.dtype, x.shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """y = table[x]; a negative x counts from the table's end, as its bits do without a sign."""
        x, table = required(inputs, 0), required(inputs, 1)
        np.take(table, x.view(np.uint8), out=outputs[0], mode="wrap")


OPERATORS: tuple[Operator, ...] = (QBinary(), Lookup())
