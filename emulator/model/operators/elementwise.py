"""Element by element: functions of one and two operands, Where, Cast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, UnaryFunction
from driver_shim.protocol.types import FLOATS, INTEGERS, WireType
from emulator.model.operators.arrays import Array, KernelFault, is_float, required, sigmoid, truncated, widen
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
SHIFTS = frozenset({BinaryFunction.SHIFT_LEFT, BinaryFunction.SHIFT_RIGHT})
BITWISE = frozenset({BinaryFunction.BITWISE_AND, BinaryFunction.BITWISE_OR, BinaryFunction.BITWISE_XOR})
TESTS = frozenset({UnaryFunction.IS_NAN, UnaryFunction.IS_INF})
"""Functions of one operand that give bool."""
_ALLOWED = {
    UnaryFunction.NOT: frozenset({WireType.BOOL}),
    UnaryFunction.BITWISE_NOT: INTEGERS,
    **dict.fromkeys((UnaryFunction.ABS, UnaryFunction.NEG, UnaryFunction.SIGN, UnaryFunction.RELU), FLOATS | INTEGERS),
}
"""Element types of functions that take others than floats."""

_F32 = np.float32
GELU_SLOPE, GELU_CUBIC = _F32(math.sqrt(2 / math.pi)), _F32(0.044715)
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
    UnaryFunction.TAN: lambda x, _: np.tan(x),
    UnaryFunction.ASIN: lambda x, _: np.arcsin(x),
    UnaryFunction.ACOS: lambda x, _: np.arccos(x),
    UnaryFunction.ATAN: lambda x, _: np.arctan(x),
    UnaryFunction.SINH: lambda x, _: np.sinh(x),
    UnaryFunction.COSH: lambda x, _: np.cosh(x),
    UnaryFunction.ASINH: lambda x, _: np.arcsinh(x),
    UnaryFunction.ACOSH: lambda x, _: np.arccosh(x),
    UnaryFunction.ATANH: lambda x, _: np.arctanh(x),
    UnaryFunction.IS_NAN: lambda x, _: np.isnan(x),
    UnaryFunction.IS_INF: lambda x, a: np.isneginf(x) & bool(a.alpha) | np.isposinf(x) & bool(a.beta),
    UnaryFunction.BITWISE_NOT: lambda x, _: np.bitwise_not(x),
    UnaryFunction.SHRINK: lambda x, a: _shrink(x, np.float32(a.alpha), np.float32(a.beta)),
    UnaryFunction.GELU: lambda x, _: x / 2 * (1 + np.asarray(_erf(x * _F32(math.sqrt(0.5))), np.float32)),
    UnaryFunction.GELU_TANH: lambda x, _: x / 2 * (1 + np.tanh(GELU_SLOPE * (x + GELU_CUBIC * x * x * x))),
    UnaryFunction.SWISH: lambda x, a: x * sigmoid(_F32(a.alpha) * x),
    UnaryFunction.HARD_SWISH: lambda x, _: x * np.clip(x * _F32(1 / 6) + _F32(0.5), 0, 1),
    UnaryFunction.MISH: lambda x, _: x * np.tanh(np.logaddexp(x, _F32(0))),
    UnaryFunction.SELU: lambda x, a: _F32(a.beta) * np.where(x < 0, _F32(a.alpha) * np.expm1(np.minimum(x, 0)), x),
    UnaryFunction.CELU: lambda x, a: np.where(x < 0, _F32(a.alpha) * np.expm1(np.minimum(x, 0) / _F32(a.alpha)), x),
    UnaryFunction.SOFTSIGN: lambda x, _: x / (1 + np.abs(x)),
    UnaryFunction.THRESHOLDED_RELU: lambda x, a: np.where(x > _F32(a.alpha), x, _F32(0)),
}


def _shrink(x: Array, limit: Any, bias: Any) -> Array:
    return np.where(x < -limit, x + bias, np.where(x > limit, x - bias, np.float32(0)))


_BINARY: dict[BinaryFunction, Callable[[Array, Array], Array]] = {
    BinaryFunction.ADD: np.add,
    BinaryFunction.SUB: np.subtract,
    BinaryFunction.MUL: np.multiply,
    BinaryFunction.POW: lambda a, b: np.power(a, b) if is_float(a) else _integer_power(a, b),
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
    BinaryFunction.PRELU: lambda a, b: np.where(a < 0, a * b, a),
    BinaryFunction.MOD: lambda a, b: np.mod(a, b if is_float(b) else _divisor(b)),
    BinaryFunction.FMOD: lambda a, b: np.fmod(a, b if is_float(b) else _divisor(b)),
    BinaryFunction.SHIFT_LEFT: np.left_shift,
    BinaryFunction.SHIFT_RIGHT: np.right_shift,
    BinaryFunction.BITWISE_AND: np.bitwise_and,
    BinaryFunction.BITWISE_OR: np.bitwise_or,
    BinaryFunction.BITWISE_XOR: np.bitwise_xor,
}

_BINARY_ALLOWED: dict[BinaryFunction, frozenset[WireType]] = {
    **dict.fromkeys(BOOLEAN_BINARY, frozenset({WireType.BOOL})),
    **dict.fromkeys(SHIFTS | BITWISE, INTEGERS),
    BinaryFunction.EQUAL: frozenset(WireType),
}
"""Element types of functions that do not take all numbers and nothing else."""


class Unary(Operator):
    """UNARY."""

    kind = CommandKind.UNARY

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        named = function(UnaryFunction, attributes.function)
        dtype = one_type(inputs, _ALLOWED.get(named, FLOATS))
        return [TensorType(WireType.BOOL if named in TESTS else dtype, given(inputs, 0).shape)]

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
        good = a.dtype in _BINARY_ALLOWED.get(named, FLOATS | INTEGERS)
        need(good, f"{named.name.lower()} of {a.dtype.text} is not possible")
        return [TensorType(WireType.BOOL if named in COMPARISONS else a.dtype, broadcast(a.shape, b.shape))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """The operator that `function` names, with multidirectional broadcasting (ONNX Broadcasting.md).

        Integer sums, products and powers wrap in their type. Div of integers rounds towards zero (Div, opset 14).
        BitShift (opset 28) keeps the sign to the right; by fewer than no or by all bits it leaves no bit but that.
        """
        a, b = widen(required(inputs, 0)), widen(required(inputs, 1))
        function = BinaryFunction(attributes.function)
        if function is BinaryFunction.DIV:
            outputs[0][...] = a / b if is_float(a) else _integer_quotient(a, b)
        else:
            outputs[0][...] = _BINARY[function](a, b)


def _divisor(b: Array) -> Array:
    """An integer divisor. Raises KernelFault when one is zero."""
    if not b.all():
        raise KernelFault(Status.DIVISION_BY_ZERO, "an integer is divided by zero")
    return b


def _integer_power(a: Array, b: Array) -> Array:
    """a to the power of b; what a negative power leaves of an integer, rounded towards zero."""
    negative = b < 0
    if np.any(negative & (a == 0)):
        raise KernelFault(Status.DIVISION_BY_ZERO, "zero is raised to a negative power")
    odd = (b & 1).astype(bool)
    inverse = np.where(a == 1, 1, np.where(a == -1, np.where(odd, -1, 1), 0))
    return np.where(negative, inverse, np.power(a, np.maximum(b, 0), dtype=a.dtype))


def _integer_quotient(a: Array, b: Array) -> Array:
    return (a - np.fmod(a, _divisor(b))) // b


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
            y[...] = truncated(x, y.dtype)
        else:
            y[...] = x.astype(y.dtype)


OPERATORS: tuple[Operator, ...] = (Unary(), Binary(), Where(), Cast())
