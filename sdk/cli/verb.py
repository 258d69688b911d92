"""The verb: a click command with the options all verbs share, whose body reports through a `Frame`."""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from sdk.cli import timeouts
from sdk.cli.bounded_number import TIMEOUT
from sdk.cli.exit_codes import ExitCode, Failure, exit_code_of
from sdk.cli.frame import Frame
from sdk.cli.interrupts import let_ctrl_c_raise
from sdk.cli.standard_streams import silence_stdout
from sdk.cli.supervise import Abandoned, supervise

Body = Callable[..., None]


def verb(
    name: str,
    *,
    limit_s: float | Callable[[Mapping[str, Any]], float] = timeouts.QUERY_S,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
    changes: bool = False,
) -> Callable[[Body], click.Command]:
    """Make a body `(frame, **options) -> None` a verb with `--json` and `--timeout`; `name` begins with its group's.

    The body runs in a process of its own; `limit_s` (or what it says of the options) bounds it when the user names no
    limit. What it raises becomes an entry of the report's errors and the exit code. `around` is entered in the tool's
    own process: what it puts right at the end is put right even after the body's process was killed. A verb that
    `changes` something is not ended by a reader that closes the pipe: its exit code says what became of the change.
    """

    def decorate(body: Body) -> click.Command:
        @functools.wraps(body)
        def callback(as_json: bool, timeout: float | None, **options: Any) -> int:
            let_ctrl_c_raise()
            frame = Frame(name, as_json=as_json, timeout=timeout, outlives_reader=changes)
            limit = limit_s(options) if callable(limit_s) else limit_s
            bound = timeout if timeout is not None else _environment_limit(limit)
            frame.ends_at = time.monotonic() + bound
            try:
                with around():
                    return supervise(lambda: _work(frame, body, options), bound)
            except Abandoned:
                hint = "give it longer with --timeout, or look at the device"
                frame.fail(Failure(f"no answer within {bound:g} s; {hint}", ExitCode.TIMED_OUT, slug="timeout"))
                return frame.finish()

        shared = [
            click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
            click.option(
                "--timeout",
                type=TIMEOUT,
                metavar="SECONDS",
                help="Give up after this long, whatever the device does (exit 6).",
            ),
        ]
        function: Any = callback
        for option in reversed(shared):
            function = option(function)
        return click.command(name.split()[-1], context_settings={"help_option_names": ["-h", "--help"]})(function)

    return decorate


def _environment_limit(limit_s: float) -> float:
    from sdk import environment

    if not os.environ.get("NPU_TIMEOUT"):
        return limit_s
    try:
        return environment.timeout_s()
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _work(frame: Frame, body: Body, options: dict[str, Any]) -> int:
    """In the child: run the body and finish the report."""
    try:
        try:
            body(frame, **options)
        except click.UsageError as error:
            hint = f"{error.format_message()} (npuctl {frame.verb} --help says more)"
            frame.fail(Failure(hint, ExitCode.USAGE, slug="usage"))
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            frame.fail(Failure("interrupted", ExitCode.INTERRUPTED, slug="interrupted"))
        except Exception as error:  # noqa: BLE001 - the tool's outermost boundary
            if exit_code_of(error) is ExitCode.INTERNAL:
                _explain_internal(frame, error)
            frame.fail(error)
        return frame.finish()
    except BrokenPipeError:
        return silence_stdout()
    except OSError as error:  # stdout takes no report: a full disk, say
        return frame.unreported(error)


def _explain_internal(frame: Frame, error: BaseException) -> None:
    if os.environ.get("NPU_LOG", "").lower() == "debug":
        frame.note("".join(traceback.format_exception(error)).rstrip())
    else:
        frame.note(f"internal error ({type(error).__name__}); NPU_LOG=debug shows where")
