"""The SDK: open a device, move arrays, run models. Start with `Device` (device.py), then queues.py, completions.py and
events.py.

What is on the bus is in `driver_shim`; the device in software is a process of its own (`emulator`).
"""

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
