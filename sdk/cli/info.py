"""`npuctl info`: everything a device says of itself."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from driver_shim.cards.holder import canonical_address
from driver_shim.errors import DeviceBusy
from driver_shim.function.pre_open import PreOpenRecord, saved_pre_open
from driver_shim.shared.runtime_folder import Holder
from driver_shim.transport.usb_ports import PREFIX as DEBUG_PORT_SCHEME
from sdk.cli.device_facts import facts
from sdk.cli.device_selection import device_option, open_named, queried
from sdk.cli.exit_codes import Failure
from sdk.cli.firmware_facts import boot_facts, sensor_facts
from sdk.cli.frame import Frame, holder_facts, rfc3339
from sdk.cli.verb import verb
from sdk.errors import NpuError
from sdk.opening.listing import DeviceInfo

_OPENED = ("vfio-user:", DEBUG_PORT_SCHEME)
"""Devices that are opened for this."""


@verb("info")
@device_option
@click.option("--no-open", is_flag=True, help="Only what is known without opening the device.")
def command(frame: Frame, wanted: tuple[str, ...], no_open: bool) -> None:
    """Show what devices say of themselves.

    A card is never opened for this, since opening resets it; an emulated device is, unless somebody else uses it. A
    debug port is opened, which resets nothing.
    """
    for device in queried(wanted, frame):
        try:
            entry = _entry(device, no_open)
        except (NpuError, Failure) as error:
            frame.fail(error, device.address)
            continue
        frame.add(entry)
        _show(frame, entry, device.holder)


def _entry(device: DeviceInfo, no_open: bool) -> dict[str, Any]:
    found = _found(saved_pre_open(canonical_address(device.address)))
    closed = {
        **facts(device),
        **boot_facts(None),
        "sensors": None,
        "opened": False,
        "opened_with_reset": False,
        "errors_logged": None,
        "pre_open": found,
    }
    if no_open or device.holder or not device.address.startswith(_OPENED):
        return closed
    try:
        with open_named(device.address) as opened:
            known = {**facts(opened.info), **boot_facts(opened.info.boot), "sensors": sensor_facts(opened.sensors())}
            entry = {
                **known,
                "pid": device.pid,
                "debug_port": device.debug_port,
                "opened": True,
                "opened_with_reset": opened._function.transport.resets_on_open,
            }
            found = _found(opened.info.pre_open)
            logged = len(opened.errors()) if opened._function.transport.has_dma else None
            return {**entry, "errors_logged": logged, "pre_open": found}
    except DeviceBusy as busy:
        return {**closed, "holder": holder_facts(busy.holder)}


def _found(record: PreOpenRecord | None) -> dict[str, Any] | None:
    """What the device showed when it was last opened, before that changed anything."""
    if record is None:
        return None
    return {
        "time": rfc3339(record.time),
        "reset_causes": list(record.reset_causes),
        "faults": list(record.faults),
        "fault_count": record.fault_count,
        "black_box": record.black_box,
    }


def _show(frame: Frame, entry: dict[str, Any], holder: Holder | None = None) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")  # addresses are to be copied, so never shortened
    for key, value in entry.items():
        text = _text(value)
        if text is not None:
            table.add_row(key, text)
    frame.console.print(table)
    if holder is not None and holder.elsewhere:
        frame.say(f"its holder is {holder.shown_pid}")
    frame.say()


def _text(value: Any) -> str | None:
    """A value for people, lists without brackets; None for what does not apply to this device or is not known."""
    if value is None:
        return None
    if isinstance(value, dict):
        parts = {key.replace("_", " "): _text(part) for key, part in value.items()}
        return "\n".join(f"{key}: {part}" for key, part in parts.items() if part is not None) or None
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
