"""From a model to its `Graph`: every later stage may rely on what this one found well-formed.

Nodes are in execution order, each name is defined once and before it is read, operators exist at the model's opset
with attributes of the right types. What is wrong is noted, not raised: a node that the device cannot run may run on
the host. `reading/` has the steps.
"""

from __future__ import annotations

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from sdk.compiler.graph import Graph, GraphInput, Opset
from sdk.compiler.loading import Source
from sdk.compiler.problems import Problem, Reason, unsupported
from sdk.compiler.reading.declarations import refined
from sdk.compiler.reading.scope import Scope
from sdk.compiler.reading.text import DECODE_ERRORS, DEFAULT_DOMAINS, ModelText

MIN_OPSET = 7


def read_graph(source: Source, handled: frozenset[str]) -> Graph:
    """The model's graph, with its problems. `handled` names the operators that can be lowered.

    Raises UnsupportedModel for a text that is none.
    """
    _check_text(source.model)
    text = ModelText(source, handled)
    text.opset = _opset(text)
    if not text.model.graph.output:
        text.note("the graph has no outputs")
    scope = Scope(text, text.model.graph, frozenset(), outermost=True)
    initializers = scope.initializers()
    inputs, optional = scope.inputs()
    nodes = scope.nodes()
    outputs = scope.outputs()
    text.problems[:0] = scope.in_the_way()
    return Graph(
        inputs,
        _completed(text, outputs),
        initializers,
        nodes,
        optional,
        tuple(text.problems),
        frozenset(scope.host_only),
        tuple(Opset(domain, version) for domain, version in text.versions.items()),
        text.model.ir_version,
        {entry.key: entry.value for entry in text.model.metadata_props},
        {tensor.name: tensor for tensor in text.model.graph.initializer},
        text.data,
    )


def _check_text(message: Message) -> None:
    """Raise UnsupportedModel when a text field is no UTF-8: protobuf hands those out as bytes."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for entry in [value] if isinstance(value, Message) else value:
                _check_text(entry)
        elif field.type == FieldDescriptor.TYPE_STRING:
            texts = [value] if isinstance(value, (str, bytes)) else value
            broken = next((text for text in texts if not isinstance(text, str)), None)
            if broken is not None:
                raise unsupported([Problem(f"the {field.name} {broken!r} is no UTF-8 text")])


def _opset(text: ModelText) -> int:
    """The version of ONNX's own operators; 0, and noted, where it is none that is known."""
    versions = [entry.version for entry in text.model.opset_import if entry.domain in DEFAULT_DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) > 1:
        text.note(f"the opset is given twice, as {versions[0]} and {versions[1]}")
        return 0
    if not versions:
        others = f", only versions of {', '.join(sorted(map(repr, text.versions)))}" if text.versions else ""
        text.note(f"opset missing: the model names no version of ONNX's own operators{others}")
        return 0
    if not MIN_OPSET <= versions[0] <= newest:
        text.note(
            f"opset {versions[0]} of ONNX's own operators; {MIN_OPSET} to {newest} are supported"
            " (onnx.version_converter converts models)",
            code=Reason.OPSET,
        )
        return 0
    return int(versions[0])


def _completed(text: ModelText, outputs: tuple[GraphInput, ...]) -> tuple[GraphInput, ...]:
    """The outputs, with types and ranks that follow from the graph where the model declares none."""
    if text.problems or all(entry.dtype is not None and entry.shape is not None for entry in outputs):
        return outputs
    try:
        inferred = onnx.shape_inference.infer_shapes(text.model)
    except (*DECODE_ERRORS, onnx.shape_inference.InferenceError):
        return outputs
    known = {entry.name: entry for entry in inferred.graph.output}
    return tuple(refined(entry, known.get(entry.name)) for entry in outputs)
