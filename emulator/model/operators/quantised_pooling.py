"""Averages of 8-bit integers with scales, under a window: onnxruntime's QLinearAveragePool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import QUANTISED, WireType
from emulator.model.operators.arrays import Array, required
from emulator.model.operators.operator import STEP_EFFORT, Operator, Types, given, one_type
from emulator.model.operators.pooling import average, pooled_shape
from emulator.model.operators.quantised import need_scalar

_FLOAT_BYTES = 4


class QPool(Operator):
    """QPOOL: x, x_scale, x_zero_point, y_scale, y_zero_point."""

    kind = CommandKind.QPOOL
    flags = ("count_include_pad", "ceil_mode")

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        dtype = one_type([x], QUANTISED)
        for position, name in ((1, "x"), (3, "y")):
            need_scalar(given(inputs, position), WireType.FLOAT32, f"{name}_scale")
            need_scalar(given(inputs, position + 1), dtype, f"{name}_zero_point")
        return [TensorType(dtype, pooled_shape(x, attributes))]

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        taps: int = math.prod(attributes.kernel)
        moved = self.work(attributes, inputs, outputs).bytes * _FLOAT_BYTES
        return moved + taps * (outputs[0].elements * _FLOAT_BYTES + STEP_EFFORT)

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """saturate(round(average of (x − x_zero) · x_scale, over y_scale, + y_zero)), half to even, in float32.

        The sum is taken in the order of the window's elements, and the zero point is there when halves are rounded.
        """
        x, y = required(inputs, 0), outputs[0]
        x_scale, x_zero, y_scale, y_zero = (required(inputs, i).reshape(()).astype(np.float32) for i in range(1, 5))
        means = np.empty(y.shape, np.float32)
        average((x.astype(np.float32) - x_zero) * x_scale, attributes, means)
        limits = np.iinfo(y.dtype)
        shifted = np.nan_to_num(means / y_scale + y_zero, nan=float(y_zero))
        y[...] = np.rint(np.clip(shifted, limits.min, limits.max))


OPERATORS: tuple[Operator, ...] = (QPool(),)
