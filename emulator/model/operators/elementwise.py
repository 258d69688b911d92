"""Element by element: functions of one and two operands, Where, Cast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, UnaryFunction
from driver_shim.protocol.types import FLOATS, INT64_STORAGE_MAX, INT64_STORAGE_MIN, INTEGERS, WireType
from emulator.model.operators.arrays import Array, KernelFault, is_float, required, sigmoid, widen
from emulator.model.operators.operator import STEP_EFFORT, Operator, Types, function, given, one_type
from emulator.model.operators.shapes import broadcast, need

UNARY_EFFORT = 16
"""Of the dearest function of one operand, for each byte."""

BOOLEAN_BINARY = frozenset({BinaryFunction.AND, BinaryFunction.OR, BinaryFunction.XOR})
COMPARISONS = frozenset(
    {
        BinaryFunction.EQUAL,
        BinaryFunction.LESS,
        BinaryFunction.LESS_OR_EQUAL,
        BinaryFunction.GREATER,
        BinaryFunction.GREATER_OR_EQUAL,
    }
)
_ALLOWED = {
    UnaryFunction.NOT: frozenset({WireType.BOOL}),
    **dict.fromkeys((UnaryFunction.ABS, UnaryFunction.NEG, UnaryFunction.SIGN, UnaryFunction.RELU), FLOATS | INTEGERS),
}
"""Element types of functions that take others than floats."""

_F32 = np.float32
_GELU_SLOPE, _GELU_CUBIC = _F32(math.sqrt(2 / math.pi)), _F32(0.044715)
"""Of the approximation of Gelu by tanh (Hendrycks and Gimpel, 2016)."""

_erf = np.frompyfunc(math.erf, 1, 1)

_UNARY: dict[UnaryFunction, Callable[[Array, Any], Array]] = {
    UnaryFunction.ABS: lambda x, _: np.abs(x),
    UnaryFunction.NEG: lambda x, _: np.negative(x),
    UnaryFunction.SIGN: lambda x, _: np.sign(x),
    UnaryFunction.FLOOR: lambda x, _: np.floor(x),
    UnaryFunction.CEIL: lambda x, _: np.ceil(x),
    UnaryFunction.ROUND: lambda x, _: np.rint(x),
    UnaryFunction.EXP: lambda x, _: np.exp(x),
    UnaryFunction.LOG: lambda x, _: np.log(x),
    UnaryFunction.SQRT: lambda x, _: np.sqrt(x),
    UnaryFunction.RECIPROCAL: lambda x, _: 1 / x,
    UnaryFunction.TANH: lambda x, _: np.tanh(x),
    UnaryFunction.SIGMOID: lambda x, _: sigmoid(x),
    UnaryFunction.ERF: lambda x, _: np.asarray(_erf(x), np.float32),
    UnaryFunction.RELU: lambda x, _: np.maximum(x, x.dtype.type(0)),
    UnaryFunction.LEAKY_RELU: lambda x, a: np.where(x < 0, np.float32(a.alpha) * x, x),
    UnaryFunction.ELU: lambda x, a: np.where(x < 0, np.float32(a.alpha) * np.expm1(np.minimum(x, 0)), x),
    UnaryFunction.HARD_SIGMOID: lambda x, a: np.clip(np.float32(a.alpha) * x + np.float32(a.beta), 0, 1),
    UnaryFunction.CLIP: lambda x, a: np.minimum(np.maximum(x, np.float32(a.alpha)), np.float32(a.beta)),
    UnaryFunction.SOFTPLUS: lambda x, _: np.logaddexp(x, np.float32(0)),
    UnaryFunction.NOT: lambda x, _: np.logical_not(x),
    UnaryFunction.SIN: lambda x, _: np.sin(x),
    UnaryFunction.COS: lambda x, _: np.cos(x),
    UnaryFunction.GELU: lambda x, _: x / 2 * (1 + np.asarray(_erf(x * _F32(math.sqrt(0.5))), np.float32)),
    UnaryFunction.GELU_TANH: lambda x, _: x / 2 * (1 + np.tanh(_GELU_SLOPE * (x + _GELU_CUBIC * x * x * x))),
    UnaryFunction.SWISH: lambda x, a: x * sigmoid(_F32(a.alpha) * x),
    UnaryFunction.HARD_SWISH: lambda x, _: x * np.clip(x * _F32(1 / 6) + _F32(0.5), 0, 1),
    UnaryFunction.MISH: lambda x, _: x * np.tanh(np.logaddexp(x, _F32(0))),
    UnaryFunction.SELU: lambda x, a: _F32(a.beta) * np.where(x < 0, _F32(a.alpha) * np.expm1(np.minimum(x, 0)), x),
    UnaryFunction.CELU: lambda x, a: np.where(x < 0, _F32(a.alpha) * np.expm1(np.minimum(x, 0) / _F32(a.alpha)), x),
    UnaryFunction.SOFTSIGN: lambda x, _: x / (1 + np.abs(x)),
    UnaryFunction.THRESHOLDED_RELU: lambda x, a: np.where(x > _F32(a.alpha), x, _F32(0)),
}

_BINARY: dict[BinaryFunction, Callable[[Array, Array], Array]] = {
    BinaryFunction.ADD: np.add,
    BinaryFunction.SUB: np.subtract,
    BinaryFunction.MUL: np.multiply,
    BinaryFunction.POW: np.power,
    BinaryFunction.MIN: np.minimum,
    BinaryFunction.MAX: np.maximum,
    BinaryFunction.EQUAL: np.equal,
    BinaryFunction.LESS: np.less,
    BinaryFunction.LESS_OR_EQUAL: np.less_equal,
    BinaryFunction.GREATER: np.greater,
    BinaryFunction.GREATER_OR_EQUAL: np.greater_equal,
    BinaryFunction.AND: np.logical_and,
    BinaryFunction.OR: np.logical_or,
    BinaryFunction.XOR: np.logical_xor,
}


class Unary(Operator):
    """UNARY."""

    kind = CommandKind.UNARY

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        named = function(UnaryFunction, attributes.function)
        return [TensorType(one_type(inputs, _ALLOWED.get(named, FLOATS)), given(inputs, 0).shape)]

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return UNARY_EFFORT * self.work(attributes, inputs, outputs).bytes + STEP_EFFORT

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """The operator that `function` names, element by element; Round rounds half to even."""
        outputs[0][...] = _UNARY[UnaryFunction(attributes.function)](widen(required(inputs, 0)), attributes)


class Binary(Operator):
    """BINARY."""

    kind = CommandKind.BINARY

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        named = function(BinaryFunction, attributes.function)
        a, b = given(inputs, 0), given(inputs, 1)
        need(a.dtype is b.dtype, f"operands of different types: {a}, {b}")
        result = a.dtype
        if named in BOOLEAN_BINARY:
            good = a.dtype is WireType.BOOL
        elif named in COMPARISONS:
            good, result = a.dtype is not WireType.BOOL or named is BinaryFunction.EQUAL, WireType.BOOL
        elif named is BinaryFunction.POW:
            good = a.dtype.is_float
        else:
            good = a.dtype is not WireType.BOOL
        need(good, f"{named.name.lower()} of {a.dtype.text} is not possible")
        return [TensorType(result, broadcast(a.shape, b.shape))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """The operator that `function` names, with multidirectional broadcasting (ONNX Broadcasting.md).

        Integer sums and products wrap in their type. Div of integers rounds towards zero (Div, opset 14).
        """
        a, b = widen(required(inputs, 0)), widen(required(inputs, 1))
        function = BinaryFunction(attributes.function)
        if function is BinaryFunction.DIV:
            outputs[0][...] = a / b if is_float(a) else _integer_quotient(a, b)
        else:
            outputs[0][...] = _BINARY[function](a, b)


def _integer_quotient(a: Array, b: Array) -> Array:
    if not b.all():
        raise KernelFault(Status.DIVISION_BY_ZERO, "an integer is divided by zero")
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    magnitude = np.abs(wide_a) // np.abs(wide_b)
    return np.where((wide_a < 0) == (wide_b < 0), magnitude, -magnitude)


class Where(Operator):
    """WHERE."""

    kind = CommandKind.WHERE

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        condition, x, y = (given(inputs, i) for i in range(3))
        need(condition.dtype is WireType.BOOL, f"the condition is {condition}, must be bool")
        return [TensorType(one_type((x, y)), broadcast(condition.shape, x.shape, y.shape))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Where (opset 16): x where the condition holds, else y, with multidirectional broadcasting."""
        outputs[0][...] = np.where(required(inputs, 0), required(inputs, 1), required(inputs, 2))


