"""Processes that use a function through VFIO, as /proc shows them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from driver_shim.cards.line import printable

_DEVICE_LINK = "anon_inode:[vfio-device]"
_SYSPATH_KEY = "vfio-device-syspath:"
"""A line of /proc/PID/fdinfo/FD by which newer kernels say which function a VFIO device's descriptor is of."""


class User(NamedTuple):
    """A process that has a function's node or device open."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


class Users(NamedTuple):
    """Who was found, and how many processes would not be looked into."""

    found: tuple[User, ...]
    hidden: int


def find_users(bus_address: str, nodes: Sequence[Path], proc: Path = Path("/proc")) -> Users:
    """Processes that have one of the nodes open, or the VFIO device of the function at `bus_address`."""
    wanted = {str(node) for node in nodes}
    numbers = {number for node in nodes if (number := _device_number(node)) is not None}
    found, hidden = [], 0
    for process in sorted((entry for entry in proc.iterdir() if entry.name.isdecimal()), key=lambda p: int(p.name)):
        try:
            descriptors = os.listdir(process / "fd")
        except PermissionError:
            hidden += 1
            continue
        except OSError:  # it has ended
            continue
        if any(_is_of(process, name, wanted, numbers, bus_address) for name in descriptors):
            found.append(User(int(process.name), _command(process)))
    return Users(tuple(found), hidden)


def group_is_taken(nodes: Sequence[Path]) -> bool:
    """Whether the kernel refuses a node as busy: then a process holds it that may be of another PID namespace.

    A group's node is opened for a moment, which resets nothing; a device's own is not touched. False where the node
    may not be opened, which says nothing.
    """
    for node in nodes:
        if node.parent.name != "vfio":
            continue
        try:
            os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
    return False


def _is_of(process: Path, descriptor: str, wanted: set[str], numbers: set[int], bus_address: str) -> bool:
    link = process / "fd" / descriptor
    try:
        target = os.readlink(link)
    except OSError:  # closed meanwhile
        return False
    if target in wanted:
        return True
    if target == _DEVICE_LINK:
        return _syspath_name(process / "fdinfo" / descriptor) == bus_address
    # a container may know the node by another path; the number is the same
    return "vfio" in target and _device_number(link) in numbers


def _device_number(path: Path) -> int | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_rdev if stat.S_ISCHR(status.st_mode) else None


def _syspath_name(fdinfo: Path) -> str | None:
    try:
        lines = fdinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(_SYSPATH_KEY):
            return Path(line.removeprefix(_SYSPATH_KEY).strip()).name
    return None


def _command(process: Path) -> str:
    """The command line as typed, cut short; the kernel's name for a process that has none."""
    for name, blank in (("cmdline", b"\0"), ("comm", b"\n")):
        try:
            text = printable((process / name).read_bytes().replace(blank, b" ").decode("utf-8", "replace"))
        except OSError:
            continue
        if text:
            return text
    return "unknown"
