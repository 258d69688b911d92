"""The cards that a verb for cards alone works on: served emulators are no candidates."""

from __future__ import annotations

from collections.abc import Sequence

import click

from driver_shim.cards.discovery import parse_bus_address
from driver_shim.cards.pci_sysfs import PCI_SCHEME, Roots, ids_of
from driver_shim.errors import DeviceNotFound
from driver_shim.protocol.config_space import DEVICE_ID, VENDOR_ID
from sdk import environment
from sdk.cli.device_selection import ALL, all_or_named, card_called, no_such_device
from sdk.opening.listing import CARD_SCHEMES, SYSFS_SCHEME, DeviceInfo, list_devices

OUR_IDS = f"{VENDOR_ID:04x}:{DEVICE_ID:04x}"
_OTHER_WAYS = ("emulator", "vfio-user:", "usb:")


def bus_address_of(device: DeviceInfo) -> str:
    """A card's place on the bus, "0000:03:00.0"."""
    return device.address.removeprefix(PCI_SCHEME)


def named_cards(wanted: Sequence[str], roots: Roots | None = None) -> list[DeviceInfo]:
    """The cards that `-d` names by address, bus address, serial or “all”; all visible ones when it names none.

    Raises DeviceNotFound (saying which IDs a function has that is not ours), click.UsageError for an emulator.
    """
    return all_or_named(wanted or (ALL,), _visible_cards, lambda name: _named(name, roots or Roots()))


def cards_to_change(wanted: Sequence[str], roots: Roots | None = None) -> list[DeviceInfo]:
    """As `named_cards`, else what `NPU_DEVICE` names; one of several must be named, and there must be one."""
    default = environment.device_address()
    if not wanted and default and default.startswith(CARD_SCHEMES):
        wanted = (default,)
    cards = named_cards(wanted, roots)
    if not cards:
        raise DeviceNotFound(
            f"there is no visible card on the bus with our IDs {OUR_IDS}",
            remedy="npuctl doctor says what else is missing",
        )
    if not wanted and len(cards) > 1:
        names = ", ".join(card.address for card in cards)
        raise click.UsageError(f"there are {len(cards)} cards ({names}); name one with -d, or -d all")
    return cards


def _visible_cards() -> list[DeviceInfo]:
    return [device for device in list_devices() if device.address.startswith(PCI_SCHEME)]


def _named(name: str, roots: Roots) -> DeviceInfo:
    if name.startswith(_OTHER_WAYS):
        raise click.UsageError(f"{name!r} is no card on the PCI bus: this verb is about cards")
    unschemed = name.removeprefix(SYSFS_SCHEME).removeprefix(PCI_SCHEME)
    bus_address = parse_bus_address(unschemed)
    card = card_called(name if bus_address is None else PCI_SCHEME + bus_address)
    if card is not None:
        if not card.address.startswith(PCI_SCHEME):
            raise click.UsageError(f"{name!r} is {card.name}, no card on the PCI bus: this verb is about cards")
        return card
    function = roots.functions / (bus_address or "")
    if bus_address is not None and function.is_dir():
        address = PCI_SCHEME + bus_address
        raise DeviceNotFound(f"{address} has the IDs {ids_of(function)}; ours are {OUR_IDS}", device=address)
    raise no_such_device(name, "card")
