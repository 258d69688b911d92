"""DMA by message: host memory that the client mapped without a file ("VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE").

While the device waits for the client's answer, everything else the client sends is served as usual: a client may well
access a register before it answers, and a reset ends the wait.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable

from driver_shim.protocol.vfio_user import DMA_ACCESS, MAX_TRANSFER_BYTES, Command
from driver_shim.protocol.vfio_user_framing import Message, encode_command
from emulator import timeouts
from emulator.host_memory.address_space import DmaFault
from emulator.server.connection import Connection, ConnectionLost, close_all

_MAX_ID = 0xFFFF
_WRITE_REPLY_BYTES = 12
"""The specification draws `count` of this one reply with four bytes; its structure has eight. Both are taken."""


class MessageMemory:
    """The memory of one client, reached through its connection."""

    def __init__(
        self,
        connection: Connection,
        serve: Callable[[Message], None],
        max_transfer: int,
        look_aside: Callable[[], bool] = lambda: False,
    ) -> None:
        """`serve` carries out a command of the client; `max_transfer` is what the client takes in one message.

        `look_aside` is called often while the client's answer is awaited, to serve others; True ends all waiting.
        """
        self._connection = connection
        self._serve = serve
        self._max_transfer = max(1, min(max_transfer, MAX_TRANSFER_BYTES))
        self._last_id = 0
        self._look_aside = look_aside
        self._waiting = False
        self._aborted = False
        self._ended = False
        self.barred = False
        """Set while a message is handled: asking the client from there would have it wait for itself."""

    def read(self, iova: int, size: int) -> bytes:
        """`size` bytes at `iova`, in as many messages as it takes. Raises DmaFault."""
        parts = []
        for at in range(iova, iova + size, self._max_transfer):
            count = min(self._max_transfer, iova + size - at)
            payload = self._ask(Command.DMA_READ, at, count, b"")
            if len(payload) != DMA_ACCESS.size + count or DMA_ACCESS.unpack_from(payload) != (at, count):
                raise DmaFault(at, count, "the host's answer does not fit the question")
            parts.append(payload[DMA_ACCESS.size :])
        return b"".join(parts)

    def write(self, iova: int, data: memoryview) -> None:
        """Write `data` at `iova`. Raises DmaFault."""
        for start in range(0, len(data), self._max_transfer):
            part = data[start : start + self._max_transfer]
            payload = self._ask(Command.DMA_WRITE, iova + start, len(part), part)
            if (
                len(payload) < _WRITE_REPLY_BYTES
                or payload[:_WRITE_REPLY_BYTES] != (DMA_ACCESS.pack(iova + start, len(part))[:_WRITE_REPLY_BYTES])
            ):
                raise DmaFault(iova + start, len(part), "the host's answer does not fit the question")

    @property
    def waiting(self) -> bool:
        """Whether a transfer waits for the client's answer."""
        return self._waiting

    def abort(self) -> None:
        """Fail the transfer under way, if there is one."""
        self._aborted = self._waiting

    def _ask(self, command: Command, iova: int, size: int, data: bytes | memoryview) -> bytes:
        if self.barred or self._waiting:
            raise DmaFault(iova, size, "host memory without a file cannot be reached while a message is handled")
        if self._ended:
            raise DmaFault(iova, size, "the device is being switched off")
        self._last_id = self._last_id % _MAX_ID + 1
        self._waiting, self._aborted = True, False
        try:
            request = DMA_ACCESS.pack(iova, size) + data
            self._connection.send(encode_command(self._last_id, command, request))
            reply = self._await_reply(command, iova, size)
        except ConnectionLost as lost:
            raise DmaFault(iova, size, f"the host is gone: {lost}") from lost
        finally:
            self._waiting = False
        if reply.failed:
            raise DmaFault(iova, size, f"the host refused (errno {reply.error})")
        return reply.payload

    def _await_reply(self, command: Command, iova: int, size: int) -> Message:
        """Serve the client until it answers. Raises DmaFault, ConnectionLost."""
        deadline = time.monotonic() + timeouts.DMA_REPLY_S
        poller = select.poll()
        while True:
            reply = None
            for message in self._connection.messages():
                if not message.is_reply:
                    self._serve(message)
                    continue
                close_all(message.fds)
                if message.id == self._last_id and message.command == command:
                    reply = message  # the messages behind it have arrived, so they are served first
            if self._aborted:
                raise DmaFault(iova, size, "the function was reset")
            if reply is not None:
                return reply
            self._ended = self._look_aside()
            if self._ended:
                raise DmaFault(iova, size, "the device is being switched off")
            left = deadline - time.monotonic()
            if left <= 0:
                raise DmaFault(iova, size, f"the host did not answer within {timeouts.DMA_REPLY_S:g} s")
            poller.register(self._connection, select.POLLIN | (select.POLLOUT if self._connection.backlog_bytes else 0))
            poller.poll(math.ceil(min(left, timeouts.ASIDE_POLL_S) * 1000))
            self._connection.flush()
            self._connection.receive()
