"""What a state needs of its model and its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sdk.memory.buffers import DeviceBuffer, HostBuffer
from sdk.queue.queue import Queue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdk.compiler.states import StateInfo
    from sdk.state.holding import Holding


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


class StateOwner(Protocol):
    """The model that a state is of."""

    @property
    def address(self) -> str:
        """How a user names the device."""

    @property
    def states(self) -> tuple[StateInfo, ...]:
        """What a state holds."""

    def check_rewindable(self) -> None:
        """Raise ValueError where what was overwritten cannot come back."""

    def fork(self, holding: Holding) -> Holding:
        """What a second state has that goes on from here."""

    def read(self, holding: Holding) -> Sequence[NDArray[Any]]:
        """What each of `states` holds, over the bus."""
