"""Models of opset 6 in the words of opset 7, from which on operators broadcast as numpy does.

`onnx.version_converter` does it, but for what goes along other axes than the last: the slopes of PRelu, one a channel,
and second operands with an axis of their own. Those are given the dimensions of one that make it the last ones.
"""

from __future__ import annotations

import onnx
from onnx import version_converter

OLD_OPSET, OPSET = 6, 7
_ONNXS_OWN = ("", "ai.onnx")
"""Domains of ONNX's own operators."""
_BROADCASTING = frozenset({"Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor"})
_CHANNELS = 1


def is_old(model: onnx.ModelProto) -> bool:
    """Whether it is of the one older opset that can be brought up to what the compiler reads."""
    return [entry.version for entry in model.opset_import if entry.domain in _ONNXS_OWN] == [OLD_OPSET]


def upgraded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model in the newer opset; None where the converter cannot, which is then refused for its opset."""
    try:
        _align_second_operands(model)
        return version_converter.convert_version(model, OPSET)
    except (version_converter.ConvertError, onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return None


def _align_second_operands(model: onnx.ModelProto) -> None:
    """Give second operands that lie along given axes the dimensions of one that follow those axes in the first."""
    ranks = _ranks(onnx.shape_inference.infer_shapes(model).graph)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        axis = _axis_of_second(node)
        if axis is not None and node.input[0] in ranks and node.input[1] in ranks:
            first, second = ranks[node.input[0]], ranks[node.input[1]]
            axes = list(range(second, first - axis % first)) if first else []
            if axes and second:
                aligned = f"{node.output[0]}/aligned"
                nodes.append(onnx.helper.make_node("Unsqueeze", [node.input[1]], [aligned], axes=axes))
                node.input[1] = aligned
            for attribute in [attribute for attribute in node.attribute if attribute.name == "axis"]:
                node.attribute.remove(attribute)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _axis_of_second(node: onnx.NodeProto) -> int | None:
    """The axis of the first operand at which the second one begins; None where it ends where the first does."""
    if node.op_type == "PRelu":
        return _CHANNELS
    if node.op_type not in _BROADCASTING:
        return None
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), None)


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    declared = [*graph.input, *graph.value_info, *graph.output]
    ranks = {entry.name: len(entry.type.tensor_type.shape.dim) for entry in declared if _has_shape(entry)}
    return ranks | {tensor.name: len(tensor.dims) for tensor in graph.initializer}


def _has_shape(entry: onnx.ValueInfoProto) -> bool:
    return bool(entry.type.tensor_type.HasField("shape"))
