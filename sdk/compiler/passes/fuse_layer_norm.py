"""Means, squares and roots that come to a normalisation become LAYER_NORM; so do its scale and bias."""

from __future__ import annotations

from typing import Any, NamedTuple

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, ReduceFunction, UnaryFunction
from sdk.compiler.ir import Operation, Value, fields_of
from sdk.compiler.passes.patterns import binary, made_by, scalar, unary, with_constant
from sdk.compiler.passes.rewriting import Rewriting


class _Norm(NamedTuple):
    x: Value
    axes: int
    epsilon: float
    root_mean_square: bool
    operations: list[Operation]


class _Root(NamedTuple):
    """√(mean of squares + epsilon)."""

    squared: Value
    axes: int
    epsilon: float
    operations: list[Operation]


def fuse_layer_norm(program: Rewriting) -> None:
    """Put LAYER_NORM in place of the last operation of a normalisation, then give it what is applied to its result."""
    for position, operation in enumerate(program.operations):
        if operation.kind is not CommandKind.BINARY or not program.is_used(operation):
            continue
        found = _find(operation)
        if found is not None:
            inner = program.inner(operation, found.operations)
            if len(inner) == len(found.operations):
                fields = {
                    "axes": found.axes,
                    "epsilon": found.epsilon,
                    "root_mean_square": int(found.root_mean_square),
                }
                program.replace(position, CommandKind.LAYER_NORM, [found.x], fields, inner)
                continue
        a, b = operation.inputs
        if not _apply(program, position, a, b):
            _apply(program, position, b, a)


def _find(root: Operation) -> _Norm | None:
    """The normalisation whose last operation is a division by a deviation, or a product with its inverse."""
    a, b = root.inputs
    if root.attributes.function == BinaryFunction.DIV:
        return _norm(a, _root(b))
    if root.attributes.function == BinaryFunction.MUL:
        return _norm(a, _inverse(b)) or _norm(b, _inverse(a))
    return None


def _norm(data: Value | None, root: _Root | None) -> _Norm | None:
    """What is centred by its mean, or not at all, and divided by the root of the mean of its squares."""
    if data is None or root is None:
        return None
    centred, squared = _centred(data, root.axes), _centred(root.squared, root.axes)
    if centred is not None and squared is not None and centred[0] is squared[0]:
        operations = list(dict.fromkeys([*root.operations, *centred[1], *squared[1]]))
        return _Norm(centred[0], root.axes, root.epsilon, False, operations)
    if root.squared is data:
        return _Norm(data, root.axes, root.epsilon, True, root.operations)
    return None


def _centred(value: Value, axes: int) -> tuple[Value, list[Operation]] | None:
    """(x, operations) of x - mean(x)."""
    difference = binary(value, BinaryFunction.SUB)
    if difference is None or difference.inputs[0] is None:
        return None
    x, mean = difference.inputs
    reduced = made_by(mean, CommandKind.REDUCE, function=ReduceFunction.MEAN, axes=axes, keep=1)
    return (x, [difference, reduced]) if x is not None and reduced is not None and reduced.inputs[0] is x else None


def _inverse(value: Value | None) -> _Root | None:
    """1 / √(…), in any of the ways to write it."""
    reciprocal, quotient = unary(value, UnaryFunction.RECIPROCAL), binary(value, BinaryFunction.DIV)
    power = binary(value, BinaryFunction.POW)
    if reciprocal is not None:
        root = _root(reciprocal.inputs[0])
        return root and root._replace(operations=[reciprocal, *root.operations])
    if quotient is not None and scalar(quotient.inputs[0]) == 1:
        root = _root(quotient.inputs[1])
        return root and root._replace(operations=[quotient, *root.operations])
    if power is not None and scalar(power.inputs[1]) == -0.5:
        return _raised(power.inputs[0], power)
    return None


def _root(value: Value | None) -> _Root | None:
    """√(mean of squares + epsilon)."""
    root, power = unary(value, UnaryFunction.SQRT), binary(value, BinaryFunction.POW)
    if root is not None:
        return _raised(root.inputs[0], root)
    if power is not None and scalar(power.inputs[1]) == 0.5:
        return _raised(power.inputs[0], power)
    return None


def _raised(value: Value | None, root: Operation) -> _Root | None:
    """A mean of squares with epsilon added."""
    total = binary(value, BinaryFunction.ADD)
    if total is None:
        return None
    for mean, epsilon in (total.inputs, total.inputs[::-1]):
        reduced = made_by(mean, CommandKind.REDUCE, function=ReduceFunction.MEAN, keep=1)
        number = scalar(epsilon)
        square = _square(reduced.inputs[0]) if reduced is not None else None
        if reduced is not None and square is not None and number is not None and number >= 0:
            return _Root(square[0], reduced.attributes.axes, number, [root, total, reduced, square[1]])
    return None


def _square(value: Value | None) -> tuple[Value, Operation] | None:
    product, power = binary(value, BinaryFunction.MUL), binary(value, BinaryFunction.POW)
    if product is not None and product.inputs[0] is not None and product.inputs[0] is product.inputs[1]:
        return product.inputs[0], product
    base = with_constant(power, 2.0)
    return (base, power) if power is not None and base is not None and base is power.inputs[0] else None


def _apply(program: Rewriting, position: int, result: Value | None, by: Value | None) -> bool:
    """Make a constant that multiplies or moves a normalisation's result its scale or bias."""
    operation, norm = program.operations[position], program.sole(result)
    if norm is None or norm.kind is not CommandKind.LAYER_NORM or by is None or by.constant is None:
        return False
    x, scale, bias = (*norm.inputs, None, None)[:3]
    if x is None or by.dtype is not x.dtype or operation.outputs[0].type != norm.outputs[0].type or bias is not None:
        return False
    operands: dict[Any, list[Value | None]] = {
        BinaryFunction.MUL: [x, by] if scale is None else [],
        BinaryFunction.ADD: [x, scale, by],
    }
    wanted = operands.get(operation.attributes.function)
    if not wanted:
        return False
    program.replace(position, CommandKind.LAYER_NORM, wanted, fields_of(norm), [norm])
    return True
