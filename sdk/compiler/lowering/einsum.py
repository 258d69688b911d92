"""Einsum: diagonals, sums, and one product for each further operand."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

from driver_shim.protocol.program_commands import MAX_RANK, BinaryFunction, CommandKind, ReduceFunction
from emulator.model.operators.shapes import SemanticError, broadcast
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import binary
from sdk.compiler.lowering.movement import cut, transposed
from sdk.compiler.lowering.reductions import reduced

_ELLIPSIS = "..."
_MATRIX = 2
"""Dimensions of a product that are no stack."""

Label = str
"""A letter, or "...n" for the n-th dimension from the end of those under an ellipsis."""


class _Labelled(NamedTuple):
    """A tensor with a label for each dimension, all different."""

    value: Value
    labels: tuple[Label, ...]

    def extent(self, label: Label) -> int:
        """Of the dimension with a label; 1 where there is none, as in broadcasting."""
        return self.value.shape[self.labels.index(label)] if label in self.labels else 1


class _Equation(NamedTuple):
    operands: list[tuple[Label, ...]]
    result: tuple[Label, ...]


def _einsum(node: NodeContext) -> Sequence[Value]:
    """Einsum: operands are multiplied in turn; what no later one and not the result has is summed over."""
    builder = node.builder
    values = [node.value(i) for i in range(len(node.inputs))]
    equation = _parsed(node.attribute("equation"), [len(value.shape) for value in values])
    tensors = [_diagonal(builder, value, labels) for value, labels in zip(values, equation.operands, strict=True)]
    total = tensors[0]
    for i, tensor in enumerate(tensors[1:], 1):
        later = set(equation.result).union(*(other.labels for other in tensors[i + 1 :]))
        total = _multiplied(builder, total, tensor, later)
    total = _summed(builder, total, set(equation.result))
    return [_arranged(builder, total, equation.result)]


# --- the equation ---------------------------------------------------------------------------------------------------


def _parsed(equation: str, ranks: Sequence[int]) -> _Equation:
    """The labels of all operands and of the result. Raises Refused."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise Refused(f"equation {equation!r} is about {len(terms)} operands, not {len(ranks)}")
    operands = [_labels(term, rank, equation) for term, rank in zip(terms, ranks, strict=True)]
    found = [label for labels in operands for label in labels]
    hidden = sorted((label for label in set(found) if label.startswith(_ELLIPSIS)), key=_from_end, reverse=True)
    if arrow:
        result = _expanded(right, hidden, equation)
    else:
        counts = Counter(label for label in found if not label.startswith(_ELLIPSIS))
        result = (*hidden, *sorted(label for label, count in counts.items() if count == 1))
    if len(set(result)) != len(result) or not set(result) <= set(found):
        raise Refused(f"the result of equation {equation!r} has a label twice, or one that no operand has")
    return _Equation(operands, result)


def _from_end(label: Label) -> int:
    return int(label.removeprefix(_ELLIPSIS))


def _labels(term: str, rank: int, equation: str) -> tuple[Label, ...]:
    """The labels of one operand."""
    letters = len(term.replace(_ELLIPSIS, ""))
    under = rank - letters
    if under < 0 or (under > 0 and _ELLIPSIS not in term):
        raise Refused(f"equation {equation!r} has {letters} labels for an operand of rank {rank}")
    return _expanded(term, [f"{_ELLIPSIS}{i}" for i in range(under, 0, -1)], equation)


def _expanded(term: str, hidden: Sequence[Label], equation: str) -> tuple[Label, ...]:
    """A term's labels with those under its ellipsis in the place of that."""
    before, ellipsis, after = term.partition(_ELLIPSIS)
    if any(letter not in string.ascii_letters for letter in before + after):
        raise Refused(f"equation {equation!r} is none")
    return (*before, *(hidden if ellipsis else ()), *after)


# --- steps ----------------------------------------------------------------------------------------------------------


def _diagonal(builder: Builder, value: Value, labels: Sequence[Label]) -> _Labelled:
    """The tensor with every label once: of dimensions that share one, the elements at equal places."""
    left = list(labels)
    for label in [label for label, count in Counter(labels).items() if count > 1]:
        while left.count(label) > 1:
            axes = [axis for axis, other in enumerate(left) if other == label][:2]
            value = _one_diagonal(builder, value, axes)
            left = [other for axis, other in enumerate(left) if axis not in axes] + [label]
    return _Labelled(value, tuple(left))


