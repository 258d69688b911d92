"""Book-keeping of device memory: what is handed out, and what was let go."""

from __future__ import annotations

from collections import deque

from driver_shim.errors import OutOfDeviceMemory
from driver_shim.function.allocator import OutOfSpace, RangeAllocator
from sdk.memory.buffers import DEVICE_ALIGNMENT


class DeviceMemory:
    """A function's device memory until its next reset. The caller serialises `allocate` and `reclaim`."""

    def __init__(self, whole: RangeAllocator) -> None:
        self._allocator = whole
        self._released: deque[int] = deque()
        """Addresses that were given back, by finalisers too."""

    def allocate(self, size_bytes: int) -> int:
        """Address of so many bytes that nobody else has. Raises OutOfSpace."""
        self.reclaim()
        return self._allocator.allocate(size_bytes, DEVICE_ALIGNMENT)

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody has, in pieces."""
        self.reclaim()
        return self._allocator.free_bytes

    def release(self, address: int) -> None:
        """Give memory back. Needs no lock, so that finalisers can: the next `reclaim` takes it."""
        self._released.append(address)

    def reclaim(self) -> None:
        """Take back what was released."""
        while self._released:
            self._allocator.free(self._released.popleft())


def out_of_memory(space: OutOfSpace, device: str) -> OutOfDeviceMemory:
    """The error that says why an allocation on `device` failed."""
    fragmented = space.free >= space.requested
    lacking = space.requested - (space.largest if fragmented else space.free)
    why = f"fragmentation: that piece lacks {lacking}" if fragmented else f"exhaustion: {lacking} are lacking"
    return OutOfDeviceMemory(
        f"{space.requested} bytes of device memory asked for; {space.free} are free, the largest piece has"
        f" {space.largest} ({why})",
        device=device,
        subsystem="memory",
        remedy="free buffers or models that are no longer needed",
        requested=space.requested,
        available=space.free,
        largest=space.largest,
    )
