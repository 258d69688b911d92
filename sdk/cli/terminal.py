"""The terminal that a verb talks on: every key goes through, and it is put right again however the verb ends."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_INPUT_FLAGS, _LOCAL_FLAGS = 0, 3
_TRANSLATED = termios.BRKINT | termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON
_COOKED = termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN


@contextmanager
def terminal_restored() -> Iterator[None]:
    """Put the terminal on stdin, if there is one, back to what it is now."""
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    found = termios.tcgetattr(fd)
    try:
        yield
    finally:
        if termios.tcgetattr(fd) != found:  # else a tool in the background would be stopped for nothing
            termios.tcsetattr(fd, termios.TCSADRAIN, found)


def pass_every_key(fd: int) -> None:
    """Hand on every key at once, Ctrl-C as well, and echo none. Output stays as it is: the device may send bare LF."""
    attributes = termios.tcgetattr(fd)
    attributes[_INPUT_FLAGS] &= ~_TRANSLATED
    attributes[_LOCAL_FLAGS] &= ~_COOKED
    termios.tcsetattr(fd, termios.TCSADRAIN, attributes)
