"""Functions written out: a model's own, and those that ONNX defines for operators which have no command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import onnx
import onnx.inliner

from sdk.compiler.loading import Source
from sdk.compiler.problems import Reason

_Key: TypeAlias = "tuple[str, str]"
"""A function's domain and name."""
_Functions: TypeAlias = "Mapping[_Key, onnx.FunctionProto]"

BY_THEIR_BODIES = frozenset(
    {
        "AffineGrid",
        "Attention",
        "CausalConvWithState",
        "CenterCropPad",
        "DynamicQuantizeLinear",
        "LinearAttention",
        "NegativeLogLikelihoodLoss",
        "RotaryEmbedding",
        "SoftmaxCrossEntropyLoss",
        "SwiGLU",
    }
)
"""Operators whose function in ONNX gives what the operator's text says. MeanVarianceNormalization's does not."""
_ROUNDS = 4
"""Functions within functions: ONNX's own are two deep."""
INLINER_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)


def inlined(source: Source, handled: frozenset[str]) -> Source:
    """The model with functions written out where that lets the device run them.

    A function that cannot be written out stays a node, and is told of as one that the device cannot run.
    """
    model = source.model
    if model.functions:
        model = _attempt(model, None)
    for _ in range(_ROUNDS):
        wanted = {node.op_type for node in _nodes(model.graph) if node.domain in ("", "ai.onnx")}
        wanted &= BY_THEIR_BODIES - handled
        if not wanted:
            break
        written = _without(model, wanted)
        if written is model:
            break
        model = written
    return Source(model, source.data)


def function_refusal(model: onnx.ModelProto, call: onnx.NodeProto) -> tuple[str, Reason] | None:
    """Why a function of the model was not written out where a node calls it; None where it calls none."""
    functions = {(function.domain, function.name): function for function in model.functions}
    key = (call.domain, call.op_type)
    if key not in functions:
        return None
    what = "a function of the model that cannot be written out"
    endless = sorted(name for name in {key, *_reached(key, functions)} if name in _reached(name, functions))
    if endless:
        who = "it" if key in endless else f"{endless[0][1]!r}, which it calls,"
        return f"{what}: {who} calls itself", Reason.MALFORMED
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for entry in functions[key].opset_import:
        version = versions.get(entry.domain, entry.version)
        if version != entry.version:
            domain = f"the domain {entry.domain!r}" if entry.domain else "ONNX's own operators"
            return f"{what}: it is of opset {entry.version} of {domain}, the model of opset {version}", Reason.OPSET
    return what, Reason.DOMAIN


def _reached(start: _Key, functions: _Functions) -> set[_Key]:
    """The functions that one calls, and those that they call."""
    found: set[_Key] = set()
    waiting = [start]
    while waiting:
        calls = {(node.domain, node.op_type) for node in _nodes(functions[waiting.pop()])} & functions.keys()
        waiting += calls - found
        found |= calls
    return found


def _without(model: onnx.ModelProto, ops: set[str]) -> onnx.ModelProto:
    written = _attempt(model, ops)
    if written is model:  # one of them could not be: each by itself
        for op in sorted(ops):
            model = _attempt(model, {op})
        return model
    return written


def _attempt(model: onnx.ModelProto, ops: set[str] | None) -> onnx.ModelProto:
    """The model with these operators written out, its own functions for None; itself where that fails."""
    try:
        if ops is None:
            return onnx.inliner.inline_local_functions(model)
        names = [("", op) for op in sorted(ops)]
        written = onnx.inliner.inline_selected_functions(_typed(model), names, False, inline_schema_functions=True)
    except INLINER_ERRORS:
        return model
    del written.graph.value_info[:]
    return written


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types of all values, on which some operators' bodies depend."""
    typed = onnx.shape_inference.infer_shapes(model)
    for tensor in typed.graph.initializer:
        typed.graph.value_info.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    # The inliner also asks for the type of an input that is left out.
    typed.graph.value_info.append(onnx.helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, None))
    return typed


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        yield from _nodes_within(node.attribute)


def _nodes_within(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.NodeProto]:
    for attribute in attributes:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield from _nodes(attribute.g)
