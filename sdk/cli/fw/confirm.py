"""`npuctl fw confirm`: keep the image that runs on trial."""

from __future__ import annotations

import click

from driver_shim.errors import FirmwareError
from driver_shim.firmware.calls import Firmware
from sdk.cli.device_selection import changed, confirm, device_option, open_core, require_unheld
from sdk.cli.exit_codes import Failure
from sdk.cli.firmware_facts import running_facts
from sdk.cli.frame import Frame
from sdk.cli.verb import verb
from sdk.errors import NpuError


@verb("fw confirm", changes=True)
@device_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(frame: Frame, wanted: tuple[str, ...], yes: bool) -> None:
    """Keep the firmware that runs on trial: without that, the next reset falls back.

    Where nothing is on trial there is nothing to do (exit 0).
    """
    for device in changed(wanted):
        try:
            require_unheld(device.address)
            with open_core(device.address) as opened:
                done = _confirm(frame, device.address, opened.firmware, yes)
                entry = {"address": device.address, "opened_with_reset": opened.opened_with_reset}
                frame.add({**entry, "changed": done, "firmware": running_facts(opened.firmware.info())})
        except (NpuError, Failure) as error:
            frame.fail(error, device.address)


def _confirm(frame: Frame, address: str, firmware: Firmware, yes: bool) -> bool:
    """Whether anything was to be done. Raises FirmwareError, Failure."""
    info = firmware.info()
    if not info.on_trial:
        frame.say(f"{address}: {info.version} is not on trial; nothing to do")
        return False
    confirm(f"Keep {info.version} in slot {info.slot.name} of {address} from now on?", yes)
    firmware.confirm()
    if firmware.info().on_trial:
        raise FirmwareError(
            f"{address}: the firmware says that it is confirmed, and is still on trial",
            device=address,
            subsystem="firmware",
            remedy="see npuctl fw log; its flash may be worn out",
            code="not-confirmed",
        )
    frame.say(f"{address}: {info.version} in slot {info.slot.name} is confirmed")
    return True