def _one_diagonal(builder: Builder, value: Value, axes: Sequence[int]) -> Value:
    """Two dimensions as one at the end: side by side, every (n + 1)-th element is on the diagonal."""
    extent = value.shape[axes[0]]
    if value.shape[axes[1]] != extent:
        raise Refused(f"a label of {value.type} stands for {extent} and {value.shape[axes[1]]}")
    others = [axis for axis in range(len(value.shape)) if axis not in axes]
    turned = transposed(builder, value, [*others, *axes])
    shape = [value.shape[axis] for axis in others]
    flat = builder.reshape(turned, (*shape, extent * extent))
    steps = [*[1] * len(shape), extent + 1 if extent > 1 else 1]
    return cut(builder, flat, [0] * len(steps), steps, (*shape, extent))


def _summed(builder: Builder, tensor: _Labelled, kept: Set[Label]) -> _Labelled:
    """Summed over the dimensions whose labels are not kept."""
    gone = [axis for axis, label in enumerate(tensor.labels) if label not in kept]
    if not gone:
        return tensor
    value = reduced(builder, ReduceFunction.SUM, tensor.value, gone, keep=False)
    return _Labelled(value, tuple(label for label in tensor.labels if label in kept))


def _multiplied(builder: Builder, a: _Labelled, b: _Labelled, later: Set[Label]) -> _Labelled:
    """The product of two, summed over the labels that nothing has later."""
    a, b = _summed(builder, a, later | set(b.labels)), _summed(builder, b, later | set(a.labels))
    shared = [label for label in a.labels if label in b.labels]
    summed = [label for label in shared if label not in later]
    stack = [label for label in shared if label in later]
    rows = [label for label in a.labels if label not in b.labels]
    columns = [label for label in b.labels if label not in a.labels]
    labels = (*stack, *rows, *columns)
    if not summed or not a.value.dtype.is_float or len(stack) + _MATRIX > MAX_RANK:
        whole = (*labels, *summed)
        product = binary(builder, BinaryFunction.MUL, _spread(builder, a, whole), _spread(builder, b, whole))
        return _summed(builder, _Labelled(product, whole), set(labels))
    a, b = _widened(builder, a, b, summed), _widened(builder, b, a, summed)
    left = _matrices(builder, a, stack, rows, summed)
    right = _matrices(builder, b, stack, summed, columns)
    product = builder.emit(CommandKind.MATMUL, [left, right], alpha=1.0, beta=0.0)
    shape = (*product.shape[: len(stack)], *_extents(rows, a, b), *_extents(columns, a, b))
    return _Labelled(builder.reshape(product, shape), labels)


def _extents(labels: Sequence[Label], a: _Labelled, b: _Labelled) -> tuple[int, ...]:
    """The extents of dimensions after broadcasting. Raises Refused."""
    try:
        return broadcast([a.extent(label) for label in labels], [b.extent(label) for label in labels])
    except SemanticError as error:
        raise Refused(f"dimensions of one label differ: {error}") from None


def _widened(builder: Builder, tensor: _Labelled, other: _Labelled, labels: Sequence[Label]) -> _Labelled:
    """The tensor with dimensions of extent 1 as long as the other's, for labels that a product sums over."""
    wanted = dict(zip(labels, _extents(labels, tensor, other), strict=True))
    shape = [wanted.get(label, extent) for label, extent in zip(tensor.labels, tensor.value.shape, strict=True)]
    return tensor._replace(value=builder.expand(tensor.value, shape))


def _matrices(
    builder: Builder, tensor: _Labelled, stack: Sequence[Label], rows: Sequence[Label], columns: Sequence[Label]
) -> Value:
    """A stack of matrices: rows are one dimension, and so are columns."""
    value = _arranged(builder, tensor, (*stack, *rows, *columns))
    shape = [tensor.extent(label) for label in stack]
    sides = [math.prod(tensor.extent(label) for label in side) for side in (rows, columns)]
    return builder.reshape(value, (*shape, *sides))


def _spread(builder: Builder, tensor: _Labelled, labels: Sequence[Label]) -> Value:
    """The tensor with a dimension for each label, 1 where it has none."""
    present = [label for label in labels if label in tensor.labels]
    return builder.reshape(_arranged(builder, tensor, present), [tensor.extent(label) for label in labels])


def _arranged(builder: Builder, tensor: _Labelled, labels: Sequence[Label]) -> Value:
    """The tensor with its dimensions in the order of its labels here."""
    order = [tensor.labels.index(label) for label in labels]
    return tensor.value if order == list(range(len(order))) else transposed(builder, tensor.value, order)


LOWERINGS: dict[str, Lowering] = {"Einsum": _einsum}
