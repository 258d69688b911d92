"""The host machine that checks look at, and their answers."""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from driver_shim.cards.pci_sysfs import Roots


class Status(enum.StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    """A process cannot use the card, or the emulator, until this is mended."""
    INFO = "info"


class Observation(NamedTuple):
    """A check's answer."""

    status: Status
    found: str
    remedy: str | None = None
    """What mends it, one step a line, each line ending in the command to type; None when nothing need be done."""


class Finding(NamedTuple):
    """An observation with the check it is of."""

    name: str
    status: Status
    found: str
    remedy: str | None
    device: str | None
    """The card's address; None for the machine as a whole."""


def package_version(name: str) -> str | None:
    """Version of an installed Python package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder: tried, since root has access where a file system still refuses."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".npu-doctor-"):
            return True
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class HostMachine:
    """What checks look at. Every part can be another's in tests."""

    roots: Roots
    cards: tuple[str, ...]
    """Bus addresses of the functions of ours."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)
    access: Callable[[Path, int], bool] = os.access
    package_version: Callable[[str], str | None] = package_version
    writable: Callable[[Path], bool] = writable

    @property
    def hindrance(self) -> Status:
        """Of what keeps processes from a card: a failure where there is a card, else only worth knowing."""
        return Status.FAIL if self.cards else Status.INFO
