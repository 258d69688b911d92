"""The device as a model sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sdk.memory.buffers import DeviceBuffer, HostBuffer
from sdk.model.programs import ModelProgram, ResidentPrograms
from sdk.model.staging_pools import StagingPools
from sdk.queue.queue import Queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike


class ModelOwner(Protocol):
    """The open function that a model is loaded on."""

    @property
    def address(self) -> str:
        """How a user names the device."""

    @property
    def profile(self) -> str:
        """The chip, by name; empty where the device does not say."""

    @property
    def timeout(self) -> float:
        """Seconds that bound every wait without a limit of its own."""

    @property
    def reset_count(self) -> int:
        """Resets so far: what was loaded before one is gone after it."""

    def host_buffer(self, shape: Any, dtype: DTypeLike) -> HostBuffer:
        """Zeroed DMA-able host memory."""

    def device_buffer(self, shape: Any, dtype: DTypeLike) -> DeviceBuffer:
        """Device memory, contents unspecified."""

    @property
    def free_bytes(self) -> int:
        """Device memory that nobody has, in pieces."""

    @property
    def engines(self) -> int:
        """Programs that the device runs at one time."""

    @property
    def programs(self) -> ResidentPrograms:
        """The programs of all models."""

    @property
    def stagings(self) -> StagingPools:
        """The host memory that runs of all models have."""

    def take_queue(self) -> Queue:
        """A queue for a lane, which other lanes may use, too. Raises CommandFailed when the application has all."""

    def give_queue(self, queue: Queue) -> None:
        """A lane needs its queue no more."""

    def program_report(self, program: ModelProgram) -> list[tuple[str, int]]:
        """(kernel, nanoseconds) of each command of a program's newest run; empty when the device has it not."""

    def make_resident(self, program: ModelProgram) -> None:
        """Put a program on the device, in place of others if need be."""

    def drop_program(self, program: ModelProgram) -> None:
        """Take a program off the device for good, unless a reset did so already."""

    def when_idle(self, idle: Callable[[], bool], clean_up: Callable[[], None], reset_count: int) -> None:
        """Have `clean_up` called once `idle` says so. Runs inside finalisers: it only notes it."""
