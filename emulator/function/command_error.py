"""The error of a command, and the checks that raise it."""

from __future__ import annotations

from driver_shim.protocol.commands import FaultSource, Status
from driver_shim.protocol.layout import Layout
from emulator.chip.device_memory import DeviceMemory
from emulator.host_memory.address_space import AddressSpace, DmaFault

TENSOR_ALIGNMENT = 64
"""Bound buffers, constants and workspace begin on a cache line."""


class CommandError(Exception):
    """A command cannot be carried out; becomes its completion status and an error-log entry."""

    def __init__(
        self,
        status: Status,
        message: str,
        *,
        address: int = 0,
        source: FaultSource = FaultSource.COMMAND,
        command_index: int = 0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.address = address
        self.source = source
        self.command_index = command_index


def dma_error(fault: DmaFault, what: str) -> CommandError:
    """The command error of a DMA fault."""
    return CommandError(Status.DMA_FAULT, f"{what}: {fault}", address=fault.iova, source=FaultSource.DMA)


def refuse_reserved(layout: Layout, entry: bytes) -> None:
    """Raise CommandError(INVALID_FIELD) if a reserved byte of the entry is set."""
    if not layout.reserved_clear(entry):
        raise CommandError(Status.INVALID_FIELD, f"{layout.name}: a reserved byte is set")


def check_device_range(memory: DeviceMemory, address: int, size: int, what: str) -> None:
    """Raise CommandError unless `size` bytes at device address `address` exist."""
    if address + size > memory.size:
        raise CommandError(
            Status.DEVICE_ADDRESS_FAULT,
            f"{what}: {size} bytes at device address {address:#x}; the device has {memory.size}",
            address=address,
        )


def check_host_range(space: AddressSpace, iova: int, size: int, *, write: bool, what: str) -> None:
    """Raise CommandError unless `size` bytes at bus address `iova` are mapped for this direction."""
    try:
        space.check(iova, size, write=write)
    except DmaFault as fault:
        raise dma_error(fault, what) from fault


def check_tensor_aligned(address: int, what: str) -> None:
    """Raise CommandError unless a tensor may begin at device address `address`."""
    if address % TENSOR_ALIGNMENT:
        raise CommandError(
            Status.MISALIGNED,
            f"{what}: device address {address:#x} is no multiple of {TENSOR_ALIGNMENT}",
            address=address,
        )
