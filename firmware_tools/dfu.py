"""Writing and reading of firmware slots through the debug port by DFU 1.1, whatever state the firmware is in.

A device whose firmware runs is sent into recovery first (DETACH), which takes it off USB for a moment.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from driver_shim import timeouts
from driver_shim.errors import DeviceBusy, DeviceLost, DeviceNotFound, NpuError, PermissionDenied, Timeout
from driver_shim.protocol import dfu
from driver_shim.protocol.debug_port import INTERFACE_DFU, SLOTS
from driver_shim.protocol.dfu import STATUS_REPLY, TRANSFER_BYTES, Request, State, Status
from driver_shim.protocol.firmware_slots import SLOT_BYTES, Slot
from driver_shim.protocol.usb import Direction, Recipient, RequestType
from driver_shim.transport.usb_ports import PREFIX, close_debug_port, open_debug_port, usb_errors

if TYPE_CHECKING:
    import usb.core

Progress = Callable[[int, int], None]
"""Told bytes done and bytes in all."""

_OUT = Direction.OUT | RequestType.CLASS | Recipient.INTERFACE
_IN = Direction.IN | RequestType.CLASS | Recipient.INTERFACE
_TIMEOUT_MS = int(timeouts.USB_TRANSFER_S * 1000)
_MS_PER_S = 1000
_NO_MANAGEMENT_CORE = "it has no management core, or that does not let go"


class RecoveryRefused(NpuError):
    """The device did not take an image, or does not go into recovery; `status` is what DFU says."""

    code = "recovery-refused"

    def __init__(self, message: str, *, status: Status | None = None, **details: str | None) -> None:
        super().__init__(message, **details)
        self.status = status


class DeviceStatus(NamedTuple):
    """What GETSTATUS answers."""

    status: int
    poll_s: float
    state: int
    text: str
    """The device's own words, if it has any."""


