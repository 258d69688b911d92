"""Discovery of devices: our functions on the PCI bus, and served emulators in the runtime folder."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from driver_shim.cards.pci_sysfs import PCI_SCHEME, Link, Roots, driver_of, group_of, link_of, number_of, text_of
from driver_shim.cards.pci_sysfs import VFIO_DRIVER as VFIO_DRIVER
from driver_shim.errors import DeviceNotFound
from driver_shim.protocol.config_space import CONFIG_BYTES, DEVICE_ID, VENDOR_ID, serial_text
from driver_shim.shared.runtime_folder import (
    PUBLICATION_SUFFIX,
    PUBLICATION_VERSION,
    Publication,
    UnsafeFolder,
    check_runtime_folder,
    process_start_time,
    runtime_folder,
)

SYSFS_PCI = Roots().functions
_log = logging.getLogger("npu")
_D3COLD = "D3cold"
_BUS_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])", re.IGNORECASE)


class PciCard(NamedTuple):
    """A function of ours on the PCI bus, as sysfs tells without opening it. What it does not tell is None."""

    bus_address: str
    """Domain:bus:device.function, "0000:03:00.0"."""
    driver: str | None
    iommu_group: str | None = None
    """None without an IOMMU."""
    numa_node: int | None = None
    link_speed_gt_per_s: float | None = None
    link_width_lanes: int | None = None
    link_max_speed_gt_per_s: float | None = None
    link_max_width_lanes: int | None = None
    serial: str | None = None
    """The last 8 characters of the serial number; only root may read it."""
    power_state: str | None = None
    """"D0", "D3hot", …"""


def find_cards(root: Path = SYSFS_PCI) -> list[PciCard]:
    """Functions with our vendor and device ID, by bus address."""
    if not root.is_dir():
        return []
    return [
        _card(folder)
        for folder in sorted(root.iterdir())
        if number_of(folder / "vendor") == VENDOR_ID and number_of(folder / "device") == DEVICE_ID
    ]


def parse_bus_address(text: str) -> str | None:
    """The full form of "0000:03:00.0" or "03:00.0"; None for what is no bus address."""
    match = _BUS_ADDRESS.fullmatch(text)
    if match is None:
        return None
    domain, bus, device, function = (int(part or "0", 16) for part in match.groups())
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function}"


def select_cards(cards: Sequence[PciCard], wanted: Sequence[str] | None) -> list[PciCard]:
    """The cards that the entries of `NPU_VISIBLE_DEVICES` name, in their order, each once; all without it (None).

    An entry is a bus address, an index into `cards`, or a serial number, and is tried as such in this order.
    Raises DeviceNotFound for an entry that names no card, or several.
    """
    seen, wrong = seen_cards(cards, wanted)
    for error in wrong.values():
        raise error
    return seen


def seen_cards(
    cards: Sequence[PciCard], wanted: Sequence[str] | None
) -> tuple[list[PciCard], dict[str, DeviceNotFound]]:
    """As `select_cards`, with the entries that name no card, or several, beside the rest, each with its error."""
    if wanted is None:
        return list(cards), {}
    seen: list[PciCard] = []
    wrong: dict[str, DeviceNotFound] = {}
    for entry in dict.fromkeys(wanted):
        try:
            seen.append(_card_named(entry, cards))
        except DeviceNotFound as error:
            wrong[entry] = error
    return list(dict.fromkeys(seen)), wrong


def visible_entries(variable: str | None) -> tuple[str, ...] | None:
    """The entries of `NPU_VISIBLE_DEVICES`; None without it, none when it hides every card."""
    if variable is None:
        return None
    return tuple(entry for part in variable.split(",") if (entry := part.strip()))


def _card_named(entry: str, cards: Sequence[PciCard]) -> PciCard:
    bus_address = parse_bus_address(entry.removeprefix(PCI_SCHEME))
    if bus_address is not None:
        found = [card for card in cards if card.bus_address == bus_address]
    elif entry.isdecimal() and int(entry) < len(cards):
        found = [cards[int(entry)]]
    else:
        found = [card for card in cards if card.serial == entry]
    if len(found) != 1:
        what = "several cards" if found else "no card"
        there = ", ".join(
            f"{index} = {card.bus_address}" + (f" (serial {card.serial})" if card.serial else "")
            for index, card in enumerate(cards)
        )
        raise DeviceNotFound(
            f"NPU_VISIBLE_DEVICES names {entry!r}, which fits {what}; there are: {there or 'none'}",
            subsystem="discovery",
            remedy="name bus addresses, indexes or serials, or see every card: unset NPU_VISIBLE_DEVICES",
        )
    return found[0]


def _card(folder: Path) -> PciCard:
    state = text_of(folder / "power_state")
    awake = state != _D3COLD  # the kernel would wake the card to read link and configuration space
    now, most = (link_of(folder, which) if awake else Link(None, None) for which in ("current", "max"))
    return PciCard(
        bus_address=folder.name,
        driver=driver_of(folder),
        iommu_group=group_of(folder),
        numa_node=_numa_node(folder / "numa_node"),
        link_speed_gt_per_s=now.speed_gt_per_s,
        link_width_lanes=now.width_lanes,
        link_max_speed_gt_per_s=most.speed_gt_per_s,
        link_max_width_lanes=most.width_lanes,
        serial=_serial(folder / "config") if awake else None,
        power_state=state if state and state.startswith("D") else None,
    )


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
            usbip_port=None if document.get("usbip_port") is None else int(document["usbip_port"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.debug("%s is no device publication: %s", path, error)
        return None


def _numa_node(path: Path) -> int | None:
    node = number_of(path, 10)
    return node if node is not None and node >= 0 else None  # -1: the firmware does not say


def _serial(path: Path) -> str | None:
    """Everybody else but root reads the first 64 bytes only, and so no extended capability."""
    try:
        with path.open("rb", buffering=0) as config:
            return serial_text(config.read(CONFIG_BYTES) or b"")
    except OSError:
        return None
