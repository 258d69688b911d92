"""A state as bytes: what `State.save` gives and `Model.state(restore=...)` takes.

    HEADER · description (JSON) · the tokens of every tensor, in the order of the description

Numbers are little-endian. Another major version is refused.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.layout import Layout, raw, reserved, u16, u32, u64
from sdk.compiler.states import StateInfo, StateKind
from sdk.memory.buffers import as_dtype

MAGIC = b"NPUSTATE"
MAJOR, MINOR = 1, 0
HEADER = Layout(
    "saved_state",
    48,
    "magic" / raw(8),
    "major" / u16,
    "minor" / u16,
    "checksum" / u32,
    "length" / u64,
    "description_bytes" / u32,
    reserved(20),
)
"""`checksum`: CRC-32 of `length` and of all that follows the header; `length`: tokens."""


class SavedState(NamedTuple):
    """A state that was read back."""

    length: int
    tensors: list[NDArray[Any]]
    """Of each of the model's states, in their order: [length, heads, size], or the value of one that is replaced."""


def encode(states: Sequence[StateInfo], length: int, tensors: Sequence[NDArray[Any]]) -> bytes:
    """The bytes of a state whose tensors have `length` tokens."""
    description = _describe(states)
    body = description + b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors)
    head = HEADER.build(
        magic=MAGIC,
        major=MAJOR,
        minor=MINOR,
        checksum=_checksum(length, body),
        length=length,
        description_bytes=len(description),
    )
    return head + body


def decode(data: bytes, states: Sequence[StateInfo]) -> SavedState:
    """Take apart what `encode` made for the same states. Raises TypeError, ValueError that says what does not fit."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"restore takes the bytes that State.save gave, not a {type(data).__name__}")
    data = bytes(data)
    if len(data) < HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise ValueError("restore: these bytes are not a saved state")
    head = HEADER.parse(data[: HEADER.size])
    if head.major != MAJOR:
        raise ValueError(f"restore: the state was saved in format {head.major}.{head.minor}; this reads {MAJOR}.x")
    body = data[HEADER.size :]
    if _checksum(head.length, body) != head.checksum:
        raise ValueError("restore: the saved state is damaged or cut short (its checksum differs)")
    if body[: head.description_bytes] != _describe(states):
        raise ValueError("restore: the state was saved from another model: its tensors have other names or shapes")
    tensors, at = [], head.description_bytes
    for state in states:
        dtype = as_dtype(state.dtype)
        shape = state.shape if state.kind is StateKind.REPLACE else (head.length, *state.shape)
        count = int(np.prod(shape, dtype=np.int64))
        tensors.append(np.frombuffer(body, dtype, count, at).reshape(shape))
        at += count * dtype.itemsize
    return SavedState(head.length, tensors)


def _checksum(length: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(u64.build(length)))


def _describe(states: Sequence[StateInfo]) -> bytes:
    rows = [
        {"name": each.name, "shape": list(each.shape), "dtype": each.dtype, "kind": str(each.kind)} for each in states
    ]
    return json.dumps(rows, separators=(",", ":")).encode()
