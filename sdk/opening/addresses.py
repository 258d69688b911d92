"""The composition root: turns an address into a transport, and is the only module that names concrete ones."""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

from driver_shim import timeouts
from driver_shim.cards import holder
from driver_shim.cards.discovery import VFIO_DRIVER, PciCard, find_cards, parse_bus_address, select_cards
from driver_shim.errors import (
    DeviceBusy,
    DeviceLost,
    DeviceNotFound,
    NpuError,
    PermissionDenied,
    Timeout,
    UnsupportedPlatform,
)
from driver_shim.transport.base import Transport
from driver_shim.transport.sysfs import SysfsTransport
from driver_shim.transport.usb_ports import PREFIX
from driver_shim.transport.vfio import VfioTransport, wrong_driver
from driver_shim.transport.vfio_user import VfioUserTransport
from emulator.model.choices import CORES, KERNELS
from emulator.model.profile import load_profile, named_profile
from sdk import environment
from sdk.errors import EmulatorFallbackWarning

if TYPE_CHECKING:
    from sdk.opening.private_emulator import PrivateEmulator

_warned = False
"""Whether this process was told that it uses an emulator for want of a card."""
_MACHINES = ("x86_64", "aarch64")
_FORMS = (
    '"emulator", "emulator:PROFILE?kernels=auto|numpy|golden&core=auto|none", "vfio-user:SOCKET-PATH",'
    ' "pci:0000:03:00.0", "sysfs:0000:03:00.0", "usb:SERIAL" or "usb:SERIAL?force=yes"'
)


class Opened(NamedTuple):
    """A reachable function; if it is a private emulator the process to stop, else our claim on it."""

    transport: Transport
    emulator: PrivateEmulator | None = None
    claim: holder.Claim | None = None

    def let_go(self) -> None:
        """After the transport was closed: give up our claim, or end the emulator. Idempotent."""
        if self.claim is not None:
            self.claim.release()
        if self.emulator is not None:
            self.emulator.stop()


class EmulatorAddress(NamedTuple):
    """A parsed "emulator" address."""

    profile: str
    kernels: str
    core: str
    """Whether it has a management core: if it can, or "none"."""


def open_address(address: str | None, strict: bool | None, timeout_s: float, when_busy: str = "fail") -> Opened:
    """Open the device that `address` (or the environment, or the machine) names.

    `when_busy` is what to do while somebody else holds it: "fail", or "wait" in its line for up to `timeout_s`.
    Raises UnsupportedPlatform, DeviceNotFound, DeviceBusy, PermissionDenied, DeviceLost, Timeout, ValueError for an
    address or a `when_busy` that cannot be read.
    """
    holder.check_when_busy(when_busy)
    deadline = time.monotonic() + timeout_s
    require_platform()
    chosen = address if address is not None else environment.device_address()
    if chosen is None:
        cards = find_cards()
        visible = select_cards(cards, environment.visible_devices())
        if cards:
            return _first_free(visible, when_busy, deadline) if visible else _refuse_hidden(cards)
        chosen = _fall_back(environment.strict() if strict is None else strict)
    scheme, _, rest = chosen.partition(":")
    if scheme == "emulator":
        return _open_private(parse_emulator(rest), timeout_s)
    if scheme == "vfio-user" and rest:
        limit_s = min(timeout_s, timeouts.MESSAGE_S)
        return _open_claimed(chosen, when_busy, deadline, lambda: VfioUserTransport.connect(rest, timeout=limit_s))
    if scheme == "usb" and rest:
        return _open_debug_port(rest, when_busy, deadline, min(timeout_s, timeouts.USB_TRANSFER_S))
    bus_address = parse_bus_address(rest)
    if scheme == "pci" and bus_address:
        return _open_card(bus_address, when_busy, deadline)
    if scheme == "sysfs" and bus_address:
        return Opened(SysfsTransport(bus_address))
    raise ValueError(f"device address {chosen!r} is not understood; use {_FORMS}")


def _open_debug_port(rest: str, when_busy: str, deadline: float, limit_s: float) -> Opened:
    """What follows "usb:". A debug port has one host at a time, whoever has the function on PCI."""
    from driver_shim.transport.usb import UsbTransport  # few need it

    serial, _, query = rest.partition("?")
    if query not in ("", "force=yes"):
        raise ValueError(f"debug port option {query!r} is not understood; use force=yes")

    def opener() -> UsbTransport:
        return UsbTransport(serial, force=bool(query), timeout=limit_s)

    return _open_claimed(PREFIX + serial, when_busy, deadline, opener)


