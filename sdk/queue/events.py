"""Events: what every submission returns. Whoever waits reaps; waiting and awaiting work any number of times."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import CommandFailed, NpuError
from driver_shim.protocol.commands import status_slug
from sdk.here_only import HereOnly
from sdk.queue.port import EventQueue

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
_log = logging.getLogger("npu")


class Recording(Protocol):
    """What a command is recorded in before it is submitted."""

    @property
    def _is_open(self) -> bool:
        """Whether more can be recorded, so that nothing was submitted yet."""


class _UnseenFailure:
    """Logs a failure when its event goes away and nobody ever looked."""

    __slots__ = ("error", "seen")

    def __init__(self, error: NpuError, seen: bool) -> None:
        self.error = error
        self.seen = seen

    def __del__(self) -> None:
        if not self.seen:
            _log.error("a command failed and nobody waited for it: %s", self.error)


class Event(HereOnly, Generic[T]):
    """The outcome of a submission, now or later. Thread-safe."""

    # Underscored members are for this package: queues settle their events.
    __slots__ = (
        "__weakref__",
        "_answered",
        "_convert",
        "_done",
        "_end",
        "_failure",
        "_keep",
        "_queue",
        "_recording",
        "_start",
        "_value",
        "_what",
    )

    def __init__(self, queue: EventQueue, what: str, keep: Any = None, convert: Callable[[], T] | None = None) -> None:
        self._queue = queue
        self._what = what
        self._keep = keep
        """Buffers that the command uses, while it is in flight."""
        self._convert = convert
        self._done = False
        """Whether it has ended as far as was reaped."""
        self._failure: _UnseenFailure | None = None
        self._value: Any = None
        self._start = self._end = 0
        self._answered = False
        """Whether somebody else is told of a failure: it need not be logged."""
        self._recording: Recording | None = None
        """The batch it was recorded in."""

    # --- for applications --------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether the command has ended, well or not. Never blocks."""
        if not self._done:
            self._queue.reap()
        return self._done

    def wait(self, timeout: float | None = None) -> Event[T]:
        """Wait for the end and return this event.

        `timeout` in seconds (None: the device's; `math.inf`: until completion or loss). Raises the command's error,
        `sdk.Timeout` (the job goes on), `DeviceLost`.
        """
        if not self._done:
            if self._recording is not None:
                self._check_submitted(self._recording)
            self._queue.wait_for(self, timeout)
        if self._failure is not None:
            self._raise_failure()
        return self

    def result(self, timeout: float | None = None) -> T:
        """Wait like `wait` and return the command's value (None for nop, copy, fill, barrier)."""
        self.wait(timeout)
        self._take_value()
        return self._value  # type: ignore[no-any-return]

    @property
    def start_tick(self) -> int | None:
        """Device tick at which the work began; None until it has ended."""
        return self._start if self._done else None

    @property
    def end_tick(self) -> int | None:
        """Device tick at which the work ended; None until it has."""
        return self._end if self._done else None

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done():
            if self._recording is not None:
                self._check_submitted(self._recording)
            yield from self._future()
        return self.result(0)

    def __repr__(self) -> str:
        state = "failed" if self._failure else "done" if self._done else "pending"
        return f"<Event {self._what} {state}>"

    def _check_submitted(self, recording: Recording) -> None:
        if recording._is_open:
            raise ValueError("the command is only recorded; leave the batch's with block before waiting for it")

    def _future(self) -> asyncio.Future[None]:
        """A future of the running loop that resolves when this has ended, well or not."""
        import asyncio  # whoever awaits has it; nobody else should pay for it

        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.notify(self, future)
        return future

    def _await_end(self) -> None:
        """Wait for the end, well or not. Raises Timeout, DeviceLost, or the error the queue ended with."""
        if not self._done:
            self._queue.wait_for(self, None)

    def _take_value(self) -> None:
        """Make the value of what the command left in host memory, once it has ended well."""
        if self._convert is not None:
            with self._queue.convert_lock:
                convert = self._convert
                if convert is not None:
                    self._value = convert()
                    self._convert = None
                    self._keep = None

    # --- for the queue -----------------------------------------------------------------------------------------

    def _finish(self, status: int, start_tick: int, end_tick: int, result: int = 0) -> None:
        """The completion arrived. Idempotent."""
        self._start = start_tick
        self._end = end_tick
        if status:
            self._fail(self._queue.command_error(self._what, status))
            return
        if self._convert is None:
            self._keep = None
        self._done = True

    def _fail(self, error: NpuError) -> None:
        """End with an error. Idempotent: the first outcome stays."""
        if not self._done:
            self._failure = _UnseenFailure(error, self._answered)
            self._keep = None
            self._convert = None
            self._done = True

    def _keeps(self, thing: object) -> bool:
        """Whether the command, still in flight, uses this buffer."""
        keep = self._keep
        return not self._done and keep is not None and any(kept is thing for kept in keep)

    def _check_kept(self) -> None:
        """Raise Closed if a buffer of the command was freed.

        Called with the queue's lock held, right before it counts as in flight: from then on `free` refuses, so no
        command ever runs on memory that was given back.
        """
        for buffer in self._keep or ():
            buffer._base_address()

    def _drop(self, error: NpuError) -> None:
        """The command will never be submitted."""
        self._answered = True
        self._fail(error)

    def _take_failure(self) -> NpuError | None:
        """The error it ended with, if any; whoever takes it answers for it."""
        if self._failure is None:
            return None
        self._failure.seen = True
        return self._failure.error

    def _raise_failure(self) -> None:
        error = self._take_failure()
        if error is not None:
            raise error.again()


class StatusesEvent(Event["NDArray[np.uint8]"]):
    """Outcome of an array of descriptors: one status byte each, in order."""

    __slots__ = ("_statuses",)

    def __init__(self, queue: EventQueue, count: int, keep: Any) -> None:
        super().__init__(queue, f"submit of {count} descriptors", keep)
        self._statuses = np.zeros(count, np.uint8)
        self._value = self._statuses
        if count == 0:
            self._done = True

    def _absorb(self, position: int, rows: NDArray[Any]) -> None:
        """Completions of descriptors `position` onwards arrived (in order)."""
        count = len(rows)
        self._statuses[position : position + count] = rows["status"]
        if position == 0:
            self._start = int(rows["start_tick"][0])
        self._end = int(rows["end_tick"][-1])
        if position + count == len(self._statuses):
            self._conclude()

    def _conclude(self) -> None:
        failed = np.flatnonzero(self._statuses)
        if len(failed):
            index = int(failed[0])
            status = int(self._statuses[index])
            self._fail(
                CommandFailed(
                    f"descriptor {index} of {len(self._statuses)} failed: {status_slug(status)}"
                    + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""),
                    status=status,
                    code=status_slug(status),
                    index=index,
                    subsystem="queue",
                    device=self._queue.address,
                )
            )
        else:
            self._keep = None
            self._done = True
