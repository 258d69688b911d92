"""What a GGUF file says of itself, without its tensors."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from driver_shim.errors import UnsupportedModel

Metadata = Mapping[str, Any]
"""Name → number, bool, text, or a list of them."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_LENGTH = struct.Struct("<Q")
_KIND = struct.Struct("<I")
_HEADER = struct.Struct("<4sIQQ")
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
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
"""The format's number of a type → that type."""
_TEXT, _ARRAY = 8, 9


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """All metadata of a GGUF file. Raises OSError, and UnsupportedModel for a file that is none, or is cut short."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise _malformed(path, "is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _read(data)
            except _Malformed as error:
                raise _malformed(path, str(error)) from None


class _Malformed(Exception):
    """What is wrong with the bytes."""


def _malformed(path: str | os.PathLike[str], why: str) -> UnsupportedModel:
    return UnsupportedModel(f"{os.fspath(path)}: {why}", subsystem="gguf", remedy="give a whole .gguf file")


def _read(data: mmap.mmap) -> dict[str, Any]:
    cursor = _Cursor(data)
    magic, version, _, entries = cursor.unpack(_HEADER)
    if magic != MAGIC:
        raise _Malformed("is no GGUF file")
    if version not in VERSIONS:
        raise _Malformed(
            f"is GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]}, little-endian, are read"
        )
    found: dict[str, Any] = {}
    for _ in range(entries):
        name = cursor.text()
        (kind,) = cursor.unpack(_KIND)
        found[name] = cursor.value(kind)
    return found


class _Cursor:
    """A place in the file that moves on with what is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self._take(layout.size))

    def text(self) -> str:
        (length,) = self.unpack(_LENGTH)
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _Malformed("has text in its metadata that is no UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            (element,) = self.unpack(_KIND)
            (count,) = self.unpack(_LENGTH)
            return [self.text() for _ in range(count)] if element == _TEXT else self._scalars(element, count)
        return self._scalars(kind, 1)[0]

    def _scalars(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise _Malformed(f"has metadata of a type that is not read here, number {kind}")
        dtype = _SCALARS[kind]
        values: list[Any] = np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
        return values

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise _Malformed("ends within its metadata")
        taken = self._data[self._at : end]
        self._at = end
        return taken
