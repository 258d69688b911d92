"""A verb's report: devices and errors, as text for people or as one JSON document for programs."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from driver_shim.errors import NpuError
from driver_shim.protocol.slugs import slug
from driver_shim.shared.runtime_folder import Holder
from sdk.cli.exit_codes import ExitCode, exit_code_of
from sdk.cli.folding import folded, with_remedy
from sdk.cli.standard_streams import silence_stdout
from sdk.version import VERSION

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_PREFIX = "npuctl"
SCHEMA_VERSION = 1
"""Grows when a key is renamed, removed or changes meaning; new keys come without."""

_PREFIX = "npuctl: "


class Frame:
    """One run of one verb. `console` is for people and silent with --json; `finish` prints the document."""

    def __init__(self, verb: str, *, as_json: bool, timeout: float | None, outlives_reader: bool = False) -> None:
        self.verb = verb
        self.as_json = as_json
        self.timeout = timeout
        """Seconds for the verb as a whole; None when the user named none."""
        self.ends_at = math.inf
        """When the verb is given up (monotonic seconds), whoever named a limit."""
        self.devices: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.sections: dict[str, Any] = {}
        """What a verb reports beside devices and errors, by the document's key."""
        self.folds = False
        """Whether messages of one line are folded to 80 columns, too."""
        self._outlives_reader = outlives_reader
        self._codes: list[ExitCode] = []
        self._streams = False
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """Where text for people goes: stdout, or nowhere with --json."""
        if self._console is None:
            self._console = _open_console(self.as_json)
        return self._console

    def say(self, text: str = "") -> None:
        """A line for people on stdout."""
        with self._stdout():
            self.console.print(_encodable(text), soft_wrap=True)

    def tell(self, text: str) -> None:
        """The same, folded to 80 columns."""
        self.say(folded(text))

    def speak_on_stderr(self) -> None:
        """From now on text for people goes there: stdout is for what the verb makes."""
        self._console = _open_console(self.as_json, stderr=True)

    def write(self, text: str) -> None:
        """What a verb makes, on stdout as it is."""
        with self._stdout():
            sys.stdout.write(text)
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line for people on stderr, with --json too."""
        with contextlib.suppress(OSError):  # where nobody can be told, the exit code has to do
            sys.stderr.write(f"{_PREFIX}{text}\n")

    def remark(self, text: str) -> None:
        """The same, folded to 80 columns."""
        self.note(folded(text, after=_PREFIX))

    def add(self, entry: dict[str, Any]) -> None:
        """Report one device."""
        self.devices.append(entry)

    def fail(self, error: BaseException, device: str | None = None) -> None:
        """Report an error of one device (or of the run as a whole) and go on."""
        code = exit_code_of(error)
        self._codes.append(code)
        message = _message(error)
        address = device or getattr(error, "device", None)
        remedy = getattr(error, "remedy", None)
        self.errors.append(
            {
                "device": address,
                "code": getattr(error, "code", None) or slug(code),
                "message": message,
                "remedy": remedy,
                "exit_code": int(code),
                "holder": holder_facts(getattr(error, "holder", None)),
            }
        )
        where = f"{address}: " if address and address not in message else ""
        self.note(self._told(f"{where}{message}", remedy))

    def _told(self, message: str, remedy: str | None) -> str:
        """A list is folded to 80 columns; one line is the terminal's to fold, unless the verb folds all."""
        if self.folds or "\n" in message:
            return with_remedy(message, remedy, after=_PREFIX)
        return f"{message} ({remedy})" if remedy else message

    def exit_code(self) -> ExitCode:
        """Fine, the one error, or mixed when some devices were reported and others failed."""
        if not self._codes:
            return ExitCode.OK
        named = {error["device"] for error in self.errors if error["device"] is not None}
        if self.devices and named - self._reported():
            return ExitCode.MIXED
        return self._codes[0]

    def _reported(self) -> set[str]:
        return {entry["address"] for entry in self.devices if "address" in entry}

    def document(self) -> dict[str, Any]:
        """The envelope."""
        return {
            "schema": f"{SCHEMA_PREFIX}.{self.verb.replace(' ', '-')}",
            "schema_version": SCHEMA_VERSION,
            "tool_version": VERSION,
            "time": now(),
            "devices": self.devices,
            "errors": self.errors,
            **self.sections,
        }

    def emit(self, address: str, **sections: Any) -> None:
        """With --json, print a line of a stream: an envelope with these sections, of one device.

        `finish` then prints one more line only to tell errors.
        """
        if self.as_json:
            self._streams = True
            self._print({**self.document(), "devices": [{"address": address}], "errors": [], **sections})

    def finish(self) -> ExitCode:
        """Print the document with --json; returns the exit code."""
        if self.as_json and (self.errors or not self._streams):
            self._print(self.document())
        with self._stdout():
            sys.stdout.flush()
        return self.exit_code()

    def unreported(self, error: OSError) -> ExitCode:
        """The exit code where stdout does not take the report."""
        silence_stdout()
        if not self._codes:
            self.fail(error)
        return self.exit_code()

    def _print(self, document: dict[str, Any]) -> None:
        self.write(_encodable(json.dumps(document, ensure_ascii=False, allow_nan=False)) + "\n")

    @contextlib.contextmanager
    def _stdout(self) -> Iterator[None]:
        """A reader that goes away ends a report, but not a change that is half made."""
        try:
            yield
        except BrokenPipeError:
            if not self._outlives_reader:
                raise
            silence_stdout()
        except OSError as error:
            raise OSError(error.errno, error.strerror, "stdout") from error


def _encodable(text: str) -> str:
    r"""With bytes of file names that are no UTF-8 as `\udcff`, which is how JSON writes them too."""
    return text.encode("utf-8", "backslashreplace").decode()


def _message(error: BaseException) -> str:
    """What happened, without what to do."""
    if isinstance(error, NpuError):
        return error.message
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def now() -> str:
    """The time in UTC as RFC 3339 writes it."""
    return rfc3339(time.time())


def rfc3339(seconds: float) -> str:
    """A time in seconds since the epoch as RFC 3339 writes it, in UTC."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def holder_facts(holder: Holder | None) -> dict[str, Any] | None:
    """Who holds a device, as the report's keys."""
    if holder is None:
        return None
    return {"pid": holder.pid, "command": holder.command, "since": rfc3339(holder.since)}


def _open_console(quiet: bool, *, stderr: bool = False) -> Console:
    from rich.console import Console

    class PipeConsole(Console):
        """Leaves a closed pipe to the tool, where rich would end it with exit status 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipeConsole(quiet=quiet, stderr=stderr, highlight=False, markup=False, emoji=False)
