"""A function object in this very process: deterministic, for tests. It is handed the object, and imports none."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from typing import Any

from driver_shim.errors import Closed, HostMemoryLimit
from driver_shim.transport.base import RegionInfo, Transport

_CONFIG_BYTES = 4096
_IOVA_LAST = (1 << 64) - 1
_OUT_OF_MEMORY = (errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE)


class InProcessTransport(Transport):
    """Drives a `PciFunction`-like object; the device runs only while somebody waits (`progress`).

    Threads take turns: the object knows of one caller alone, as a server's loop is.
    """

    name = "in-process"
    steps_device = True

    def __init__(self, function: Any, reset_cause: Any) -> None:
        """`reset_cause` is passed to `function.reset` by `reset`."""
        self.address = "in-process"
        self._function = function
        self._reset_cause = reset_cause
        self._closed = False
        self._turn = threading.RLock()

    def regions(self) -> dict[int, RegionInfo]:
        """The function's regions."""
        return {
            index: RegionInfo(index, r.size_bytes, r.readable, r.writable, tuple(r.mappable))
            for index, r in self._open().regions.items()
        }

    def config_read(self, offset: int, size: int) -> bytes:
        """Read configuration space."""
        self._check_range(_CONFIG_BYTES, offset, size)
        with self._turn:
            return bytes(self._open().config_read(offset, size))

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space."""
        self._check_range(_CONFIG_BYTES, offset, len(data))
        with self._turn:
            self._open().config_write(offset, data)

    def read(self, region: int, offset: int, width: int) -> int:
        """One register read."""
        self._check_range(self._open().regions[region].size_bytes, offset, width)
        with self._turn:
            return int.from_bytes(self._function.region_read(region, offset, width), "little")

    def write(self, region: int, offset: int, value: int, width: int) -> None:
        """One register write."""
        self._check_range(self._open().regions[region].size_bytes, offset, width)
        with self._turn:
            self._function.region_write(region, offset, value.to_bytes(width, "little"))

    def map_region(self, region: int, offset: int, size: int) -> memoryview:
        """Map part of a region that has a file behind it."""
        found = self._open().regions.get(region)
        if found is None or not any(at <= offset and offset + size <= at + length for at, length in found.mappable):
            raise ValueError(f"region {region}: {size} bytes at {offset:#x} cannot be mapped")
        return memoryview(mmap.mmap(found.fd, size, offset=offset))

    def dma_map(self, fd: int, offset: int, iova: int, size: int) -> None:
        """Give the device a mapping of its own."""
        try:
            with self._turn:
                self._open().address_space.map(iova, size, fd=fd, offset=offset, readable=True, writable=True)
        except OSError as error:
            what = f"{self.address}: mapping {size} bytes at {iova:#x}: {error.strerror}"
            if error.errno in _OUT_OF_MEMORY:
                raise HostMemoryLimit(what, device=self.address, remedy="free host buffers") from error
            raise ValueError(what) from error

    def dma_unmap(self, iova: int, size: int) -> None:
        """Take it back."""
        try:
            with self._turn:
                self._open().address_space.unmap(iova, size)
        except OSError as error:
            raise ValueError(f"{self.address}: {size} bytes at {iova:#x} are not mapped") from error

    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Everything."""
        return ((0, _IOVA_LAST),)

    def interrupt_count(self) -> int:
        """Vectors of the function."""
        return int(self._open().interrupts.count)

    def set_interrupts(self, eventfds: Sequence[int | None]) -> None:
        """Connect copies of the eventfds."""
        interrupts = self._open().interrupts
        for vector in range(interrupts.count):
            fd = eventfds[vector] if vector < len(eventfds) else None
            interrupts.connect(vector, None if fd is None else os.dup(fd))

    def reset(self) -> None:
        """Reset the function."""
        with self._turn:
            self._open().reset(self._reset_cause)

    def alive(self) -> bool:
        """Until it is closed."""
        return not self._closed

    def progress(self) -> None:
        """Let the device work until it has nothing left to do."""
        with self._turn:
            while self._open().step():
                pass

    def close(self) -> None:
        """The client goes; the function object belongs to whoever made it."""
        with self._turn:
            if not self._closed:
                self._closed = True
                self._function.client_lost()

    def _open(self) -> Any:
        if self._closed:
            raise Closed(f"{self.address} is closed", device=self.address)
        return self._function

    @staticmethod
    def _check_range(size: int, offset: int, width: int) -> None:
        if offset < 0 or width <= 0 or offset + width > size:
            raise ValueError(f"access of {width} bytes at {offset:#x}: the region has {size}")
