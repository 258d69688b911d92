"""The device as states see it."""

from __future__ import annotations

from typing import Any, Protocol

from sdk.memory.buffers import DeviceBuffer, HostBuffer
from sdk.queue.queue import Queue


class FunctionOwner(Protocol):
    """The open function that states are on."""

    @property
    def address(self) -> str:
        """How a user names the device."""

    def host_buffer(self, shape: Any, dtype: Any) -> HostBuffer:
        """Zeroed DMA-able host memory."""

    def device_buffer(self, shape: Any, dtype: Any) -> DeviceBuffer:
        """Device memory, contents unspecified. Raises OutOfDeviceMemory."""

    def take_queue(self) -> Queue:
        """A queue that other users may have, too."""

    def give_queue(self, queue: Queue) -> None:
        """It is needed no more."""
