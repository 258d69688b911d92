"""Reading models from files, bytes or memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple, TypeAlias

import onnx
from google.protobuf.message import DecodeError, EncodeError

from driver_shim.errors import UnsupportedModel
from sdk.compiler.skeleton import NotAMessage, cut
from sdk.compiler.tensor_data import TensorData, map_file
from sdk.compiler.upgrading import is_old, upgraded

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"

_TO_ONNX = "export it to ONNX first"
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"GGUF", "a GGUF file", "make a graph of it: sdk.read_gguf(path)"),
    (4, b"TFL3", "a TensorFlow Lite model", f"{_TO_ONNX}: python -m tf2onnx.convert --tflite FILE --output model.onnx"),
    (0, b"PK\x03\x04", "a ZIP archive, as PyTorch and Keras write them", f"{_TO_ONNX}: torch.onnx.export(...)"),
    (0, b"\x80\x02", "a pickle, as older PyTorch wrote them", f"{_TO_ONNX}: torch.onnx.export(...)"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes them", f"{_TO_ONNX}: python -m tf2onnx.convert --keras FILE"),
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch the model itself: git lfs pull"),
    (0, b"<!DOCTYPE", "an HTML page", "download the model itself, not the page that shows it"),
    (0, b"<html", "an HTML page", "download the model itself, not the page that shows it"),
    (8, b"{", "a safetensors file: weights without a graph", f"{_TO_ONNX}, with the program that made the graph"),
)
"""Formats that are no ONNX: where their mark is, the mark, their name, and what to do."""


class Source(NamedTuple):
    """A model as protobuf has it, its large tensors left where they are."""

    model: onnx.ModelProto
    data: TensorData


def open_source(source: ModelSource) -> Source:
    """A model from a path (with its external data), the bytes of a file, or an onnx.ModelProto.

    Files are mapped, not read. What the caller changes in a ModelProto later does not show. Raises UnsupportedModel
    when it is no ONNX model, OSError when the file cannot be read, TypeError for another kind of source.
    """
    opened = _open(source)
    if is_old(opened.model):
        newer = upgraded(self_contained(opened))
        return opened if newer is None else _open(newer)
    return opened


def self_contained(source: Source) -> onnx.ModelProto:
    """A copy of an opened model with all its data in it. Raises UnsupportedModel when some cannot be read."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    try:
        source.data.fill(model.graph)
    except ValueError as error:
        raise UnsupportedModel(f"the model lacks data: {error}", subsystem="compiler") from error
    return model


def _open(source: ModelSource) -> Source:
    if isinstance(source, onnx.ModelProto):
        content = memoryview(_serialised(source))
        return Source(_decode(content, "the model"), TensorData(content, None))
    if isinstance(source, bytes):
        content = memoryview(source)
        return Source(_decode(content, "the model"), TensorData(content, None))
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"a model is a path, bytes or an onnx.ModelProto, not {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        raise _is_a_folder(path)
    what = f"the file {str(path)!r}"
    if path.is_fifo():
        content = memoryview(path.read_bytes())
        return Source(_decode(content, what), TensorData(content, path.parent))
    if path.exists() and not path.is_file():
        raise UnsupportedModel(f"{what} is neither a regular file nor a pipe: it may never end", subsystem="compiler")
    mapped = map_file(path)
    return Source(_decode(mapped.content, what), TensorData(mapped.content, path.parent, mapped))


def _serialised(model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise UnsupportedModel(
            f"the model cannot be written down: {error}",
            subsystem="compiler",
            remedy="a model of 2 GiB or more is given by path: onnx.save(model, path, save_as_external_data=True)",
        ) from error


def _decode(data: memoryview, what: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        skeleton = cut(data)
    except NotAMessage:
        skeleton = bytes(data)  # protobuf knows better whether it is one
    try:
        model.ParseFromString(skeleton)
    except DecodeError as error:
        raise _no_model(what, data, ", or a damaged one") from error
    if not model.HasField("graph"):
        raise _no_model(what, data, ": it has no graph")
    return model


def _no_model(what: str, data: memoryview, how: str) -> UnsupportedModel:
    for at, mark, name, remedy in _FOREIGN:
        if bytes(data[at : at + len(mark)]) == mark:
            return UnsupportedModel(f"{what} is {name}, no ONNX model", subsystem="compiler", remedy=remedy)
    empty = "" if data else ": it is empty"
    return UnsupportedModel(f"{what} is no ONNX model{empty or how}", subsystem="compiler")


def _is_a_folder(path: Path) -> IsADirectoryError:
    models = sorted(entry.name for entry in path.glob("*.onnx"))
    found = f"name one of its files: {', '.join(models)}" if models else "it holds no .onnx file"
    return IsADirectoryError(errno.EISDIR, f"a model is a file, and this is a folder; {found}", str(path))
