"""Opening a queue's rings in host memory: sizes, alignment, and that both sides can map them."""

from __future__ import annotations

from driver_shim.protocol import ring
from driver_shim.protocol.commands import (
    COMPLETION_BYTES,
    LINE_BYTES,
    MAX_QUEUE_ENTRIES,
    MIN_QUEUE_ENTRIES,
    QUEUE_ALIGNMENT,
    SUBMISSION_BYTES,
    FaultSource,
    Status,
)
from emulator.function.command_error import CommandError
from emulator.function.queue_pair import Mapped, QueuePair
from emulator.host_memory.address_space import AddressSpace, DmaFault


def shareable(space: AddressSpace, iova: int, size: int, what: str) -> memoryview:
    """A view of host memory that both sides map. Raises CommandError(NOT_SHAREABLE) elsewhere."""
    try:
        return space.view(iova, size, write=True)
    except DmaFault as fault:
        raise not_shareable(fault, iova, what) from fault


def not_shareable(fault: DmaFault, iova: int, what: str) -> CommandError:
    """The command error of host memory that cannot be viewed."""
    return CommandError(Status.NOT_SHAREABLE, f"{what}: {fault}", address=iova, source=FaultSource.DMA)


def check_queue_size(entries: int, what: str) -> None:
    """Raise CommandError unless `entries` is a power of two within the limits."""
    if not ring.is_power_of_two(entries) or not MIN_QUEUE_ENTRIES <= entries <= MAX_QUEUE_ENTRIES:
        raise CommandError(
            Status.INVALID_QUEUE_SIZE,
            f"{what}: {entries} entries; a power of two from {MIN_QUEUE_ENTRIES} to {MAX_QUEUE_ENTRIES} is needed",
        )


def check_page_aligned(address: int, what: str) -> None:
    """Raise CommandError unless `address` begins a page."""
    if address % QUEUE_ALIGNMENT:
        raise CommandError(
            Status.MISALIGNED, f"{what}: {address:#x} is not a multiple of {QUEUE_ALIGNMENT}", address=address
        )


def open_rings(
    space: AddressSpace,
    queue_id: int,
    bases: tuple[int, int],
    entries: tuple[int, int],
    vector: int,
    shadows: tuple[int, int] | None,
) -> QueuePair:
    """Build the device side of a queue pair. Raises CommandError for any wrong address or size."""
    names = (f"submission ring of queue {queue_id}", f"completion ring of queue {queue_id}")
    for name, base, count in zip(names, bases, entries, strict=True):
        check_queue_size(count, name)
        check_page_aligned(base, name)

    def resolve() -> Mapped:
        host_line = device_line = None
        if shadows is not None:
            at = queue_id * LINE_BYTES
            host_line = shareable(space, shadows[0] + at, LINE_BYTES, "shadow doorbells")
            device_line = shareable(space, shadows[1] + at, LINE_BYTES, "event indices")
        return Mapped(
            shareable(space, bases[0], entries[0] * SUBMISSION_BYTES, names[0]),
            shareable(space, bases[1], entries[1] * COMPLETION_BYTES, names[1]),
            host_line,
            device_line,
        )

    return QueuePair(queue_id, resolve, *entries, vector, bases)
