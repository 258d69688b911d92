"""onnxruntime's own GroupQueryAttention and RotaryEmbedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, ScatterMode
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.contrib import qualified
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.attention import attention_fields, rotary_heads, rotated
from sdk.compiler.lowering.contrib_heads import Heads, Lengths, heads_apart, lengths_of, refuse_operands, taken_apart
from sdk.compiler.lowering.elementwise import binary, cast

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
    refuse_operands(node, **_UNSUPPORTED_GROUP_OPERANDS)
    if max(
        node.attribute("smooth_softmax", 0), node.attribute("kv_cache_bit_width", 0), node.attribute("qk_output", 0)
    ):
        raise Refused("smooth_softmax, qk_output and quantised caches are not supported")
    builder, heads, key_heads = node.builder, node.attribute("num_heads"), node.attribute("kv_num_heads")
    operands = _grouped(node, heads, key_heads)
    past = (node.optional(3), node.optional(4))
    shared = node.is_state(3) and node.is_state(4)
    lengths = lengths_of(operands, None if shared else past[0], heads)
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
        _written(builder, state, heads_apart(builder, new, key_heads), start)
        for state, new in zip((node.value(3), node.value(4)), operands[1:], strict=True)
    ]
    valid = binary(builder, BinaryFunction.ADD, start, builder.scalar(lengths.queries, WireType.INT64))
    inputs = [operands.query, *presents, mask, None, None, valid]
    y = builder.emit(CommandKind.ATTENTION, inputs, **{**fields, "key_heads": 0})
    return [y, *presents][: node.output_count]


def _places_after(node: NodeContext, lengths: Lengths) -> Value:
    """Where the new tokens of each sample go, int64[batch]: seqlens_k has the place of the last one."""
    builder = node.builder
    last = builder.reshape(cast(builder, node.value(5), WireType.INT64), (lengths.batch,))
    return binary(builder, BinaryFunction.SUB, last, builder.scalar(lengths.queries - 1, WireType.INT64))


def _written(builder: Builder, state: Value, new: Value, start: Value) -> Value:
    """A state with new tokens in it."""
    return builder.emit(CommandKind.TENSOR_SCATTER, [state, new, start], axis=2, mode=ScatterMode.LINEAR)


def _check_past(node: NodeContext, lengths: Lengths, past: Value | None) -> None:
    """Refuse a past that is longer than what is in it, or shorter for some samples: new keys come after all of it."""
    if past is None or past.shape[2] == 0:
        return
    whole, filled = node.constant_ints(6, "total_sequence_length"), node.constant_ints(5, "seqlens_k")
    if whole != [lengths.total] or set(filled or []) != {lengths.total - 1}:
        raise Refused(
            f"total_sequence_length {whole} and seqlens_k {filled} for a past and new keys of {lengths.total}: a past"
            " with room or padding is not supported"
        )


def _grouped(node: NodeContext, heads: int, key_heads: int) -> Heads:
    """Queries, keys and values side by side, out of one tensor where they are packed."""
    query, key, value = node.value(0), node.optional(1), node.optional(2)
    if heads < 1 or key_heads < 1 or heads % key_heads or len(query.shape) != 3:
        raise Refused(f"query {query.type}, {heads} heads of queries and {key_heads} of keys")
    if key is not None and value is not None:
        return Heads(query, key, value)
    size = query.shape[2] // (heads + 2 * key_heads)
    return taken_apart(node.builder, query, (heads * size, key_heads * size, key_heads * size))


def _positions_from(builder: Builder, start: Value, lengths: Lengths, limit: int) -> Value:
    """int64[batch, queries]; tokens that are padding may lie behind the last position there is, and get that."""
    steps = builder.constant(np.arange(lengths.queries, dtype=np.int64)[None])
    positions = binary(builder, BinaryFunction.ADD, builder.reshape(start, (lengths.batch, 1)), steps)
    return binary(builder, BinaryFunction.MIN, positions, builder.scalar(max(0, limit - 1), WireType.INT64))


def _turned(
    node: NodeContext, operands: Heads, lengths: Lengths, heads: tuple[int, int], start: Value | None
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


LOWERINGS: dict[str, Lowering] = {
    qualified("GroupQueryAttention"): _group_query_attention,
    qualified("RotaryEmbedding"): _rotary_embedding,
}
