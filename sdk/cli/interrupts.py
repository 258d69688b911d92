"""What Ctrl-C does before a verb has begun and after it has ended.

An import that an exception cuts short ends in a traceback, or in a wrong reason. Nothing has to be put right yet, so
the tool ends at once.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""`ExitCode.INTERRUPTED`, which takes imports to name."""


def end_at_once() -> None:
    """Until `raise_again`. Where Ctrl-C is ignored, as in a script's background, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """A verb begins: Ctrl-C is a KeyboardInterrupt, which lets it clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """All is done and said: the exit code stands."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
