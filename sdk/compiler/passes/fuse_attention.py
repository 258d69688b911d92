"""Two products with a Softmax between them become ATTENTION."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.program_commands import MAX_RANK, BinaryFunction, CommandKind, ReduceFunction, UnaryFunction
from sdk.compiler.ir import Operation, Value, shape_fields
from sdk.compiler.passes.patterns import binary, made_by, scalar, unary
from sdk.compiler.passes.products import is_plain
from sdk.compiler.passes.rewriting import Rewriting
from sdk.compiler.passes.scanning import rewrite_each

_FAR_BELOW = -1e4
"""A score at most this leaves a key out as -inf does, where the query may attend another one."""


class _Scores(NamedTuple):
    """softmax(query · keyᵀ · scale + mask), as operations of the model."""

    query: Value
    key: Value
    order: list[int] | None
    """In which the dimensions of `key` are those of a key; None where they are that already."""
    scale: float
    mask: Value | None
    later: int | None
    """How many keys beyond its own place a query may attend; None where all."""
    operations: list[Operation]
    """That nothing else may read."""
    stack: tuple[int, int] | None = None
    """(samples, heads) where operands of rank 3 have them in one dimension."""


def fuse_attention(program: Rewriting) -> None:
    """Put ATTENTION in place of the second product."""
    rewrite_each(program, CommandKind.MATMUL, _fuse)


def _fuse(program: Rewriting, position: int) -> int:
    """Fuse what ends at a product, if it is one of attention; returns the place of what is there now."""
    operation = program.operations[position]
    if not _is_bare(operation) or operation.attributes.transpose_b or operation.attributes.alpha != 1:
        return position
    probabilities, value = operation.inputs[:2]
    scores = _scores(probabilities)
    if scores is None or value is None or not _fits(scores, value):
        return position
    inner = program.inner(operation, scores.operations)
    if len(inner) != len(scores.operations):
        return position
    key = scores.key
    if scores.order is not None:
        fields = {"permutation": [*scores.order, *[0] * (MAX_RANK - len(scores.order))]}
        key = program.insert(position, CommandKind.TRANSPOSE, [key], fields, operation.nodes)
        position += 1
    rank, masks = len(scores.query.shape), [] if scores.mask is None else [scores.mask]
    stack = scores.stack or (_stack_of(scores.query) if rank == 3 else None)
    if stack is None:
        inputs = [scores.query, key, value, *masks]
        program.replace(position, CommandKind.ATTENTION, inputs, _fields(scores, int(rank == 3)), inner)
        return position
    operands: list[Value] = []
    for operand in (scores.query, key, value):
        apart, position = _unstacked(program, position, operand, stack)
        operands.append(apart)
    nodes = tuple(dict.fromkeys(node for part in (*inner[::-1], operation) for node in part.nodes))
    result = program.insert(position, CommandKind.ATTENTION, [*operands, *masks], _fields(scores, 0), nodes)
    program.replace(position + 1, CommandKind.COPY, [result], shape_fields(operation.outputs[0].shape), inner)
    return position + 1


def _stack_of(value: Value) -> tuple[int, int] | None:
    """(samples, heads) that a reshape put into the first dimension of a value."""
    made = made_by(value, CommandKind.COPY)
    source = made.inputs[0] if made is not None else None
    if source is None or len(source.shape) != 4 or source.shape[2:] != value.shape[1:]:
        return None
    return source.shape[0], source.shape[1]


def _unstacked(program: Rewriting, position: int, value: Value, stack: tuple[int, int]) -> tuple[Value, int]:
    """(the value with samples and heads apart, where the operation at `position` is afterwards)."""
    made = made_by(value, CommandKind.COPY)
    shape = (*stack, *value.shape[1:])
    if made is not None and made.inputs[0] is not None and made.inputs[0].shape == shape:
        return made.inputs[0], position
    nodes = program.operations[position].nodes
    return program.insert(position, CommandKind.COPY, [value], shape_fields(shape), nodes), position + 1


def _fields(scores: _Scores, heads: int) -> dict[str, Any]:
    return {
        "scale": scores.scale,
        "softcap": 0.0,
        "query_heads": heads,
        "key_heads": heads,
        "left_window": -1,
        "right_window": scores.later or -1,
        "causal": int(scores.later == 0),
    }


def _is_bare(product: Operation | None) -> bool:
    """Whether it is a matrix product of two operands and nothing else."""
    plain = product is not None and product.kind is CommandKind.MATMUL and is_plain(product)
    return product is not None and plain and len(product.inputs) == 2 and not product.attributes.transpose_a


def _scores(probabilities: Value | None) -> _Scores | None:
    guard = _guard(probabilities)
    softmax = made_by(guard.guarded, CommandKind.SOFTMAX, logarithm=0)
    if softmax is None or softmax.inputs[0] is None or softmax.attributes.axis != len(softmax.inputs[0].shape) - 1:
        return None
    biased, operations = softmax.inputs[0], [softmax, *guard.operations]
    scores = _products(biased, None, operations) or _masked(biased, operations)
    if scores is None or (guard.mask is not None and guard.mask is not scores.mask):
        return None
    return scores


def _masked(biased: Value, operations: list[Operation]) -> _Scores | None:
    """Scores with a mask added, or chosen by one."""
    total = binary(biased, BinaryFunction.ADD)
    if total is not None:
        a, b = total.inputs
        return _products(a, b, [*operations, total]) or _products(b, a, [*operations, total])
    chosen = made_by(biased, CommandKind.WHERE)
    if chosen is not None and scalar(chosen.inputs[2]) == -math.inf:
        return _products(chosen.inputs[1], chosen.inputs[0], [*operations, chosen])
    return _masked_apart(biased, operations)


def _masked_apart(biased: Value, operations: list[Operation]) -> _Scores | None:
    """Scores of a stack to which a mask was added while samples and heads were apart."""
    stack, joined = _stack_of(biased), made_by(biased, CommandKind.COPY)
    total = binary(joined.inputs[0], BinaryFunction.ADD) if stack is not None and joined is not None else None
    if total is None or joined is None:
        return None
    for apart, mask in (total.inputs, total.inputs[::-1]):
        made = made_by(apart, CommandKind.COPY)
        if made is not None and apart is not None and apart.shape == total.outputs[0].shape:
            scores = _products(made.inputs[0], mask, [*operations, joined, total, made])
            if scores is not None:
                return scores._replace(stack=stack)
    return None


class _Guard(NamedTuple):
    """Probabilities, where queries that may attend nothing are given zeros as ATTENTION does anyway."""

    guarded: Value | None
    operations: list[Operation]
    mask: Value | None = None
    """That the guard looks at."""


def _guard(value: Value | None) -> _Guard:
    """What zeros take the place of, where it has no numbers or where a mask lets nothing through."""
    chosen = made_by(value, CommandKind.WHERE)
    if chosen is None or scalar(chosen.inputs[1]) != 0:
        return _Guard(value, [])
    condition, _, guarded = chosen.inputs
    if value is None or condition is None or guarded is None or guarded.shape != value.shape:
        return _Guard(value, [])
    if condition.constant is not None:
        return _Guard(value, []) if condition.constant.any() else _Guard(guarded, [chosen])
    not_numbers = unary(condition, UnaryFunction.IS_NAN)
    if not_numbers is not None and not_numbers.inputs[0] is guarded:
        return _Guard(guarded, [chosen, not_numbers])
    nothing = binary(condition, BinaryFunction.EQUAL)
    peak = made_by(nothing.inputs[0], CommandKind.REDUCE, function=ReduceFunction.MAX, keep=1) if nothing else None
    mask = peak.inputs[0] if peak is not None else None
    if nothing is None or peak is None or mask is None or scalar(nothing.inputs[1]) != -math.inf:
        return _Guard(value, [])
    along_keys = peak.attributes.axes == 1 << (len(mask.shape) - 1)
    return _Guard(guarded, [chosen, nothing, peak], mask) if along_keys else _Guard(value, [])


def _products(value: Value | None, mask: Value | None, after: list[Operation]) -> _Scores | None:
    """query · keyᵀ · scale, where it is nothing else, and has the shape of what is made of it."""
    chosen, whole_scores, later = _causal(value)
    scaled, scale, by = _unscaled(whole_scores)
    product = made_by(scaled, CommandKind.MATMUL)
    if value is None or product is None or not _is_bare(product) or value.shape != after[0].outputs[0].shape:
        return None
    query, query_scale, _ = _unscaled(product.inputs[0])
    key, key_scale, _ = _unscaled(product.inputs[1])
    whole = scale * query_scale * key_scale * product.attributes.alpha
    order = None
    if not product.attributes.transpose_b:
        turned = _turned(key) or _turned_flat(key)
        if turned is None:
            return None
        key, order = turned
        key, inner_scale, _ = _unscaled(key)
        whole *= inner_scale
    if query is None or key is None:
        return None
    if mask is not None and mask.shape[-1:] != value.shape[-1:]:
        return None  # one column for all keys
    return _Scores(query, key, order, whole, mask, later, [*after, *chosen, *by, product])


def _causal(value: Value | None) -> tuple[list[Operation], Value | None, int | None]:
    """(operations, scores, how many later keys count) where a constant triangle chooses which scores do."""
    chosen = made_by(value, CommandKind.WHERE)
    fill = scalar(chosen.inputs[2]) if chosen is not None else None
    if value is None or chosen is None or fill is None or fill > _FAR_BELOW:
        return [], value, None
    condition, scores = chosen.inputs[:2]
    if condition is None or scores is None or condition.constant is None or scores.shape != value.shape:
        return [], value, None
    queries, keys = value.shape[-2:]
    if keys < queries or condition.shape[-2:] != (queries, keys):
        return [], value, None
    is_triangle = np.all(condition.constant == np.tri(queries, keys, keys - queries, bool))
    return ([chosen], scores, keys - queries) if is_triangle else ([], value, None)


def _turned(value: Value | None) -> tuple[Value, list[int] | None] | None:
    """(what a TRANSPOSE read, the order of its dimensions in which only the last two are not swapped)."""
    made = made_by(value, CommandKind.TRANSPOSE)
    if made is None or made.inputs[0] is None:
        return None
    rank = len(made.outputs[0].shape)
    order = list(made.attributes.permutation[:rank])
    order[-2:] = order[:-3:-1]
    return made.inputs[0], None if order == list(range(rank)) else order


def _turned_flat(value: Value | None) -> tuple[Value, None] | None:
    """The same where stacks of matrices are one while their last two dimensions are swapped."""
    apart = made_by(value, CommandKind.COPY)
    turned = made_by(apart.inputs[0], CommandKind.TRANSPOSE) if apart is not None else None
    flat = made_by(turned.inputs[0], CommandKind.COPY) if turned is not None else None
    if value is None or turned is None or flat is None or flat.inputs[0] is None:
        return None
    key = flat.inputs[0]
    swaps = tuple(turned.attributes.permutation[:3]) == (0, 2, 1) and len(turned.outputs[0].shape) == 3
    kept = flat.outputs[0].shape[1:] == key.shape[-2:]
    same = value.shape == (*key.shape[:-2], key.shape[-1], key.shape[-2]) if len(key.shape) >= 2 else False
    return (key, None) if swaps and kept and same else None


def _unscaled(value: Value | None) -> tuple[Value | None, float, list[Operation]]:
    """(what was multiplied by a number, the number, the operation)."""
    times, over = binary(value, BinaryFunction.MUL), binary(value, BinaryFunction.DIV)
    if times is not None:
        for x, by in (times.inputs, times.inputs[::-1]):
            number = scalar(by)
            if number is not None and x is not None and value is not None and x.shape == value.shape:
                return x, number, [times]
    divisor = scalar(over.inputs[1]) if over is not None else None
    if over is not None and divisor and value is not None and over.inputs[0] is not None:
        return (over.inputs[0], 1 / divisor, [over]) if over.inputs[0].shape == value.shape else (value, 1.0, [])
    return value, 1.0, []


def _fits(scores: _Scores, value: Value) -> bool:
    """Whether ATTENTION takes these operands: one stack of heads, keys as they were before their transposition."""
    query, key = scores.query, scores.key
    rank = len(query.shape)
    if rank not in (3, 4) or len(key.shape) != rank or len(value.shape) != rank or query.dtype is not value.dtype:
        return False
    shape = key.shape if scores.order is None else tuple(key.shape[i] for i in scores.order)
    stacked = query.shape[: rank - 2] == shape[: rank - 2] == value.shape[: rank - 2]
    # Of rank 3, a mask may only have the dimension of one head, which the command adds, unless it met them apart.
    mask = scores.mask
    modest = mask is None or len(mask.shape) <= 2 or rank == 4 or scores.stack is not None
    return stacked and modest
