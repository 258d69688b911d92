"""The one interface at the bus. Nothing above it knows what is behind.

Region numbers are VFIO's: 0 to 5 are BAR0 to BAR5. Register access is by exact width; writes are posted.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import NoReturn, SupportsIndex

from driver_shim.errors import DeviceLost


@dataclasses.dataclass(frozen=True, slots=True)
class RegionInfo:
    """What a function says about one of its regions."""

    index: int
    size_bytes: int
    readable: bool
    writable: bool
    mappable: tuple[tuple[int, int], ...]
    """(offset, size) areas that `map_region` accepts; empty when every access traps."""


class Transport(abc.ABC):
    """One open PCI function.

    Every method raises `DeviceLost` once the function is gone and `Closed` after `close`. Methods may be called
    from any thread; a transport serialises what its medium cannot interleave.
    """

    name: str
    """Kind of transport, as `DeviceInfo.driver` shows it: "vfio-user"."""
    address: str
    """How a user names it: "vfio-user:/run/npu0.sock"."""
    hang_up_fd: int | None = None
    """A file descriptor that reports POLLHUP when the device goes away; None where there is none."""
    on_unplug: Callable[[DeviceLost], None] | None = None
    """Called, from a thread of the transport's, after it let go of a function that is being taken away."""
    has_dma: bool = True
    """Whether the function can reach host memory through this transport; else there are registers and BARs only."""
    steps_device: bool = False
    """Whether the device works only while `progress` is called."""
    resets_on_open: bool = True
    """Whether opening the function reset it."""
    peer_pid: int | None = None
    """The process that is the device, where this one started it: nobody else's is moved between CPUs."""
    serial: str | None = None
    """The device's serial number, where the way to it tells."""
    emulated: bool | None = None
    """Whether it is an emulator, where the way to it tells."""

    @abc.abstractmethod
    def regions(self) -> dict[int, RegionInfo]:
        """The regions of non-zero size, by number."""

    @abc.abstractmethod
    def config_read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes of configuration space. Raises ValueError outside it."""

    @abc.abstractmethod
    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space (returns when the device has taken it)."""

    @abc.abstractmethod
    def read(self, region: int, offset: int, width: int) -> int:
        """One register read of `width` bytes (1, 2, 4, 8), naturally aligned."""

    @abc.abstractmethod
    def write(self, region: int, offset: int, value: int, width: int) -> None:
        """One register write of `width` bytes, posted: it may return before the device has taken it."""

    @abc.abstractmethod
    def map_region(self, region: int, offset: int, size: int) -> memoryview:
        """Map part of a region. Raises ValueError where it is not mappable."""

    @abc.abstractmethod
    def dma_map(self, fd: int, offset: int, iova: int, size: int) -> None:
        """Let the device reach `size` bytes of file `fd` at bus address `iova`.

        Raises HostMemoryLimit, ValueError for a range that is wrong or taken.
        """

    @abc.abstractmethod
    def dma_unmap(self, iova: int, size: int) -> None:
        """Take a mapping back, exactly as it was made. Raises ValueError when there is none like it."""

    @abc.abstractmethod
    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """(first, last) bus addresses that may be mapped."""

    @abc.abstractmethod
    def interrupt_count(self) -> int:
        """Number of MSI-X vectors."""

    @abc.abstractmethod
    def set_interrupts(self, eventfds: Sequence[int | None]) -> None:
        """Signal eventfd i on vector i from now on; None disconnects. Replaces all earlier ones."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Reset the function; DMA mappings and eventfds survive, COMMAND does not."""

    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether the other side still answers. Never raises, never blocks for long."""

    @abc.abstractmethod
    def progress(self) -> None:
        """Called on each turn of a spinning wait: yields the CPU (in process: steps the device)."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied, it is this process's own way to {self.address}, and so"
            " is what goes through it, registers for one: send the address, or what was read"
        )

    def abandon_in_child(self) -> None:  # noqa: B027 - most transports have nothing to let go of
        """In a forked child: let go of this process's copies and tell the device nothing; it is the parent's."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let the function go; idempotent."""
