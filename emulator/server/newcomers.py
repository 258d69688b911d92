"""Connections that have not negotiated yet: whoever sends a good VERSION first becomes the client."""

from __future__ import annotations

import errno
import logging
import select
import socket
import time

from driver_shim.protocol.vfio_user import (
    MAJOR,
    MAX_MESSAGE_BYTES,
    MINOR,
    OURS,
    Capabilities,
    Command,
    ProtocolError,
    decode_version,
    encode_version,
)
from driver_shim.protocol.vfio_user_framing import Message, encode_error, encode_reply
from emulator import timeouts
from emulator.server.connection import Connection, ConnectionLost

_logger = logging.getLogger("npu.emulator.server")

MAX_NEWCOMERS = 16
"""Connections that may be about to negotiate at a time; more are closed at once."""


class Newcomers:
    """The connections that still owe us a VERSION message."""

    def __init__(self, poller: select.poll) -> None:
        """`poller` is told of every socket that comes, and of every one that goes without becoming the client."""
        self._poller = poller
        self._waiting: dict[int, tuple[Connection, float]] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._waiting

    def add(self, sock: socket.socket, patience_s: float | None = None) -> None:
        """Wait for this connection's VERSION message, NEGOTIATION_S if nothing else is said.

        Closes it at once when too many wait already.
        """
        if len(self._waiting) >= MAX_NEWCOMERS:
            sock.close()
            return
        connection = Connection(sock)
        limit_s = timeouts.NEGOTIATION_S if patience_s is None else patience_s
        self._waiting[connection.fileno()] = (connection, time.monotonic() + limit_s)
        self._poller.register(connection, select.POLLIN)

    def next_deadline(self) -> float | None:
        """When the first of them runs out of time (monotonic seconds)."""
        return min((deadline for _, deadline in self._waiting.values()), default=None)

    def expire(self) -> None:
        """Close those whose time is up."""
        if not self._waiting:
            return
        now = time.monotonic()
        for fd, (_, deadline) in list(self._waiting.items()):
            if deadline <= now:
                _logger.info("a connection sent no VERSION message in time")
                self._drop(fd)

    def hear(self, fd: int) -> tuple[Connection, Message] | None:
        """Take in what arrived on one of them; its first message once that is complete."""
        connection, _ = self._waiting[fd]
        try:
            connection.receive()
            for message in connection.messages():
                del self._waiting[fd]
                return connection, message
        except ConnectionLost as lost:
            _logger.debug("a connection ended before it negotiated: %s", lost)
            self._drop(fd)
        return None

    def refuse(self, connection: Connection, message: Message, number: int) -> None:
        """Answer with an error and close."""
        self._poller.unregister(connection)
        try:
            if message.wants_reply:
                connection.send(encode_error(message.id, message.command, number))
        except ConnectionLost as lost:
            _logger.debug("a refused connection was gone already: %s", lost)
        connection.close()

    def close(self) -> None:
        """Close all of them."""
        for fd in list(self._waiting):
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        connection, _ = self._waiting.pop(fd)
        self._poller.unregister(connection)
        connection.close()


def negotiate(connection: Connection, message: Message) -> Capabilities:
    """Answer a first message, whose descriptors are the caller's to close; the client's capabilities.

    The reply has our major, the lower minor, and of our capabilities those that the client proposed. Raises OSError
    with the errno to refuse with, and ConnectionLost.
    """
    if message.command != Command.VERSION or not message.wants_reply or message.fds:
        raise OSError(errno.EINVAL, f"the first message is command {message.command}, not VERSION")
    try:
        version = decode_version(message.payload)
    except ProtocolError as error:
        raise OSError(errno.EINVAL, str(error)) from error
    if version.major != MAJOR:
        raise OSError(errno.EINVAL, f"the client speaks vfio-user {version.major}.{version.minor}, we {MAJOR}.{MINOR}")
    payload = encode_version(MAJOR, min(MINOR, version.minor), OURS, sorted(version.stated))
    connection.send(encode_reply(message.id, Command.VERSION, payload))
    connection.accept_large(MAX_MESSAGE_BYTES)
    return version.capabilities
