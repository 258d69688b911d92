"""`npuctl info`: everything a device says of itself."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from driver_shim.errors import DeviceBusy
from sdk.cli.device_selection import device_option, open_named, queried
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame, holder_facts
from sdk.cli.list_devices import facts
from sdk.cli.verb import verb
from sdk.errors import NpuError
from sdk.info import DeviceInfo


@verb("info")
@device_option
@click.option("--no-open", is_flag=True, help="Only what is known without opening the device.")
def command(frame: Frame, wanted: tuple[str, ...], no_open: bool) -> None:
    """Show what devices say of themselves.

    A card is never opened for this, since opening resets it; an emulated device is, unless somebody else uses it.
    """
    for device in queried(wanted):
        try:
            entry = _entry(device, no_open)
        except (NpuError, Failure) as error:
            frame.fail(error, device.address)
            continue
        frame.add(entry)
        _show(frame, entry)


def _entry(device: DeviceInfo, no_open: bool) -> dict[str, Any]:
    closed = {**facts(device), "opened": False, "opened_with_reset": False, "errors_logged": None}
    if no_open or device.holder or not device.address.startswith("vfio-user:"):
        return closed
    try:
        with open_named(device.address) as opened:
            entry = {**facts(opened.info), "pid": device.pid, "opened": True, "opened_with_reset": True}
            return {**entry, "errors_logged": len(opened.errors())}
    except DeviceBusy as busy:
        return {**closed, "holder": holder_facts(busy.holder)}


def _show(frame: Frame, entry: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in entry.items():
        table.add_row(key, _shown(value))
    frame.console.print(table)
    frame.say()


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):  # the holder
        return f"PID {value['pid']} since {value['since']}: {value['command']}"
    return str(value)
