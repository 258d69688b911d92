"""The device as a buffer sees it."""

from __future__ import annotations

from typing import Protocol

from driver_shim.function.dma import HostMemory


class ReleasedMemory(Protocol):
    """Where a device buffer came from."""

    def release(self, address: int) -> None:
        """Give memory back. Runs inside finalisers too."""


class MemoryOwner(Protocol):
    """The open function whose memory a buffer is a piece of, or that reaches it."""

    @property
    def address(self) -> str:
        """How a user names the device."""

    @property
    def host_memory(self) -> HostMemory:
        """Where host buffers lie."""

    @property
    def device_memory(self) -> ReleasedMemory:
        """Where device buffers lie, until the next reset."""

    def uses(self, buffer: object) -> bool:
        """Whether a command in flight on any queue uses the buffer."""
