"""Where the UART goes besides the host's console: a pseudo-terminal, a TCP port of this machine, or our own terminal.

Nothing here waits: output that nobody reads is dropped, as on a line with nobody at its end.
"""

from __future__ import annotations

import abc
import os
import select
import socket
import sys
import tty
from collections.abc import Callable

_CHUNK_BYTES = 256
_LOOPBACK = "127.0.0.1"


class UartPortError(ValueError):
    """The port cannot be had; says why."""


class UartPort(abc.ABC):
    """One open port. `fds` are to be watched for input; `serve` is told of one that has some."""

    @abc.abstractmethod
    def fds(self) -> list[int]:
        """What to watch."""

    @abc.abstractmethod
    def serve(self, fd: int) -> bytes:
        """What came in on `fd`; empty when there was nothing for the UART."""

    @abc.abstractmethod
    def send(self, data: bytes) -> None:
        """Output of the UART."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the port back; idempotent."""


class TerminalPort(UartPort):
    """A pair of descriptors: our own terminal, or the near end of a pseudo-terminal."""

    def __init__(self, input_fd: int, output_fd: int, owned: tuple[int, ...]) -> None:
        self._input = input_fd
        self._output = output_fd
        self._owned = owned
        self._open = True

    @classmethod
    def stdio(cls) -> TerminalPort:
        """Standard input and output."""
        return cls(sys.stdin.fileno(), sys.stdout.fileno(), ())

    @classmethod
    def pty(cls, announce: Callable[[str], None]) -> TerminalPort:
        """A new pseudo-terminal; its name is announced."""
        near, far = os.openpty()
        tty.setraw(far)
        announce(f"the UART is at {os.ttyname(far)}")
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

    def send(self, data: bytes) -> None:
        """See UartPort."""
        while data and select.select([], [self._output], [], 0)[1]:
            try:
                data = data[os.write(self._output, data[:_CHUNK_BYTES]) :]
            except OSError:
                return

    def close(self) -> None:
        """See UartPort."""
        owned, self._owned = self._owned, ()
        for fd in owned:
            os.close(fd)


class TcpPort(UartPort):
    """A listening TCP socket on the loopback interface; one client at a time, the newest."""

    def __init__(self, announce: Callable[[str], None], port: int) -> None:
        """Raises UartPortError."""
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind((_LOOPBACK, port))
        except OSError as error:
            self._listener.close()
            raise UartPortError(f"--uart tcp:{port}: {error.strerror}; name a free port") from error
        self._listener.listen()
        self._client: socket.socket | None = None
        announce(f"the UART is at {_LOOPBACK}:{self._listener.getsockname()[1]}")

    def fds(self) -> list[int]:
        """See UartPort."""
        return [self._listener.fileno(), *([self._client.fileno()] if self._client else [])]

    def serve(self, fd: int) -> bytes:
        """See UartPort."""
        if fd == self._listener.fileno():
            self._drop_client()
            self._client, _ = self._listener.accept()
            self._client.setblocking(False)
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

    def send(self, data: bytes) -> None:
        """See UartPort."""
        if self._client is None:
            return
        try:
            self._client.send(data)
        except BlockingIOError:
            return
        except OSError:
            self._drop_client()

    def close(self) -> None:
        """See UartPort."""
        self._drop_client()
        self._listener.close()

    def _drop_client(self) -> None:
        client, self._client = self._client, None
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
