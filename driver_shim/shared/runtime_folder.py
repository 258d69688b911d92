"""The folder in which running devices and their holders are published, and the records in it.

Runtime files live in `$NPU_RUNTIME_DIR`, else /run/npu (if it can be written), else `$XDG_RUNTIME_DIR/npu`, else a
0700 folder of this user in the temporary directory. One JSON file a served emulator, one a process that holds a
device or waits for it.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

PUBLICATION_VERSION = 1
PUBLICATION_SUFFIX = ".device.json"
TICKET_VERSION = 1
TICKET_SUFFIX = ".ticket"
SYSTEM_FOLDER = Path("/run/npu")
_FOLDER_MODE = 0o700
_NAME_DIGITS = 12
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Publication(TypedDict):
    """What a served emulator says of itself."""

    version: int
    address: str
    """"vfio-user:" and the absolute socket path."""
    pid: int
    start_time: int
    """Field 22 of /proc/PID/stat: tells a process from a later one of the same PID."""
    profile: str
    serial: str
    kernels: str
    since: float
    """Seconds since the epoch."""
    usbip_port: int | None
    """Where its USB debug port speaks USB/IP on 127.0.0.1; None, or left out, when it does not."""


class TicketRecord(TypedDict):
    """What a process that holds a device, or waits for it, says of itself."""

    version: int
    address: str
    """The device, as `driver_shim.cards.holder` spells it."""
    pid: int
    start_time: int
    """Field 22 of /proc/PID/stat, as in a publication."""
    pid_namespace: str
    """The namespace that the PID counts in (what /proc/self/ns/pid links to)."""
    command: str
    since: float
    """Seconds since the epoch."""


class Holder(NamedTuple):
    """A process that holds a device; as text for people."""

    pid: int
    command: str
    """Its command line, shortened."""
    since: float
    """Seconds since the epoch."""
    elsewhere: bool = False
    """It is in another PID namespace (a container, or the host of ours), where its PID counts and ours does not."""

    def __str__(self) -> str:
        """For people: "PID 4711 (python train.py) since 2026-01-31 12:00:00 UTC"."""
        since = datetime.datetime.fromtimestamp(self.since, datetime.UTC)
        return f"{self.shown_pid} ({self.command}){self._where()} since {since:%Y-%m-%d %H:%M:%S} UTC"

    @property
    def shown_pid(self) -> str:
        """The PID for people, who may not look for it here when it is another namespace's."""
        return f"PID {self.pid}" + (" in another PID namespace" if self.elsewhere else "")

    def _where(self) -> str:
        return ", this process," if self.pid == os.getpid() and not self.elsewhere else ""


class UnsafeFolder(PermissionError):
    """The runtime folder is where anybody could have made it, and is not ours."""


def runtime_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder to publish in and to look in; it need not exist yet."""
    if named := environment.get("NPU_RUNTIME_DIR"):
        return Path(named)
    if os.access(SYSTEM_FOLDER, os.W_OK):
        return SYSTEM_FOLDER
    if session := environment.get("XDG_RUNTIME_DIR"):
        return Path(session) / "npu"
    return _fallback_folder()


def device_file_name(address: str) -> str:
    """What the names of a device's files in the folder begin with."""
    return hashlib.sha256(address.encode()).hexdigest()[:_NAME_DIGITS]


def make_runtime_folder(folder: Path) -> None:
    """Make sure that the folder is there and may be used. Raises OSError, UnsafeFolder."""
    check_runtime_folder(folder)
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    check_runtime_folder(folder)  # somebody may have been quicker


def check_runtime_folder(folder: Path) -> None:
    """Raise UnsafeFolder when somebody else may have laid out our folder in the temporary directory.

    Where the user or the system named another one, it is theirs to choose.
    """
    if folder != _fallback_folder():
        return
    try:
        status = os.lstat(folder)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeFolder(errno.EPERM, "it is a symbolic link; remove it, or name a folder with NPU_RUNTIME_DIR")
    if status.st_uid != os.getuid():
        raise UnsafeFolder(errno.EPERM, f"it belongs to user {status.st_uid}; name a folder with NPU_RUNTIME_DIR")
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise UnsafeFolder(errno.EPERM, f"others may write it; chmod 700 {folder}")


def _fallback_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"npu-{os.getuid()}"


def process_start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
