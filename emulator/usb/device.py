"""The debug port as a USB device: standard requests, its two interfaces, and the change between its two modes.

The mode follows the management core: while `boot_progress` says RECOVERY the DFU interface takes images, else it only
offers to detach. A change of mode takes the device off the bus; whoever serves it calls `look` to learn of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from driver_shim.protocol.debug_port import CONFIGURATION, INTERFACE_DFU, INTERFACE_REGISTERS, Mode
from driver_shim.protocol.registers import REGISTERS, Post
from driver_shim.protocol.usb import (
    LANGUAGE_ENGLISH_US,
    STATUS_SELF_POWERED,
    DescriptorType,
    Recipient,
    RequestType,
    Setup,
    StandardRequest,
    language_descriptor,
    string_descriptor,
)
from emulator import timeouts
from emulator.usb import descriptors
from emulator.usb.descriptors import FIXED_TEXTS, Text
from emulator.usb.dfu import DfuInterface
from emulator.usb.recovery_port import RecoveryPort
from emulator.usb.register_requests import RegisterPort, RegisterRequests
from emulator.usb.transfer import Answer, Ending

_BOOT_PROGRESS = REGISTERS["boot_progress"]
_CORE_CONTROL = REGISTERS["core_control"]
_ON_THE_WAY = frozenset({Post.BOOT_ROM, Post.CHECKING_A, Post.CHECKING_B})
"""Between the two: the boot ROM has yet to find out whether it starts an image or goes into recovery."""
_STATUS_BYTES = 2


class DebugPort:
    """Answers control transfers. Nothing that a host sends makes it raise."""

    def __init__(
        self,
        serial: str,
        registers: RegisterPort,
        recovery: RecoveryPort,
        owned: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`owned` tells whether a PCI client has the device; `clock` counts seconds."""
        self._registers = registers
        self._recovery = recovery
        self._clock = clock
        self._texts = {**FIXED_TEXTS, Text.SERIAL: serial}
        self._leave_at: float | None = None
        self._kept_until: float | None = None
        """The core has left this mode, but a host may still have to be told how its download ended."""
        self.mode = Mode.RECOVERY if self._post() == Post.RECOVERY else Mode.RUN_TIME
        self.requests = RegisterRequests(registers, owned, lambda: self.mode)
        self._attach()

    def _attach(self) -> None:
        """A new stay on the bus: nothing is configured."""
        self.configuration = 0
        self.dfu = DfuInterface(self.mode, self._recovery, self._detach)
        self._alternates = {INTERFACE_REGISTERS: 0, INTERFACE_DFU: 0}

    def look(self) -> bool:
        """Follow the management core; True when the device leaves the bus, to come back in the other mode."""
        now = self._clock()
        if self._leave_at is not None and now >= self._leave_at:
            self._leave_at = None
            if self.dfu.at_rest:  # else the host went on to something new
                self._reset_core()
        post = self._post()
        mode = self.mode if post in _ON_THE_WAY else Mode.RECOVERY if post == Post.RECOVERY else Mode.RUN_TIME
        if mode is self.mode:
            self._kept_until = None
            return False
        if self._kept_until is None:
            self._kept_until = now + timeouts.DFU_LAST_STATUS_S
        if (self.dfu.manifesting or self._leave_at is not None) and now < self._kept_until:
            return False
        self._kept_until = self._leave_at = None
        self.mode = mode
        self._attach()
        return True

    @property
    def leaving(self) -> bool:
        """Whether `look` must be called though no host has the device."""
        return self._leave_at is not None

    def unplug(self) -> None:
        """The host has let the device go: it forgets what that had set."""
        self._attach()

    def answer(self, setup: Setup, data: bytes) -> Answer:
        """One control transfer; `data` came with it and is as long as the setup packet says."""
        if setup.kind == RequestType.STANDARD:
            return self._standard(setup)
        if setup.recipient != Recipient.INTERFACE or not self.configuration:
            return Ending.STALL
        interface = setup.index & 0xFF
        if setup.kind == RequestType.VENDOR and interface == INTERFACE_REGISTERS:
            return self.requests.answer(setup, data)
        if setup.kind == RequestType.CLASS and setup.index == INTERFACE_DFU:
            return self.dfu.answer(setup, data)
        return Ending.STALL

    # --- standard requests -------------------------------------------------------------------------------------

    def _standard(self, setup: Setup) -> Answer:
        rule = _STANDARD.get((setup.request_type, setup.request))
        return Ending.STALL if rule is None else rule(self, setup)

    def _get_descriptor(self, setup: Setup) -> Answer:
        kind, number = setup.value >> 8, setup.value & 0xFF
        if kind == DescriptorType.STRING:
            return self._string(number)
        if number:
            return Ending.STALL
        if kind == DescriptorType.DEVICE:
            return descriptors.device_descriptor()
        if kind == DescriptorType.DEVICE_QUALIFIER:
            return descriptors.device_qualifier()
        if kind in (DescriptorType.CONFIGURATION, DescriptorType.OTHER_SPEED_CONFIGURATION):
            return descriptors.configuration(self.mode, DescriptorType(kind))
        return Ending.STALL

    def _string(self, number: int) -> Answer:
        if number == Text.LANGUAGES:
            return language_descriptor(LANGUAGE_ENGLISH_US)
        text = (
            self.dfu.text if number == Text.DFU_STATUS else next((t for n, t in self._texts.items() if n == number), "")
        )
        return string_descriptor(text) if text else Ending.STALL

    def _device_status(self, setup: Setup) -> Answer:
        return STATUS_SELF_POWERED.to_bytes(_STATUS_BYTES, "little")

    def _interface_status(self, setup: Setup) -> Answer:
        known = self.configuration and setup.index in self._alternates
        return bytes(_STATUS_BYTES) if known else Ending.STALL

    def _endpoint_status(self, setup: Setup) -> Answer:
        return bytes(_STATUS_BYTES) if setup.index & 0x7F == 0 else Ending.STALL

    def _clear_endpoint(self, setup: Setup) -> Answer:
        return b"" if setup.index & 0x7F == 0 and setup.value == 0 else Ending.STALL

    def _set_address(self, setup: Setup) -> Answer:
        return b""  # the host's side of USB/IP has addresses of its own

    def _get_configuration(self, setup: Setup) -> Answer:
        return bytes([self.configuration])

    def _set_configuration(self, setup: Setup) -> Answer:
        if setup.value not in (0, CONFIGURATION):
            return Ending.STALL
        self._attach()
        self.configuration = setup.value
        return b""

    def _get_interface(self, setup: Setup) -> Answer:
        if not self.configuration or setup.index not in self._alternates:
            return Ending.STALL
        return bytes([self._alternates[setup.index]])

    def _set_interface(self, setup: Setup) -> Answer:
        settings = descriptors.alternate_settings(self.mode, setup.index)
        if not self.configuration or setup.value >= settings:
            return Ending.STALL
        self._alternates[setup.index] = setup.value
        if setup.index == INTERFACE_DFU:
            self.dfu.select(setup.value)
        return b""

    # --- helpers -----------------------------------------------------------------------------------------------

    def _detach(self) -> bool:
        """The DFU interface wants to leave: soon, so that the host still hears the answer."""
        if self._post() == Post.ABSENT:
            return False
        delay_s = timeouts.DFU_DETACH_S if self.mode is Mode.RUN_TIME else timeouts.DFU_LEAVE_S
        self._leave_at = self._clock() + delay_s
        return True

    def _reset_core(self) -> None:
        """Into the other mode."""
        control = {"recovery": 1} if self.mode is Mode.RUN_TIME else {"reset": 1}
        value = _CORE_CONTROL.encode(**control)
        self._registers.bar0_write(_CORE_CONTROL.offset, value.to_bytes(_CORE_CONTROL.size, "little"))

    def _post(self) -> int:
        data = self._registers.bar0_read(_BOOT_PROGRESS.offset, _BOOT_PROGRESS.size)
        return _BOOT_PROGRESS.extract(int.from_bytes(data, "little"), "post_code")


