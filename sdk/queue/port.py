"""The device as a queue sees it, and the queue as an event sees it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from driver_shim.errors import CommandFailed, NpuError
from driver_shim.function.controller import OpenQueue
from driver_shim.transport.base import Transport

if TYPE_CHECKING:
    import asyncio


class QueueOwner(Protocol):
    """The open function that a queue belongs to."""

    @property
    def address(self) -> str:
        """How a user names the device."""

    @property
    def transport(self) -> Transport:
        """The way to it."""

    @property
    def timeout(self) -> float:
        """Seconds that bound every wait without a limit of its own."""

    @property
    def may_spin(self) -> bool:
        """Whether a wait may keep a CPU busy: not where there is only one."""

    def check_alive(self) -> None:
        """Raise DeviceLost unless the device answers."""

    def lost(self, error: NpuError) -> None:
        """The device is gone: everything outstanding ends with `error`."""

    def delete_queue(self, queue: object, opened: OpenQueue) -> None:
        """A queue closes: delete it on the device, unless that is gone."""


class EventQueue(Protocol):
    """The queue that an event was submitted to."""

    @property
    def address(self) -> str:
        """The device's."""

    @property
    def convert_lock(self) -> threading.Lock:
        """Held while an event's value is made of what its command left in host memory."""

    def reap(self) -> None:
        """Settle every event whose completion is there. Never blocks."""

    def wait_for(self, event: Any, timeout: float | None) -> None:
        """Wait until the event has ended. Raises Timeout, DeviceLost, or the error the queue ended with."""

    def notify(self, event: Any, future: asyncio.Future[None]) -> None:
        """Resolve `future` in its loop when `event` ends, or with Timeout or DeviceLost. Called in that loop."""

    def command_error(self, what: str, status: int) -> CommandFailed:
        """The error of a completion status."""
