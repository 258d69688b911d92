"""The group of all verbs, loaded when they are used, and the outermost error handling."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence

import click

from sdk.cli.exit_codes import ExitCode, exit_code_of
from sdk.cli.folding import folded
from sdk.cli.standard_streams import silence_stdout
from sdk.cli.verb_group import HELP_OPTIONS, VerbGroup
from sdk.version import VERSION

VERBS = {
    "list": ("list_devices", "List the devices of this machine."),
    "info": ("info", "Show what devices say of themselves."),
    "regs": ("regs", "Read registers, or write one."),
    "run": ("run", "Run an ONNX model."),
    "compile": ("compile", "Say what an ONNX model takes, without a device."),
    "chat": ("chat", "Talk to a language model."),
    "bench": ("bench", "Measure round trips, commands per second and copies."),
    "emulate": ("emulate", "Serve an emulated device until interrupted."),
    "reset": ("reset", "Reset devices."),
    "doctor": ("doctor", "Find what keeps programs from their devices."),
    "bind": ("bind", "Hand cards to vfio-pci, so that programs can use them."),
    "unbind": ("unbind", "Take cards from vfio-pci."),
    "fw": ("fw", "Make firmware images, flash them, read firmware's log."),
    "console": ("console", "Talk to the firmware over its UART."),
    "demo": ("demo", "Classify files with a trained model and check every answer."),
}
"""Verb → (module of this package, one line of help)."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@click.group(
    cls=VerbGroup,
    package="sdk.cli",
    verbs=VERBS,
    context_settings=HELP_OPTIONS,
    epilog='Exit codes: docs/exit-codes.md. Completion:\n\neval "$(_NPUCTL_COMPLETE=bash_source npuctl)"',
)
@click.version_option(VERSION, prog_name="npuctl")
def npuctl() -> None:
    """See, try and reset NPUs, real or emulated."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    try:
        _log_to_stderr()
        result = npuctl.main(
            args=None if arguments is None else list(arguments), prog_name="npuctl", standalone_mode=False
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else ExitCode.OK
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        error.show()
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("npuctl: interrupted\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return silence_stdout()
    except click.ClickException as error:
        error.show()
        return ExitCode.FAILED
    except OSError as error:  # stdout does not take the help, or a folder no socket
        silence_stdout()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"npuctl: {error.filename or 'stdout'}: {error.strerror or error}\n")
        return exit_code_of(error)


class _Folded(logging.Formatter):
    """Warnings are for people and folded; the rest stays one line a record."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return folded(line) if record.levelno >= logging.WARNING else line


def _log_to_stderr() -> None:
    """`NPU_LOG` names the level of what the SDK logs; it goes to stderr."""
    name = os.environ.get("NPU_LOG", "").lower() or "warning"
    if name not in _LEVELS:
        raise click.UsageError(f"NPU_LOG={name!r}: use one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Folded("npuctl: %(levelname)s: %(message)s"))
    logger = logging.getLogger("npu")
    logger.addHandler(handler)
    logger.setLevel(_LEVELS[name])