_DEVICE_IN, _INTERFACE_IN, _ENDPOINT_IN = 0x80, 0x81, 0x82
_DEVICE_OUT, _INTERFACE_OUT, _ENDPOINT_OUT = 0x00, 0x01, 0x02
_STANDARD: dict[tuple[int, int], Callable[[DebugPort, Setup], Answer]] = {
    (_DEVICE_IN, StandardRequest.GET_DESCRIPTOR): DebugPort._get_descriptor,
    (_DEVICE_IN, StandardRequest.GET_STATUS): DebugPort._device_status,
    (_INTERFACE_IN, StandardRequest.GET_STATUS): DebugPort._interface_status,
    (_ENDPOINT_IN, StandardRequest.GET_STATUS): DebugPort._endpoint_status,
    (_ENDPOINT_OUT, StandardRequest.CLEAR_FEATURE): DebugPort._clear_endpoint,
    (_DEVICE_OUT, StandardRequest.SET_ADDRESS): DebugPort._set_address,
    (_DEVICE_IN, StandardRequest.GET_CONFIGURATION): DebugPort._get_configuration,
    (_DEVICE_OUT, StandardRequest.SET_CONFIGURATION): DebugPort._set_configuration,
    (_INTERFACE_IN, StandardRequest.GET_INTERFACE): DebugPort._get_interface,
    (_INTERFACE_OUT, StandardRequest.SET_INTERFACE): DebugPort._set_interface,
}
"""(bmRequestType, bRequest) → what answers; every other standard request is stalled."""
