"""The SDK: open a device, move arrays, run models. Start with `Device` (device.py), then queues.py, completions.py and
events.py.

What is on the bus is in `driver_shim`; the device in software is a process of its own (`emulator`).
"""

from driver_shim.protocol.commands import DESCRIPTOR
from driver_shim.shared.runtime_folder import Holder
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
from sdk.memory.buffers import DeviceBuffer, HostBuffer
from sdk.opening.listing import DeviceInfo, list_devices
from sdk.queue.batch import Batch
from sdk.queue.events import Event
from sdk.queue.queue import Queue

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
