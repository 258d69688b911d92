"""Reading the firmware's log: each record with the texts of the build that wrote it.

A log spans updates, so it mixes builds. A record whose build is not at hand is shown as numbers, and named so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from driver_shim.firmware.answers import LogRecord
from driver_shim.protocol.mailbox import LOG_ARGUMENTS, LogLevel
from driver_shim.protocol.management_registers import MTIME_HERTZ
from firmware_tools.log_strings import LogStrings

_DIRECTIVE = re.compile(r"%(?:%|(?P<zero>0?)(?P<width>[1-9]?[0-9]?)l?(?P<kind>[udixXc]))")
_SIGN_BIT = 1 << 31
_PRINTABLE = range(0x20, 0x7F)


class DecodedRecord(NamedTuple):
    """A record for people."""

    record: LogRecord
    level: str
    """"debug", "info", "warning", "error"; "level-9" when it is not known."""
    device_seconds: float
    """Since the core was switched on, by its own clock."""
    text: str
    problem: str | None
    """Why the text is only numbers; None when it was decoded."""


class LogDecoder:
    """Texts by build id."""

    def __init__(self, builds: Iterable[LogStrings]) -> None:
        """Of two with the same build id the first counts."""
        self._builds: dict[int, LogStrings] = {}
        for build in builds:
            self._builds.setdefault(build.build_id, build)

    def decode(self, record: LogRecord) -> DecodedRecord:
        """Never raises: a damaged record is told as such."""
        text, problem = self._text(record)
        return DecodedRecord(record, level_name(record.level), record.tick / MTIME_HERTZ, text, problem)

    def _text(self, record: LogRecord) -> tuple[str, str | None]:
        if record.argument_count > LOG_ARGUMENTS:
            return _numbers(record), f"damaged: it claims {record.argument_count} arguments, of {LOG_ARGUMENTS}"
        build = self._builds.get(record.build_id)
        if build is None:
            return _numbers(record), f"written by build {record.build_id:08x}; {self._at_hand()}"
        text = build.texts.get(record.token)
        if text is None:
            return _numbers(record), f"{build.source} has no text {record.token:#x}"
        return render(text, record.arguments[: record.argument_count]), None

    def _at_hand(self) -> str:
        if not self._builds:
            return "no texts of any build are at hand"
        builds = ", ".join(f"{build_id:08x}" for build_id in sorted(self._builds))
        return f"none of the files has that build id (they have {builds})"


def render(text: str, arguments: Sequence[int]) -> str:
    """Put the arguments, 32-bit numbers, into a format string; what is missing or left over is shown.

    Directives are %u %d %i %x %X %c, with a width of up to 99 and zeros, and %%; others stand for themselves. The
    result is safe to print: control characters are escaped.
    """
    left = list(arguments)

    def replaced(match: re.Match[str]) -> str:
        kind = match["kind"]
        if kind is None:
            return "%"
        if not left:
            return f"{match[0]}<missing>"
        shown = _shown(left.pop(0), kind)
        width = int(match["width"] or 0)
        if not match["zero"]:
            return shown.rjust(width)
        return shown.zfill(width)

    result = _DIRECTIVE.sub(replaced, text)
    if left:
        result += " [and " + ", ".join(map(str, left)) + "]"
    return printable(result)


def _shown(value: int, kind: str) -> str:
    if kind == "c":
        return chr(value) if value in _PRINTABLE else f"\\x{value & 0xFF:02x}"
    if kind in "di":
        return str(value - 2 * _SIGN_BIT if value & _SIGN_BIT else value)
    return {"u": f"{value}", "x": f"{value:x}", "X": f"{value:X}"}[kind]


def printable(text: str) -> str:
    """With what a terminal could take for a command escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text.rstrip("\n"))


def level_name(level: int) -> str:
    """The level in lower case."""
    try:
        return LogLevel(level).name.lower()
    except ValueError:
        return f"level-{level}"


def _numbers(record: LogRecord) -> str:
    shown = ", ".join(f"{value:#x}" for value in record.arguments[: record.argument_count])
    return f"text {record.token:#x} ({shown})"
