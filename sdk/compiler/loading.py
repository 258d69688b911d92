"""Reading models from files, bytes or memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import onnx
from google.protobuf.message import DecodeError

from driver_shim.errors import UnsupportedModel
from sdk.compiler.graph import DECODE_ERRORS

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"


def read_model(source: ModelSource) -> onnx.ModelProto:
    """A model from a path (with its external data), the bytes of a file, or an onnx.ModelProto (returned as it is).

    Raises UnsupportedModel when it is no ONNX model or its external data is missing or damaged, OSError when the file
    cannot be read, TypeError for another kind of source.
    """
    if isinstance(source, onnx.ModelProto):
        return source
    if isinstance(source, bytes):
        return _decode(source, "the model")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"a model is a path, bytes or an onnx.ModelProto, not {type(source).__name__}")
    path = Path(source)
    model = _decode(path.read_bytes(), f"the file {str(path)!r}")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (*DECODE_ERRORS, onnx.checker.ValidationError) as error:
        raise UnsupportedModel(
            f"the external data of {str(path)!r} cannot be read: {error}",
            subsystem="compiler",
            remedy="keep the model's data files beside it",
        ) from error
    return model


def _decode(data: bytes, what: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise UnsupportedModel(f"{what} is no ONNX model, or a damaged one", subsystem="compiler") from error
    if not model.HasField("graph"):
        raise UnsupportedModel(f"{what} is no ONNX model: it has no graph", subsystem="compiler")
    return model
