"""Which devices there are: our functions on the PCI bus, and served emulators in the runtime folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

from driver_shim.protocol.config_space import DEVICE_ID, VENDOR_ID
from driver_shim.protocol.runtime_folder import (
    PUBLICATION_SUFFIX,
    PUBLICATION_VERSION,
    Publication,
    UnsafeFolder,
    check_runtime_folder,
    process_start_time,
    runtime_folder,
)

SYSFS_PCI = Path("/sys/bus/pci/devices")
_log = logging.getLogger("npu")


class PciCard(NamedTuple):
    """A function of ours on the PCI bus, as sysfs tells without opening it."""

    bus_address: str
    """Domain:bus:device.function, "0000:03:00.0"."""
    driver: str | None


def find_cards(root: Path = SYSFS_PCI) -> list[PciCard]:
    """Functions with our vendor and device ID, by bus address."""
    if not root.is_dir():
        return []
    cards = []
    for folder in sorted(root.iterdir()):
        if _hex(folder / "vendor") == VENDOR_ID and _hex(folder / "device") == DEVICE_ID:
            driver = folder / "driver"
            cards.append(PciCard(folder.name, driver.resolve().name if driver.exists() else None))
    return cards


def find_served(folder: Path | None = None) -> list[Publication]:
    """Emulators that are being served; publications of processes that have ended are passed over."""
    where = folder or runtime_folder()
    try:
        check_runtime_folder(where)
    except UnsafeFolder as error:
        _log.warning("%s is not looked into: %s", where, error.strerror)
        return []
    found = []
    for path in sorted(where.glob(f"*{PUBLICATION_SUFFIX}")) if where.is_dir() else []:
        publication = _publication(path)
        if publication and process_start_time(publication["pid"]) == publication["start_time"]:
            found.append(publication)
    return found


def _publication(path: Path) -> Publication | None:
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["version"] != PUBLICATION_VERSION:
            return None
        return Publication(
            version=int(document["version"]),
            address=str(document["address"]),
            pid=int(document["pid"]),
            start_time=int(document["start_time"]),
            profile=str(document["profile"]),
            serial=str(document["serial"]),
            kernels=str(document["kernels"]),
            since=float(document["since"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.debug("%s is no device publication: %s", path, error)
        return None


def _hex(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"), 16)
    except (OSError, ValueError):
        return None
