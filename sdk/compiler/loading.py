"""Reading models from files, bytes or memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TypeAlias

import onnx
from google.protobuf.message import DecodeError

from driver_shim.errors import UnsupportedModel
from sdk.compiler.graph import DECODE_ERRORS

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"


_TO_ONNX = "export it to ONNX first"
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"GGUF", "a GGUF file", _TO_ONNX),
    (4, b"TFL3", "a TensorFlow Lite model", f"{_TO_ONNX}: python -m tf2onnx.convert --tflite FILE --output model.onnx"),
    (0, b"PK\x03\x04", "a ZIP archive, as PyTorch and Keras write them", f"{_TO_ONNX}: torch.onnx.export(...)"),
    (0, b"\x80\x02", "a pickle, as older PyTorch wrote them", f"{_TO_ONNX}: torch.onnx.export(...)"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes them", f"{_TO_ONNX}: python -m tf2onnx.convert --keras FILE"),
    (8, b"{", "a safetensors file: weights without a graph", f"{_TO_ONNX}, with the program that made the graph"),
)
"""Formats that are no ONNX: where their mark is, the mark, their name, and what to do."""


def read_model(source: ModelSource) -> onnx.ModelProto:
    """A model from a path (with its external data), the bytes of a file, or a copy of an onnx.ModelProto.

    Raises UnsupportedModel when it is no ONNX model or its external data is missing or damaged, OSError when the file
    cannot be read, TypeError for another kind of source.
    """
    if isinstance(source, onnx.ModelProto):
        copied = onnx.ModelProto()
        copied.CopyFrom(source)  # what the caller changes in it later must not show in shapes compiled later
        return copied
    if isinstance(source, bytes):
        return _decode(source, "the model")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"a model is a path, bytes or an onnx.ModelProto, not {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        raise _is_a_folder(path)
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
        raise _no_model(what, data, ", or a damaged one") from error
    if not model.HasField("graph"):
        raise _no_model(what, data, ": it has no graph")
    return model


def _no_model(what: str, data: bytes, how: str) -> UnsupportedModel:
    for at, mark, name, remedy in _FOREIGN:
        if data[at : at + len(mark)] == mark:
            return UnsupportedModel(f"{what} is {name}, no ONNX model", subsystem="compiler", remedy=remedy)
    return UnsupportedModel(f"{what} is no ONNX model{how}", subsystem="compiler")


def _is_a_folder(path: Path) -> IsADirectoryError:
    models = sorted(entry.name for entry in path.glob("*.onnx"))
    found = f"name one of its files: {', '.join(models)}" if models else "it holds no .onnx file"
    return IsADirectoryError(errno.EISDIR, f"a model is a file, and this is a folder; {found}", str(path))
