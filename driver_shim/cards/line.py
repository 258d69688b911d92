"""A line of processes, as ticket files in a folder: first come first served, and safe against kills at any point.

A ticket is a file that its owner keeps locked (flock) for as long as the ticket counts, so that the kernel gives it
back however the owner ends. The lowest live ticket is at the head. Who takes a ticket holds the folder's lock
meanwhile and removes those of dead processes; who only looks needs no lock: a ticket appears under its name when it is
locked and written.

Forks: a lock belongs to the open file, which a child inherits. So a child closes its copies (that unlocks nothing as
long as the owner has its own), an owner unlocks explicitly, and a ticket also dies with the process that it names.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import stat
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from driver_shim import timeouts
from driver_shim.shared.runtime_folder import (
    TICKET_SUFFIX,
    TICKET_VERSION,
    Holder,
    TicketRecord,
    check_runtime_folder,
    make_runtime_folder,
    process_start_time,
)

_log = logging.getLogger("npu")
_MAX_RECORD_BYTES = 4096
_MAX_COMMAND_CHARACTERS = 160
_LATEST_S = 253402300799.0
"""The end of the year 9999, the last that `datetime` can tell."""
_OWNER_MODE = 0o600
_READERS_MODE = 0o044

_open_files: weakref.WeakSet[_Folder | io.FileIO] = weakref.WeakSet()
"""What a forked child must close."""


Owners = dict[int, Holder | None]
"""Number of each ticket → whose it is, in the line's order; None for one that does not say."""


class _StaleTicket(Exception):
    """Its process has ended, or it was no ticket."""


class Ticket:
    """A ticket of this process. Counts until `release`, at the latest until the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._finalizer: weakref.finalize[..., Ticket] | None = None
        self.number = 0

    def take(self, number: int, record: TicketRecord, name: str, mode: int) -> None:
        """Make the ticket file; called once, with the folder locked. Raises OSError."""
        temporary = self._path
        with contextlib.suppress(FileNotFoundError):  # left by somebody who was killed within the lines below
            os.unlink(temporary)
        file = io.FileIO(temporary, "x+")  # one call that opens and owns: Ctrl-C cannot come between
        _open_files.add(file)
        self._path = temporary.with_name(name)
        # Before the file has its name: whatever happens from here on, the finaliser cleans up.
        self._finalizer = weakref.finalize(self, _give_back, file, self._path, os.getpid())
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(file.fileno(), mode)
        file.write(json.dumps(record).encode())
        self.number = number
        os.rename(temporary, self._path)

    def release(self) -> None:
        """Give the ticket back; idempotent, and nothing in a forked child."""
        if self._finalizer is not None:
            self._finalizer()


class Line:
    """The line that a name stands for in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._pattern = re.compile(rf"{re.escape(name)}\.(\d{{8,}}){re.escape(TICKET_SUFFIX)}")

    def live(self) -> Owners:
        """The owners of the tickets that count, in order; none where there is no folder. Raises OSError."""
        check_runtime_folder(self._folder)
        try:
            return self._scan(remove_stale=False)[0]
        except FileNotFoundError:
            return {}

    def join(self, address: str, *, only_if_empty: bool) -> tuple[Ticket | None, Owners, bool]:
        """Take the next ticket, unless `only_if_empty` and somebody is there.

        Returns our ticket, the owners of those ahead of it, and whether any of a dead process was found. Raises OSError
        (the folder cannot be used, or is locked for too long).
        """
        make_runtime_folder(self._folder)
        ticket = Ticket(self._folder / f"{self._name}.new")
        try:
            with _Folder(self._folder) as folder:
                folder.lock()
                ahead, any_stale = self._scan(remove_stale=True)
                if ahead and only_if_empty:
                    return None, ahead, any_stale
                number = max(ahead, default=0) + 1
                # Whoever may look into the folder may see who is in line, however this process is used to make files.
                mode = _OWNER_MODE | os.fstat(folder.fd).st_mode & _READERS_MODE
                ticket.take(number, own_record(address), f"{self._name}.{number:08d}{TICKET_SUFFIX}", mode)
                return ticket, ahead, any_stale
        except BaseException:
            ticket.release()
            raise

    def _scan(self, *, remove_stale: bool) -> tuple[Owners, bool]:
        live: Owners = {}
        any_stale = False
        for number, path in sorted(self._files()):
            try:
                live[number] = _owner(path)
            except _StaleTicket:
                any_stale = True
                if remove_stale:
                    _remove(path)
        return live, any_stale

    def _files(self) -> Iterator[tuple[int, Path]]:
        for name in os.listdir(self._folder):
            match = self._pattern.fullmatch(name)
            if match:
                yield int(match[1]), self._folder / name


