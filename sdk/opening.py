"""The composition root: turns an address into a transport, and is the only module that names concrete ones."""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

from driver_shim import holder, timeouts
from driver_shim.discovery import find_cards
from driver_shim.errors import DeviceLost, DeviceNotFound, NpuError, Timeout, UnsupportedPlatform
from driver_shim.transport.base import Transport
from driver_shim.transport.vfio import VfioTransport
from driver_shim.transport.vfio_user import VfioUserTransport
from emulator.model.profile import profile_names
from sdk import environment
from sdk.errors import EmulatorFallbackWarning

if TYPE_CHECKING:
    from sdk.private_emulator import PrivateEmulator

KERNELS = ("auto", "numpy", "golden")
_warned = False
"""Whether this process was told that it uses an emulator for want of a card."""
_MACHINES = ("x86_64", "aarch64")
_FORMS = '"emulator", "emulator:PROFILE?kernels=auto|numpy|golden", "vfio-user:SOCKET-PATH" or "pci:0000:03:00.0"'


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
        chosen = _fall_back(environment.strict() if strict is None else strict)
    scheme, _, rest = chosen.partition(":")
    if scheme == "emulator":
        return _open_private(parse_emulator(rest), timeout_s)
    if scheme == "vfio-user" and rest:
        limit_s = min(timeout_s, timeouts.MESSAGE_S)
        return _open_claimed(chosen, when_busy, deadline, lambda: VfioUserTransport.connect(rest, timeout=limit_s))
    if scheme == "pci" and rest:
        return _open_claimed(chosen, when_busy, deadline, lambda: VfioTransport(rest))
    raise ValueError(f"device address {chosen!r} is not understood; use {_FORMS}")


def require_platform() -> None:
    """Raise UnsupportedPlatform except on Linux, x86-64 or AArch64, little-endian."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES or sys.byteorder != "little":
        raise UnsupportedPlatform(
            f"devices can be used on Linux x86-64 and AArch64; this is {sys.platform} {machine}",
            remedy="run this program on such a machine",
        )


def parse_emulator(rest: str) -> EmulatorAddress:
    """What follows "emulator:". Raises ValueError naming what is accepted."""
    profile, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    kernels = options.pop("kernels", "auto")
    if options or kernels not in KERNELS:
        wrong = next(iter(options), f"kernels={kernels}")
        raise ValueError(f"emulator option {wrong!r} is not understood; use kernels={'|'.join(KERNELS)}")
    profile = profile or environment.profile()
    if profile not in profile_names():
        raise ValueError(f"unknown profile {profile!r}; there are: {', '.join(profile_names())}")
    return EmulatorAddress(profile, kernels)


def _fall_back(strict: bool) -> str:
    """The address to use when none was named: an emulator, but never in place of a card that is there."""
    cards = find_cards()
    if cards:
        raise DeviceNotFound(
            f"there is a card at {cards[0].bus_address}, which this version cannot drive",
            remedy='name an emulator to use one instead: sdk.Device("emulator")',
        )
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
    from sdk.private_emulator import PrivateEmulator  # needs subprocess, which is slow to import

    emulator = PrivateEmulator(address.profile, address.kernels)
    name = f"emulator:{address.profile}"
    try:
        transport = VfioUserTransport.from_socket(
            emulator.socket, address=name, timeout=min(timeout_s, timeouts.EMULATOR_START_S)
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
