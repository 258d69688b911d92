"""Losses of classification: the logarithm of the right class's probability, weighed, and summed or averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, ReduceFunction, UnaryFunction
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import binary, unary
from sdk.compiler.lowering.reductions import reduced

_REDUCTIONS = ("none", "sum", "mean")


class _Target(NamedTuple):
    """The right classes: [batch, …]."""

    classes: Value
    """0 where they are ignored."""
    ignored: Value | None
    """Where they are."""


def _negative_log_likelihood(node: NodeContext) -> Sequence[Value]:
    """NegativeLogLikelihoodLoss, of logarithms [batch, classes, …]."""
    return [_loss(node, node.value(0))]


def _softmax_cross_entropy(node: NodeContext) -> Sequence[Value]:
    """SoftmaxCrossEntropyLoss: the same of the logarithm of Softmax, which is the second output."""
    scores = node.value(0)
    if len(scores.shape) < 2:
        raise Refused(f"scores {scores.type} have no classes")
    logarithms = node.builder.emit(CommandKind.SOFTMAX, [scores], axis=1, logarithm=1)
    return [_loss(node, logarithms), logarithms][: node.output_count]


def _loss(node: NodeContext, logarithms: Value) -> Value:
    builder, reduction = node.builder, node.attribute("reduction", "mean")
    if reduction not in _REDUCTIONS:
        raise Refused(f"reduction {reduction!r}; {', '.join(_REDUCTIONS)} are possible")
    target = _target(node, logarithms)
    loss, weights = _negative(builder, logarithms, target.classes), _weights(node, logarithms, target)
    if target.ignored is not None:
        loss = _zero_where(builder, target.ignored, loss)
    if weights is not None:
        loss = binary(builder, BinaryFunction.MUL, loss, weights)
    axes = range(len(loss.shape))
    if reduction == "none":
        return loss
    if reduction == "mean" and weights is None:
        return reduced(builder, ReduceFunction.MEAN, loss, axes, keep=False)
    total = reduced(builder, ReduceFunction.SUM, loss, axes, keep=False)
    if reduction == "sum" or weights is None:
        return total
    return binary(builder, BinaryFunction.DIV, total, reduced(builder, ReduceFunction.SUM, weights, axes, keep=False))


def _target(node: NodeContext, logarithms: Value) -> _Target:
    builder, classes, ignore = node.builder, node.value(1), node.attribute("ignore_index")
    shape = logarithms.shape
    if len(shape) < 2 or classes.shape != (shape[0], *shape[2:]) or classes.dtype.is_float:
        raise Refused(f"classes {classes.type} for {logarithms.type}")
    if ignore is None:
        return _Target(classes, None)
    ignored = binary(builder, BinaryFunction.EQUAL, classes, builder.scalar(ignore, classes.dtype))
    return _Target(_zero_where(builder, ignored, classes), ignored)


def _zero_where(builder: Builder, condition: Value, value: Value) -> Value:
    return builder.emit(CommandKind.WHERE, [condition, builder.scalar(0, value.dtype), value])


def _negative(builder: Builder, logarithms: Value, classes: Value) -> Value:
    """Minus the logarithm of each right class."""
    batch, _, *places = logarithms.shape
    index = builder.reshape(classes, (batch, 1, *places))
    picked = builder.emit(CommandKind.GATHER_ELEMENTS, [logarithms, index], axis=1)
    return unary(builder, UnaryFunction.NEG, builder.reshape(picked, classes.shape))


def _weights(node: NodeContext, logarithms: Value, target: _Target) -> Value | None:
    """What each place counts, 0 where it is ignored; None where all count 1."""
    builder, given = node.builder, node.optional(2)
    if given is None and target.ignored is None:
        return None
    if given is None:
        weights = builder.expand(builder.scalar(1, logarithms.dtype), target.classes.shape)
    elif given.shape == logarithms.shape[1:2]:
        weights = builder.emit(CommandKind.GATHER, [given, target.classes], axis=0)
    else:
        raise Refused(f"weights {given.type} for {logarithms.shape[1]} classes")
    return weights if target.ignored is None else _zero_where(builder, target.ignored, weights)


LOWERINGS: dict[str, Lowering] = {
    "NegativeLogLikelihoodLoss": _negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": _softmax_cross_entropy,
}
