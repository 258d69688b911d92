"""A serialised model without its large tensors: what protobuf need not copy.

Fields are found by the protobuf wire format (encoding of protocol buffers, "Message Structure"); numbers are those of
onnx.proto. A tensor whose raw data was cut out says where it lies by two entries of its `external_data`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

LEAST_BYTES = 4096
"""Smaller tensors stay in the model, where protobuf has them at hand."""
OFFSET_KEY = "mapped-offset"
LENGTH_KEY = "mapped-length"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 100
"""Messages in messages, as protobuf itself allows."""
_LONGEST_VARINT = 10
_RAW_DATA = 9
_EXTERNAL_DATA = 13
_DATA_LOCATION = 14
_EXTERNAL = 1

_WITHIN: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
}
"""Which fields of a message hold messages that may hold tensors."""


class NotAMessage(ValueError):
    """The bytes are no message; protobuf says what is wrong with them."""


class _Field(NamedTuple):
    number: int
    start: int
    """Where its tag begins."""
    content: int
    """Where the content of a bytes field begins."""
    end: int
    is_bytes: bool


def cut(data: memoryview) -> bytes:
    """The serialised model `data` with the places of large tensors in their stead. Raises NotAMessage."""
    return b"".join(_message("model", data, 0, len(data), 0))


def _message(kind: str, data: memoryview, start: int, end: int, depth: int) -> list[bytes | memoryview]:
    """The pieces of one message, rebuilt where a tensor is cut out of it."""
    if end - start < LEAST_BYTES:
        return [data[start:end]]
    if depth > _DEEPEST:
        raise NotAMessage
    if kind == "tensor":
        return _tensor(data, start, end)
    pieces: list[bytes | memoryview] = []
    for field in _fields(data, start, end):
        inner = _WITHIN[kind].get(field.number)
        if inner is None or not field.is_bytes:
            pieces.append(data[field.start : field.end])
        else:
            pieces += _field(field.number, _message(inner, data, field.content, field.end, depth + 1))
    return pieces


def _tensor(data: memoryview, start: int, end: int) -> list[bytes | memoryview]:
    fields = list(_fields(data, start, end))
    raw = next((field for field in reversed(fields) if field.number == _RAW_DATA and field.is_bytes), None)
    if raw is None or raw.end - raw.content < LEAST_BYTES:
        return [data[start:end]]
    pieces: list[bytes | memoryview] = [data[f.start : f.end] for f in fields if f.number != _RAW_DATA]
    for key, value in ((OFFSET_KEY, raw.content), (LENGTH_KEY, raw.end - raw.content)):
        pieces += _field(_EXTERNAL_DATA, [*_field(1, [key.encode()]), *_field(2, [str(value).encode()])])
    return [*pieces, _varint(_DATA_LOCATION << 3 | _VARINT), _varint(_EXTERNAL)]


def _field(number: int, content: list[bytes | memoryview]) -> list[bytes | memoryview]:
    return [_varint(number << 3 | _BYTES), _varint(sum(map(len, content))), *content]


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    at = start
    while at < end:
        tag, content = _read_varint(data, at, end)
        wire = tag & 7
        if wire == _BYTES:
            length, content = _read_varint(data, content, end)
            after = content + length
        elif wire == _VARINT:
            after = _read_varint(data, content, end)[1]
        elif wire in (_FIXED64, _FIXED32):
            after = content + (8 if wire == _FIXED64 else 4)
        else:
            raise NotAMessage
        if after > end:
            raise NotAMessage
        yield _Field(tag >> 3, at, content, after, wire == _BYTES)
        at = after


def _read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """(the number at `at`, where it ends)"""
    value = 0
    for place in range(min(_LONGEST_VARINT, end - at)):
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise NotAMessage


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
