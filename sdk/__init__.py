"""The SDK: open a device, move arrays, run models. Start with `Device` (device.py), then queues.py, completions.py and
events.py.

What is on the bus is in `driver_shim`; the device in software is a process of its own (`emulator`).
Names are imported when they are used, so that npuctl, a module of this package, starts without all of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from driver_shim.protocol.commands import DESCRIPTOR
    from driver_shim.protocol.runtime_folder import Holder
    from sdk.batch import Batch
    from sdk.buffers import DeviceBuffer, HostBuffer
    from sdk.device import Device
    from sdk.errors import (
        BufferInUse,
        Closed,
        CommandFailed,
        ContractMismatch,
        DeviceBusy,
        DeviceLost,
        DeviceNotFound,
        EmulatorFallbackWarning,
        FirmwareError,
        HostMemoryLimit,
        NpuError,
        OutOfDeviceMemory,
        PermissionDenied,
        QueueFull,
        Timeout,
        UnsupportedModel,
        UnsupportedPlatform,
    )
    from sdk.events import Event
    from sdk.info import DeviceInfo, list_devices
    from sdk.queues import Queue

__all__ = [
    "DESCRIPTOR",
    "Batch",
    "BufferInUse",
    "Closed",
    "CommandFailed",
    "ContractMismatch",
    "Device",
    "DeviceBuffer",
    "DeviceBusy",
    "DeviceInfo",
    "DeviceLost",
    "DeviceNotFound",
    "EmulatorFallbackWarning",
    "Event",
    "FirmwareError",
    "Holder",
    "HostBuffer",
    "HostMemoryLimit",
    "NpuError",
    "OutOfDeviceMemory",
    "PermissionDenied",
    "Queue",
    "QueueFull",
    "Timeout",
    "UnsupportedModel",
    "UnsupportedPlatform",
    "list_devices",
]

_HOMES = {
    "driver_shim.protocol.commands": ("DESCRIPTOR",),
    "driver_shim.protocol.runtime_folder": ("Holder",),
    "sdk.batch": ("Batch",),
    "sdk.buffers": ("DeviceBuffer", "HostBuffer"),
    "sdk.device": ("Device",),
    "sdk.errors": (
        "BufferInUse",
        "Closed",
        "CommandFailed",
        "ContractMismatch",
        "DeviceBusy",
        "DeviceLost",
        "DeviceNotFound",
        "EmulatorFallbackWarning",
        "FirmwareError",
        "HostMemoryLimit",
        "NpuError",
        "OutOfDeviceMemory",
        "PermissionDenied",
        "QueueFull",
        "Timeout",
        "UnsupportedModel",
        "UnsupportedPlatform",
    ),
    "sdk.events": ("Event",),
    "sdk.info": ("DeviceInfo", "list_devices"),
    "sdk.queues": ("Queue",),
}
"""Module → its public names."""

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # a type checker is to know these names, and no others

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
