"""Devices described, opened or not, and the list of those there are."""

from __future__ import annotations

import dataclasses
from typing import Any

from driver_shim.cards.discovery import PciCard, find_cards, find_served, parse_bus_address, seen_cards
from driver_shim.cards.holder import holder_of
from driver_shim.cards.pci_sysfs import PCI_SCHEME
from driver_shim.errors import DeviceNotFound
from driver_shim.firmware.core_state import BootProgress
from driver_shim.function.pre_open import PreOpenRecord
from driver_shim.shared.runtime_folder import Holder
from driver_shim.transport.usb_ports import PREFIX
from sdk import environment

SYSFS_SCHEME = "sysfs:"
CARD_SCHEMES = (PCI_SCHEME, SYSFS_SCHEME)
"""How an address says which way a card is reached: through the kernel's VFIO, or through its files in sysfs."""


@dataclasses.dataclass(frozen=True)
class DeviceInfo:
    """Facts of one device; what is unknown without opening it is None."""

    name: str
    """"NPU" and the profile, for people."""
    address: str
    """What `sdk.Device` takes."""
    profile: str | None = None
    serial: str | None = None
    """Of a card that is not open: its last 8 characters, if this process may read them."""
    emulated: bool | None = None
    firmware: str | None = None
    """Version of the running firmware, "1.2.3+4"; None where there is no management core, or none runs."""
    boot: BootProgress | None = None
    """How far the management core had come: stage, why it was last reset, slot, whether it is on trial."""
    kernels: str | None = None
    """Which kernels an emulator computes with: auto, numpy or golden."""
    memory_bytes: int | None = None
    tick_hz: int | None = None
    engines: int | None = None
    contract: str | None = None
    """Contract version, "major.minor"."""
    revision: str | None = None
    """Silicon revision, "major.minor"."""
    max_queues: int | None = None
    driver: str | None = None
    """How it is reached: "vfio-user", or the kernel driver of a card."""
    pid: int | None = None
    """Process of an emulator."""
    debug_port: str | None = None
    """What `sdk.Device` takes to look through its USB debug port; None where that is not known."""
    pre_open: PreOpenRecord | None = None
    """What the device showed before it was enabled: earlier resets, faults, whether there is a black box."""
    holder: Holder | None = None
    """Who held it when the list was made; None when it was free, or its holder is not visible to this user."""
    iommu_group: str | None = None
    """Number of a card's IOMMU group; None without an IOMMU."""
    numa_node: int | None = None
    """Node of the machine's memory that is nearest to a card."""
    link_speed_gt_per_s: float | None = None
    """Speed of a card's PCI Express link in gigatransfers per second a lane, as negotiated."""
    link_width_lanes: int | None = None
    """Lanes of that link, as negotiated."""
    link_max_speed_gt_per_s: float | None = None
    """What the card could do: a lower `link_speed_gt_per_s` is a degraded link."""
    link_max_width_lanes: int | None = None
    power_state: str | None = None
    """PCI power state of a card, "D0" (on) to "D3cold" (off)."""

    @property
    def memory(self) -> int | None:
        """Device memory in bytes."""
        return self.memory_bytes


_BUS_FACTS = (
    "iommu_group",
    "numa_node",
    "link_speed_gt_per_s",
    "link_width_lanes",
    "link_max_speed_gt_per_s",
    "link_max_width_lanes",
    "power_state",
)
"""Fields of `DeviceInfo` that are fields of `PciCard` too."""


def list_devices() -> list[DeviceInfo]:
    """All devices of this machine: visible cards (`NPU_VISIBLE_DEVICES`), then served emulators. Opens none of them.

    Raises DeviceNotFound when `NPU_VISIBLE_DEVICES` names a card that is not there.
    """
    found, wrong = listing()
    for error in wrong.values():
        raise error
    return found


def listing() -> tuple[list[DeviceInfo], dict[str, DeviceNotFound]]:
    """As `list_devices`; entries of `NPU_VISIBLE_DEVICES` that name no card are told beside it, each with its error."""
    cards, wrong = seen_cards(find_cards(), environment.visible_devices())
    return [_card_info(card) for card in cards] + served_devices(), wrong


def card_at(address: str) -> DeviceInfo | None:
    """The card at "pci:BUS-ADDRESS" or "sysfs:BUS-ADDRESS", visible or not, without opening it; None where none is."""
    scheme, colon, rest = address.partition(":")
    if scheme + colon not in CARD_SCHEMES:
        return None
    bus_address = parse_bus_address(rest)
    return next((_card_info(card, scheme + colon) for card in find_cards() if card.bus_address == bus_address), None)


def bus_facts(address: str) -> dict[str, Any]:
    """What the bus tells of an open card, as fields of `DeviceInfo`; nothing for an emulator."""
    card = card_at(address)
    return {name: getattr(card, name) for name in _BUS_FACTS} if card else {}


def _card_info(card: PciCard, scheme: str = PCI_SCHEME) -> DeviceInfo:
    facts = {name: getattr(card, name) for name in _BUS_FACTS}
    address = scheme + card.bus_address
    return DeviceInfo(
        name="NPU",
        address=address,
        serial=card.serial,
        emulated=False,
        driver=card.driver,
        holder=holder_of(PCI_SCHEME + card.bus_address),
        **facts,
    )


def served_devices() -> list[DeviceInfo]:
    """The emulators that are being served on this machine."""
    return [
        DeviceInfo(
            name=f"NPU {found['profile']} (emulator)",
            address=found["address"],
            profile=found["profile"],
            serial=found["serial"],
            emulated=True,
            kernels=found["kernels"],
            driver="vfio-user",
            pid=found["pid"],
            debug_port=None if found["usbip_port"] is None else PREFIX + found["serial"],
            holder=holder_of(found["address"]),
        )
        for found in find_served()
    ]
