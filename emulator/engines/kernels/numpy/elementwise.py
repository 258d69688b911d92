"""Element-wise commands written straight into their output; erf by table."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, UnaryFunction
from emulator.model.operators import OPERATORS
from emulator.model.operators.arrays import Array, is_float, required
from emulator.model.operators.elementwise import GELU_CUBIC, GELU_SLOPE

_ERF_END = 4.0
"""Beyond it erf rounds to ±1 in float32."""
_ERF_STEPS = 1 << 14


def _clip(x: Array, y: Array, low: float, high: float) -> None:
    np.clip(x, np.float32(low), np.float32(high), out=y)


def _erf(x: Array, y: Array) -> None:
    """erf(x) = x · h(|x|), h interpolated linearly: its curvature is below 2, so the error is below 2 · step² / 8.

    In float64, which costs no more here: what follows may take the difference to 1.
    """
    values, slopes = _erf_table()
    position = np.abs(x, out=np.empty(x.shape))  # named, since of a scalar numpy would make no array
    np.fmin(position, _ERF_END, out=position)  # also takes NaN to the end; x brings it back
    position *= _ERF_STEPS / _ERF_END
    index = position.astype(np.int32)
    position -= index
    position *= slopes[index]
    position += values[index]
    np.multiply(x, position, out=position)
    np.copyto(position, np.sign(x), where=np.abs(x) >= _ERF_END)
    y[...] = position


@functools.cache
def _erf_table() -> tuple[Array, Array]:
    """erf(t) / t and its differences at multiples of the step, to one step beyond the end."""
    points = [_ERF_END * i / _ERF_STEPS for i in range(_ERF_STEPS + 2)]
    exact = np.array([2 / math.sqrt(math.pi), *(math.erf(t) / t for t in points[1:])])
    return exact[:-1], np.diff(exact)


def sigmoid(x: Array, y: Array) -> None:
    """1 / (1 + exp(-x)); `y` may be `x`. Where exp() is infinite, the result is the right one, 0."""
    np.negative(x, out=y)
    np.exp(y, out=y)
    np.add(y, np.float32(1), out=y)
    np.divide(np.float32(1), y, out=y)


def _swish(x: Array, y: Array, alpha: float) -> None:
    np.multiply(x, np.float32(-alpha), out=y)
    np.exp(y, out=y)
    np.add(y, np.float32(1), out=y)
    np.divide(x, y, out=y)


def _hard_sigmoid(x: Array, y: Array, alpha: float, beta: float) -> None:
    np.multiply(x, np.float32(alpha), out=y)
    np.add(y, np.float32(beta), out=y)
    np.clip(y, np.float32(0), np.float32(1), out=y)


def _hard_swish(x: Array, y: Array) -> None:
    _hard_sigmoid(x, y, 1 / 6, 0.5)
    np.multiply(x, y, out=y)


def _gelu(x: Array, y: Array) -> None:
    np.multiply(x, np.float32(math.sqrt(0.5)), out=y)
    _erf(y, y)
    _half_gated(x, y)


def _gelu_tanh(x: Array, y: Array) -> None:
    """In golden's order, so to the bit: normalisations of nearly equal numbers make much of the last one."""
    np.multiply(x, GELU_CUBIC, out=y)
    np.multiply(y, x, out=y)
    np.multiply(y, x, out=y)
    np.add(x, y, out=y)
    np.multiply(y, GELU_SLOPE, out=y)
    np.tanh(y, out=y)
    _half_gated(x, y)


def _half_gated(x: Array, y: Array) -> None:
    """x / 2 · (1 + y), into y; halved first, since x · 2 may be infinite."""
    np.add(y, np.float32(1), out=y)
    np.multiply(y, np.float32(0.5), out=y)
    np.multiply(x, y, out=y)


