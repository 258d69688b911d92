"""stdin, stdout and stderr as somebody else has left them: closed, or without a reader."""

from __future__ import annotations

import os
import sys

from driver_shim.shared.child_process import occupy_standard_descriptors
from sdk.cli.exit_codes import ExitCode

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}


def open_missing() -> None:
    """Put /dev/null where one is closed."""
    occupy_standard_descriptors()
    for number, (name, mode) in enumerate(_MODES.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open


def silence_stdout() -> int:
    """The reader closed the pipe: nothing more to say, and nothing went wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return ExitCode.OK
