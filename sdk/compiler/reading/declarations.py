"""What a graph declares of its inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx

from driver_shim.protocol.types import UnsupportedType, wire_type
from sdk.compiler.graph import GraphInput
from sdk.compiler.problems import MODEL, Reason
from sdk.compiler.reading.text import DECODE_ERRORS, ModelText

_NAMELESS = frozenset({"", "?", "-1", "None", "none", "unk"})
"""What exporters write as the name of a dimension that has none; two of them need not be equal."""


def declared(text: ModelText, entry: onnx.ValueInfoProto, what: str) -> list[GraphInput]:
    """An input or output as it is declared; none, and noted, where it is no tensor. `what` says which of both it is."""
    where = f"{what} {entry.name!r}"
    kind = entry.type.WhichOneof("value")
    tensor = entry.type.tensor_type
    untyped = kind is None or (kind == "tensor_type" and tensor.elem_type == onnx.TensorProto.UNDEFINED)
    if what == "output" and untyped:
        return [GraphInput(entry.name, None, _shape(entry), "unknown")]
    if kind != "tensor_type":
        text.note(f"{where} is a {kind or 'value without a type'}; only tensors are supported", MODEL, Reason.INTERFACE)
        return []
    try:
        dtype = wire_type(tensor.elem_type)
    except UnsupportedType as error:
        text.note(f"{where}: {error}", MODEL, Reason.INTERFACE if untyped else Reason.TYPE)
        return [] if untyped else [GraphInput(entry.name, None, _shape(entry), _type_name(tensor.elem_type))]
    return [GraphInput(entry.name, dtype, _shape(entry), dtype.text)]


def refined(entry: GraphInput, inferred: onnx.ValueInfoProto | None) -> GraphInput:
    """An output with the type and rank that were inferred, where it declares none."""
    if inferred is None:
        return entry
    dtype, type_name = entry.dtype, entry.type_name
    if dtype is None:
        number = inferred.type.tensor_type.elem_type
        try:
            dtype, type_name = wire_type(number), wire_type(number).text
        except UnsupportedType:
            type_name = _type_name(number)
    return GraphInput(entry.name, dtype, _shape(inferred) if entry.shape is None else entry.shape, type_name)


def _shape(declared: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    """The declared shape; a dimension that exporters leave open (missing, 0, negative, "?") gets a name of its own."""
    tensor = declared.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    shape: list[int | str] = []
    for axis, dimension in enumerate(tensor.shape.dim):
        if dimension.HasField("dim_value") and dimension.dim_value > 0:
            shape.append(dimension.dim_value)
        else:
            named = dimension.dim_param not in _NAMELESS
            shape.append(dimension.dim_param if named else f"{declared.name}.{axis}")
    return tuple(shape)


def _type_name(number: int) -> str:
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number)).name)
    except DECODE_ERRORS:
        return "unknown"
