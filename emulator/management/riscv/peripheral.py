"""Interfaces between a peripheral of the management core and the machine around it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Protocol

from driver_shim.protocol.registers import CoreReset


class MachinePort(Protocol):
    """What a peripheral may ask of the machine it sits in."""

    @property
    def tick(self) -> int:
        """The core's own time in ticks of `mtime`, exact at every access."""

    def set_interrupt(self, source: int, level: bool) -> None:
        """Drive an input of the interrupt controller (PLIC)."""

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of a memory of the core. Raises ValueError outside."""

    def write_memory(self, address: int, data: bytes) -> None:
        """Store into a memory of the core that it can write. Raises ValueError outside."""

    def stall(self, ticks: int) -> None:
        """The core stands still for this long: its time goes on without an instruction."""

    def request_reset(self, reason: CoreReset) -> None:
        """Reset the core once the current instruction is over."""


class Peripheral(abc.ABC):
    """A device on the core's bus. Accesses come with offsets inside it, naturally aligned, 1, 2 or 4 bytes wide."""

    size_bytes = 0x1000
    report: Callable[[str], None] | None = None
    """Told of accesses that make no sense, during them; the machine puts it here."""

    @abc.abstractmethod
    def read(self, offset: int, size: int) -> int:
        """A load of `size` bytes."""

    @abc.abstractmethod
    def write(self, offset: int, size: int, value: int) -> None:
        """A store of `size` bytes."""

    @abc.abstractmethod
    def reset(self) -> None:
        """The core was reset."""

    def deadline(self) -> int | None:
        """The tick at which `expire` must be called; None when nothing is timed."""
        return None

    def expire(self) -> None:  # noqa: B027 - most peripherals have no deadline
        """The deadline has come."""
