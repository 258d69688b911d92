"""A GGUF file, mapped: its metadata and its tensors. What is damaged or no whole model is refused.

The header is a count of tensors and one of metadata, those (a key, a type, a value), then a line for each tensor (name,
extents, type, place); data follow, aligned. Vocabularies make most of a header, 100 000 strings and more, so a value is
decoded when it is asked for.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from sdk.gguf.blocks import LAYOUTS

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_HEADER = struct.Struct("<4sIQQ")
"""Mark, version, number of tensors, number of metadata."""
_MAX_EXTENTS = 4
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""Types of metadata, by number."""
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Types of tensors that are floats."""
_TYPES = dict(enumerate(["F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1"]))
_TYPES |= enumerate(["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S"], 10)
_TYPES |= enumerate(["IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16"], 20)
_TYPES |= {34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}
"""Types of tensors, by number."""


class StoredTensor(NamedTuple):
    """A tensor as it lies in the file."""

    name: str
    kind: str
    """The type of its blocks, as GGML names it."""
    shape: tuple[int, ...]
    """Rows first, as NumPy counts; GGUF writes the extents the other way round."""
    data: NDArray[Any] | None
    """Floats of that shape; bytes [rows, bytes of a row] of blocks; None for types that nothing here can read."""


class _Field(NamedTuple):
    """A value of the metadata that is still to be decoded."""

    kind: int
    at: int


class _Damaged(ValueError):
    """The header says what cannot be."""


class GgufFile:
    """An opened file. `name` is what errors call it."""

    def __init__(self, name: str, content: memoryview) -> None:
        """Walk through the header. Raises UnsupportedModel when the file is damaged."""
        self.name = name
        self._content = content
        self._fields: dict[str, _Field] = {}
        self.tensors: dict[str, StoredTensor] = {}
        try:
            self._walk()
        except ValueError as error:
            raise self._damaged(error) from error

    def _walk(self) -> None:
        reader = _Reader(self._content)
        _, _, tensors, fields = _HEADER.unpack(reader.take(_HEADER.size))
        for _ in range(fields):
            key = reader.string()
            kind = reader.number(_U32)
            self._fields[key] = _Field(kind, reader.at)
            reader.skip(kind)
        found = [reader.tensor_line() for _ in range(tensors)]
        alignment = self.value("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise _Damaged(f"data are aligned to {alignment!r}")
        start = -(-reader.at // alignment) * alignment
        for name, type_name, shape, place in found:
            if name in self.tensors:
                raise _Damaged(f"two tensors are named {name}")
            data = reader.data(name, type_name, shape, start + place)
            self.tensors[name] = StoredTensor(name, type_name, shape, data)

    def value(self, key: str, default: Any = None) -> Any:
        """What the metadata say under a key: a number, a string or a list."""
        field = self._fields.get(key)
        try:
            return default if field is None else _Reader(self._content, field.at).value(field.kind)
        except ValueError as error:
            raise self._damaged(error) from error

    @property
    def keys(self) -> tuple[str, ...]:
        """All that the metadata say something under."""
        return tuple(self._fields)

    def _damaged(self, error: ValueError) -> UnsupportedModel:
        return self.refusal(f"the file is truncated or damaged: {error}", "download it again")

    def refusal(self, reason: str, remedy: str | None = None) -> UnsupportedModel:
        """The error that refuses this file."""
        return _refusal(self.name, reason, remedy)


class _Reader:
    """The bytes of a file, one part after the other."""

    def __init__(self, content: memoryview, at: int = 0) -> None:
        self._content = content
        self.at = at

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if count > len(self._content) - self.at:
            raise _Damaged(f"it ends at byte {len(self._content)}, within its header")
        self.at += count
        return self._content[self.at - count : self.at]

    def number(self, codec: struct.Struct) -> int:
        """The next whole number."""
        return int(codec.unpack(self.take(codec.size))[0])

    def string(self) -> str:
        """The next string."""
        return str(self.take(self.number(_U64)), "utf-8")

    def skip(self, kind: int) -> None:
        """Go past a value."""
        if kind == _STRING:
            self.take(self.number(_U64))
        elif kind == _ARRAY:
            element, count = self.number(_U32), self.number(_U64)
            if element == _STRING:
                for _ in range(count):
                    self.take(self.number(_U64))
            else:
                self.take(count * _scalar(element).itemsize)
        else:
            self.take(_scalar(kind).itemsize)

    def value(self, kind: int) -> Any:
        """The next value."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self._numbers(kind, 1)[0]
        element, count = self.number(_U32), self.number(_U64)
        if element == _STRING:
            return [self.string() for _ in range(count)]
        return self._numbers(element, count)

    def _numbers(self, kind: int, count: int) -> list[Any]:
        dtype = _scalar(kind)
        return list(np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist())

    def tensor_line(self) -> tuple[str, str, tuple[int, ...], int]:
        """Name, type, shape and place of the next tensor."""
        name, count = self.string(), self.number(_U32)
        if count > _MAX_EXTENTS:
            raise _Damaged(f"the tensor {name} has {count} extents")
        extents = [self.number(_U64) for _ in range(count)]
        kind = self.number(_U32)
        return name, _TYPES.get(kind, f"number {kind}"), tuple(reversed(extents)), self.number(_U64)

    def data(self, name: str, kind: str, shape: tuple[int, ...], at: int) -> NDArray[Any] | None:
        """The data of a tensor; None when it is of a type whose size is not known here."""
        if kind in FLOATS:
            dtype, stored = FLOATS[kind], shape
        elif kind in LAYOUTS:
            layout = LAYOUTS[kind]
            columns = shape[-1] if shape else 1
            if columns % layout.weights:
                raise _Damaged(f"rows of {columns} of the tensor {name} do not make blocks of {kind}")
            dtype = np.dtype(np.uint8)
            stored = (math.prod(shape[:-1]), columns // layout.weights * layout.dtype.itemsize)
        else:
            return None
        count = math.prod(stored)
        if at + count * dtype.itemsize > len(self._content):
            raise _Damaged(f"it has {len(self._content)} bytes, and {name} ends at {at + count * dtype.itemsize}")
        return np.frombuffer(self._content, dtype, count, at).reshape(stored)


def _scalar(kind: int) -> np.dtype[Any]:
    if kind not in _SCALARS:
        raise _Damaged(f"a value of its metadata is of type {kind}")
    return _SCALARS[kind]


def open_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """The file at a path, mapped.

    Raises UnsupportedModel when it is no whole GGUF file of a model, OSError when it cannot be read.
    """
    name = repr(str(path))
    _check_header(Path(path), name)
    return _checked(GgufFile(name, memoryview(np.asarray(np.memmap(path, np.uint8, "r")).data)))


def _check_header(path: Path, name: str) -> None:
    """Refuse what no reader need look at."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if header[: len(_MAGIC)] != _MAGIC:
        raise _refusal(name, "this is no GGUF file", "sdk.Device.load and sdk.compile take ONNX models")
    if len(header) < _HEADER.size:
        raise _refusal(name, "the file is truncated: it ends within its header", "download it again")
    version = int.from_bytes(header[4:8], "little")
    if version not in _VERSIONS:
        swapped = int.from_bytes(header[4:8], "big") in _VERSIONS
        what = "its bytes are in big-endian order" if swapped else f"it is of version {version}"
        raise _refusal(name, f"{what}; little-endian files of version 2 and 3 are taken", "convert the model again")


def _refusal(name: str, reason: str, remedy: str | None = None) -> UnsupportedModel:
    return UnsupportedModel(f"{name}: {reason}", subsystem="gguf", remedy=remedy)


def _checked(file: GgufFile) -> GgufFile:
    """The file, unless it holds something other than one whole model."""
    parts = file.value("split.count", 1)
    if parts != 1:
        raise file.refusal(
            f"this is one of {parts} parts of a model", "join them: llama-gguf-split --merge FIRST-PART WHOLE"
        )
    kind = file.value("general.type", "model")
    if kind == "adapter":
        raise file.refusal("this is an adapter (LoRA), not a model", "merge it into its model before converting that")
    if kind != "model":
        raise file.refusal(f"this is of type {kind!r}, not a language model", "read the model that belongs to it")
    return file