class _Folder:
    """A folder's own descriptor, to lock it by. The object owns the descriptor before it is locked."""

    fd = -1

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _open_files.add(self)

    def lock(self) -> None:
        """Lock it. Raises TimeoutError."""
        deadline = time.monotonic() + timeouts.TICKETS_S
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"another process keeps {self._path} locked") from None
            time.sleep(timeouts.TICKETS_RETRY_S)

    def close(self) -> None:
        """Let go of this process's descriptor; idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            fcntl.flock(self.fd, fcntl.LOCK_UN)  # for a child that was forked meanwhile and has a copy
        self.close()

    def __del__(self) -> None:
        self.close()


def own_record(address: str) -> TicketRecord:
    """What this process writes on its ticket."""
    pid = os.getpid()
    return TicketRecord(
        version=TICKET_VERSION,
        address=address,
        pid=pid,
        start_time=process_start_time(pid) or 0,
        pid_namespace=_pid_namespace(),
        command=command_line(Path("/proc/self")),
        since=time.time(),
    )


def command_line(process: Path) -> str:
    """The command line of a process, given its folder in /proc, shortened. Raises OSError."""
    words = (process / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
    return printable(" ".join([os.path.basename(words[0]), *words[1:]]))


def printable(text: str) -> str:
    """One short line without control characters: others write what we show on terminals."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _MAX_COMMAND_CHARACTERS else line[: _MAX_COMMAND_CHARACTERS - 1] + "…"


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _owner(path: Path) -> Holder | None:
    """Whose ticket a file is; None when it does not say. Raises _StaleTicket."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # nobody's ticket; a link is not followed, a pipe not waited for
            raise _StaleTicket
        file = io.FileIO(path)
    except FileNotFoundError:  # given back since the folder was listed
        raise _StaleTicket from None
    except OSError as error:  # not ours to read, so nobody can say that it is stale
        _log.debug("%s cannot be read: %s", path, error.strerror)
        return None
    with file:
        try:
            # Shared, so that two who look do not take each other for the owner.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            record = _read(file, path)
        else:
            raise _StaleTicket
    if record is None:
        return None
    here = record["pid_namespace"] == _pid_namespace()
    if here and process_start_time(record["pid"]) != record["start_time"]:
        raise _StaleTicket
    return Holder(record["pid"], record["command"], record["since"], elsewhere=not here)


def _read(file: io.FileIO, path: Path) -> TicketRecord | None:
    try:
        document = json.loads(file.read(_MAX_RECORD_BYTES))
        if document["version"] != TICKET_VERSION:
            return None
        record = TicketRecord(
            version=TICKET_VERSION,
            address=str(document["address"]),
            pid=int(document["pid"]),
            start_time=int(document["start_time"]),
            pid_namespace=str(document["pid_namespace"]),
            command=printable(str(document["command"])),
            since=float(document["since"]),
        )
        if record["pid"] <= 0 or not 0 <= record["since"] <= _LATEST_S:
            raise ValueError(f"PID {record['pid']}, since {record['since']}")
        return record
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        _log.debug("%s does not say whose ticket it is: %s", path, error)
        return None


def _remove(path: Path) -> None:
    try:
        os.unlink(path)
        _log.debug("removed %s, whose process has ended", path)
    except OSError as error:
        _log.debug("stale ticket %s stays: %s", path, error.strerror)


def _give_back(file: io.FileIO, path: Path, owner: int) -> None:
    """Remove and unlock a ticket, in this order: nobody then finds it stale in between."""
    if os.getpid() != owner or file.closed:
        return
    with contextlib.suppress(OSError):  # gone already, or its folder is
        if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(file.fileno())):
            os.unlink(path)
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)  # for a child that was forked from C and has a copy
    file.close()


def _after_fork_in_child() -> None:
    for file in list(_open_files):
        file.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
