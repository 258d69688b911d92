"""onnxruntime's own MultiHeadAttention and Attention."""

from __future__ import annotations

from collections.abc import Sequence

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.contrib import qualified
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.attention import attention_fields
from sdk.compiler.lowering.contrib_heads import (
    Heads,
    added,
    heads_apart,
    heads_beside,
    key_bias,
    lengths_of,
    refuse_operands,
    taken_apart,
)
from sdk.compiler.lowering.elementwise import binary
from sdk.compiler.lowering.movement import part

# --- MultiHeadAttention ---------------------------------------------------------------------------------------------


def _multi_head_attention(node: NodeContext) -> Sequence[Value]:
    """MultiHeadAttention: a mask of keys is added as `mask_filter_value`, as onnxruntime does."""
    refuse_operands(node, past_sequence_length=8, cache_indirection=9)
    builder, heads = node.builder, node.attribute("num_heads")
    operands = _biased(builder, _separate(node, heads), node.optional(3))
    if len(operands.key.shape) == 4 and len(operands.query.shape) == 3:
        operands = operands._replace(query=heads_apart(builder, operands.query, heads))
    beside = len(operands.query.shape) == 3
    past = (node.optional(6), node.optional(7))
    lengths = lengths_of(operands, past[0], heads)
    bias = added(builder, key_bias(node, node.optional(4), operands.query, lengths), node.optional(5))
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
    return results if beside else [heads_beside(builder, results[0]), *results[1:]]


def _separate(node: NodeContext, heads: int) -> Heads:
    """Queries, keys and values, out of one tensor where they are packed."""
    builder, query, key, value = node.builder, node.value(0), node.optional(1), node.optional(2)
    if heads < 1:
        raise Refused(f"num_heads is {heads}")
    if key is None:
        return Heads(*_unpacked(builder, query, 3))
    if value is None:
        return Heads(query, *_unpacked(builder, key, 2))
    if len(query.shape) != 3 or query.shape[2] % heads or len(key.shape) not in (3, 4):
        raise Refused(f"query {query.type} and key {key.type} in {heads} heads")
    return Heads(query, key, value)


def _unpacked(builder: Builder, packed: Value, count: int) -> list[Value]:
    """[batch, length, heads, count, size] taken apart."""
    if len(packed.shape) != 5 or packed.shape[3] != count:
        raise Refused(f"{packed.type} where {count} tensors are packed into one of rank 5")
    batch, length, heads, _, size = packed.shape
    shape = (batch, length, heads * size)
    return [builder.reshape(part(builder, packed, 3, i, 1), shape) for i in range(count)]


def _biased(builder: Builder, operands: Heads, bias: Value | None) -> Heads:
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
    return Heads(*results)


# --- Attention ------------------------------------------------------------------------------------------------------


def _attention(node: NodeContext) -> Sequence[Value]:
    """Attention: one product gives queries, keys and values side by side; past and present are stacked."""
    refuse_operands(node, past_sequence_length=6)
    if node.attribute("do_rotary", 0) or node.attribute("past_present_share_buffer", 0):
        raise Refused("do_rotary and a past that is shared with the present are not supported")
    builder, heads = node.builder, node.attribute("num_heads")
    operands = _projected(node, heads)
    past = _stacked_past(builder, node.optional(4))
    lengths = lengths_of(operands, past[0], heads)
    bias = added(builder, key_bias(node, node.optional(3), operands.query, lengths), node.optional(5))
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


def _projected(node: NodeContext, heads: int) -> Heads:
    builder, x, weights, bias = node.builder, node.value(0), node.value(1), node.optional(2)
    if len(x.shape) != 3 or len(weights.shape) != 2 or heads < 1:
        raise Refused(f"input {x.type}, weights {weights.type} and {heads} heads")
    sizes = node.attribute("qkv_hidden_sizes") or [weights.shape[1] // 3] * 3
    if len(sizes) != 3 or sum(sizes) != weights.shape[1] or any(size < 1 or size % heads for size in sizes):
        raise Refused(f"qkv_hidden_sizes {list(sizes)} for weights {weights.type} and {heads} heads")
    operands = [x, weights] if bias is None else [x, weights, bias]
    joint = builder.emit(CommandKind.MATMUL, operands, alpha=1.0, beta=0.0 if bias is None else 1.0)
    return taken_apart(builder, joint, sizes)


def _stacked_past(builder: Builder, past: Value | None) -> tuple[Value | None, Value | None]:
    if past is None:
        return None, None
    if len(past.shape) != 5 or past.shape[0] != 2:
        raise Refused(f"the past {past.type}; keys and values are stacked in rank 5")
    key, value = (builder.reshape(part(builder, past, 0, i, 1), past.shape[1:]) for i in range(2))
    return key, value


LOWERINGS: dict[str, Lowering] = {
    qualified("MultiHeadAttention"): _multi_head_attention,
    qualified("Attention"): _attention,
}
