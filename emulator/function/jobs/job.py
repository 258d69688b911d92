"""The interface of a job, and the checks of the addresses that copy and fill share.

A job is checked whole before its first byte moves, then advances in slices, so that the bus is served meanwhile.
"""

from __future__ import annotations

from typing import Protocol

from driver_shim.protocol.commands import Space, Status
from emulator.chip.device_memory import DeviceMemory
from emulator.function.command_error import CommandError, check_device_range, check_host_range
from emulator.host_memory.address_space import AddressSpace

SLICE_BYTES = 4 << 20
"""The most that one slice moves: under a millisecond at memory speed."""
_HOST, _LAST_SPACE = int(Space.HOST), max(Space)


class Job(Protocol):
    """A command being carried out."""

    cost: int
    """Modelled ticks, known before the first slice."""
    runnable: bool
    """Whether `advance` would do something now (an exec waiting for its engine would not)."""
    on_engine: bool
    """Whether it runs on the engines, so that its turn there has to be booked."""

    def advance(self) -> int | None:
        """Do one slice. None while there is more, else the completion's result. Raises CommandError."""

    def discard(self) -> None:
        """Give up what it holds: nobody wants its result any more. Never waits."""


def is_host(space: int, what: str) -> bool:
    """Whether an address means host memory. Raises CommandError for a value that is no address space."""
    if space > _LAST_SPACE:
        raise CommandError(Status.INVALID_FIELD, f"{what}: {space} is no address space")
    return space == _HOST


def check_range(
    memory: DeviceMemory, space: AddressSpace, on_host: bool, address: int, size: int, *, write: bool, what: str
) -> None:
    """Raise CommandError unless the range may be accessed."""
    if on_host:
        check_host_range(space, address, size, write=write, what=what)
    else:
        check_device_range(memory, address, size, what)
