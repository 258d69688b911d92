"""Ports of the UART besides the host's console: a pseudo-terminal, a TCP port of this machine, our own terminal.

Our own terminal is waited for, as in QEMU: what a program prints into a pipe arrives whole. The others may have nobody
at their end: of output that is not read some is kept, and the rest is dropped.
"""

from __future__ import annotations

import abc
import os
import select
import socket
import tty
from collections.abc import Callable

from emulator import timeouts

_CHUNK_BYTES = 256
_BACKLOG_BYTES_MAX = 0x1_0000
_STDIN, _STDOUT = 0, 1
_LOOPBACK = "127.0.0.1"


class UartPortError(ValueError):
    """The port cannot be had; says why."""


class UartPort(abc.ABC):
    """One open port. `fds` are to be watched for input; `serve` is told of one that has some."""

    def __init__(self) -> None:
        self._backlog = bytearray()

    @abc.abstractmethod
    def fds(self) -> list[int]:
        """What to watch."""

    @abc.abstractmethod
    def serve(self, fd: int) -> bytes:
        """What came in on `fd`; empty when there was nothing for the UART."""

    def send(self, data: bytes) -> None:
        """Output of the UART; `flush` brings it on its way."""
        self._backlog += data
        if len(self._backlog) > _BACKLOG_BYTES_MAX:
            self.flush()
            del self._backlog[_BACKLOG_BYTES_MAX:]

    def flush(self) -> None:
        """Send what can be sent."""
        while self._backlog:
            taken = self._write(bytes(self._backlog[:_BACKLOG_BYTES_MAX]))
            if not taken:
                return
            del self._backlog[:taken]

    def full_fds(self) -> list[int]:
        """What to watch for room, upon which to flush."""
        return []

    @abc.abstractmethod
    def _write(self, data: bytes) -> int:
        """How many bytes are done with: sent, or lost because nobody is there."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the port back; idempotent."""


class TerminalPort(UartPort):
    """A pair of descriptors: our own terminal, or the near end of a pseudo-terminal."""

    def __init__(self, input_fd: int, output_fd: int, owned: tuple[int, ...]) -> None:
        super().__init__()
        self._input = input_fd
        self._output = output_fd
        self._owned = owned
        self._open = True

    @classmethod
    def stdio(cls) -> TerminalPort:
        """Standard input and output."""
        return cls(_STDIN, _STDOUT, ())

    @classmethod
    def pty(cls, announce: Callable[[str], None]) -> TerminalPort:
        """A new pseudo-terminal; its name is announced."""
        near, far = os.openpty()
        tty.setraw(far)
        announce(f"the UART is at {os.ttyname(far)}")
        os.set_blocking(near, False)
        return cls(near, near, (near, far))  # far stays open, else near reads an error while nobody is there

    def fds(self) -> list[int]:
        """See UartPort."""
        return [self._input] if self._open else []

    def serve(self, fd: int) -> bytes:
        """See UartPort."""
        try:
            data = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        self._open = bool(data)
        return data

    def full_fds(self) -> list[int]:
        """See UartPort."""
        return [self._output] if self._backlog else []

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._output, data)
        except BlockingIOError:
            if self._owned:
                return 0
            # Somebody has made our own terminal non-blocking; one that is held stays full.
            room = select.select([], [self._output], [], timeouts.TERMINAL_ROOM_S)[1]
            return self._write(data) if room else 0
        except OSError:
            return len(data)

    def close(self) -> None:
        """See UartPort."""
        owned, self._owned = self._owned, ()
        for fd in owned:
            os.close(fd)


class TcpPort(UartPort):
    """A listening TCP socket on the loopback interface; one client at a time, the newest."""

    def __init__(self, announce: Callable[[str], None], port: int) -> None:
        """Raises UartPortError."""
        super().__init__()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind((_LOOPBACK, port))
        except OSError as error:
            self._listener.close()
            raise UartPortError(f"--uart tcp:{port}: {error.strerror}; name a free port") from error
        self._listener.listen()
        self._listener.setblocking(False)
        self._client: socket.socket | None = None
        announce(f"the UART is at {_LOOPBACK}:{self._listener.getsockname()[1]}")

    def fds(self) -> list[int]:
        """See UartPort."""
        return [self._listener.fileno(), *([self._client.fileno()] if self._client else [])]

    def serve(self, fd: int) -> bytes:
        """See UartPort."""
        if fd == self._listener.fileno():
            try:
                client, _ = self._listener.accept()
            except OSError:  # it has gone again
                return b""
            self._drop_client()
            client.setblocking(False)
            self._client = client
            return b""
        if self._client is None:
            return b""
        try:
            data = self._client.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._drop_client()
        return data

    def full_fds(self) -> list[int]:
        """See UartPort."""
        return [self._client.fileno()] if self._client and self._backlog else []

    def _write(self, data: bytes) -> int:
        if self._client is None:
            return len(data)
        try:
            return self._client.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._drop_client()
            return len(data)

    def close(self) -> None:
        """See UartPort."""
        self._drop_client()
        self._listener.close()

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        self._backlog.clear()
        if client is not None:
            client.close()


FORMS = "pty, tcp:PORT or stdio"


def check_uart_port(where: str) -> None:
    """Raise UartPortError for what `open_uart_port` would not understand."""
    kind, _, rest = where.partition(":")
    if where not in ("pty", "stdio") and not (kind == "tcp" and rest.isdecimal() and int(rest) < 1 << 16):
        raise UartPortError(f"--uart {where!r} is not understood; use {FORMS}")


def open_uart_port(where: str, announce: Callable[[str], None]) -> UartPort:
    """Open what `--uart` names. Raises UartPortError."""
    check_uart_port(where)
    if where == "pty":
        return TerminalPort.pty(announce)
    if where == "stdio":
        return TerminalPort.stdio()
    return TcpPort(announce, int(where.partition(":")[2]))