class RecoveryLink:
    """An open debug port whose DFU interface is used. Close it, or use it in a `with` statement."""

    def __init__(self, serial: str) -> None:
        """Open the debug port of the device with this serial number. Raises as `open_debug_port`."""
        self.serial = serial
        self.address = PREFIX + serial
        self._port: usb.core.Device = open_debug_port(serial)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the port back; idempotent."""
        close_debug_port(self._port)

    @property
    def in_recovery(self) -> bool:
        """Whether the device takes images now, as its descriptors say. Raises DeviceLost."""
        with usb_errors(self.address):
            (configuration,) = self._port
            kinds = [
                (setting.bInterfaceClass, setting.bInterfaceSubClass, setting.bInterfaceProtocol)
                for setting in configuration
            ]
        return (dfu.INTERFACE_CLASS, dfu.INTERFACE_SUBCLASS, dfu.PROTOCOL_DFU_MODE) in kinds

    def enter_recovery(self) -> None:
        """Have the device take images; it leaves USB and comes back, unless it does already.

        Raises RecoveryRefused, Timeout when it does not come back, and as the constructor.
        """
        if self.in_recovery:
            return
        try:
            self._send(Request.DETACH, value=dfu.DETACH_TIMEOUT_MS)
        except _Stalled:
            raise RecoveryRefused(
                f"{self.address} does not go into recovery: {_NO_MANAGEMENT_CORE}", device=self.address, subsystem="dfu"
            ) from None
        self._come_back(recovery=True)

    def download(self, slot: Slot, image: bytes, progress: Progress | None = None) -> None:
        """Write an image to a slot; the device verifies it first. It is in recovery still when this returns.

        Raises RecoveryRefused with the device's reason, Timeout, DeviceLost, ValueError for an impossible size.
        """
        if not 0 < len(image) <= SLOT_BYTES:
            raise ValueError(f"an image of {len(image)} bytes does not fit a slot of {SLOT_BYTES}")
        self._prepare(slot)
        for number, at in enumerate(range(0, len(image), TRANSFER_BYTES)):
            block = image[at : at + TRANSFER_BYTES]
            self._send(Request.DNLOAD, block, value=number % dfu.BLOCK_NUMBERS)
            self._wait_for(State.DNLOAD_IDLE, timeouts.DFU_BLOCK_S)
            if progress is not None:
                progress(at + len(block), len(image))
        try:
            self._send(Request.DNLOAD, value=-(-len(image) // TRANSFER_BYTES) % dfu.BLOCK_NUMBERS)
        except _Stalled:
            raise self._refused(self._status()) from None
        self._wait_for(State.IDLE, timeouts.DFU_MANIFEST_S)

    def upload(self, slot: Slot, progress: Progress | None = None) -> bytes:
        """Read the image in a slot; empty where there is none. Raises RecoveryRefused, Timeout, DeviceLost."""
        self._prepare(slot)
        image = bytearray()
        while len(image) <= SLOT_BYTES:
            block = self._ask(Request.UPLOAD, TRANSFER_BYTES, value=len(image) // TRANSFER_BYTES % dfu.BLOCK_NUMBERS)
            image += block
            if progress is not None:
                progress(len(image), len(image))
            if len(block) < TRANSFER_BYTES:
                return bytes(image)
        raise RecoveryRefused(f"{self.address} gives more than a slot holds", device=self.address, subsystem="dfu")

    def leave_recovery(self) -> None:
        """Reset the management core, so that it boots what the slots hold; returns when it runs.

        Raises Timeout when no slot boots: then it is in recovery still.
        """
        self._clear()
        self._send(Request.DETACH, value=dfu.DETACH_TIMEOUT_MS)
        self._come_back(recovery=False)

    # --- the protocol ------------------------------------------------------------------------------------------

    def _prepare(self, slot: Slot) -> None:
        """Choose a slot; whatever an earlier host left is cleared."""
        with usb_errors(self.address):
            self._port.set_interface_altsetting(INTERFACE_DFU, SLOTS.index(slot))
        self._clear()

    def _clear(self) -> None:
        """To IDLE, from whatever there was."""
        status = self._status()
        if status.state == State.ERROR:
            self._send(Request.CLRSTATUS)
        elif status.state != State.IDLE:
            self._send(Request.ABORT)

    def _wait_for(self, state: State, patience_s: float) -> None:
        """Poll as the device asks for. Raises RecoveryRefused, Timeout."""
        deadline = time.monotonic() + patience_s
        while True:
            found = self._status()
            if found.state == state:
                return
            if found.state == State.ERROR:
                raise self._refused(found)
            if time.monotonic() >= deadline:
                raise Timeout(
                    f"{self.address} is not done after {patience_s:g} s (DFU state {found.state})",
                    device=self.address,
                    subsystem="dfu",
                )
            time.sleep(min(found.poll_s, timeouts.DFU_LONGEST_POLL_S))

    def _status(self) -> DeviceStatus:
        data = self._ask(Request.GETSTATUS, STATUS_REPLY.size)
        if len(data) != STATUS_REPLY.size:
            raise RecoveryRefused(f"{self.address} answers GETSTATUS with {len(data)} bytes", device=self.address)
        found = STATUS_REPLY.parse(data)
        poll_s = int.from_bytes(found.bwPollTimeout, "little") / _MS_PER_S
        return DeviceStatus(found.bStatus, poll_s, found.bState, self._text(found.iString))

    def _text(self, number: int) -> str:
        import usb.util

        if not number:
            return ""
        try:
            with usb_errors(self.address):
                return usb.util.get_string(self._port, number) or ""
        except (OSError, ValueError) as error:  # a stall, or no languages: the status has to do
            if isinstance(error, NpuError):
                raise
            return ""

    def _refused(self, found: DeviceStatus) -> RecoveryRefused:
        status = Status(found.status) if found.status <= max(Status) else Status.ERR_UNKNOWN
        return RecoveryRefused(
            f"{self.address} refused it ({status.name}): {found.text or 'it does not say why'}",
            status=status,
            device=self.address,
            subsystem="dfu",
            cause=found.text or None,
        )

    def _send(self, request: Request, data: bytes = b"", value: int = 0) -> None:
        with _stalls(self.address, request), usb_errors(self.address):
            self._port.ctrl_transfer(_OUT, request, value, INTERFACE_DFU, data, _TIMEOUT_MS)

    def _ask(self, request: Request, size: int, value: int = 0) -> bytes:
        with _stalls(self.address, request), usb_errors(self.address):
            return bytes(self._port.ctrl_transfer(_IN, request, value, INTERFACE_DFU, size, _TIMEOUT_MS))

    def _come_back(self, *, recovery: bool) -> None:
        """The device leaves USB and comes back in the other mode. Raises Timeout."""
        deadline = time.monotonic() + timeouts.USB_RETURN_S
        close_debug_port(self._port)
        while True:
            try:
                self._port = open_debug_port(self.serial)
                if self.in_recovery == recovery:
                    return
                close_debug_port(self._port)
            except (DeviceNotFound, DeviceLost, DeviceBusy, PermissionDenied) as error:  # udev may not have seen it yet
                if time.monotonic() >= deadline:
                    raise self._stayed_away(recovery) from error
            if time.monotonic() >= deadline:
                raise self._stayed_away(recovery)
            time.sleep(timeouts.USB_RETURN_POLL_S)

    def _stayed_away(self, recovery: bool) -> Timeout:
        what = "go into recovery" if recovery else "boot: it is in recovery still"
        return Timeout(
            f"{self.address} did not {what} within {timeouts.USB_RETURN_S:g} s",
            device=self.address,
            subsystem="dfu",
            remedy="npuctl regs boot_progress -d " + self.address + " tells how far it came",
        )


class _Stalled(RecoveryRefused):
    """A request was refused outright."""


@contextlib.contextmanager
def _stalls(address: str, request: Request) -> Iterator[None]:
    """Turn a stalled request into an error of ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NpuError) or error.errno != errno.EPIPE:
            raise
        raise _Stalled(
            f"{address} does not take {request.name} in this state",
            status=Status.ERR_STALLEDPKT,
            device=address,
            subsystem="dfu",
        ) from error
