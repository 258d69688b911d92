"""`python -m emulator`: see `emulator/serve.py`."""

from __future__ import annotations

import os
import signal

_INTERRUPTED = 130


def _start() -> int:
    """Importing takes a while; Ctrl-C has nothing to put right until that is over, and ends it without a traceback."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    from emulator.serve import main

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


raise SystemExit(_start())