class Cast(Operator):
    """CAST: to the type that the attributes name."""

    kind = CommandKind.CAST

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        return [TensorType(function(WireType, attributes.dtype), given(inputs, 0).shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Cast (opset 13).

        To bool: unequal zero. Integer to integer: the low bits. Float to float: nearest, ties to even. Float to
        integer: towards zero; what does not fit, undefined there, saturates here and NaN gives 0, except that int64
        (storage of int32 values) refuses both.
        """
        x, y = widen(required(inputs, 0)), outputs[0]
        if y.dtype.kind == "b":
            y[...] = x != 0
        elif y.dtype.kind in "iu" and is_float(x):
            y[...] = _float_to_integer(x, y.dtype)
        else:
            y[...] = x.astype(y.dtype)


def _float_to_integer(x: Array, dtype: np.dtype[Any]) -> Array:
    whole = np.trunc(x.astype(np.float64))
    if dtype == np.int64:
        if not np.all((whole >= INT64_STORAGE_MIN) & (whole <= INT64_STORAGE_MAX)):
            raise KernelFault(Status.VALUE_OUT_OF_RANGE, "a float cast to int64 does not fit 32 bits")
        return whole.astype(np.int64)
    limits = np.iinfo(dtype)
    fitting: Array = np.clip(np.nan_to_num(whole, nan=0), limits.min, limits.max)
    return fitting.astype(dtype)


OPERATORS: tuple[Operator, ...] = (Unary(), Binary(), Where(), Cast())
