"""`npuctl fw rollback`: return to the firmware in the other slot."""

from __future__ import annotations

from typing import Any

import click

from driver_shim.errors import FirmwareError
from driver_shim.firmware.mailbox import refused
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.mailbox import MailboxResult
from firmware_tools.activation import activate
from firmware_tools.flash_plan import DeviceState, read_state
from sdk.cli.device_selection import changed, confirm, device_option, open_core, require_unheld
from sdk.cli.exit_codes import Failure
from sdk.cli.firmware_facts import slot_facts
from sdk.cli.frame import Frame
from sdk.cli.fw.activation_report import activation_facts, activation_text, verdict_on_image
from sdk.cli.verb import verb
from sdk.errors import NpuError
from sdk.opening.management import Management


@verb("fw rollback", changes=True)
@device_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--activate", "and_activate", is_flag=True, help="Reset the core then, and tell what came up.")
def command(frame: Frame, wanted: tuple[str, ...], yes: bool, and_activate: bool) -> None:
    """Have the other slot's firmware run from the next reset of the core on.

    Where the other slot's firmware was flashed and is yet to be tried, its trial is withdrawn: what runs stays, and no
    reset is needed.

    Refused (exit 1) where the other slot holds nothing that boots, an image that failed its trial or was never
    confirmed, or one whose security counter is below the device's. Exits 5 when --activate finds that another image
    came up.
    """
    for device in changed(wanted):
        try:
            require_unheld(device.address)
            with open_core(device.address) as opened:
                _roll_back(frame, device.address, opened, yes, and_activate)
        except (NpuError, Failure) as error:
            frame.fail(verdict_on_image(error), device.address)


def _reason_against(state: DeviceState) -> MailboxResult | None:
    """Why the firmware would refuse to return to the other slot, which makes asking anybody pointless."""
    there = state.slot(state.target)
    if there.result == MailboxResult.ROLLED_BACK:
        return MailboxResult.ROLLED_BACK
    if state.running is Slot.NONE or not there.valid:
        return MailboxResult.NO_OTHER_IMAGE
    return MailboxResult.UNTRIED if there.failed or not there.proven else None


def _roll_back(frame: Frame, address: str, opened: Management, yes: bool, and_activate: bool) -> None:
    before = read_state(opened.firmware)
    if before.running is not Slot.NONE and before.pending is not Slot.NONE:
        _withdraw(frame, address, opened, before, yes)
    else:
        _return(frame, address, opened, before, yes, and_activate)


def _withdraw(frame: Frame, address: str, opened: Management, before: DeviceState, yes: bool) -> None:
    """The trial of the other slot has not begun: end it before it does."""
    waiting = before.slot(before.pending)
    version = None if waiting.empty else str(waiting.version)
    trial = f"the trial of {version or 'what was'} in slot {waiting.slot.name}"
    confirm(f"Withdraw {trial} of {address}, so that {before.version} stays?", yes)
    opened.firmware.rollback()
    after = read_state(opened.firmware)
    if after.pending is not Slot.NONE or after.running is not before.running:
        raise FirmwareError(
            f"{address}: the firmware says that it has withdrawn {trial}, and that is not so",
            device=address,
            subsystem="firmware",
            remedy="see npuctl fw info and npuctl fw log; the core may have been reset meanwhile",
            code="not-withdrawn",
        )
    frame.add(
        {
            **_facts(address, opened, before, str(before.version), before.running),
            "withdrawn_trial": {"slot": waiting.slot.name, "version": version},
            "slots": [slot_facts(slot) for slot in after.slots],
        }
    )
    frame.say(f"{address}:")
    frame.say(f"  {trial} is withdrawn: {before.version} stays")


def _return(frame: Frame, address: str, opened: Management, before: DeviceState, yes: bool, and_activate: bool) -> None:
    """Have the image in the other slot run next."""
    firmware = opened.firmware
    against = _reason_against(before)
    if against is not None:
        raise refused(address, "rollback", against)
    there = before.slot(before.target)
    confirm(f"Return from {before.version} to {there.version} in slot {there.slot.name} of {address}?", yes)
    firmware.rollback()
    entry = _facts(address, opened, before, str(there.version), there.slot)
    frame.add(entry)
    if and_activate:
        found = activate(firmware, there.slot, there.version, before.boots)
        entry["activation"] = activation_facts(found)
        frame.say(f"{address}: {activation_text(found)}")
    else:
        frame.say(f"{address}: {there.version} in slot {there.slot.name} runs from the next reset of the core on")
    entry["slots"] = [slot_facts(slot) for slot in read_state(firmware).slots]


def _facts(address: str, opened: Management, before: DeviceState, to_version: str, to_slot: Slot) -> dict[str, Any]:
    """What runs, and what runs from the next reset on."""
    return {
        "address": address,
        "opened_with_reset": opened.opened_with_reset,
        "from_version": str(before.version),
        "to_version": to_version,
        "to_slot": to_slot.name,
        "withdrawn_trial": None,
        "activation": None,
    }
