"""The SDK's errors (see `driver_shim/errors.py`) and its one warning."""

from driver_shim.errors import (
    BufferInUse,
    Closed,
    CommandFailed,
    ContractMismatch,
    DeviceBusy,
    DeviceLost,
    DeviceNotFound,
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


class EmulatorFallbackWarning(UserWarning):
    """`Device()` found no card and started a private emulator instead."""


__all__ = [
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
]
