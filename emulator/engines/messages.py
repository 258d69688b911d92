"""The messages between the pool and an engine worker: one datagram each on a SOCK_SEQPACKET pair.

The worker is ours and runs what it is told, so nothing is negotiated. LOAD carries the program as a sealed file.
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Sequence

from driver_shim.protocol.commands import MAX_BINDINGS
from driver_shim.protocol.layout import Layout, raw, reserved, u8, u32, u64


class Request(enum.IntEnum):
    """Pool to worker."""

    LOAD = 1
    """Take the program in the file that comes with the message: `image_bytes` of container, then the addresses of
    `constant_count` constants. No reply."""
    UNLOAD = 2
    """Forget a program. No reply."""
    RUN = 3
    """Run a program; the addresses of inputs and states, then the sizes of states, follow the request. One REPLY."""


LOAD_REQUEST = Layout(
    "engine_load", 32, "kind" / u32, "program" / u32, "image_bytes" / u64, "constant_count" / u32, reserved(12)
)
UNLOAD_REQUEST = Layout("engine_unload", 32, "kind" / u32, "program" / u32, reserved(24))
RUN_REQUEST = Layout(
    "engine_run",
    48,
    "kind" / u32,
    "program" / u32,
    "job" / u64,
    "entry" / u32,
    "input_count" / u32,
    "state_count" / u32,
    reserved(4),
    "scratch_bytes" / u64,
    "report_offset" / u64,
)
"""`scratch_bytes`: size the scratch file now has. `report_offset`: where in it the COMMAND_RUN entries go."""
KIND = struct.Struct("<I")
"""The beginning of every request."""

MESSAGE_BYTES = 168
REPLY = Layout(
    "engine_reply",
    192,
    "job" / u64,
    "wall_ns" / u64,
    "command_index" / u32,
    "status" / u8,
    reserved(3),
    "message" / raw(MESSAGE_BYTES),
)


MAX_REQUEST_BYTES = RUN_REQUEST.size + 2 * 8 * MAX_BINDINGS


def pack_addresses(addresses: Sequence[int]) -> bytes:
    """Device addresses as they follow a RUN request or a container."""
    return struct.pack(f"<{len(addresses)}Q", *addresses)


def unpack_addresses(data: bytes | memoryview, offset: int, count: int) -> tuple[int, ...]:
    """`count` addresses from `offset`."""
    return struct.unpack_from(f"<{count}Q", data, offset)


@functools.lru_cache(maxsize=1024)
def padded(text: str, size: int) -> bytes:
    """UTF-8 of at most `size` bytes, cut at a character; `unpadded` is its inverse."""
    return text.encode()[:size].decode(errors="ignore").encode()


@functools.lru_cache(maxsize=1024)
def unpadded(data: bytes) -> str:
    """The text of a zero-padded field."""
    return data.rstrip(b"\0").decode(errors="replace")
