"""Reading from pipes, terminals and sockets: it ends with enough, with the other side's end, or with our patience.

Nothing here reads ahead: what is not returned is still there for others to read, such as Popen.communicate.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable
from typing import IO, Any

from tests.support.waiting import PATIENCE_S

PIECE_BYTES = 4096


def read_until(
    fd: int, enough: Callable[[bytes], bool], patience_s: float = PATIENCE_S, piece_bytes: int = PIECE_BYTES
) -> bytes:
    """What comes until it is enough, or until the other side hangs up, which may be too early."""
    got, deadline = b"", time.monotonic() + patience_s
    while not enough(got):
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"nothing more within {patience_s:g} s after {got!r}")
        piece = _read(fd, piece_bytes)
        if not piece:
            break
        got += piece
    return got


def read_line(stream: IO[Any] | None, patience_s: float = PATIENCE_S) -> str:
    """The next line of a process's stream, with its end; empty once the process has closed it."""
    assert stream is not None, "the process was started without this pipe"
    return read_until(stream.fileno(), lambda got: got.endswith(b"\n"), patience_s, piece_bytes=1).decode()


def read_rest(stream: IO[Any] | None, patience_s: float = PATIENCE_S) -> str:
    """All that a process still writes until it closes the stream."""
    assert stream is not None, "the process was started without this pipe"
    return read_until(stream.fileno(), lambda _: False, patience_s).decode()


def _read(fd: int, size: int) -> bytes:
    try:
        return os.read(fd, size)
    except OSError as error:
        if error.errno == errno.EIO:  # the other side of a terminal is gone
            return b""
        raise
