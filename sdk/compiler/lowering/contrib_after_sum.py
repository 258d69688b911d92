"""onnxruntime's own normalisations after a sum, and gelu after a bias."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, ReduceFunction, UnaryFunction
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.contrib import qualified
from sdk.compiler.ir import Refused, Value
from sdk.compiler.lowering.elementwise import binary, cast, unary
from sdk.compiler.lowering.movement import part
from sdk.compiler.lowering.normalise import EPSILON, layer_norm
from sdk.compiler.lowering.reductions import reduced

_SUM_EPSILON = 1e-12
"""The default of normalisations after a sum."""
_QUICK_GELU_ALPHA = 1.702


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
    qualified("SkipLayerNormalization"): _skip_layer_norm(root_mean_square=False),
    qualified("SkipSimplifiedLayerNormalization"): _skip_layer_norm(root_mean_square=True),
    qualified("EmbedLayerNormalization"): _embed_layer_norm,
    qualified("BiasGelu"): _gelu_after_bias(UnaryFunction.GELU),
    qualified("Gelu"): _gelu_after_bias(UnaryFunction.GELU),
    qualified("FastGelu"): _gelu_after_bias(UnaryFunction.GELU_TANH),
    qualified("QuickGelu"): _quick_gelu,
    "SimplifiedLayerNormalization": _simplified_layer_norm,
}
