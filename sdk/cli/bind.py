"""`npuctl bind`: hand cards to vfio-pci, so that programs can use them."""

from __future__ import annotations

from collections.abc import Sequence

import click

from driver_shim.cards.binding import Binder
from driver_shim.cards.pci_sysfs import PCI_SCHEME, VFIO_DRIVER
from driver_shim.errors import NpuError
from sdk.cli.binding_report import report
from sdk.cli.card_selection import bus_address_of, cards_to_change
from sdk.cli.device_selection import confirm, device_option
from sdk.cli.frame import Frame
from sdk.cli.verb import verb
from sdk.opening.listing import DeviceInfo


@verb("bind", changes=True)
@device_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask before a card is taken from another driver.")
def command(frame: Frame, wanted: tuple[str, ...], yes: bool) -> None:
    """Bind cards to vfio-pci; needs root.

    Asks before it takes a card from another kernel driver. Nothing is left half done: when a step fails, the card gets
    its former driver back.
    """
    binder = Binder()
    bind_cards(frame, cards_to_change(wanted, binder.roots), binder, yes)


def bind_cards(frame: Frame, cards: Sequence[DeviceInfo], binder: Binder, yes: bool) -> None:
    """Bind each card and report it; an error of one does not keep the others from being bound."""
    addresses = [bus_address_of(card) for card in cards]
    taken = [
        (address, driver) for address in addresses if (driver := binder.driver(address)) not in (None, VFIO_DRIVER)
    ]
    if taken:
        named = ", ".join(f"{address} from its driver {driver}" for address, driver in taken)
        confirm(f"Take {named}?", yes)
    for address in addresses:
        try:
            report(frame, binder.bind(address, together_with=addresses))
        except NpuError as error:
            frame.fail(error, PCI_SCHEME + address)
