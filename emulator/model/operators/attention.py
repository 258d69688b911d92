"""Scaled dot-product attention, with masks, shared key heads and a cache's past and present."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind, Scores
from driver_shim.protocol.types import FLOATS, WireType
from emulator.model.operators.arrays import Array, optional, required, widen
from emulator.model.operators.operator import STEP_EFFORT, Operator, Types, function, given, one_type
from emulator.model.operators.shapes import SemanticError, broadcast, need

MASK, PAST_KEY, PAST_VALUE, VALID_KEYS = 3, 4, 5, 6
"""Positions of the optional operands."""
_BLOCK = 1 << 22
"""Scores computed at a time, however many keys and queries there are."""
_SCORE_EFFORT = 64
"""Bytes that one score makes a host move, over all steps from product to probability."""
_BLOCK_PASSES = 16


class Extents(NamedTuple):
    """Of one command's operands."""

    batch: int
    heads: int
    """Of queries."""
    key_heads: int
    queries: int
    keys: int
    """New ones."""
    past: int
    size: int
    """Of a query and a key."""
    value_size: int

    @property
    def total(self) -> int:
        """Keys with those of the past."""
        return self.past + self.keys

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """The shape of the scores."""
        return (self.batch, self.heads, self.queries, self.total)


class Attention(Operator):
    """ATTENTION."""

    kind = CommandKind.ATTENTION
    flags = ("causal",)

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        function(Scores, attributes.scores)
        need(min(attributes.left_window, attributes.right_window) >= -1, "a window is -1 (open) or not negative")
        need(attributes.softcap >= 0, f"softcap is {attributes.softcap}; it must not be negative")
        mask = optional(inputs, MASK)
        dtype = one_type([given(inputs, i) for i in range(3)] + [optional(inputs, i) for i in (4, 5)], FLOATS)
        need(mask is None or mask.dtype in (WireType.BOOL, dtype), f"the mask is {mask}; bool or {dtype.text}")
        extents = extents_of(attributes, inputs)
        if mask is not None:
            need(len(mask.shape) >= 1 and mask.shape[-1] <= extents.total, f"the mask {mask} for {extents.total} keys")
            whole = (*mask.shape[:-1], extents.total)
            need(broadcast(whole, extents.scores) == extents.scores, f"the mask {mask} for {extents.scores} scores")
        valid = optional(inputs, VALID_KEYS)
        if valid is not None:
            good = valid.dtype is WireType.INT64 and valid.shape == (extents.batch,)
            need(good, f"counts of valid keys {valid}; they are int64[{extents.batch}]")
        batch, heads, key_heads, queries, _, _, size, value_size = extents
        y = (batch, queries, heads * value_size) if attributes.query_heads else (batch, heads, queries, value_size)
        present = (batch, key_heads, extents.total)
        shapes = (y, (*present, size), (*present, value_size), extents.scores)
        return [TensorType(dtype, shape) for shape in shapes]

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        extents = extents_of(attributes, inputs)
        return math.prod(extents.scores) * (extents.size + extents.value_size)

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        extents = extents_of(attributes, inputs)
        scores = math.prod(extents.scores)
        blocks = extents.batch * extents.heads * (1 + scores // _BLOCK)
        work = super().effort(attributes, inputs, outputs)
        return work + scores * _SCORE_EFFORT + blocks * _BLOCK_PASSES * STEP_EFFORT

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Attention (opset 25) in float32, rounded once: softmax(cap(q · kᵀ · scale) + mask) · v.

        Operands are [batch, heads, length, size], or [batch, length, heads · size] where heads are given. Every key
        head serves as many query heads in a row. What may not be attended has the score -inf; a query that may attend
        nothing gives 0. Presents are the past and then the new keys and values.
        """
        extents = extents_of(attributes, types_of(inputs))
        query, key, value = operands_by_head(extents, inputs)
        y = by_head(outputs[0], extents.heads) if attributes.query_heads else outputs[0]
        for output, present in zip(outputs[1:3], (key, value), strict=False):
            output[...] = present
        shared = extents.heads // extents.key_heads
        for batch, head, rows in _blocks(extents):
            bias, allowed = mask_of(attributes, inputs, extents, (batch, head, rows))
            products = query[batch, head, rows] @ key[batch, head // shared].T * np.float32(attributes.scale)
            capped = cap(attributes, products)
            biased = np.where(allowed, capped + bias, np.float32(-np.inf))
            peak = np.max(np.where(allowed, bias, np.float32(-np.inf)), 1, keepdims=True, initial=-np.inf)
            probabilities = np.where(peak == -np.inf, np.float32(0), softmax(biased))
            y[batch, head, rows] = probabilities @ value[batch, head // shared]
            if len(outputs) > 3:
                kept = (products, capped, biased, probabilities)
                outputs[3][batch, head, rows] = kept[attributes.scores]


def types_of(arrays: Sequence[Array | None]) -> list[TensorType | None]:
    """The shapes of a kernel's operands, as extents are found from; element types do not matter to them."""
    return [None if array is None else TensorType(WireType.FLOAT32, array.shape) for array in arrays]


def extents_of(attributes: Any, inputs: Types) -> Extents:
    """What the operands' shapes say. Raises SemanticError unless they go together."""
    heads = (attributes.query_heads, attributes.key_heads, attributes.key_heads)
    query, key, value = (by_head_shape(given(inputs, i), heads[i]) for i in range(3))
    need(query[0] == key[0] == value[0], f"batches of {query[0]}, {key[0]} and {value[0]}")
    need(key[1:3] == value[1:3], f"{key[1]} heads of {key[2]} keys, {value[1]} of {value[2]} values")
    need(query[3] == key[3], f"queries of {query[3]} elements, keys of {key[3]}")
    need(key[1] > 0 and query[1] % key[1] == 0, f"{query[1]} heads of queries for {key[1]} of keys")
    past_key, past_value = optional(inputs, PAST_KEY), optional(inputs, PAST_VALUE)
    need((past_key is None) == (past_value is None), "keys and values of the past go together")
    past = 0
    if past_key is not None and past_value is not None:
        need(len(past_key.shape) == 4, f"past keys {past_key}; their rank is 4")
        past = past_key.shape[2]
        good = past_key.shape == (*key[:2], past, key[3]) and past_value.shape == (*value[:2], past, value[3])
        need(good, f"a past of {past_key} and {past_value}")
    return Extents(query[0], query[1], key[1], query[2], key[2], past, query[3], value[3])


def by_head_shape(tensor: TensorType, heads: int) -> tuple[int, int, int, int]:
    """[batch, heads, length, size] of an operand, which has no dimension of heads where their number is given."""
    if heads == 0 and len(tensor.shape) == 4:
        batch, heads, length, size = tensor.shape
    elif heads and len(tensor.shape) == 3 and tensor.shape[2] % heads == 0:
        batch, length, size = (*tensor.shape[:2], tensor.shape[2] // heads)
    else:
        raise SemanticError(f"{tensor} in {heads} heads; rank 4 and no heads, or rank 3 and heads, belong together")
    return batch, heads, length, size


def by_head(array: Array, heads: int) -> Array:
    """[batch, length, heads · size] seen as [batch, heads, length, size]."""
    batch, length, width = array.shape
    return array.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def operands_by_head(extents: Extents, inputs: Sequence[Array | None]) -> tuple[Array, Array, Array]:
    """Queries, and keys and values after those of the past, in float32: [batch, heads, length, size]."""
    heads = (extents.heads, extents.key_heads, extents.key_heads)
    arrays = []
    for position, past_at in enumerate((None, PAST_KEY, PAST_VALUE)):
        array, past = required(inputs, position), None if past_at is None else optional(inputs, past_at)
        new = by_head(array, heads[position]) if array.ndim == 3 else array
        arrays.append(widen(new if past is None else np.concatenate([past, new], 2)))
    return arrays[0], arrays[1], arrays[2]


def mask_of(
    attributes: Any, inputs: Sequence[Array | None], extents: Extents, place: tuple[int, int, slice]
) -> tuple[Array, Array]:
    """(bias, allowed), each to broadcast to [queries, keys] of one head: what is added, and what may be attended."""
    batch, head, rows = place
    mask, valid = optional(inputs, MASK), optional(inputs, VALID_KEYS)
    keys = np.arange(extents.total)
    allowed = np.ones((1, extents.total), bool)
    offset = extents.past
    if valid is not None:
        allowed = allowed & (keys < valid[batch])
        if optional(inputs, PAST_KEY) is None:
            offset = int(valid[batch]) - extents.queries
    queries = np.arange(extents.queries)[rows, None] + offset
    if attributes.causal:
        allowed = allowed & (keys <= queries)
    if attributes.left_window >= 0:
        allowed = allowed & (keys >= queries - attributes.left_window)
    if attributes.right_window >= 0:
        allowed = allowed & (keys <= queries + attributes.right_window)
    if mask is None:
        return np.zeros((1, 1), np.float32), allowed
    width = mask.shape[-1]
    part = np.broadcast_to(mask, (*extents.scores[:3], width))[batch, head, rows]
    allowed = allowed & (keys < width)
    whole = np.pad(part, ((0, 0), (0, extents.total - width)))
    return (np.zeros((1, 1), np.float32), allowed & whole) if mask.dtype == np.bool_ else (widen(whole), allowed)


def cap(attributes: Any, products: Array) -> Array:
    """The products drawn into ±softcap, if there is one."""
    if attributes.softcap == 0:
        return products
    limit = np.float32(attributes.softcap)
    capped: Array = limit * np.tanh(products / limit)
    return capped


def _blocks(extents: Extents) -> Iterator[tuple[int, int, slice]]:
    """(batch, head, rows): as many queries at a time as make scores of a bounded size."""
    step = max(1, _BLOCK // max(1, extents.total))
    for batch in range(extents.batch):
        for head in range(extents.heads):
            for start in range(0, extents.queries, step):
                yield batch, head, slice(start, min(start + step, extents.queries))


def softmax(scores: Array) -> Array:
    """Probabilities along the second of two dimensions; 0 where every score is -inf."""
    peak = np.max(scores, 1, keepdims=True, initial=-np.inf)
    powers: Array = np.exp(scores - np.where(peak == -np.inf, np.float32(0), peak))
    sums = np.sum(powers, 1, keepdims=True)
    return powers / np.where(sums == 0, np.float32(1), sums)


OPERATORS: tuple[Operator, ...] = (Attention(),)
