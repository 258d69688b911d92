"""stdin, stdout and stderr as somebody else has left them: closed, or without a reader."""

from __future__ import annotations

import os
import sys

from sdk.cli.exit_codes import ExitCode

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}


def open_missing() -> None:
    """Put /dev/null where one is closed, as for services: else the next file that is opened would take its place."""
    for number, (name, mode) in enumerate(_MODES.items()):
        if getattr(sys, name) is None:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open


def silence_stdout() -> int:
    """The reader closed the pipe: nothing more to say, and nothing went wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return ExitCode.OK
