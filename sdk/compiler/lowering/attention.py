"""Attention and what goes with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from driver_shim.protocol.program_commands import CommandKind, UnaryFunction
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.graph import Graph
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import cast, unary
from sdk.compiler.lowering.movement import cut
from sdk.compiler.lowering.products import spatial


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


def _flex_attention(node: NodeContext) -> Sequence[Value]:
    """FlexAttention: graphs of the node's own change scores and probabilities; without any it is ATTENTION."""
    builder, query, key, value = node.builder, node.value(0), node.value(1), node.value(2)
    changes = [node.attribute(name) for name in ("score_mod", "prob_mod")]
    if any(len(operand.shape) != 4 for operand in (query, key, value)):
        raise Refused(f"query {query.type}, key {key.type} and value {value.type}; all have rank 4")
    fields = attention_fields(query.shape[3], scale=node.attribute("scale"))
    if changes == [None, None]:
        return [builder.emit(CommandKind.ATTENTION, [query, key, value], **fields)]
    precise = node.wire_type(node.attribute("softmax_precision", WireType.FLOAT32))
    heads = query.shape[1]
    key, value = (_repeated(builder, operand, heads) for operand in (key, value))
    products = builder.emit(
        CommandKind.MATMUL,
        [cast(builder, operand, precise) for operand in (query, key)],
        transpose_b=1,
        alpha=fields["scale"],
        beta=0.0,
    )
    scores = _changed(node, changes[0], products)
    probabilities = builder.emit(CommandKind.SOFTMAX, [scores], axis=3, logarithm=0)
    weights = cast(builder, _changed(node, changes[1], probabilities), value.dtype)
    return [builder.emit(CommandKind.MATMUL, [weights, value], alpha=1.0, beta=0.0)]


def _changed(node: NodeContext, graph: Graph | None, x: Value) -> Value:
    """What a graph of one input and one output makes of a value."""
    if graph is None:
        return x
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise Refused("a graph of its own has other than one input and one output")
    (result,) = node.run_graph(graph, [x])
    if result.type != x.type:
        raise Refused(f"a graph of its own makes {result.type} of {x.type}")
    return result


def _repeated(builder: Builder, x: Value, heads: int) -> Value:
    """[batch, heads of keys, length, size] with every head as often as query heads use it."""
    batch, own, length, size = x.shape
    if own < 1 or heads % own:
        raise Refused(f"{heads} heads of queries for {own} of keys")
    apart = builder.reshape(x, (batch, own, 1, length, size))
    return builder.reshape(
        builder.expand(apart, (batch, own, heads // own, length, size)), (batch, heads, length, size)
    )


_RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}
"""Of LinearAttention: whether there is a decay, and a rate."""


def _linear_attention(node: NodeContext) -> Sequence[Value]:
    """LinearAttention: `chunk_size` changes nothing about the result."""
    rule, decay, rate = node.attribute("update_rule", "gated_delta"), node.optional(4), node.optional(5)
    if _RULES.get(rule) != (decay is not None, rate is not None):
        raise Refused(f"update_rule {rule!r} with decay {decay and decay.type} and beta {rate and rate.type}")
    heads = node.attribute("q_num_heads")
    query = node.value(0)
    size = query.shape[-1] // heads if heads > 0 and query.shape else 0
    operands = [node.value(i) if i < 3 else node.optional(i) for i in range(len(node.inputs))]
    return node.builder.emit_all(
        CommandKind.LINEAR_ATTENTION,
        operands,
        node.output_count,
        scale=node.attribute("scale", 0.0) or 1 / math.sqrt(max(1, size)),
        query_heads=max(0, heads),
        key_heads=max(0, node.attribute("kv_num_heads")),
    )


_CONVOLUTION_ACTIVATIONS = ("none", "silu", "swish")


def _causal_conv(node: NodeContext) -> Sequence[Value]:
    """CausalConvWithState: the state before the data, one convolution over both, and the end of both as the state."""
    builder, x, w, bias, past = node.builder, node.value(0), node.value(1), node.optional(2), node.optional(3)
    activation = node.attribute("activation", "none")
    if activation not in _CONVOLUTION_ACTIVATIONS:
        raise Refused(f"activation {activation!r}; {', '.join(_CONVOLUTION_ACTIVATIONS)} are possible")
    if len(x.shape) != 3 or len(w.shape) != 3 or w.shape[:2] != (x.shape[1], 1) or w.shape[2] < 1:
        raise Refused(f"data {x.type} and weights {w.type}; they are [batch, channels, length] and [channels, 1, k]")
    batch, channels, length = x.shape
    carried = w.shape[2] - 1
    if past is not None and past.shape != (batch, channels, carried):
        raise Refused(f"the state {past.type}; its shape is {[batch, channels, carried]}")
    if past is None:
        past = builder.expand(builder.scalar(0, x.dtype), (batch, channels, carried))
    whole = builder.emit(CommandKind.CONCAT, [past, x], axis=2) if carried else x
    result = builder.emit(
        CommandKind.CONV,
        [whole, w] if bias is None else [whole, w, bias],
        group=channels,
        strides=spatial([1], 1),
        dilations=spatial([1], 1),
        pads_begin=spatial([0], 0),
        pads_end=spatial([0], 0),
    )
    if activation != "none":
        result = unary(builder, UnaryFunction.SWISH, result, 1.0)
    state = cut(builder, whole, [0, 0, length], [1, 1, 1], (batch, channels, carried))
    return [result, state][: node.output_count]


LOWERINGS: dict[str, Lowering] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary_embedding,
    "LinearAttention": _linear_attention,
    "CausalConvWithState": _causal_conv,
    "ai.onnx.preview.FlexAttention": _flex_attention,
}
