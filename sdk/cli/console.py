"""`npuctl console`: talk to the firmware over its UART."""

from __future__ import annotations

import math
import os
import select
import sys
import time

import click

from driver_shim.firmware.core_state import read_boot_progress
from driver_shim.protocol.registers import Post
from firmware_tools.console import Console, Output
from sdk.cli import timeouts
from sdk.cli.bounded_number import bounded
from sdk.cli.device_selection import changed, device_option, no_open_option, open_core
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.frame import Frame
from sdk.cli.terminal import pass_every_key, terminal_restored
from sdk.cli.verb import verb
from sdk.opening.management import Management

LEAVE = 0x1D
"""Ctrl-]."""
_CHUNK_BYTES = 4096


@verb("console", limit_s=math.inf, around=terminal_restored)
@device_option
@click.option("--no-input", is_flag=True, help="Only show what the firmware sends.")
@click.option("--new", "only_new", is_flag=True, help="Leave out what was sent before (up to 4 KiB are kept).")
@click.option(
    "--linger",
    type=bounded(float, "seconds, 0 or more", least=0),
    default=timeouts.CONSOLE_LINGER_S,
    show_default=True,
    metavar="SECONDS",
    help="After piped input has ended, leave when nothing was sent for so long.",
)
@no_open_option
def command(frame: Frame, wanted: tuple[str, ...], no_input: bool, only_new: bool, linger: float) -> None:
    """Talk to the firmware over its UART.

    On a terminal every key goes to the firmware, Ctrl-C too; Ctrl-] leaves. Input can be piped in. Resets of core and
    device do not end it. With --json each piece of output is a line, its text in UTF-8.
    """
    devices = changed(wanted)
    if len(devices) != 1:
        raise click.UsageError("a console is one device's; name one with -d")
    address = devices[0].address
    with open_core(address) as opened:
        _check_core(frame, opened)
        session = _Session(frame, address, opened, not only_new)
        session.run(None if no_input else sys.stdin.fileno(), linger)


def _check_core(frame: Frame, opened: Management) -> None:
    """Raise Failure where there is no core; say so where it does not run at the moment."""
    progress = read_boot_progress(opened.registers)
    if progress.explanation is None:
        return
    code, why, remedy = progress.explanation
    if progress.post_code == Post.ABSENT:
        raise Failure(f"{opened.transport.address}: {why} ({remedy})", slug=code)
    frame.note(f"{why} ({remedy})")


class _Session:
    """Bytes both ways, until somebody leaves."""

    def __init__(self, frame: Frame, address: str, opened: Management, history: bool) -> None:
        self._frame = frame
        self._address = address
        self._console = Console(opened.transport, opened.registers, history=history)
        self._progress = opened.firmware.mailbox.progress
        self._pending = b""
        self._ended = False
        """There is no more input."""
        self._quiet_since = time.monotonic()
        self._taken_at = time.monotonic()

    def run(self, source: int | None, linger_s: float) -> None:
        """Go on until Ctrl-], or until piped input has ended and nothing more is sent."""
        typed = source is not None and os.isatty(source)
        if typed and source is not None:
            pass_every_key(source)
            self._frame.note(f"console of {self._address}; Ctrl-] leaves")
        while True:
            self._show(self._console.read())
            self._send()
            if self._ended and (typed or self._done(linger_s)):
                return
            self._progress()
            if source is None or self._ended or len(self._pending) >= _CHUNK_BYTES:
                time.sleep(timeouts.CONSOLE_POLL_S)
            elif select.select([source], [], [], timeouts.CONSOLE_POLL_S)[0]:
                self._take(os.read(source, _CHUNK_BYTES), typed)

    def _take(self, data: bytes, typed: bool) -> None:
        """Input came, or its end."""
        if not self._pending:
            self._taken_at = time.monotonic()
        if typed and LEAVE in data:
            data, self._ended = data[: data.index(LEAVE)], True
        elif not data:
            self._ended = True
        self._quiet_since = time.monotonic()
        self._pending += data

    def _send(self) -> None:
        if self._pending:
            count = self._console.send(self._pending)
            self._pending = self._pending[count:]
            if count:
                self._quiet_since = self._taken_at = time.monotonic()

    def _done(self, linger_s: float) -> bool:
        """Whether piped input was sent and answered. Raises Failure when the firmware does not take it."""
        now = time.monotonic()
        if self._pending and now - self._taken_at > timeouts.CONSOLE_STUCK_S:
            left = f"{len(self._pending)} bytes were not taken within {timeouts.CONSOLE_STUCK_S:g} s"
            raise Failure(
                f"{self._address}: {left}: the firmware does not read its console", ExitCode.TIMED_OUT, slug="timeout"
            )
        return not self._pending and now - self._quiet_since >= linger_s

    def _show(self, output: Output) -> None:
        if output.restarted:
            self._frame.note("the device was switched off and on")
        if output.lost_bytes:
            self._frame.note(f"{output.lost_bytes} bytes were lost: the firmware sent them faster than they were read")
        if not output.data:
            return
        self._quiet_since = time.monotonic()
        if self._frame.as_json:
            text = output.data.decode("utf-8", "replace")
            piece = {"offset_bytes": output.offset, "lost_bytes": output.lost_bytes, "text": text}
            self._frame.emit(self._address, console=piece)
            return
        left = memoryview(output.data)
        while left:
            left = left[os.write(sys.stdout.fileno(), left) :]
