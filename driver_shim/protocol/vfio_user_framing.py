"""vfio-user messages in a byte stream with file descriptors beside it, without I/O ("Header")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from driver_shim.protocol.vfio_user import HEADER, MAX_FDS, MAX_MESSAGE_BYTES, TYPE_MASK, Flag, ProtocolError

_REPLY, _NO_REPLY, _ERROR = int(Flag.REPLY), int(Flag.NO_REPLY), int(Flag.ERROR)
_header = HEADER.codec


class Message(NamedTuple):
    """One message; its descriptors belong to whoever takes it from the framer."""

    id: int
    command: int
    flags: int
    error: int
    payload: bytes
    fds: list[int]

    @property
    def is_command(self) -> bool:
        """Whether it asks for something; what is neither this nor a reply has a type that the protocol lacks."""
        return self.flags & TYPE_MASK == 0

    @property
    def is_reply(self) -> bool:
        """Whether it answers an earlier command."""
        return self.flags & TYPE_MASK == _REPLY

    @property
    def wants_reply(self) -> bool:
        """Whether it is a command whose sender waits for a reply (or an error)."""
        return self.flags & (TYPE_MASK | _NO_REPLY) == 0

    @property
    def failed(self) -> bool:
        """Whether it is a reply that reports an error; `error` is its errno, or 0 for an unknown one."""
        return bool(self.flags & _ERROR)


def encode_command(message_id: int, command: int, payload: bytes = b"", *, no_reply: bool = False) -> bytes:
    """A command message."""
    size = HEADER.size + len(payload)
    return HEADER.pack(message_id, command, size, _NO_REPLY if no_reply else 0, 0) + payload


def encode_reply(message_id: int, command: int, payload: bytes = b"") -> bytes:
    """The reply to the command of this number and id."""
    return _header.pack(message_id, command, _header.size + len(payload), _REPLY, 0) + payload


def encode_error(message_id: int, command: int, number: int) -> bytes:
    """The reply that says a command failed with this errno: a header alone."""
    return _header.pack(message_id, command, _header.size, _REPLY | _ERROR, number)


class Framer:
    """Cuts a byte stream with descriptors beside it into messages. Sans I/O: it opens and closes nothing.

    `feed` what one receive call returned, then call `next_message` until it returns None. After a `ProtocolError` the
    stream cannot be trusted any more: close it, and the descriptors that `abandon` returns.
    """

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES, max_fds: int = MAX_FDS) -> None:
        self.max_message_bytes = max_message_bytes
        self._max_fds = max_fds
        self._buffer = bytearray()
        self._consumed = 0
        """Position of the buffer's first byte in the stream."""
        self._batches: list[tuple[int, list[int]]] = []
        """Descriptors, each batch with the stream position that its bytes ended at."""

    def __len__(self) -> int:
        """Bytes fed that belong to no message taken yet."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> None:
        """Take in what one receive call returned.

        The kernel never joins bytes behind a batch of descriptors to it, so the batch belongs to the message that the
        last byte is part of.
        """
        self._buffer += data
        if fds:
            self._batches.append((self._consumed + len(self._buffer), list(fds)))

    def next_message(self) -> Message | None:
        """The next complete message, or None until more is fed. Raises ProtocolError for a bad header."""
        buffer = self._buffer
        if len(buffer) < _header.size:
            self._limit_fds()
            return None
        message_id, command, size, flags, error = _header.unpack_from(buffer)
        if not _header.size <= size <= self.max_message_bytes:
            raise ProtocolError(
                f"message {message_id} (command {command}) of {size} bytes; {_header.size} to "
                f"{self.max_message_bytes} are possible"
            )
        if len(buffer) < size:
            self._limit_fds()
            return None
        with memoryview(buffer) as view:
            payload = bytes(view[_header.size : size])
        del buffer[:size]
        self._consumed += size
        return Message(message_id, command, flags, error, payload, self._take_fds() if self._batches else [])

    def abandon(self) -> list[int]:
        """Forget everything; returns the descriptors nobody took, which the caller closes."""
        left = [fd for _, batch in self._batches for fd in batch]
        self._batches.clear()
        self._buffer.clear()
        return left

    def _take_fds(self) -> list[int]:
        taken: list[int] = []
        while self._batches and self._batches[0][0] <= self._consumed:
            taken += self._batches.pop(0)[1]
        return taken

    def _limit_fds(self) -> None:
        """A sender may not pile up descriptors on a message that it never completes."""
        count = sum(len(batch) for _, batch in self._batches)
        if count > self._max_fds:
            raise ProtocolError(f"{count} file descriptors with one message; at most {self._max_fds} are accepted")
