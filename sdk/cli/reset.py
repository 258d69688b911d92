"""`npuctl reset`: bring devices back to a known state."""

from __future__ import annotations

import time

import click

from sdk.cli.device_selection import OPENED_WITH_RESET, changed, confirm, device_option, open_named
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame
from sdk.cli.verb import verb
from sdk.errors import NpuError


@verb("reset", changes=True)
@device_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(frame: Frame, wanted: tuple[str, ...], yes: bool) -> None:
    """Reset devices. A device that somebody uses is left alone (exit 1)."""
    devices = changed(wanted)
    confirm(f"Reset {', '.join(device.address for device in devices)}?", yes)
    for device in devices:
        try:
            with open_named(device.address) as opened:
                with_reset = opened._function.transport.resets_on_open
                began = time.monotonic()
                opened.reset()
                seconds = time.monotonic() - began
        except (NpuError, Failure) as error:
            frame.fail(error, device.address)
            continue
        frame.add({"address": device.address, "opened_with_reset": with_reset, "wall_reset_seconds": seconds})
        frame.say(f"{device.address}: reset in {seconds * 1000:.1f} ms (wall)")
        if with_reset:
            frame.say(f"{device.address}: {OPENED_WITH_RESET}")
