"""Models from before operators broadcast as they do today: converted by ONNX to the oldest meaning that is taken."""

from __future__ import annotations

import onnx
from onnx import version_converter

from sdk.compiler.loading import Source

OLDEST = 7
"""The opset from which on operators are lowered as they are."""
_DEFAULT_DOMAINS = ("", "ai.onnx")
CONVERTER_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError)


def modernised(source: Source) -> Source:
    """The model at an opset that is taken. One that cannot be converted stays as it is, and is refused for it."""
    versions = [entry.version for entry in source.model.opset_import if entry.domain in _DEFAULT_DOMAINS]
    if len(versions) != 1 or not 1 <= versions[0] < OLDEST or len(source.model.opset_import) != 1:
        return source
    for node in source.model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:  # the converter knows data that are in the model
                attribute.t.CopyFrom(source.data.self_contained(attribute.t))
    try:
        model = version_converter.convert_version(source.model, OLDEST)
        _align_slopes(model)
    except (*CONVERTER_ERRORS, version_converter.ConvertError, onnx.shape_inference.InferenceError):
        return source
    _keep_places(source.model, model)
    return Source(model, source.data)


def _align_slopes(model: onnx.ModelProto) -> None:
    """PRelu's slopes were for channels whatever their rank; from opset 7 on they broadcast from the last dimension."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {
        entry.name: len(entry.type.tensor_type.shape.dim)
        for entry in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    slopes = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        slope = slopes.get(node.input[1]) if node.op_type == "PRelu" else None
        if slope is not None and len(slope.dims) == 1 and ranks.get(node.input[0], 0) > 2:
            slope.dims.extend([1] * (ranks[node.input[0]] - 2))
            for declared in model.graph.input:
                if declared.name == slope.name:
                    declared.CopyFrom(onnx.helper.make_tensor_value_info(slope.name, slope.data_type, slope.dims))


def _keep_places(old: onnx.ModelProto, new: onnx.ModelProto) -> None:
    """The converter forgets where data lie that are not in the model."""
    places = {tensor.name: tensor for tensor in old.graph.initializer}
    for tensor in new.graph.initializer:
        was = places.get(tensor.name)
        if was is not None and was.data_location == onnx.TensorProto.EXTERNAL:
            del tensor.external_data[:]
            tensor.external_data.extend(was.external_data)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.ClearField("raw_data")
