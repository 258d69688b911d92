"""The device as a model sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sdk.memory.buffers import DeviceBuffer, HostBuffer
from sdk.queue.queue import Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import DTypeLike


class ModelOwner(Protocol):
    """The open function that a model is loaded on."""

    @property
    def address(self) -> str:
        """How a user names the device."""

    @property
    def reset_count(self) -> int:
        """Resets so far: what was loaded before one is gone after it."""

    def host_buffer(self, shape: Any, dtype: DTypeLike) -> HostBuffer:
        """Zeroed DMA-able host memory."""

    def device_buffer(self, shape: Any, dtype: DTypeLike) -> DeviceBuffer:
        """Device memory, contents unspecified."""

    def create_queue(self, depth: int, when_full: str) -> Queue:
        """A queue."""

    def load_program(self, image: bytes, constants: Sequence[tuple[int, int]]) -> int:
        """Load a compiled container whose constants lie at these (device address, bytes); returns its handle."""

    def unload_program(self, handle: int, reset_count: int) -> None:
        """Forget a program, unless a reset (they are counted) did so already."""

    def when_idle(self, queue: Queue | None, clean_up: Callable[[], None], reset_count: int) -> None:
        """Have `clean_up` called once nothing is in flight on the queue. Runs inside finalisers: it only notes it."""
