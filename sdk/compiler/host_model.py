"""A part of a graph as an ONNX model again, for the host to run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx

from sdk.compiler.graph import Graph, GraphInput, GraphNode

OUTSIDE_BYTES = 1 << 20
"""Initialisers from this size on stay outside the model, where they are mapped."""
_WITH_TENSORS = (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH)
_NEWEST_IR = 10
"""The newest IR version that is asked of the host's engine; older ones are kept."""


def model_of(
    graph: Graph,
    nodes: Iterable[GraphNode],
    inputs: Sequence[GraphInput],
    outputs: Sequence[str] | None = None,
    *,
    with_data: bool = True,
) -> onnx.ModelProto:
    """A model of some of a graph's nodes. Without `outputs` it gives what the graph does.

    Large initialisers are declared to lie elsewhere (`outside` names them). Without `with_data` all are inputs.
    """
    listed = [node.proto for node in nodes]
    read = {name for node in listed for name in node.input} | _inner_reads(listed)
    made = {name for node in listed for name in node.output}
    tensors = [tensor for name, tensor in graph.tensors.items() if name in read and name not in made]
    given = [_value_info(entry) for entry in inputs]
    named = [entry.name for entry in graph.outputs] if outputs is None else outputs
    proto = onnx.GraphProto(name="region", input=given, output=[onnx.ValueInfoProto(name=name) for name in named])
    proto.node.extend(_self_contained(graph, node) for node in listed)
    for tensor in tensors:
        if not with_data:
            proto.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        elif is_outside(graph, tensor):
            proto.initializer.append(_elsewhere(tensor))
        else:
            proto.initializer.append(tensor if graph.data is None else graph.data.self_contained(tensor))
    opsets = [onnx.helper.make_opsetid(opset.domain, opset.version) for opset in graph.opsets]
    return onnx.helper.make_model(
        proto, opset_imports=opsets, ir_version=min(max(graph.ir_version, 4), _NEWEST_IR), producer_name="npu"
    )


def outside(graph: Graph, model: onnx.ModelProto) -> list[str]:
    """The initialisers of a model of `model_of` that were left outside it."""
    external = onnx.TensorProto.EXTERNAL
    return [tensor.name for tensor in model.graph.initializer if tensor.data_location == external]


def is_outside(graph: Graph, tensor: onnx.TensorProto) -> bool:
    """Whether an initialiser stays where it is mapped."""
    array = graph.initializers.get(tensor.name)
    return array is not None and array.nbytes >= OUTSIDE_BYTES


def _elsewhere(tensor: onnx.TensorProto) -> onnx.TensorProto:
    place = onnx.TensorProto(
        name=tensor.name,
        data_type=tensor.data_type,
        dims=tensor.dims,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    place.external_data.add(key="location", value="memory")
    return place


def _value_info(entry: GraphInput) -> onnx.ValueInfoProto:
    number = onnx.TensorProto.UNDEFINED
    if entry.dtype is not None:
        number = int(entry.dtype)
    elif entry.type_name not in ("", "unknown"):
        number = _number(entry.type_name)
    shape = None if entry.shape is None else [extent if isinstance(extent, int) else None for extent in entry.shape]
    return onnx.helper.make_tensor_value_info(entry.name, number, shape)


def _number(type_name: str) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype("O" if type_name == "object" else type_name)))


def _inner_reads(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Every name that a node within a node reads; too many do no harm."""
    found: set[str] = set()
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inner = list(attribute.g.node)
                found |= {name for each in inner for name in each.input} | _inner_reads(inner)
                found |= {entry.name for entry in attribute.g.output}
    return found


def _self_contained(graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto:
    """The node with the data of its tensors in it."""
    if graph.data is None or not any(attribute.type in _WITH_TENSORS for attribute in node.attribute):
        return node
    whole = onnx.NodeProto()
    whole.CopyFrom(node)
    graph.data.fill_node(whole)
    return whole
