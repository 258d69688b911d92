"""`npuctl list`: the devices of this machine, none of which it opens."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table

from sdk.cli.device_facts import facts, link_text
from sdk.cli.device_selection import device_option, queried
from sdk.cli.frame import Frame
from sdk.cli.verb import verb
from sdk.opening.listing import CARD_SCHEMES, DeviceInfo

_UNKNOWN = "-"


@verb("list")
@device_option
def command(frame: Frame, wanted: tuple[str, ...]) -> None:
    """List the devices of this machine; none is opened."""
    devices = queried(wanted, frame)
    for device in devices:
        frame.add(facts(device))
    cards = [device for device in devices if device.address.startswith(CARD_SCHEMES)]
    emulators = [device for device in devices if device not in cards]
    if cards:
        frame.console.print(_card_table(cards))
    if cards and emulators:
        frame.say()
    if emulators:
        frame.console.print(_emulator_table(emulators))
    for device in devices:
        if device.debug_port:
            frame.console.print(f"{device.address} has a debug port: {device.debug_port}", overflow="fold")
        if device.holder:
            who = f"held by {device.holder.shown_pid}: {device.holder.command}"
            frame.console.print(f"{device.address} is {who}", overflow="fold")


def _card_table(cards: list[DeviceInfo]) -> Table:
    """Fits 80 columns as long as the serials are text: one space between columns, and the link, if anything, wraps."""
    columns = [Column(header, no_wrap=True) for header in ("address", "name", "serial", "driver")]
    columns += [Column(header, no_wrap=True, justify="right") for header in ("iommu", "numa")]
    rows = [
        (
            card.address,
            card.name,
            card.serial,
            card.driver or _UNKNOWN,  # that it has none is worth a column
            card.iommu_group,
            None if card.numa_node is None else str(card.numa_node),
            link_text(card),
        )
        for card in cards
    ]
    return _known([*columns, Column("link")], rows, gap=1)


def _emulator_table(emulators: list[DeviceInfo]) -> Table:
    """An emulator has no place on the bus; its socket's path may be long."""
    address = Column("address", overflow="fold")  # to be copied, so never shortened
    rows = [(device.address, device.name, device.serial, device.driver) for device in emulators]
    return _known([address, Column("name"), Column("serial"), Column("driver")], rows, gap=2)


def _known(columns: Sequence[Column], rows: Sequence[Sequence[str | None]], gap: int) -> Table:
    """A table without the columns in which no row has anything; other gaps are dashes."""
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    table = Table(*(columns[index] for index in kept), box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for row in rows:
        table.add_row(*(row[index] or _UNKNOWN for index in kept))
    return table
