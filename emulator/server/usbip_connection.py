"""One USB/IP client's socket: non-blocking, cut into requests, with a bounded queue of what it has yet to read."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from driver_shim.protocol.usbip import ProtocolError, Request, RequestFramer

RECEIVE_BYTES = 1 << 13
"""As much as is dealt with before others are served."""
MAX_BACKLOG_BYTES = 1 << 20
"""Replies a client may leave unread: sixteen of the largest. Beyond, it does not read at all."""


class ConnectionLost(Exception):
    """The client is gone, or does what no client may; the text says which."""


class UsbipConnection:
    """A connected client."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over `sock`."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._framer = RequestFramer()
        self._outbox = bytearray()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    @property
    def backlog_bytes(self) -> int:
        """Bytes that the client has yet to make room for."""
        return len(self._outbox)

    def imported(self) -> None:
        """What comes from now on are transfers."""
        self._framer.imported()

    def receive(self) -> None:
        """Take in what has arrived, if anything. Raises ConnectionLost."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLost(f"its socket failed: {error.strerror}") from error
        if not data:
            raise ConnectionLost("it hung up" + (" in the middle of a message" if len(self._framer) else ""))
        self._framer.feed(data)

    def requests(self) -> Iterator[Request]:
        """The complete requests received. Raises ConnectionLost."""
        while True:
            try:
                request = self._framer.next_request()
            except ProtocolError as error:
                raise ConnectionLost(str(error)) from error
            if request is None:
                return
            yield request

    def send(self, data: bytes) -> None:
        """Send at once or as soon as the client makes room. Raises ConnectionLost."""
        self._outbox += data
        self.flush()
        if len(self._outbox) > MAX_BACKLOG_BYTES:
            raise ConnectionLost(f"it left {len(self._outbox)} bytes of replies unread")

    def flush(self) -> None:
        """Send what is queued as far as the client has room. Raises ConnectionLost."""
        while self._outbox:
            try:
                sent = self._socket.send(self._outbox, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                raise ConnectionLost(f"its socket failed: {error.strerror}") from error
            del self._outbox[:sent]

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()