def require_platform() -> None:
    """Raise UnsupportedPlatform except on Linux, x86-64 or AArch64, little-endian."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES or sys.byteorder != "little":
        raise UnsupportedPlatform(
            f"devices can be used on Linux x86-64 and AArch64; this is {sys.platform} {machine}",
            remedy="run this program on such a machine",
        )


def parse_emulator(rest: str) -> EmulatorAddress:
    """What follows "emulator:". Raises ValueError naming what is accepted, OSError for a file that cannot be read."""
    profile, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    kernels, core = options.pop("kernels", "auto"), options.pop("core", "auto")
    if options or kernels not in KERNELS or core not in CORES:
        wrong = next(iter(options), f"kernels={kernels}" if kernels not in KERNELS else f"core={core}")
        accepted = f"kernels={'|'.join(KERNELS)} and core={'|'.join(CORES)}"
        raise ValueError(f"emulator option {wrong!r} is not understood; use {accepted}")
    profile = profile or environment.profile()
    load_profile(named_profile(profile))
    return EmulatorAddress(profile, kernels, core)


def _open_card(bus_address: str, when_busy: str, deadline: float) -> Opened:
    return _open_claimed(f"pci:{bus_address}", when_busy, deadline, lambda: VfioTransport(bus_address))


def _first_free(cards: Sequence[PciCard], when_busy: str, deadline: float) -> Opened:
    """The first card that opens. One that is held, or that may not be opened, is passed over for the next; one
    that fails otherwise is not, so that nobody overlooks it.

    When all are held, "wait" waits for the first of them. Raises what stood in the way, and DeviceBusy first: a card
    that is held may yet become free.
    """
    busy: list[DeviceBusy] = []
    denied: list[PermissionDenied] = []
    elsewhere: list[DeviceNotFound] = []
    for card in cards:
        if card.driver != VFIO_DRIVER:
            elsewhere.append(wrong_driver(f"pci:{card.bus_address}", card.driver))
            continue
        try:
            return _open_card(card.bus_address, "fail", deadline)
        except DeviceBusy as error:
            busy.append(error)
        except PermissionDenied as error:
            denied.append(error)
    if busy and when_busy == "wait":
        return _open_card(str(busy[0].device).removeprefix("pci:"), when_busy, deadline)
    if len(busy) > 1:
        addresses = [str(error.device) for error in busy]
        raise DeviceBusy(
            f"{', '.join(addresses)} are all in use",
            device=addresses[0],
            cause="; ".join(error.message for error in busy),
            remedy='end a process that uses one of them, or line up with when_busy="wait"',
        ) from busy[0]
    raise [*busy, *denied, *elsewhere][0]


def _refuse_hidden(cards: Sequence[PciCard]) -> Opened:
    """No card is visible, though there are some: an emulator would hide them once more. Raises DeviceNotFound."""
    raise DeviceNotFound(
        f"NPU_VISIBLE_DEVICES hides every card ({', '.join(card.bus_address for card in cards)})",
        remedy='let it name one, or name an emulator: sdk.Device("emulator")',
    )


def _fall_back(strict: bool) -> str:
    """The address to use when none was named and no card is on the bus."""
    if strict:
        raise DeviceNotFound(
            "no card is on the bus, and strict mode forbids falling back to an emulator",
            remedy='plug a card in, or name an emulator: sdk.Device("emulator")',
        )
    global _warned
    if not _warned:
        warnings.warn(
            'no card is on the bus; using a private emulator (name it to silence this: sdk.Device("emulator"))',
            EmulatorFallbackWarning,
            stacklevel=4,
        )
        _warned = True
    return "emulator"


def _open_claimed(address: str, when_busy: str, deadline: float, opener: Callable[[], Transport]) -> Opened:
    """Open a device that has one holder at a time, once we are it. `deadline` is in monotonic seconds."""
    claim = holder.claim(address, when_busy, deadline)
    try:
        return Opened(claim.open(opener), claim=claim)
    except BaseException:
        claim.release()
        raise


def _open_private(address: EmulatorAddress, timeout_s: float) -> Opened:
    from sdk.opening.private_emulator import PrivateEmulator  # needs subprocess, which is slow to import

    emulator = PrivateEmulator(address.profile, address.kernels, address.core)
    name = f"emulator:{address.profile}"
    try:
        transport = VfioUserTransport.from_socket(
            emulator.socket,
            address=name,
            timeout=min(timeout_s, timeouts.EMULATOR_START_S),
            peer_pid=emulator.pid,
        )
    except NpuError as error:
        code = emulator.exit_code()
        emulator.stop()
        if code is None:  # 0: it was running, and ended because we hung up; else it was just failing
            code = emulator.exit_code() or None
        raise _not_up(name, code, timeout_s, error) from error
    except BaseException:
        emulator.stop()
        raise
    return Opened(transport, emulator)


def _not_up(name: str, exit_code: int | None, timeout_s: float, error: NpuError) -> NpuError:
    """Why a private emulator could not be used: `exit_code` is None when it was still running."""
    if exit_code is None and timeout_s < timeouts.EMULATOR_START_S:
        return Timeout(
            f"the private emulator did not come up within {timeout_s:g} s",
            device=name,
            subsystem="emulator",
            cause=error.message,
            remedy="give Device(timeout=) or NPU_TIMEOUT more seconds",
        )
    return DeviceLost(
        f"the private emulator did not come up (exit code {exit_code}): {error.message}",
        device=name,
        subsystem="emulator",
        cause=error.message,
        remedy="what it printed on stderr says why",
    )
