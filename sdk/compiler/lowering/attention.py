"""Attention and what goes with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import cast


def attention_fields(head_size: int, **changes: Any) -> dict[str, Any]:
    """Attributes of ATTENTION: operands of rank 4, the usual scale, everything attended, unless changed."""
    fields = {
        "scale": 1 / math.sqrt(head_size) if head_size else 1.0,
        "softcap": 0.0,
        "query_heads": 0,
        "key_heads": 0,
        "left_window": -1,
        "right_window": -1,
        "causal": 0,
        "scores": 0,
    }
    return {**fields, **{name: value for name, value in changes.items() if value is not None}}


def _attention(node: NodeContext) -> Sequence[Value]:
    """Attention: probabilities always in float32, whatever softmax_precision says."""
    query = node.value(0)
    rank = len(query.shape)
    heads, key_heads = node.attribute("q_num_heads", 0), node.attribute("kv_num_heads", 0)
    if rank == 3 and (heads < 1 or key_heads < 1):
        raise Refused(f"query {query.type} without q_num_heads and kv_num_heads")
    operands = [node.value(i) if i < 3 else node.optional(i) for i in range(len(node.inputs))]
    if len(operands) > 6 and operands[6] is not None:
        operands[6] = cast(node.builder, operands[6], WireType.INT64)
    fields = attention_fields(
        query.shape[-1] // (heads if rank == 3 else 1),
        scale=node.attribute("scale"),
        softcap=node.attribute("softcap"),
        query_heads=heads if rank == 3 else 0,
        key_heads=key_heads if rank == 3 else 0,
        left_window=node.attribute("left_window_size"),
        right_window=node.attribute("right_window_size"),
        causal=int(bool(node.attribute("is_causal", 0))),
        scores=node.attribute("qk_matmul_output_mode"),
    )
    return node.builder.emit_all(CommandKind.ATTENTION, operands, node.output_count, **fields)


def rotated(
    builder: Builder, x: Value, caches: tuple[Value, Value], positions: Value | None, *, heads: int, interleaved: bool
) -> Value:
    """A ROTARY command; its caches' extent says how much of a head is turned."""
    operands = [x, *(cast(builder, cache, x.dtype) for cache in caches)]
    if positions is not None:
        operands.append(cast(builder, positions, WireType.INT64))
    return builder.emit(CommandKind.ROTARY, operands, heads=heads, interleaved=int(interleaved))


def rotary_heads(node: NodeContext, x: Value, caches: tuple[Value, Value]) -> int:
    """The heads of x that lie side by side, 0 where they have a dimension. Raises Refused."""
    heads = node.attribute("num_heads", 0) if len(x.shape) == 3 else 0
    if len(x.shape) == 3 and (heads < 1 or x.shape[2] % heads):
        raise Refused(f"{x.type} in {heads} heads")
    turned = node.attribute("rotary_embedding_dim", 0) or x.shape[-1] // max(1, heads)
    if any(cache.shape[-1:] != (turned // 2,) for cache in caches):
        raise Refused(f"caches {caches[0].type} and {caches[1].type} for {turned} elements to turn")
    return heads


def _rotary_embedding(node: NodeContext) -> Sequence[Value]:
    """RotaryEmbedding: operands of rank 3 say how many heads lie side by side."""
    x, caches = node.value(0), (node.value(1), node.value(2))
    heads, interleaved = rotary_heads(node, x, caches), bool(node.attribute("interleaved", 0))
    return [rotated(node.builder, x, caches, node.optional(3), heads=heads, interleaved=interleaved)]


LOWERINGS: dict[str, Lowering] = {"Attention": _attention, "RotaryEmbedding": _rotary_embedding}
