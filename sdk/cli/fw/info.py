"""`npuctl fw info`: which firmware runs, and what the slots hold."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.table import Table

from driver_shim.errors import FirmwareError
from driver_shim.firmware.answers import FirmwareInfo, SlotInfo
from driver_shim.firmware.calls import Firmware
from driver_shim.firmware.core_state import BootProgress, read_boot_progress
from driver_shim.protocol.firmware_slots import Slot
from sdk.cli.device_selection import OPENED_WITH_RESET, device_option, no_open_option, open_core, queried
from sdk.cli.exit_codes import Failure
from sdk.cli.firmware_facts import boot_facts, running_facts, slot_facts, slot_state, update_facts
from sdk.cli.frame import Frame
from sdk.cli.verb import verb
from sdk.errors import NpuError
from sdk.opening.management import Management

WIDTH = 80
INDENT = 20
_BUSY = "busy"


@verb("fw info")
@device_option
@no_open_option
def command(frame: Frame, wanted: tuple[str, ...]) -> None:
    """Show which firmware runs and what both slots hold.

    Opens the device; that resets its function (not the core), except as sysfs:ADDRESS.
    """
    for device in queried(wanted, frame):
        try:
            with open_core(device.address) as opened:
                _one_device(frame, device.address, opened)
        except (NpuError, Failure) as error:
            frame.fail(error, device.address)


def _one_device(frame: Frame, address: str, opened: Management) -> None:
    progress = read_boot_progress(opened.registers)
    entry = {"address": address, "opened_with_reset": opened.opened_with_reset, **boot_facts(progress)}
    frame.say(address + (f" ({OPENED_WITH_RESET})" if opened.opened_with_reset else ""))
    _row(frame, "boot progress", _progress_text(progress))
    if progress.explanation is not None:
        frame.add({**entry, "firmware": None, "slots": None, "update": None})
        _row(frame, "firmware", f"none: {progress.explanation.why}")
        frame.say(f"      → {progress.explanation.remedy}")
        frame.say()
        return
    info, status = opened.firmware.info(), opened.firmware.update_status()
    slots = _slots(opened.firmware)
    frame.add(
        {
            **entry,
            "firmware": running_facts(info),
            "security_counter": info.security_counter,
            "hardware_id": f"{info.hardware_id:#010x}",
            "slots": None if slots is None else [slot_facts(slot) for slot in slots],
            "update": update_facts(status),
        }
    )
    _show(frame, info, slots)
    if status.going_on:
        _row(frame, "update", f"{status.state.name.lower()}: {status.done_bytes:,} of {status.total_bytes:,} bytes")
    frame.say()


def _slots(firmware: Firmware) -> list[SlotInfo] | None:
    """Both; None while an update has the means to look at them."""
    try:
        return [firmware.slot_info(slot) for slot in (Slot.A, Slot.B)]
    except FirmwareError as error:
        if error.code != _BUSY:
            raise
        return None


def _show(frame: Frame, info: FirmwareInfo, slots: list[SlotInfo] | None) -> None:
    where = f"slot {info.slot.name}" if info.slot else "loaded from outside"
    _row(frame, "firmware", f"{info.version}, {where}, build {info.build_id:08x}")
    if info.on_trial:
        fate = "unless it is confirmed (npuctl fw confirm), the next reset of the core falls back to the other slot"
        _row(frame, "", f"on trial: {fate}")
    _row(frame, "security counter", str(info.security_counter))
    _row(frame, "hardware id", f"{info.hardware_id:#010x}")
    _row(frame, "core resets", f"{info.boots} since power-on; up for {info.uptime_seconds:,.1f} s (device)")
    if slots is None:
        _row(frame, "slots", "an update is at work on them")
        return
    frame.console.print(slot_table(info, slots))


def slot_table(info: FirmwareInfo, slots: list[SlotInfo]) -> Table:
    """Both slots within 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("slot")
    table.add_column("version")
    table.add_column("bytes", justify="right")
    table.add_column("counter", justify="right")
    table.add_column("hash", no_wrap=True)
    table.add_column("state")
    for slot in slots:
        facts: list[Any] = ["-"] * 4
        if not slot.empty:
            facts = [slot.version, f"{slot.image_bytes:,}", slot.security_counter, slot.hash.hex()[:8] + "…"]
        table.add_row(slot.slot.name, *map(str, facts), slot_state(slot, info.slot, info.on_trial))
    return table


def _progress_text(progress: BootProgress) -> str:
    reason = f", last reset: {progress.boot_reason}" if progress.boot_reason else ""
    return f"{progress.stage}{reason}"


def _row(frame: Frame, label: str, text: str) -> None:
    first, *more = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)
    frame.say(f"  {label}".ljust(INDENT) + first)
    for line in more:
        frame.say(" " * INDENT + line)
