"""The devices that a verb works on: the rules of `-d`."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from driver_shim.cards.discovery import parse_bus_address
from driver_shim.cards.holder import holder_of
from driver_shim.cards.pci_sysfs import PCI_SCHEME
from driver_shim.errors import DeviceBusy, DeviceNotFound, NpuError
from driver_shim.transport.usb_ports import PREFIX as DEBUG_PORT_SCHEME
from sdk import environment
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.opening.listing import CARD_SCHEMES, SYSFS_SCHEME, DeviceInfo, card_at, listing, served_devices

if TYPE_CHECKING:
    from sdk.cli.frame import Frame
    from sdk.device import Device
    from sdk.opening.management import Management

ALL = "all"
OPENED_WITH_RESET = "opened with a reset"
"""What verbs say of a device where opening it did that."""
_SOCKET = "vfio-user:"


def device_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-d`, repeatable."""
    return click.option(
        "-d", "--device", "wanted", multiple=True, metavar="DEVICE", help="Address, serial or “all”; repeatable."
    )(function)


def queried(wanted: Sequence[str], frame: Frame | None = None) -> list[DeviceInfo]:
    """What a query speaks of: the named devices, else all. Raises DeviceNotFound, click.UsageError.

    With a frame, entries of `NPU_VISIBLE_DEVICES` that fit nothing and sockets that nobody serves are reported there,
    and the rest is returned.
    """
    found = all_or_named(list(wanted) or _from_environment() or (ALL,), lambda: _all(frame), _named)
    return found if frame is None else [device for device in found if _is_there(device, frame)]


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


def require_unheld(address: str) -> None:
    """Looking at a card through sysfs disturbs nobody and is not kept from anyone; writing would. Raises DeviceBusy."""
    if not address.startswith(SYSFS_SCHEME):
        return  # who opens it becomes its holder
    holder = holder_of(PCI_SCHEME + address.removeprefix(SYSFS_SCHEME))
    if holder is not None:
        raise DeviceBusy(
            f"{address} is left alone: it is held by {holder}",
            device=address,
            subsystem="holder",
            remedy="end that process first",
            holder=holder,
        )


def open_named(address: str) -> Device:
    """Open the device at an address. Raises as `sdk.Device`; Failure (usage) for an address it cannot open."""
    import sdk

    with _usage_errors():
        return sdk.Device(address)


@contextmanager
def open_core(address: str) -> Iterator[Management]:
    """The management core of the device at an address. Raises as `open_named`."""
    from sdk.opening.management import open_management

    with ExitStack() as stack:
        with _usage_errors():
            opened = stack.enter_context(open_management(address))
        yield opened


@contextmanager
def _usage_errors() -> Iterator[None]:
    """An address that cannot be read is a wrong call of the tool: Failure (usage) for ValueError."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, NpuError):
            raise
        raise Failure(str(error), ExitCode.USAGE, slug="usage") from error


def no_open_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--no-open`, for verbs that cannot do without opening: it refuses."""
    return click.option(
        "--no-open",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_refuse_no_open,
        help="Refuse to open (opening resets a device's function, except as sysfs:ADDRESS).",
    )(function)


