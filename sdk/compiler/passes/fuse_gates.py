"""x times a gate of x, as exporters write Gelu, Swish, HardSwish and Mish, becomes one function."""

from __future__ import annotations

import math
from typing import NamedTuple

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, UnaryFunction
from emulator.model.operators.elementwise import GELU_CUBIC, GELU_SLOPE
from sdk.compiler.ir import Operation, Value
from sdk.compiler.passes.patterns import (
    binary,
    is_about,
    made_by,
    power_of,
    product_of,
    scalar,
    unary,
    with_constant,
)
from sdk.compiler.passes.rewriting import Rewriting


class _Gate(NamedTuple):
    """A function of x that is x · gate(x) · coefficient."""

    x: Value
    function: UnaryFunction
    coefficient: float
    operations: list[Operation]
    alpha: float = 0.0


def fuse_gates(program: Rewriting) -> None:
    """Put one UNARY operation in place of the last product."""
    for position, operation in enumerate(program.operations):
        if operation.kind is CommandKind.BINARY and program.is_used(operation):
            found = _find(operation)
            if found is not None:
                gate, parts = found
                inner = program.inner(operation, parts)
                if len(inner) == len(parts):
                    fields = {"function": gate.function, "alpha": gate.alpha, "beta": 0.0}
                    program.replace(position, CommandKind.UNARY, [gate.x], fields, inner)


def _find(root: Operation) -> tuple[_Gate, list[Operation]] | None:
    """(the gate, all operations but the root) where the root is a product that is one of our functions."""
    result = root.outputs[0]
    for factor in product_of(result).factors:
        for gate in _gates(factor):
            whole = product_of(result, gate.x, factor)
            others = [value for value in whole.factors if value is not factor]
            shaped = others == [gate.x] and gate.x.type == result.type and len(whole.factors) == 2
            if shaped and is_about(whole.coefficient, gate.coefficient) and root in whole.operations:
                parts = [part for part in (*whole.operations, *gate.operations) if part is not root]
                return gate, list(dict.fromkeys(parts))
    return None


def _gates(value: Value) -> list[_Gate]:
    """What the value may be the gate of."""
    found: list[_Gate | None] = [_sigmoid(value), _hard_sigmoid(value), _clipped(value), _mish(value)]
    shifted = binary(value, BinaryFunction.ADD)
    inner = with_constant(shifted, 1.0)
    if shifted is not None and inner is not None:
        found += [_erf(shifted, inner), _tanh(shifted, inner)]
    return [gate for gate in found if gate is not None]


def _erf(shifted: Operation, inner: Value) -> _Gate | None:
    """1 + erf(x / √2)."""
    made = unary(inner, UnaryFunction.ERF)
    argument = made.inputs[0] if made is not None else None
    scaled = argument.producer if argument is not None else None
    if made is None or argument is None or scaled is None or scaled.kind is not CommandKind.BINARY:
        return None
    for x in scaled.inputs:
        product = power_of(argument, x) if x is not None and scalar(x) is None else None
        if (
            x is not None
            and product is not None
            and product[1] == 1
            and is_about(product[0].coefficient, math.sqrt(0.5))
        ):
            return _Gate(x, UnaryFunction.GELU, 0.5, [shifted, made, *product[0].operations])
    return None


def _tanh(shifted: Operation, inner: Value) -> _Gate | None:
    """1 + tanh(√(2 / π) · (x + 0.044715 · x³)), where x may stand before the brackets."""
    made = unary(inner, UnaryFunction.TANH)
    argument = product_of(made.inputs[0]) if made is not None else None
    if made is None or argument is None or not is_about(argument.coefficient, float(GELU_SLOPE)):
        return None
    for factor in argument.factors:
        total = binary(factor, BinaryFunction.ADD)
        if total is None:
            continue
        for x, rest, exponent in _cubic(total, [value for value in argument.factors if value is not factor]):
            bent = power_of(rest, x)
            if bent is not None and bent[1] == exponent and is_about(bent[0].coefficient, float(GELU_CUBIC)):
                parts = [shifted, made, *argument.operations, total, *bent[0].operations]
                return _Gate(x, UnaryFunction.GELU_TANH, 0.5, parts)
    return None


def _cubic(total: Operation, others: list[Value]) -> list[tuple[Value, Value, int]]:
    """(x, what is 0.044715 · xⁿ, n) that the sum of Gelu's approximation may be of."""
    a, b = total.inputs
    if a is None or b is None:
        return []
    if not others:
        return [(a, b, 3), (b, a, 3)]
    rest = with_constant(total, 1.0)
    return [(others[0], rest, 2)] if rest is not None and len(others) == 1 else []


def _sigmoid(value: Value) -> _Gate | None:
    """sigmoid(alpha · x)."""
    made = unary(value, UnaryFunction.SIGMOID)
    x = made.inputs[0] if made is not None else None
    if made is None or x is None:
        return None
    scaled = binary(x, BinaryFunction.MUL)
    if scaled is not None:
        a, b = scaled.inputs
        alpha, inner = (scalar(b), a) if scalar(b) is not None else (scalar(a), b)
        if alpha is not None and inner is not None:
            return _Gate(inner, UnaryFunction.SWISH, 1.0, [made, scaled], alpha)
    return _Gate(x, UnaryFunction.SWISH, 1.0, [made], 1.0)


def _hard_sigmoid(value: Value) -> _Gate | None:
    """max(0, min(1, x / 6 + 0.5))."""
    made = unary(value, UnaryFunction.HARD_SIGMOID)
    if made is None or made.inputs[0] is None:
        return None
    usual = is_about(made.attributes.alpha, 1 / 6) and is_about(made.attributes.beta, 0.5)
    return _Gate(made.inputs[0], UnaryFunction.HARD_SWISH, 1.0, [made]) if usual else None


def _clipped(value: Value) -> _Gate | None:
    """max(0, min(6, x + 3)), with a sixth elsewhere."""
    made = made_by(value, CommandKind.UNARY, function=UnaryFunction.CLIP, alpha=0.0, beta=6.0)
    shifted = binary(made.inputs[0], BinaryFunction.ADD) if made is not None else None
    x = with_constant(shifted, 3.0)
    if made is None or shifted is None or x is None:
        return None
    return _Gate(x, UnaryFunction.HARD_SWISH, 1 / 6, [made, shifted])


def _mish(value: Value) -> _Gate | None:
    """tanh(ln(1 + exp(x)))."""
    made = unary(value, UnaryFunction.TANH)
    soft = unary(made.inputs[0], UnaryFunction.SOFTPLUS) if made is not None else None
    if made is None or soft is None or soft.inputs[0] is None:
        return None
    return _Gate(soft.inputs[0], UnaryFunction.MISH, 1.0, [made, soft])
