"""Which devices a verb works on: the rules of `-d`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from driver_shim.errors import DeviceNotFound
from driver_shim.holder import holder_of
from sdk import environment
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.info import CARD_SCHEMES, DeviceInfo, card_at, list_devices, served_devices

if TYPE_CHECKING:
    from sdk.cli.frame import Frame
    from sdk.device import Device

ALL = "all"
_SOCKET = "vfio-user:"


def device_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-d`, repeatable."""
    return click.option(
        "-d", "--device", "wanted", multiple=True, metavar="DEVICE", help="Address, serial or “all”; repeatable."
    )(function)


def queried(wanted: Sequence[str]) -> list[DeviceInfo]:
    """What a query speaks of: the named devices, else all. Raises DeviceNotFound, click.UsageError."""
    named = list(wanted) or _from_environment()
    if not named or ALL in named:
        there = list_devices()
        if not there:
            raise DeviceNotFound(
                "there is no device on this machine", remedy="serve one: npuctl emulate --socket PATH, then -d"
            )
        others = [_named(name) for name in dict.fromkeys(named) if name != ALL]
        return there + [device for device in others if device not in there]
    return [_named(name) for name in dict.fromkeys(named)]


def changed(wanted: Sequence[str]) -> list[DeviceInfo]:
    """What a verb that changes something works on: as a query, but one of several must be named."""
    devices = queried(wanted)
    if not wanted and not _from_environment() and len(devices) > 1:
        names = ", ".join(device.address for device in devices)
        raise click.UsageError(f"there are {len(devices)} devices ({names}); name one with -d, or -d all")
    return devices


def confirm(question: str, yes: bool) -> None:
    """Ask before changing something. Raises Failure on a no, click.UsageError where there is no terminal to ask on."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to ask on; say --yes.")
    if not click.confirm(question, err=True):
        raise Failure("nothing was changed")


def open_named(address: str) -> Device:
    """Open the device at an address. Raises as `sdk.Device`; Failure (usage) for an address it cannot open."""
    import sdk

    try:
        return sdk.Device(address)
    except ValueError as error:
        if isinstance(error, sdk.NpuError):
            raise
        raise Failure(str(error), ExitCode.USAGE, slug="usage") from error


def open_for_work(wanted: Sequence[str], frame: Frame) -> Device:
    """The one device a verb computes on; may start a private emulator. Says which it is. Raises as `sdk.Device`."""
    import sdk

    if len(wanted) > 1 or ALL in wanted:
        raise click.UsageError("this verb works on one device; name one with -d")
    address = wanted[0] if wanted else None
    if address is not None and not address.startswith(("emulator", _SOCKET)):
        address = _named(address).address
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sdk.EmulatorFallbackWarning)  # the line below says it
        try:
            device = sdk.Device(address)
        except ValueError as error:
            if isinstance(error, sdk.NpuError):
                raise
            raise click.UsageError(str(error)) from error
    private = device.info.emulated and device.info.pid is not None
    frame.note(f"using {device.info.name} at {device.address}" + (", started for this run" if private else ""))
    return device


def _from_environment() -> list[str]:
    address = environment.device_address()
    return [address] if address else []


def _named(name: str) -> DeviceInfo:
    """The device with this address, hidden by `NPU_VISIBLE_DEVICES` or not, or with this serial among the visible."""
    if name.startswith("emulator"):
        raise click.UsageError(f"{name!r}: only run, bench and demo start an emulator; serve one with npuctl emulate")
    if name.startswith(CARD_SCHEMES):
        found = card_at(name)
    elif name.startswith(_SOCKET):  # may be served elsewhere, or published in a folder that we do not look into
        published = (device for device in served_devices() if device.address == name)
        found = next(published, DeviceInfo(name="NPU", address=name, holder=holder_of(name)))
    else:
        found = next((device for device in list_devices() if device.serial == name), None)
    if found is None:
        known = ", ".join(device.address for device in list_devices()) or "none"
        raise DeviceNotFound(f"no device has the address or serial {name!r}; there are: {known}")
    return found
