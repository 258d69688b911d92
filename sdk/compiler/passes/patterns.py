"""What passes that look for the pieces of one function ask of values: what made them, and of which constants."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, UnaryFunction
from sdk.compiler.ir import Operation, Value

_MOST_FACTORS = 8
"""Of one product that is taken apart."""
_TOLERANCE = 5e-4
"""By which a constant may differ from what it stands for: float16 holds 0.044715 no better."""


def scalar(value: Value | None) -> float | None:
    """The number that a constant of one element is."""
    if value is None or value.constant is None or value.constant.size != 1 or not value.dtype.is_float:
        return None
    return float(value.constant.reshape(())[()])


def is_about(number: float | None, wanted: float) -> bool:
    """Whether a constant is meant to be this number."""
    return number is not None and math.isclose(number, wanted, rel_tol=_TOLERANCE)


def made_by(value: Value | None, kind: CommandKind, **attributes: Any) -> Operation | None:
    """The operation of a kind that gives the value as its first output, if its attributes are these."""
    made = value.producer if value is not None else None
    if made is None or made.kind is not kind or made.outputs[0] is not value:
        return None
    return made if all(made.attributes[name] == wanted for name, wanted in attributes.items()) else None


def unary(value: Value | None, function: UnaryFunction) -> Operation | None:
    """The UNARY operation that gives the value."""
    return made_by(value, CommandKind.UNARY, function=function)


def binary(value: Value | None, function: BinaryFunction) -> Operation | None:
    """The BINARY operation that gives the value."""
    return made_by(value, CommandKind.BINARY, function=function)


def with_constant(operation: Operation | None, wanted: float) -> Value | None:
    """The other operand of a BINARY operation that has this number as one of them."""
    if operation is None:
        return None
    a, b = operation.inputs
    if is_about(scalar(b), wanted):
        return a
    return b if is_about(scalar(a), wanted) else None


class Product(NamedTuple):
    """A value as coefficient · factor · factor · …"""

    coefficient: float
    factors: list[Value]
    operations: list[Operation]
    """That make the value of these."""


def product_of(value: Value | None, *whole: Value) -> Product:
    """A value taken apart into factors; those in `whole` stay as they are."""
    product = Product(1.0, [], [])
    pending = [value] if value is not None else []
    while pending:
        part = pending.pop()
        number = scalar(part)
        if number is not None:
            product = product._replace(coefficient=product.coefficient * number)
            continue
        parts = None if part in whole or len(product.factors) + len(pending) > _MOST_FACTORS else _parts(part)
        if parts is None:
            product.factors.append(part)
        else:
            product.operations.append(parts[0])
            product = product._replace(coefficient=product.coefficient * parts[1])
            pending.extend(parts[2])
    return product


def _parts(value: Value) -> tuple[Operation, float, list[Value]] | None:
    """(operation, coefficient, factors) of a product of two, or a division by a number, that keeps its shape."""
    times, over = binary(value, BinaryFunction.MUL), binary(value, BinaryFunction.DIV)
    if times is not None:
        operands = [operand for operand in times.inputs if operand is not None]
        return times, 1.0, operands
    divisor = scalar(over.inputs[1]) if over is not None else None
    if over is not None and divisor and over.inputs[0] is not None:
        return over, 1 / divisor, [over.inputs[0]]
    return None


def power_of(value: Value | None, x: Value) -> tuple[Product, float] | None:
    """(value as a product, n) where the value is coefficient · xⁿ."""
    product, exponent = product_of(value, x), 0.0
    for factor in product.factors:
        power = binary(factor, BinaryFunction.POW)
        if factor is x:
            exponent += 1
        elif power is not None and power.inputs[0] is x and scalar(power.inputs[1]) is not None:
            product.operations.append(power)
            exponent += scalar(power.inputs[1]) or 0
        else:
            return None
    return product, exponent