def _refuse_no_open(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        raise click.UsageError(
            "the management core cannot be asked without opening the device; -d sysfs:ADDRESS opens a card without"
            " resetting it",
            context,
        )


def open_for_work(wanted: Sequence[str], frame: Frame) -> Device:
    """The one device a verb computes on; may start a private emulator. Says which it is. Raises as `sdk.Device`."""
    import sdk

    if len(wanted) > 1 or ALL in wanted:
        raise click.UsageError("this verb works on one device; name one with -d")
    address = wanted[0] if wanted else None
    if address is not None and (address == _SOCKET or not address.startswith(("emulator", _SOCKET))):
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


def open_for_comparison(wanted: Sequence[str], frame: Frame) -> Device:
    """As `open_for_work`, for results that are compared with onnxruntime's: a private emulator computes without it.

    A device that was named is taken as it is; where its kernels may be onnxruntime's, that is said.
    """
    import sdk

    device = open_for_work(wanted, frame)
    info = device.info
    if info.kernels != "auto":
        return device
    if wanted or info.pid is None:
        frame.note("its kernels are “auto”: onnxruntime's may be among them, and agree with themselves")
        return device
    device.close()
    return sdk.Device(f"emulator:{info.profile}?kernels=numpy")


def all_or_named(
    wanted: Sequence[str], everything: Callable[[], list[DeviceInfo]], named: Callable[[str], DeviceInfo]
) -> list[DeviceInfo]:
    """What names stand for, each device once: “all” for `everything()`, which comes first, others for `named(name)`."""
    found = everything() if ALL in wanted else []
    found = found + [named(name) for name in wanted if name != ALL]
    return list({device.address: device for device in found}.values())


def card_called(name: str) -> DeviceInfo | None:
    """The card with this address or bus address, visible or not, or with this serial among the visible devices."""
    scheme = next((scheme for scheme in CARD_SCHEMES if name.startswith(scheme)), None)
    if scheme is not None:
        return card_at(name)
    if parse_bus_address(name) is not None:
        return card_at(PCI_SCHEME + name)
    return next((device for device in listing()[0] if device.serial == name), None)


def no_such_device(name: str, kind: str = "device") -> DeviceNotFound:
    """The error for a name that nothing has, with the names that there are."""
    there = [device.address for device in listing()[0]]
    known = ", ".join(address for address in there if kind == "device" or address.startswith(PCI_SCHEME)) or "none"
    return DeviceNotFound(f"no {kind} has the address or serial {name!r}; there are: {known}", device=name)


def _all(frame: Frame | None) -> list[DeviceInfo]:
    there, wrong = listing()
    for entry, error in wrong.items():
        if frame is None:
            raise error
        frame.fail(error, entry)
    if not there and not wrong:
        raise DeviceNotFound("there is no device on this machine", remedy="serve one: npuctl emulate")
    return there


def _from_environment() -> list[str]:
    address = environment.device_address()
    return [address] if address else []


def _named(name: str) -> DeviceInfo:
    """The device with this address or bus address, visible or not, or with this serial among the visible."""
    if name.startswith("emulator"):
        raise click.UsageError(
            f"{name!r}: only run, chat, bench and demo start an emulator; serve one with npuctl emulate"
        )
    if name == _SOCKET:
        raise click.UsageError(f"{name!r} names no socket; write {_SOCKET}PATH")
    if name.startswith(_SOCKET):  # may be served elsewhere, or published in a folder that we do not look into
        published = (device for device in served_devices() if device.address == name)
        return next(published, DeviceInfo(name="NPU", address=name, holder=holder_of(name)))
    if name.startswith(DEBUG_PORT_SCHEME):  # opening it will tell whether it is there
        return DeviceInfo(name="NPU", address=name, serial=name.removeprefix(DEBUG_PORT_SCHEME))
    found = card_called(name)
    if found is None:
        raise no_such_device(name)
    return found


def _is_there(device: DeviceInfo, frame: Frame) -> bool:
    """Report an unpublished socket that nobody can be serving: verbs that do not open a device would not notice."""
    if not device.address.startswith(_SOCKET) or device.pid is not None:
        return True
    path = device.address.removeprefix(_SOCKET)
    try:
        why = None if stat.S_ISSOCK(os.stat(path).st_mode) else "it is no socket"
    except (FileNotFoundError, NotADirectoryError) as error:
        why = error.strerror
    except (OSError, ValueError):  # says nothing of the socket; opening it will say more
        why = None
    if why is not None:
        what = f"{device.address}: nobody serves a device there: {why}"
        frame.fail(DeviceNotFound(what, remedy=f"serve it: npuctl emulate --socket {path}"), device.address)
    return why is None
