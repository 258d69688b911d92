"""Every error an application can meet, each also the builtin it is a kind of.

Errors carry data, not only text: `.device` (address), `.subsystem`, `.cause`, `.remedy` (what to do) and a
stable kebab-case `.code`. Bad arguments stay plain TypeError/ValueError.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self, TypeVar

from driver_shim.shared.runtime_folder import Holder

__all__ = [
    "BufferInUse",
    "Closed",
    "CommandFailed",
    "ContractMismatch",
    "DeviceBusy",
    "DeviceLost",
    "DeviceNotFound",
    "FirmwareError",
    "HostMemoryLimit",
    "ModelProblem",
    "NpuError",
    "OutOfDeviceMemory",
    "PermissionDenied",
    "QueueFull",
    "StateFull",
    "Timeout",
    "UnsupportedModel",
    "UnsupportedPlatform",
]

_Kind = TypeVar("_Kind", bound="NpuError")


class NpuError(Exception):
    """Base of all errors of this SDK.

    `message` says what was asked and what was found; `remedy` what to do about it. A subclass takes the message first
    and the rest by keyword: copies, also those in other processes, are made with the message alone, then filled.
    """

    code = "npu-error"

    def __init__(
        self,
        message: str,
        *,
        device: str | None = None,
        subsystem: str | None = None,
        cause: str | None = None,
        remedy: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.device = device
        self.subsystem = subsystem
        self.cause = cause
        self.remedy = remedy
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message

    def again(self) -> Self:
        """A copy to raise. Raising one object again and again would chain tracebacks and keep their frames alive."""
        copy = _rebuild(type(self), self.__dict__.copy(), self.args)
        copy.__cause__ = self.__cause__
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.__dict__.copy(), self.args))


def _rebuild(kind: type[_Kind], state: dict[str, Any], args: tuple[Any, ...]) -> _Kind:
    error = kind(*args)
    error.__dict__.update(state)
    return error


class DeviceNotFound(NpuError, LookupError):
    """No device matches the address."""

    code = "device-not-found"


class DeviceBusy(NpuError, BlockingIOError):
    """Someone else holds the device."""

    code = "device-busy"

    def __init__(self, message: str, *, holder: Holder | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.holder = holder
        """Who holds it; None when that is not known."""


class DeviceLost(NpuError, ConnectionError):
    """The device vanished: process ended, card unplugged, or all registers read ones."""

    code = "device-lost"


class PermissionDenied(NpuError, PermissionError):
    """The operating system refused access."""

    code = "permission-denied"


class ContractMismatch(NpuError):
    """Host and device speak contract versions that do not go together, or the device breaks the contract."""

    code = "contract-mismatch"


class CommandFailed(NpuError):
    """The device completed a command with an error status; `.code` is the status in kebab-case."""

    code = "command-failed"

    def __init__(
        self, message: str, *, status: int = 0, index: int | None = None, node: str | None = None, **details: Any
    ) -> None:
        super().__init__(message, **details)
        self.status = status
        """The completion's status byte; 0 when the command never reached the device."""
        self.index = index
        """Position of the first failed descriptor within a `submit` array."""
        self.node = node
        """The model's node that could not work on its data."""


class Timeout(NpuError, TimeoutError):
    """The host's patience ended; the job goes on."""

    code = "timeout"


class QueueFull(NpuError, BlockingIOError):
    """A queue with `when_full="raise"` already holds `depth` uncompleted commands."""

    code = "queue-full"

    def __init__(self, message: str, *, depth: int = 0, **details: Any) -> None:
        super().__init__(message, **details)
        self.depth = depth


class OutOfDeviceMemory(NpuError, MemoryError):
    """Device memory cannot satisfy an allocation."""

    code = "out-of-device-memory"

    def __init__(self, message: str, *, requested: int = 0, available: int = 0, largest: int = 0, **d: Any) -> None:
        super().__init__(message, **d)
        self.requested = requested
        self.available = available
        self.largest = largest


class HostMemoryLimit(NpuError, MemoryError):
    """DMA-able host memory is exhausted or limited."""

    code = "host-memory-limit"


class BufferInUse(NpuError, BufferError):
    """A buffer cannot be freed: a command in flight uses it, or a view of it lives."""

    code = "buffer-in-use"


class StateFull(NpuError, ValueError):
    """A state has no room for the tokens that a run would append; nothing has changed."""

    code = "state-full"


class ModelProblem(NamedTuple):
    """One reason why a model cannot run."""

    reason: str
    node: str | None = None
    """The node's name, or that of its first output where it has none; None when it is not about a node."""
    op: str | None = None
    """That node's operator."""
    code: str = "malformed"
    """Which kind of reason it is, in stable words: see `docs/operators.md`."""


class UnsupportedModel(NpuError, ValueError):
    """A model uses something the device cannot run; names node, operator and reason."""

    code = "unsupported-model"

    def __init__(
        self,
        message: str,
        *,
        node: str | None = None,
        op: str | None = None,
        problems: tuple[ModelProblem, ...] = (),
        **details: Any,
    ) -> None:
        super().__init__(message, **details)
        self.node = node
        """The first node that cannot run, and its operator in `op`."""
        self.op = op
        self.problems = problems
        """Every reason by itself; the message groups them, and leaves out some when they are many."""


class UnsupportedPlatform(NpuError, OSError):
    """This operating system or machine type cannot drive a device."""

    code = "unsupported-platform"


def no_dma(address: str) -> UnsupportedPlatform:
    """What was asked needs DMA, interrupts or a reset, and the device was opened in a way that has none."""
    way, _, rest = address.partition(":")
    remedy = "open it on PCI: npuctl list" if way == "usb" else f"bind the card to vfio-pci: npuctl bind -d pci:{rest}"
    return UnsupportedPlatform(
        f"{address} is open for its registers and BARs only: {way} offers neither DMA nor interrupts, and no reset",
        device=address,
        code="no-dma",
        remedy=remedy,
    )


class FirmwareError(NpuError):
    """The management core cannot answer, or refused; `.code` is the MailboxResult or the core's state, kebab-case."""

    code = "firmware-error"

    def __init__(self, message: str, *, result: int | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.result = result
        """The firmware's result; None when there was no answer."""


class Closed(NpuError, ValueError):
    """The object was closed, or its device was reset, or it belongs to another process."""

    code = "closed"
