"""`npuctl list`: the devices of this machine, none of which it opens."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table

from sdk.cli.device_selection import device_option, queried
from sdk.cli.frame import Frame
from sdk.cli.verb import verb
from sdk.info import DeviceInfo


@verb("list")
@device_option
def command(frame: Frame, wanted: tuple[str, ...]) -> None:
    """List the devices of this machine; none is opened."""
    devices = queried(wanted)
    table = Table("address", "name", "serial", "driver", box=None, pad_edge=False)
    for device in devices:
        frame.add(facts(device))
        table.add_row(device.address, device.name, device.serial or "-", device.driver or "-")
    frame.console.print(table)


def facts(info: DeviceInfo) -> dict[str, Any]:
    """A device's info as the report's keys; `tick_hz` is `tick_hertz` there."""
    entry = dataclasses.asdict(info)
    entry["tick_hertz"] = entry.pop("tick_hz")
    del entry["pre_open"]  # known to those who open the device; info shows it
    return entry
