"""`npuctl list`: the devices of this machine, none of which it opens."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table

from sdk.cli.device_selection import device_option, queried
from sdk.cli.frame import Frame, holder_facts
from sdk.cli.verb import verb
from sdk.info import DeviceInfo

_HELD_BY_COLUMNS = 16


@verb("list")
@device_option
def command(frame: Frame, wanted: tuple[str, ...]) -> None:
    """List the devices of this machine; none is opened."""
    devices = queried(wanted)
    table = Table(box=None, pad_edge=False)
    table.add_column("address", overflow="fold")  # to be copied, so never shortened
    for heading in ("name", "serial", "driver"):
        table.add_column(heading)
    table.add_column("held by", max_width=_HELD_BY_COLUMNS, overflow="ellipsis", no_wrap=True)
    for device in devices:
        frame.add(facts(device))
        held_by = f"{device.holder.pid} {device.holder.command}" if device.holder else "-"
        table.add_row(device.address, device.name, device.serial or "-", device.driver or "-", held_by)
    frame.console.print(table)


def facts(info: DeviceInfo) -> dict[str, Any]:
    """A device's info as the report's keys; `tick_hz` is `tick_hertz` there."""
    entry = dataclasses.asdict(info)
    entry["tick_hertz"] = entry.pop("tick_hz")
    del entry["pre_open"]  # known to those who open the device; info shows it
    entry["holder"] = holder_facts(info.holder)
    return entry
