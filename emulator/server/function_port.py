"""The PCI function as the server knows it; `emulator/function/function.py` has all of this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from driver_shim.protocol.commands import ResetCause
from emulator.host_memory.address_space import AddressSpace


class RegionPort(Protocol):
    """One region, numbered as VFIO does."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    @property
    def readable(self) -> bool:
        """Whether it can be read."""

    @property
    def writable(self) -> bool:
        """Whether it can be written."""

    @property
    def mappable(self) -> tuple[tuple[int, int], ...]:
        """(offset, size) of what the client may map of `fd`; page-aligned."""

    @property
    def fd(self) -> int | None:
        """File to hand out for the mappable areas, which lie in it at their region offsets."""


class InterruptPort(Protocol):
    """The function's MSI-X vectors."""

    @property
    def count(self) -> int:
        """Number of vectors."""

    def connect(self, vector: int, eventfd: int | None) -> None:
        """Signal `eventfd`, which is taken over, on `vector` from now on; None disconnects. Raises OSError."""

    def trigger(self, vector: int) -> None:
        """Raise a vector as the device itself would."""

    def mask(self, vector: int) -> None:
        """Hold a vector back: triggered, it stays pending."""

    def unmask(self, vector: int) -> None:
        """Let a vector through again; it fires if it is pending."""


class FunctionPort(Protocol):
    """A PCI function. It never raises for what a host does, and is used from one thread."""

    @property
    def regions(self) -> Mapping[int, RegionPort]:
        """Regions of non-zero size, configuration space included."""

    @property
    def address_space(self) -> AddressSpace:
        """The host memory that the client maps."""

    @property
    def interrupts(self) -> InterruptPort:
        """The function's vectors."""

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        """Read inside a region."""

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Write inside a region."""

    def step(self) -> bool:
        """Do a bounded slice of work; True if anything was done."""

    def arm(self) -> bool:
        """True when nothing is pending and a message or `wake_fds` will tell of more."""

    def wake_fds(self) -> list[int]:
        """Descriptors whose readability means that `step` has work."""

    def next_deadline_ns(self) -> int | None:
        """Monotonic time at which `step` must run in any case."""

    def reset(self, cause: ResetCause) -> None:
        """Reset; DMA maps and eventfds stay, transfers that wait for the host are aborted."""

    def client_lost(self) -> None:
        """The host is gone: reset, and forget its memory and eventfds."""

    def close(self) -> None:
        """Power off."""
