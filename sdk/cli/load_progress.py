"""How far a long load is, on a terminal: one line that is written over, and gone at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

SILENT_S = 1.0
"""A load that takes no longer is not told of."""
_START_OF_LINE, _REST_OF_LINE = "\r", "\x1b[K"


@contextlib.contextmanager
def on_terminal() -> Iterator[Callable[[int, int], None] | None]:
    """What tells of a load; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    begins = time.monotonic() + SILENT_S
    shown = False

    def tell(done: int, of: int) -> None:
        nonlocal shown
        if time.monotonic() >= begins:
            shown = True
            sys.stderr.write(f"{_START_OF_LINE}loading: {100 * done // of} %")
            sys.stderr.flush()

    try:
        yield tell
    finally:
        if shown:
            sys.stderr.write(_START_OF_LINE + _REST_OF_LINE)
            sys.stderr.flush()
