"""onnxruntime's own operators of transformers: attention, normalisations after a sum, gelu after a bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from driver_shim.protocol.program_commands import (
    BinaryFunction,
    CommandKind,
    ReduceFunction,
    ScatterMode,
    UnaryFunction,
)
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.contrib import qualified
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.attention import attention_fields, rotary_heads, rotated
from sdk.compiler.lowering.elementwise import binary, cast, unary
from sdk.compiler.lowering.movement import cut, transposed
from sdk.compiler.lowering.normalise import EPSILON, layer_norm
from sdk.compiler.lowering.reductions import reduced

_FILTER = -10000.0
"""Added to the scores of keys that a mask leaves out, unless a node says otherwise."""
_SUM_EPSILON = 1e-12
"""The default of normalisations after a sum."""
_QUICK_GELU_ALPHA = 1.702


class _Heads(NamedTuple):
    """Queries, keys and values: all [batch, length, heads · size], or all [batch, heads, length, size]."""

    query: Value
    key: Value
    value: Value


def part(builder: Builder, x: Value, axis: int, start: int, extent: int) -> Value:
    """`extent` elements along one dimension."""
    starts, shape = [0] * len(x.shape), list(x.shape)
    starts[axis], shape[axis] = start, extent
    if start + extent > x.shape[axis]:
        raise Refused(f"elements {start} to {start + extent} along dimension {axis} of {x.type}")
    return cut(builder, x, starts, [1] * len(starts), shape)


def _without(node: NodeContext, **positions: int) -> None:
    """Refuse operands that are not supported."""
    for name, position in positions.items():
        if node.optional(position) is not None:
            raise Refused(f"its input {name} is not supported")


def _apart(builder: Builder, x: Value, heads: int) -> Value:
    """[batch, length, heads · size] as [batch, heads, length, size]."""
    batch, length, width = x.shape
    return transposed(builder, builder.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def _beside(builder: Builder, x: Value) -> Value:
    """[batch, heads, length, size] as [batch, length, heads · size]."""
    batch, heads, length, size = x.shape
    return builder.reshape(transposed(builder, x, (0, 2, 1, 3)), (batch, length, heads * size))


# --- MultiHeadAttention ---------------------------------------------------------------------------------------------


def _multi_head_attention(node: NodeContext) -> Sequence[Value]:
    """MultiHeadAttention: a mask of keys is added as `mask_filter_value`, as onnxruntime does."""
    _without(node, past_sequence_length=8, cache_indirection=9)
    builder, heads = node.builder, node.attribute("num_heads")
    operands = _biased(builder, _separate(node, heads), node.optional(3))
    if len(operands.key.shape) == 4 and len(operands.query.shape) == 3:
        operands = operands._replace(query=_apart(builder, operands.query, heads))
    beside = len(operands.query.shape) == 3
    past = (node.optional(6), node.optional(7))
    lengths = _lengths(operands, past[0], heads)
    bias = _added(builder, _key_bias(node, node.optional(4), operands.query, lengths), node.optional(5))
    results = builder.emit_all(
        CommandKind.ATTENTION,
        [*operands, bias, *past],
        min(3, node.output_count),
        **attention_fields(
            lengths.size,
            scale=node.attribute("scale"),
            query_heads=heads if beside else 0,
            key_heads=heads if beside else 0,
            causal=int(bool(node.attribute("unidirectional", 0))),
        ),
    )
    return results if beside else [_beside(builder, results[0]), *results[1:]]


def _separate(node: NodeContext, heads: int) -> _Heads:
    """Queries, keys and values, out of one tensor where they are packed."""
    builder, query, key, value = node.builder, node.value(0), node.optional(1), node.optional(2)
    if heads < 1:
        raise Refused(f"num_heads is {heads}")
    if key is None:
        return _Heads(*_unpacked(builder, query, 3))
    if value is None:
        return _Heads(query, *_unpacked(builder, key, 2))
    if len(query.shape) != 3 or query.shape[2] % heads or len(key.shape) not in (3, 4):
        raise Refused(f"query {query.type} and key {key.type} in {heads} heads")
    return _Heads(query, key, value)


def _unpacked(builder: Builder, packed: Value, count: int) -> list[Value]:
    """[batch, length, heads, count, size] taken apart."""
    if len(packed.shape) != 5 or packed.shape[3] != count:
        raise Refused(f"{packed.type} where {count} tensors are packed into one of rank 5")
    batch, length, heads, _, size = packed.shape
    shape = (batch, length, heads * size)
    return [builder.reshape(part(builder, packed, 3, i, 1), shape) for i in range(count)]


def _biased(builder: Builder, operands: _Heads, bias: Value | None) -> _Heads:
    """With the parts of a bias added; keys and values that are apart by heads have had theirs."""
    if bias is None:
        return operands
    results, start = [], 0
    for x in operands:
        if len(x.shape) != 3:
            results.append(x)
            continue
        results.append(binary(builder, BinaryFunction.ADD, x, part(builder, bias, 0, start, x.shape[2])))
        start += x.shape[2]
    return _Heads(*results)


class _Lengths(NamedTuple):
    batch: int
    queries: int
    total: int
    """Keys with those of the past."""
    size: int
    """Of a head."""


def _lengths(operands: _Heads, past: Value | None, heads: int) -> _Lengths:
    beside = len(operands.query.shape) == 3
    axis = 1 if beside else 2
    size = operands.query.shape[-1] // (heads if beside else 1)
    earlier = past.shape[2] if past is not None and len(past.shape) == 4 else 0
    return _Lengths(operands.query.shape[0], operands.query.shape[axis], operands.key.shape[axis] + earlier, size)


def _key_bias(node: NodeContext, mask: Value | None, like: Value, lengths: _Lengths) -> Value | None:
    """What a mask of keys adds to scores: nothing, or `mask_filter_value`.

    It is [batch] counts of keys, or [batch, keys] or [batch, queries, keys] of what is unequal 0 where a key counts.
    """
    if mask is None:
        return None
    builder, (batch, queries, total, _) = node.builder, lengths
    if mask.shape == (batch,):
        places = builder.constant(np.arange(total, dtype=np.int32))
        counts = builder.reshape(cast(builder, mask, WireType.INT32), (batch, 1, 1, 1))
        counted = binary(builder, BinaryFunction.LESS, places, counts)
    elif mask.shape in ((batch, total), (batch, queries, total)):
        rows = queries if len(mask.shape) == 3 else 1
        counted = cast(builder, builder.reshape(mask, (batch, 1, rows, total)), WireType.BOOL)
    else:
        raise Refused(f"the mask {mask.type} for {batch} samples of {queries} queries and {total} keys")
    nothing = builder.scalar(0, like.dtype)
    left_out = builder.scalar(node.attribute("mask_filter_value", _FILTER), like.dtype)
    return builder.emit(CommandKind.WHERE, [counted, nothing, left_out])


def _added(builder: Builder, a: Value | None, b: Value | None) -> Value | None:
    if a is None or b is None:
        return b if a is None else a
    return binary(builder, BinaryFunction.ADD, a, b)


# --- Attention ------------------------------------------------------------------------------------------------------


def _attention(node: NodeContext) -> Sequence[Value]:
    """Attention: one product gives queries, keys and values side by side; past and present are stacked."""
    _without(node, past_sequence_length=6)
    if node.attribute("do_rotary", 0) or node.attribute("past_present_share_buffer", 0):
        raise Refused("do_rotary and a past that is shared with the present are not supported")
    builder, heads = node.builder, node.attribute("num_heads")
    operands = _projected(node, heads)
    past = _stacked_past(builder, node.optional(4))
    lengths = _lengths(operands, past[0], heads)
    bias = _added(builder, _key_bias(node, node.optional(3), operands.query, lengths), node.optional(5))
    results = builder.emit_all(
        CommandKind.ATTENTION,
        [*operands, bias, *past],
        3 if node.wants(1) else 1,
        **attention_fields(
            lengths.size,
            scale=node.attribute("scale"),
            query_heads=heads,
            key_heads=heads,
            causal=int(bool(node.attribute("unidirectional", 0))),
        ),
    )
    if not node.wants(1):
        return results
    layers = [builder.reshape(present, (1, *present.shape)) for present in results[1:]]
    return [results[0], builder.emit(CommandKind.CONCAT, layers, axis=0)]


def _projected(node: NodeContext, heads: int) -> _Heads:
    builder, x, weights, bias = node.builder, node.value(0), node.value(1), node.optional(2)
    if len(x.shape) != 3 or len(weights.shape) != 2 or heads < 1:
        raise Refused(f"input {x.type}, weights {weights.type} and {heads} heads")
    sizes = node.attribute("qkv_hidden_sizes") or [weights.shape[1] // 3] * 3
    if len(sizes) != 3 or sum(sizes) != weights.shape[1] or any(size < 1 or size % heads for size in sizes):
        raise Refused(f"qkv_hidden_sizes {list(sizes)} for weights {weights.type} and {heads} heads")
    operands = [x, weights] if bias is None else [x, weights, bias]
    joint = builder.emit(CommandKind.MATMUL, operands, alpha=1.0, beta=0.0 if bias is None else 1.0)
    starts = (0, sizes[0], sizes[0] + sizes[1])
    return _Heads(*(part(builder, joint, 2, start, size) for start, size in zip(starts, sizes, strict=True)))


def _stacked_past(builder: Builder, past: Value | None) -> tuple[Value | None, Value | None]:
    if past is None:
        return None, None
    if len(past.shape) != 5 or past.shape[0] != 2:
        raise Refused(f"the past {past.type}; keys and values are stacked in rank 5")
    key, value = (builder.reshape(part(builder, past, 0, i, 1), past.shape[1:]) for i in range(2))
    return key, value


# --- GroupQueryAttention --------------------------------------------------------------------------------------------

_UNSUPPORTED_GROUP_OPERANDS = {
    "head_sink": 11,
    "k_scale": 12,
    "v_scale": 13,
    "q_norm_weight": 14,
    "k_norm_weight": 15,
    "query_seqlens": 16,
}


def _group_query_attention(node: NodeContext) -> Sequence[Value]:
    """GroupQueryAttention over a past without padding that is not shared with the present, or over a state."""
    _without(node, **_UNSUPPORTED_GROUP_OPERANDS)
    if max(
        node.attribute("smooth_softmax", 0), node.attribute("kv_cache_bit_width", 0), node.attribute("qk_output", 0)
    ):
        raise Refused("smooth_softmax, qk_output and quantised caches are not supported")
    builder, heads, key_heads = node.builder, node.attribute("num_heads"), node.attribute("kv_num_heads")
    operands = _grouped(node, heads, key_heads)
    past = (node.optional(3), node.optional(4))
    shared = node.is_state(3) and node.is_state(4)
    lengths = _lengths(operands, None if shared else past[0], heads)
    start = _places_after(node, lengths) if shared else None
    if start is None:
        _check_past(node, lengths, past[0])
    if node.attribute("do_rotary", 0):
        query, key = _turned(node, operands, lengths, (heads, key_heads), start)
        operands = operands._replace(query=query, key=key)
    window = node.attribute("local_window_size", -1)
    bias = node.optional(10)
    fields = attention_fields(
        lengths.size,
        scale=node.attribute("scale") or None,
        softcap=node.attribute("softcap"),
        query_heads=heads,
        key_heads=key_heads,
        causal=int(bool(node.attribute("causal", 1))),
        left_window=window - 1 if window > 0 else -1,
    )
    mask = None if bias is None else cast(builder, bias, operands.query.dtype)
    if start is None:
        return builder.emit_all(CommandKind.ATTENTION, [*operands, mask, *past], min(3, node.output_count), **fields)
    presents = [
        _written(builder, state, _apart(builder, new, key_heads), start)
        for state, new in zip((node.value(3), node.value(4)), operands[1:], strict=True)
    ]
    valid = binary(builder, BinaryFunction.ADD, start, builder.scalar(lengths.queries, WireType.INT64))
    inputs = [operands.query, *presents, mask, None, None, valid]
    y = builder.emit(CommandKind.ATTENTION, inputs, **{**fields, "key_heads": 0})
    return [y, *presents][: node.output_count]


def _places_after(node: NodeContext, lengths: _Lengths) -> Value:
    """Where the new tokens of each sample go, int64[batch]: seqlens_k has the place of the last one."""
    builder = node.builder
    last = builder.reshape(cast(builder, node.value(5), WireType.INT64), (lengths.batch,))
    return binary(builder, BinaryFunction.SUB, last, builder.scalar(lengths.queries - 1, WireType.INT64))


def _written(builder: Builder, state: Value, new: Value, start: Value) -> Value:
    """A state with new tokens in it."""
    return builder.emit(CommandKind.TENSOR_SCATTER, [state, new, start], axis=2, mode=ScatterMode.LINEAR)


def _check_past(node: NodeContext, lengths: _Lengths, past: Value | None) -> None:
    """Refuse a past that is longer than what is in it, or shorter for some samples: new keys come after all of it."""
    if past is None or past.shape[2] == 0:
        return
    whole, filled = node.constant_ints(6, "total_sequence_length"), node.constant_ints(5, "seqlens_k")
    if whole != [lengths.total] or set(filled or []) != {lengths.total - 1}:
        raise Refused(
            f"total_sequence_length {whole} and seqlens_k {filled} for a past and new keys of {lengths.total}: a past"
            " with room or padding is not supported"
        )


def _grouped(node: NodeContext, heads: int, key_heads: int) -> _Heads:
    """Queries, keys and values side by side, out of one tensor where they are packed."""
    builder, query, key, value = node.builder, node.value(0), node.optional(1), node.optional(2)
    if heads < 1 or key_heads < 1 or heads % key_heads or len(query.shape) != 3:
        raise Refused(f"query {query.type}, {heads} heads of queries and {key_heads} of keys")
    if key is not None and value is not None:
        return _Heads(query, key, value)
    size = query.shape[2] // (heads + 2 * key_heads)
    extents = (heads * size, key_heads * size, key_heads * size)
    starts = (0, extents[0], extents[0] + extents[1])
    return _Heads(*(part(builder, query, 2, start, extent) for start, extent in zip(starts, extents, strict=True)))


def _positions_from(builder: Builder, start: Value, lengths: _Lengths, limit: int) -> Value:
    """int64[batch, queries]; tokens that are padding may lie behind the last position there is, and get that."""
    steps = builder.constant(np.arange(lengths.queries, dtype=np.int64)[None])
    positions = binary(builder, BinaryFunction.ADD, builder.reshape(start, (lengths.batch, 1)), steps)
    return binary(builder, BinaryFunction.MIN, positions, builder.scalar(max(0, limit - 1), WireType.INT64))


def _turned(
    node: NodeContext, operands: _Heads, lengths: _Lengths, heads: tuple[int, int], start: Value | None
) -> list[Value]:
    """Queries and keys turned by their positions, which go on where the past ends."""
    builder, caches = node.builder, (node.value(7), node.value(8))
    positions = node.optional(9)
    if positions is None and start is not None:
        positions = _positions_from(builder, start, lengths, caches[0].shape[0])
    elif positions is None:
        row = np.arange(lengths.total - lengths.queries, lengths.total, dtype=np.int64)[None]
        positions = builder.constant(np.repeat(row, lengths.batch, 0))
    interleaved = bool(node.attribute("rotary_interleaved", 0))
    return [
        rotated(builder, x, caches, positions, heads=count, interleaved=interleaved)
        for x, count in zip(operands[:2], heads, strict=True)
    ]


def _rotary_embedding(node: NodeContext) -> Sequence[Value]:
    """RotaryEmbedding: positions are given for every place, or as one that the first place has."""
    if node.attribute("is_packed_batching", 0) or node.attribute("scale", 1.0) != 1:
        raise Refused("is_packed_batching and scale are not supported")
    builder, x, positions, caches = node.builder, node.value(0), node.value(1), (node.value(2), node.value(3))
    heads = rotary_heads(node, x, caches) if len(x.shape) == 4 else _implied_heads(node, x, caches[0])
    if positions.shape in ((), (1,)):
        batch, length = x.shape[0], x.shape[1 if heads else 2]
        steps = builder.constant(np.repeat(np.arange(length, dtype=np.int64)[None], batch, 0))
        first = builder.reshape(cast(builder, positions, WireType.INT64), (1, 1))
        positions = binary(builder, BinaryFunction.ADD, steps, first)
    return [rotated(builder, x, caches, positions, heads=heads, interleaved=bool(node.attribute("interleaved", 0)))]


def _implied_heads(node: NodeContext, x: Value, cache: Value) -> int:
    """The heads of a tensor of rank 3: as many as are named, else as whole caches fit into it."""
    heads: int = node.attribute("num_heads", 0)
    if heads < 1 and cache.shape[-1:] not in ((), (0,)):
        heads = x.shape[-1] // (2 * cache.shape[-1])
    if len(x.shape) != 3 or heads < 1 or x.shape[2] % heads:
        raise Refused(f"{x.type} in {heads} heads")
    return heads


# --- normalisations and activations after a sum ---------------------------------------------------------------------


def _skip_layer_norm(*, root_mean_square: bool) -> Lowering:
    """SkipLayerNormalization and SkipSimplifiedLayerNormalization: of input + skip + bias, which is the last output."""
    bias_at = 3 if root_mean_square else 4

    def lower(node: NodeContext) -> Sequence[Value]:
        builder, x = node.builder, node.value(0)
        total = binary(builder, BinaryFunction.ADD, x, node.value(1))
        if total.shape != x.shape:
            raise Refused(f"{node.value(1).type} does not broadcast to {x.type}")
        bias = node.optional(bias_at)
        if bias is not None:
            total = binary(builder, BinaryFunction.ADD, total, bias)
        shift = None if root_mean_square else node.optional(3)
        results = layer_norm(
            builder,
            total,
            [len(x.shape) - 1],
            node.attribute("epsilon", _SUM_EPSILON),
            node.value(2),
            shift,
            root_mean_square=root_mean_square,
            outputs=3 if node.wants(1) or node.wants(2) else 1,
        )
        return [*results, *[total] * (3 - len(results)), total][: node.output_count]

    return lower


def _simplified_layer_norm(node: NodeContext) -> Sequence[Value]:
    """SimplifiedLayerNormalization: RMSNormalization with the inverse root as its second output."""
    x = node.value(0)
    axes = range(node.axis(node.attribute("axis", -1), len(x.shape)), len(x.shape))
    results = layer_norm(
        node.builder,
        x,
        axes,
        node.attribute("epsilon", EPSILON),
        node.value(1),
        root_mean_square=True,
        outputs=3 if node.wants(1) else 1,
    )
    return [results[0], *results[2:]]


def _embed_layer_norm(node: NodeContext) -> Sequence[Value]:
    """EmbedLayerNormalization: words, positions and segments looked up, added and normalised."""
    builder, ids, words, places = node.builder, node.value(0), node.value(2), node.value(3)
    if len(ids.shape) != 2 or len(words.shape) != 2 or len(places.shape) != 2:
        raise Refused(f"ids {ids.type}, words {words.type} and positions {places.type}; all have rank 2")
    positions = node.optional(8)
    total = builder.emit(CommandKind.GATHER, [words, ids], axis=0)
    placed = (
        part(builder, places, 0, 0, ids.shape[1])
        if positions is None
        else builder.emit(CommandKind.GATHER, [places, positions], axis=0)
    )
    total = binary(builder, BinaryFunction.ADD, total, placed)
    segments, segment_ids = node.optional(4), node.optional(1)
    if segments is not None and segment_ids is not None:
        found = builder.emit(CommandKind.GATHER, [segments, segment_ids], axis=0)
        total = binary(builder, BinaryFunction.ADD, total, found)
    epsilon = node.attribute("epsilon", _SUM_EPSILON)
    (result,) = layer_norm(builder, total, [2], epsilon, node.value(5), node.value(6))
    return [result, _mask_index(node, ids), total][: node.output_count]


def _mask_index(node: NodeContext, ids: Value) -> Value:
    """How many elements of each row of the mask count; 0 without a mask."""
    builder, mask = node.builder, node.optional(7)
    if mask is None:
        return builder.constant(np.zeros(ids.shape[0], np.int32))
    counted = cast(builder, cast(builder, mask, WireType.BOOL), WireType.INT32)
    return reduced(builder, ReduceFunction.SUM, counted, [1], keep=False)


def _gelu_after_bias(function: UnaryFunction) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        x, bias = node.value(0), node.optional(1)
        if bias is not None:
            x = binary(node.builder, BinaryFunction.ADD, x, bias)
        return [unary(node.builder, function, x)]

    return lower


def _quick_gelu(node: NodeContext) -> Sequence[Value]:
    """QuickGelu: x · sigmoid(alpha · x)."""
    return [unary(node.builder, UnaryFunction.SWISH, node.value(0), node.attribute("alpha", _QUICK_GELU_ALPHA))]


LOWERINGS: dict[str, Lowering] = {
    qualified("MultiHeadAttention"): _multi_head_attention,
    qualified("Attention"): _attention,
    qualified("GroupQueryAttention"): _group_query_attention,
    qualified("RotaryEmbedding"): _rotary_embedding,
    qualified("SkipLayerNormalization"): _skip_layer_norm(root_mean_square=False),
    qualified("SkipSimplifiedLayerNormalization"): _skip_layer_norm(root_mean_square=True),
    qualified("EmbedLayerNormalization"): _embed_layer_norm,
    qualified("BiasGelu"): _gelu_after_bias(UnaryFunction.GELU),
    qualified("Gelu"): _gelu_after_bias(UnaryFunction.GELU),
    qualified("FastGelu"): _gelu_after_bias(UnaryFunction.GELU_TANH),
    qualified("QuickGelu"): _quick_gelu,
    "SimplifiedLayerNormalization": _simplified_layer_norm,
}
