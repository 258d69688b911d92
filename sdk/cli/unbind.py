"""`npuctl unbind`: take cards from vfio-pci again."""

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


@verb("unbind", changes=True)
@device_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(frame: Frame, wanted: tuple[str, ...], yes: bool) -> None:
    """Take cards from vfio-pci; needs root.

    A card that a process uses is left alone (exit 1). The kernel offers the card to the driver it would have by itself;
    normally there is none.
    """
    binder = Binder()
    unbind_cards(frame, cards_to_change(wanted, binder.roots), binder, yes)


def unbind_cards(frame: Frame, cards: Sequence[DeviceInfo], binder: Binder, yes: bool) -> None:
    """Unbind each card and report it; an error of one does not keep the others from being unbound."""
    addresses = [bus_address_of(card) for card in cards]
    bound = [address for address in addresses if binder.driver(address) == VFIO_DRIVER]
    if bound:
        confirm(f"Take {', '.join(bound)} from {VFIO_DRIVER}?", yes)
    for address in addresses:
        try:
            report(frame, binder.unbind(address))
        except NpuError as error:
            frame.fail(error, PCI_SCHEME + address)
