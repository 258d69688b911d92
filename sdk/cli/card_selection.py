"""Which cards a verb works on that concerns cards alone: served emulators are no candidates."""

from __future__ import annotations

from collections.abc import Sequence

import click

from driver_shim.errors import DeviceNotFound
from driver_shim.pci_sysfs import PCI_SCHEME, Roots, ids_of
from driver_shim.protocol.config_space import DEVICE_ID, VENDOR_ID
from sdk import environment
from sdk.cli.device_selection import ALL
from sdk.info import DeviceInfo

OUR_IDS = f"{VENDOR_ID:04x}:{DEVICE_ID:04x}"
_OTHER_WAYS = ("emulator", "vfio-user:", "usb:")
_SYSFS = "sysfs:"


def bus_address_of(device: DeviceInfo) -> str:
    """A card's place on the bus, "0000:03:00.0"."""
    return device.address.removeprefix(PCI_SCHEME)


def named_cards(wanted: Sequence[str], there: Sequence[DeviceInfo], roots: Roots | None = None) -> list[DeviceInfo]:
    """The cards that `-d` names by address, bus address, serial or “all”; all of them when it names none.

    Raises DeviceNotFound (saying which IDs a function has that is not ours), click.UsageError for an emulator.
    """
    cards = [device for device in there if device.address.startswith(PCI_SCHEME)]
    if not wanted or ALL in wanted:
        return cards
    chosen = (_named(name, cards, roots or Roots()) for name in wanted)
    return list({card.address: card for card in chosen}.values())


def cards_to_change(wanted: Sequence[str], there: Sequence[DeviceInfo], roots: Roots | None = None) -> list[DeviceInfo]:
    """As `named_cards`, else what `NPU_DEVICE` names; one of several must be named, and there must be one."""
    default = environment.device_address()
    if not wanted and default and default.startswith((PCI_SCHEME, _SYSFS)):
        wanted = (default,)
    cards = named_cards(wanted, there, roots)
    if not cards:
        raise DeviceNotFound(
            f"there is no card on the bus with our IDs {OUR_IDS}", remedy="npuctl doctor says what else is missing"
        )
    if not wanted and len(cards) > 1:
        names = ", ".join(card.address for card in cards)
        raise click.UsageError(f"there are {len(cards)} cards ({names}); name one with -d, or -d all")
    return cards


def _named(name: str, cards: Sequence[DeviceInfo], roots: Roots) -> DeviceInfo:
    bus_address = name.removeprefix(_SYSFS).removeprefix(PCI_SCHEME)
    for card in cards:
        if bus_address == bus_address_of(card) or (card.serial is not None and name == card.serial):
            return card
    if name.startswith(_OTHER_WAYS):
        raise click.UsageError(f"{name!r} is no card on the PCI bus: this verb is about cards")
    function = roots.functions / bus_address
    if bus_address and "/" not in bus_address and function.is_dir():
        address = PCI_SCHEME + bus_address
        raise DeviceNotFound(f"{address} has the IDs {ids_of(function)}; ours are {OUR_IDS}", device=address)
    known = ", ".join(card.address for card in cards) or "none"
    raise DeviceNotFound(f"no card has the address or serial {name!r}; there are: {known}", device=name)
