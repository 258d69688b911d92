"""What I/O commands do: each is checked whole before its first byte moves, then advances in bounded slices.

A slice moves at most SLICE_BYTES, so the bus is served while a long copy runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from driver_shim.protocol.commands import COPY, FILL, PATTERN_SIZES, FaultSource, Space, Status
from driver_shim.protocol.layout import Layout
from emulator.chip.device_memory import DeviceMemory
from emulator.host_memory.address_space import AddressSpace, DmaFault
from emulator.model import timing
from emulator.model.profile import Profile

SLICE_BYTES = 4 << 20
"""Under a millisecond at memory speed."""
_HOST, _LAST_SPACE = int(Space.HOST), max(Space)


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


@dataclasses.dataclass
class Activity:
    """Counters since power-on; the fields are those of the ACTIVITY log page."""

    commands: int = 0
    failed_commands: int = 0
    nop_commands: int = 0
    copy_commands: int = 0
    fill_commands: int = 0
    exec_commands: int = 0
    barrier_commands: int = 0
    admin_commands: int = 0
    bytes_copied: int = 0
    bytes_filled: int = 0
    program_commands: int = 0
    doorbells: int = 0
    interrupts: int = 0
    resets: int = 0
    busy_ticks: int = 0
    fast_program_commands: int = 0


class Machine(NamedTuple):
    """What jobs work on."""

    profile: Profile
    memory: DeviceMemory
    address_space: AddressSpace
    activity: Activity
    throttle: Callable[[], int] = lambda: 0
    """How much the management core slows the engines down, 0 to 7."""


class Job(Protocol):
    """A command being carried out."""

    cost: int
    """Modelled ticks, known before the first slice."""
    runnable: bool
    """Whether `advance` would do something now (an exec waiting for its engine would not)."""

    def advance(self) -> int | None:
        """Do one slice. None while there is more, else the completion's result. Raises CommandError."""


def refuse_reserved(layout: Layout, entry: bytes) -> None:
    """Raise CommandError(INVALID_FIELD) if a reserved byte of the entry is set."""
    if not layout.reserved_clear(entry):
        raise CommandError(Status.INVALID_FIELD, f"{layout.name}: a reserved byte is set")


def device_range(machine: Machine, address: int, size: int, what: str) -> None:
    """Raise CommandError unless `size` bytes at device address `address` exist."""
    if address + size > machine.memory.size:
        raise CommandError(
            Status.DEVICE_ADDRESS_FAULT,
            f"{what}: {size} bytes at device address {address:#x}; the device has {machine.memory.size}",
            address=address,
        )


def host_range(machine: Machine, iova: int, size: int, *, write: bool, what: str) -> None:
    """Raise CommandError unless `size` bytes at bus address `iova` are mapped for this direction."""
    try:
        machine.address_space.check(iova, size, write=write)
    except DmaFault as fault:
        raise dma_error(fault, what) from fault


def dma_error(fault: DmaFault, what: str) -> CommandError:
    """The command error of a DMA fault."""
    return CommandError(Status.DMA_FAULT, f"{what}: {fault}", address=fault.iova, source=FaultSource.DMA)


def _is_host(space: int, what: str) -> bool:
    """Whether an address means host memory. Raises CommandError for a value that is no address space."""
    if space > _LAST_SPACE:
        raise CommandError(Status.INVALID_FIELD, f"{what}: {space} is no address space")
    return space == _HOST


def _check_range(machine: Machine, on_host: bool, address: int, size: int, *, write: bool, what: str) -> None:
    """Raise CommandError unless the range may be accessed."""
    if on_host:
        host_range(machine, address, size, write=write, what=what)
    else:
        device_range(machine, address, size, what)


class CopyJob:
    """copy: any of host and device to any; overlapping ranges behave like memmove."""

    __slots__ = ("_backwards", "_done", "_from", "_from_host", "_machine", "_size", "_to", "_to_host", "cost")
    runnable = True

    def __init__(self, machine: Machine, entry: bytes) -> None:
        refuse_reserved(COPY, entry)
        (_, _, _, _, self._to, self._from, self._size, to_space, from_space) = COPY.codec.unpack(entry)
        self._machine = machine
        self._to_host = _is_host(to_space, "copy destination")
        self._from_host = _is_host(from_space, "copy source")
        _check_range(machine, self._to_host, self._to, self._size, write=True, what="copy destination")
        _check_range(machine, self._from_host, self._from, self._size, write=False, what="copy source")
        self._backwards = self._to_host == self._from_host and self._from < self._to < self._from + self._size
        self._done = 0
        self.cost = timing.copy_ticks(machine.profile, self._size, from_host=self._from_host, to_host=self._to_host)

    def advance(self) -> int | None:
        """Move the next slice."""
        size = min(SLICE_BYTES, self._size - self._done)
        at = self._size - self._done - size if self._backwards else self._done
        try:
            self._move(self._to + at, self._from + at, size)
        except DmaFault as fault:
            raise dma_error(fault, "copy") from fault
        self._done += size
        if self._done < self._size:
            return None
        self._machine.activity.bytes_copied += self._size
        return 0

    def _move(self, to: int, source: int, size: int) -> None:
        memory, space = self._machine.memory.view, self._machine.address_space
        if self._from_host and self._to_host:
            space.write(to, bytes(space.read(source, size)))
        elif self._from_host:
            space.copy_from(source, memory[to : to + size])
        elif self._to_host:
            space.copy_to(to, memory[source : source + size])
        else:
            memory[to : to + size] = memory[source : source + size]


class FillJob:
    """fill: a pattern of 1, 2, 4 or 8 bytes repeated over a range."""

    runnable = True

    def __init__(self, machine: Machine, entry: bytes) -> None:
        refuse_reserved(FILL, entry)
        (_, _, _, _, self._to, self._size, to_space, pattern_size, pattern) = FILL.codec.unpack(entry)
        if pattern_size not in PATTERN_SIZES:
            raise CommandError(
                Status.INVALID_FIELD, f"fill: a pattern of {pattern_size} bytes; 1, 2, 4 or 8 are possible"
            )
        if pattern >> 8 * pattern_size:
            raise CommandError(Status.INVALID_FIELD, f"fill: pattern {pattern:#x} exceeds {pattern_size} bytes")
        if self._size % pattern_size or self._to % pattern_size:
            raise CommandError(Status.MISALIGNED, f"fill: address and size must be multiples of {pattern_size}")
        self._machine = machine
        self._to_host = _is_host(to_space, "fill destination")
        _check_range(machine, self._to_host, self._to, self._size, write=True, what="fill destination")
        self._element = np.dtype(f"<u{pattern_size}")
        self._pattern = pattern
        self._done = 0
        self.cost = timing.fill_ticks(machine.profile, self._size, to_host=self._to_host)

    def advance(self) -> int | None:
        """Fill the next slice."""
        size = min(SLICE_BYTES, self._size - self._done)
        to = self._to + self._done
        if self._to_host:
            block = np.full(size // self._element.itemsize, self._pattern, self._element)
            try:
                self._machine.address_space.write(to, block.tobytes())
            except DmaFault as fault:
                raise dma_error(fault, "fill") from fault
        else:
            target = np.frombuffer(self._machine.memory.view, self._element, size // self._element.itemsize, to)
            target.fill(self._pattern)
        self._done += size
        if self._done < self._size:
            return None
        self._machine.activity.bytes_filled += self._size
        return 0
