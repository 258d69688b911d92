"""`npuctl fw recover`: write firmware through the USB debug port, whether or not the device boots."""

from __future__ import annotations

from pathlib import Path

import click

from driver_shim.protocol.firmware_slots import Slot
from driver_shim.transport.usb_ports import PREFIX
from firmware_tools.dfu import RecoveryLink, RecoveryRefused
from sdk.cli import timeouts
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.frame import Frame
from sdk.cli.fw.options import image_argument, read_image
from sdk.cli.verb import verb

SLOTS = {"A": Slot.A, "B": Slot.B}


@verb("fw recover", limit_s=timeouts.RECOVER_S, changes=True)
@image_argument
@click.option("-d", "--device", "wanted", required=True, metavar="usb:SERIAL", help="The debug port.")
@click.option("--slot", type=click.Choice(list(SLOTS)), default="A", show_default=True, help="Where to write it.")
@click.option("--stay", is_flag=True, help="Leave the device in recovery instead of booting the image.")
def command(frame: Frame, image: Path, wanted: str, slot: str, stay: bool) -> None:
    """Write IMAGE to a slot of a device that does not boot, and boot it.

    A device whose firmware runs is sent into recovery first. The device verifies the image before it writes anything;
    what it refuses ends with exit code 5, and a device that ran runs again.
    """
    if not wanted.startswith(PREFIX) or wanted == PREFIX:
        raise click.UsageError(f"-d {wanted}: firmware is recovered through a debug port, usb:SERIAL")
    data = read_image(image).data
    with RecoveryLink(wanted.removeprefix(PREFIX)) as link:
        booted = not link.in_recovery
        try:
            link.enter_recovery()
            _download(link, SLOTS[slot], data, booted)
        except KeyboardInterrupt:
            raise _interrupted(wanted, slot) from None
        if not stay:
            link.leave_recovery()
    frame.add({"address": wanted, "slot": slot, "image_bytes": len(data), "booted_before": booted, "booted": not stay})
    frame.say(f"{wanted}: {len(data):,} bytes written to slot {slot}" + ("" if stay else "; the device has booted"))


def _download(link: RecoveryLink, slot: Slot, data: bytes, booted: bool) -> None:
    try:
        link.download(slot, data)
    except RecoveryRefused as error:
        if booted:
            link.leave_recovery()
        raise Failure(str(error), ExitCode.UNHEALTHY, slug=error.code) from error


def _interrupted(address: str, slot: str) -> Failure:
    return Failure(
        f"interrupted; the device may be left in recovery, and slot {slot} incomplete: the same command goes on, and"
        f" npuctl regs -d {address} --unsafe core_control=2 boots what the slots hold",
        ExitCode.INTERRUPTED,
        slug="interrupted",
    )