_UNARY: dict[int, Callable[[Array, Array, Any], object]] = {
    UnaryFunction.ABS: lambda x, y, _: np.abs(x, out=y),
    UnaryFunction.NEG: lambda x, y, _: np.negative(x, out=y),
    UnaryFunction.FLOOR: lambda x, y, _: np.floor(x, out=y),
    UnaryFunction.CEIL: lambda x, y, _: np.ceil(x, out=y),
    UnaryFunction.ROUND: lambda x, y, _: np.rint(x, out=y),
    UnaryFunction.EXP: lambda x, y, _: np.exp(x, out=y),
    UnaryFunction.LOG: lambda x, y, _: np.log(x, out=y),
    UnaryFunction.SQRT: lambda x, y, _: np.sqrt(x, out=y),
    UnaryFunction.RECIPROCAL: lambda x, y, _: np.divide(np.float32(1), x, out=y),
    UnaryFunction.TANH: lambda x, y, _: np.tanh(x, out=y),
    UnaryFunction.SIGMOID: lambda x, y, _: sigmoid(x, y),
    UnaryFunction.ERF: lambda x, y, _: _erf(x, y),
    UnaryFunction.HARD_SIGMOID: lambda x, y, a: _hard_sigmoid(x, y, a.alpha, a.beta),
    UnaryFunction.GELU: lambda x, y, _: _gelu(x, y),
    UnaryFunction.GELU_TANH: lambda x, y, _: _gelu_tanh(x, y),
    UnaryFunction.SWISH: lambda x, y, a: _swish(x, y, a.alpha),
    UnaryFunction.HARD_SWISH: lambda x, y, _: _hard_swish(x, y),
    UnaryFunction.RELU: lambda x, y, _: np.maximum(x, np.float32(0), out=y),
    UnaryFunction.CLIP: lambda x, y, a: _clip(x, y, a.alpha, a.beta),
}

_ARITHMETIC: dict[int, np.ufunc] = {
    BinaryFunction.ADD: np.add,
    BinaryFunction.SUB: np.subtract,
    BinaryFunction.MUL: np.multiply,
    BinaryFunction.DIV: np.divide,
    BinaryFunction.MIN: np.minimum,
    BinaryFunction.MAX: np.maximum,
}
_COMPARISON: dict[int, np.ufunc] = {
    BinaryFunction.EQUAL: np.equal,
    BinaryFunction.LESS: np.less,
    BinaryFunction.LESS_OR_EQUAL: np.less_equal,
    BinaryFunction.GREATER: np.greater,
    BinaryFunction.GREATER_OR_EQUAL: np.greater_equal,
}


def unary(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """UNARY as golden's; float32 without a temporary."""
    x, y = required(inputs, 0), outputs[0]
    function = _UNARY.get(attributes.function)
    if function is None or x.dtype != np.float32:
        OPERATORS[CommandKind.UNARY].run(attributes, inputs, outputs)
    else:
        function(x, y, attributes)


def binary(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """BINARY as golden's; float32 arithmetic and all comparisons but of narrow floats without a temporary."""
    a, b = required(inputs, 0), required(inputs, 1)
    if a.dtype == np.float32 and attributes.function in _ARITHMETIC:
        _ARITHMETIC[attributes.function](a, b, out=outputs[0])
    elif a.dtype == np.float32 and attributes.function == BinaryFunction.PRELU:
        np.multiply(a, b, out=outputs[0])
        np.copyto(outputs[0], a, where=a >= 0)
    elif attributes.function in _COMPARISON and (a.dtype == np.float32 or not is_float(a)):
        _COMPARISON[attributes.function](a, b, out=outputs[0])
    else:
        OPERATORS[CommandKind.BINARY].run(attributes, inputs, outputs)


def cast(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """CAST as golden's; bool and integers to numbers without a temporary."""
    x, y = required(inputs, 0), outputs[0]
    if is_float(x) or y.dtype == np.bool_:
        OPERATORS[CommandKind.CAST].run(attributes, inputs, outputs)
    else:
        np.copyto(y, x, casting="unsafe")
