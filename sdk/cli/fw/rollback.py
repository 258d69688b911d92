"""`npuctl fw rollback`: return to the firmware in the other slot."""

from __future__ import annotations

from typing import Any

import click

from driver_shim.firmware_answers import SlotInfo
from driver_shim.mailbox import refused
from driver_shim.protocol.mailbox import MailboxResult
from firmware_tools.activation import activate
from firmware_tools.flash_plan import read_state
from sdk.cli.device_selection import changed, confirm, device_option, require_unheld
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame
from sdk.cli.fw.device_facts import slot_facts
from sdk.cli.fw.flash import activation_facts, activation_text, verdict_on_image
from sdk.cli.management import Management, open_management
from sdk.cli.verb import verb
from sdk.errors import NpuError


@verb("fw rollback")
@device_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--activate", "and_activate", is_flag=True, help="Reset the core then, and tell what came up.")
def command(frame: Frame, wanted: tuple[str, ...], yes: bool, and_activate: bool) -> None:
    """Have the other slot's firmware run from the next reset of the core on.

    Refused (exit 1) where the other slot holds nothing that boots, an image whose trial failed or is still due, or one
    whose security counter is below the device's. Exits 5 when --activate finds that another image came up.
    """
    for device in changed(wanted):
        try:
            require_unheld(device.address)
            with open_management(device.address) as opened:
                _roll_back(frame, device.address, opened, yes, and_activate)
        except (NpuError, Failure) as error:
            frame.fail(verdict_on_image(error), device.address)


def _reason_against(there: SlotInfo) -> MailboxResult | None:
    """Why the firmware would refuse to return to a slot, which makes asking anybody pointless."""
    if there.result == MailboxResult.ROLLED_BACK:
        return MailboxResult.ROLLED_BACK
    if not there.valid:
        return MailboxResult.NO_OTHER_IMAGE
    return MailboxResult.UNTRIED if there.failed or there.trial else None


def _roll_back(frame: Frame, address: str, opened: Management, yes: bool, and_activate: bool) -> None:
    firmware = opened.firmware
    before = read_state(firmware)
    there = before.slot(before.target)
    against = _reason_against(there)
    if against is not None:
        raise refused(address, "rollback", against)
    confirm(f"Return from {before.version} to {there.version} in slot {there.slot.name} of {address}?", yes)
    firmware.rollback()
    entry: dict[str, Any] = {
        "address": address,
        "opened_with_reset": opened.opened_with_reset,
        "from_version": str(before.version),
        "to_version": str(there.version),
        "to_slot": there.slot.name,
        "activation": None,
    }
    frame.add(entry)
    if and_activate:
        found = activate(firmware, there.slot, there.version, before.boots)
        entry["activation"] = activation_facts(found)
        frame.say(f"{address}: {activation_text(found)}")
    else:
        frame.say(f"{address}: {there.version} in slot {there.slot.name} runs from the next reset of the core on")
    entry["slots"] = [slot_facts(slot) for slot in read_state(firmware).slots]
