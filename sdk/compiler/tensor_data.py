"""The data of a model's tensors: views of the file that holds them, which is mapped and not copied."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import mmap
import os
import stat
import threading
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from sdk.compiler.skeleton import LENGTH_KEY, OFFSET_KEY

Array = NDArray[Any]

_T = onnx.TensorProto
_IN_PLACE = frozenset(
    {
        *(_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE, _T.COMPLEX64, _T.COMPLEX128, _T.BOOL),
        *(_T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64),
    }
)
"""Types whose raw data are a numpy array's bytes; others are packed."""


@dataclasses.dataclass(frozen=True, slots=True)
class MappedFile:
    """A file that was mapped, and what tells whether it was written to since."""

    path: Path
    content: memoryview
    identity: tuple[int, ...]


def map_file(path: Path) -> MappedFile:
    """A regular file's contents, mapped. Raises OSError, and ValueError for what is no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{str(path)!r} is no regular file")
        if status.st_size == 0:
            return MappedFile(path, memoryview(b""), _identity(status))
        mapping = mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
        return MappedFile(path, memoryview(mapping), _identity(status))
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class ContentDigest:
    """SHA-256 of a file's contents, or of a model's bytes, found in a thread once `begin` was called.

    Hashing leaves the interpreter to others, and what is mapped is read from the disk by the way.
    """

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._digest: bytes | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start, unless that was done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._find, name="npu-digest", daemon=True)
            self._thread.start()

    def value(self) -> bytes:
        """The digest, when it is found."""
        if self._thread is not None:
            self._thread.join()
        return self._digest or self._find()  # nobody began, or in a forked child, which has no such thread

    def _find(self) -> bytes:
        self._digest = hashlib.sha256(self._content).digest()
        return self._digest


class TensorData:
    """Arrays of tensors, out of the model's own bytes or of files beside it."""

    def __init__(self, content: memoryview, folder: Path | None, own_file: MappedFile | None = None) -> None:
        self._content = content
        self.folder = folder
        """Where external data lie; None for a model that came as bytes."""
        self._files: dict[str, MappedFile] = {}
        self._own_file = own_file
        self._own_digest = ContentDigest(content)
        self._file_digests: dict[str, ContentDigest] = {}
        self._digests_wanted = False

    def array(self, tensor: onnx.TensorProto) -> Array:
        """A tensor's array, a read-only view where that is possible.

        Raises ValueError when the data are missing or do not go with the shape, and what the onnx package raises.
        """
        shape = tuple(tensor.dims)
        if min(shape, default=0) < 0:
            raise ValueError(f"its shape is {list(shape)}")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return self._elsewhere(tensor, shape)
        return _array(tensor, shape)

    def self_contained(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The tensor with its data in it."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return tensor
        whole = onnx.TensorProto()
        whole.CopyFrom(tensor)
        del whole.external_data[:]
        whole.data_location = onnx.TensorProto.DEFAULT
        whole.raw_data = bytes(self._bytes_of(tensor))
        return whole

    def fill(self, graph: onnx.GraphProto) -> None:
        """Put the data of a graph's initialisers and of its nodes' tensors into it. Raises ValueError as `array`."""
        for tensor in graph.initializer:
            try:
                tensor.CopyFrom(self.self_contained(tensor))
            except ValueError as error:
                raise ValueError(f"initialiser {tensor.name!r}: {error}") from error
        for node in graph.node:
            self.fill_node(node)

    def fill_node(self, node: onnx.NodeProto) -> None:
        """Put the data of a node's tensors into it. Raises ValueError as `array`."""
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                attribute.t.CopyFrom(self.self_contained(attribute.t))
            elif attribute.type == onnx.AttributeProto.GRAPH:
                self.fill(attribute.g)

    def begin_digest(self) -> None:
        """Have `digest` worked on from now on, beside whatever else is done."""
        self._digests_wanted = True
        for digest in (self._own_digest, *self._file_digests.values()):
            digest.begin()

    def digest(self) -> str:
        """What the model and all files of it that were read hold, as hexadecimal SHA-256."""
        whole = hashlib.sha256(self._own_digest.value())
        for location, digest in sorted(self._file_digests.items()):
            whole.update(location.encode() + b"\0" + digest.value())
        return whole.hexdigest()

    def check_unchanged(self) -> None:
        """Raise UnsupportedModel when a mapped file was written to since: its contents would be another model's."""
        for file in [*self._files.values(), *([self._own_file] if self._own_file is not None else [])]:
            try:
                now = _identity(os.stat(file.path))
            except OSError:
                continue  # it was deleted; the mapping keeps it
            if now != file.identity and now[:2] == file.identity[:2]:
                raise UnsupportedModel(
                    f"the file {str(file.path)!r} was changed after the model was loaded from it",
                    subsystem="compiler",
                    remedy="load it again; replace files of loaded models by renaming, not by writing into them",
                )

    def _elsewhere(self, tensor: onnx.TensorProto, shape: tuple[int, ...]) -> Array:
        if tensor.data_type not in _IN_PLACE:
            return _array(self.self_contained(tensor), shape)
        raw = self._bytes_of(tensor)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        needed = math.prod(shape) * dtype.itemsize
        if len(raw) != needed:
            raise ValueError(f"{len(raw)} bytes of data for a tensor of {needed}")
        if not needed:
            return np.empty(shape, dtype)
        if tensor.data_type == onnx.TensorProto.BOOL:
            return _bool(np.frombuffer(raw, np.uint8)).reshape(shape)
        return np.frombuffer(raw, dtype).reshape(shape)

    def _bytes_of(self, tensor: onnx.TensorProto) -> memoryview:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if OFFSET_KEY in entries:
            return _slice(self._content, entries.get(OFFSET_KEY), entries.get(LENGTH_KEY), "the model")
        location = entries.get("location", "")
        content = self._file(location).content
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        length = entries.get("length", str(math.prod(tensor.dims) * dtype.itemsize))
        return _slice(content, entries.get("offset", "0"), length, f"the file {location!r}")

    def _file(self, location: str) -> MappedFile:
        if self.folder is None:
            raise ValueError(
                f"its data lie in another file, {location!r}, and a model in memory does not say in which folder:"
                " give the model's path"
            )
        known = self._files.get(location)
        if known is None:
            try:
                known = self._files[location] = map_file(self.folder / _inside(location))
            except OSError as error:
                raise ValueError(
                    f"its data lie in {location!r} beside the model, which cannot be read: {error.strerror}"
                    " (keep the model's data files beside it)"
                ) from error
            digest = self._file_digests[location] = ContentDigest(known.content)
            if self._digests_wanted:
                digest.begin()
        return known


def _inside(location: str) -> PurePosixPath:
    """The location, when it does not lead out of the model's folder. A link is followed wherever it points.

    Whoever wrote the model wrote the location; whoever set up the folder made the links, a download's cache for one.
    """
    path = PurePosixPath(location)
    if not location or "\0" in location or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"its data lie at {location!r}, which is no path inside the model's folder")
    return path


def _slice(content: memoryview, offset: str | None, length: str | None, where: str) -> memoryview:
    start, size = (int(text) if text and text.isascii() and text.isdigit() else -1 for text in (offset, length))
    if start < 0 or size < 0:
        raise ValueError(f"its data have the offset {offset!r} and the length {length!r}")
    if start + size > len(content):
        raise ValueError(f"its data end at byte {start + size}, and {where} at byte {len(content)}")
    return content[start : start + size]


def _array(tensor: onnx.TensorProto, shape: tuple[int, ...]) -> Array:
    array = onnx.numpy_helper.to_array(tensor)
    if tensor.data_type == onnx.TensorProto.BOOL:
        array = _bool(array.view(np.uint8))
    # The reader's own: what to_array gives may be a view of the caller's message.
    return np.ascontiguousarray(array).reshape(shape)


def _bool(octets: Array) -> Array:
    """Bytes other than 0 and 1 make a bool array that numpy does not handle consistently."""
    flags: Array = octets != 0
    return flags
