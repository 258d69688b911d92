"""One client's socket: non-blocking, cut into messages, with a bounded queue of what the client has yet to read."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Iterator, Sequence

from driver_shim.protocol.vfio_user import MAX_FDS, MAX_VERSION_BYTES, ProtocolError
from driver_shim.protocol.vfio_user_framing import Framer, Message

RECEIVE_BYTES = 1 << 16
MAX_BACKLOG_BYTES = 8 << 20
"""Replies a client may leave unread: eight of the largest. Beyond, it does not read at all."""
_FD_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * _FD_BYTES)
_RECEIVE_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class ConnectionLost(Exception):
    """The client is gone, or does what no client may; the text says which."""


class Connection:
    """A connected client. After `ConnectionLost` was raised once, `lost` holds its reason."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over `sock`. Until `accept_large` its messages may not exceed a VERSION message."""
        sock.setblocking(False)
        self._socket = sock
        self._framer = Framer(MAX_VERSION_BYTES)
        self._inbox = memoryview(bytearray(RECEIVE_BYTES))
        self._outbox: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._outbox_bytes = 0
        self.lost: str | None = None

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def accept_large(self, size: int) -> None:
        """Let messages be this long from now on."""
        self._framer.max_message_bytes = size

    @property
    def backlog_bytes(self) -> int:
        """Bytes that the client has yet to make room for."""
        return self._outbox_bytes

    def receive(self) -> None:
        """Take in what has arrived, if anything. Raises ConnectionLost."""
        if self.lost is not None:
            raise ConnectionLost(self.lost)
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into([self._inbox], _ANCILLARY_BYTES, _RECEIVE_FLAGS)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lose(f"its socket failed: {error.strerror}") from error
        fds = _descriptors(ancillary) if ancillary else ()
        if count == 0:
            raise self._lose("it hung up" + (" in the middle of a message" if len(self._framer) else ""))
        self._framer.feed(self._inbox[:count], fds)
        if flags & socket.MSG_CTRUNC:
            raise self._lose(f"descriptors got lost: more than {MAX_FDS} with a message, or this process has no room")

    def hung_up(self) -> bool:
        """Whether the client will send nothing more; what it sent before may still be to be received."""
        poller = select.poll()
        poller.register(self._socket, select.POLLRDHUP)
        return bool(poller.poll(0))

    def messages(self) -> Iterator[Message]:
        """The complete messages received; the taker closes their descriptors. Raises ConnectionLost."""
        while self.lost is None:
            try:
                message = self._framer.next_message()
            except ProtocolError as error:
                raise self._lose(str(error)) from error
            if message is None:
                return
            yield message

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message, at once or as soon as the client makes room. Raises ConnectionLost.

        `fds` stay the caller's and must stay open while the connection does.
        """
        if self.lost is not None:
            raise ConnectionLost(self.lost)
        if not self._outbox:
            sent = self._send_now(data, fds)
            if sent == len(data):
                return
            data, fds = data[sent:], () if sent else fds
        self._outbox.append((memoryview(data), tuple(fds)))
        self._outbox_bytes += len(data)
        if self._outbox_bytes > MAX_BACKLOG_BYTES:
            raise self._lose(f"it left {self._outbox_bytes} bytes of replies unread")

    def flush(self) -> None:
        """Send what is queued as far as the client has room. Raises ConnectionLost."""
        while self._outbox:
            data, fds = self._outbox[0]
            sent = self._send_now(data, fds)
            self._outbox_bytes -= sent
            if sent < len(data):
                if sent:
                    self._outbox[0] = (data[sent:], ())
                return
            self._outbox.popleft()

    def close(self) -> None:
        """Close the socket and every descriptor that came with an unfinished message; idempotent."""
        self.lost = self.lost or "closed"
        self._outbox.clear()
        close_all(self._framer.abandon())
        self._socket.close()

    def _send_now(self, data: bytes | memoryview, fds: Sequence[int]) -> int:
        try:
            if not fds:
                return self._socket.send(data, _SEND_FLAGS)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            return self._socket.sendmsg([data], rights, _SEND_FLAGS)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lose(f"its socket failed: {error.strerror}") from error

    def _lose(self, reason: str) -> ConnectionLost:
        self.lost = reason
        return ConnectionLost(reason)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that a client sent."""
    for fd in fds:
        with contextlib.suppress(OSError):  # closing reports what the client's file thinks of it
            os.close(fd)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return fds.tolist()
