"""Events: what every submission returns. Whoever waits reaps; waiting and awaiting work any number of times."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import CommandFailed, NpuError
from driver_shim.protocol.commands import status_slug

if TYPE_CHECKING:
    import asyncio

    from sdk.queue.batch import Batch
    from sdk.queue.queue import Queue

T = TypeVar("T")
_log = logging.getLogger("npu")


class _UnseenFailure:
    """Logs a failure when its event goes away and nobody ever looked."""

    __slots__ = ("error", "seen")

    def __init__(self, error: NpuError) -> None:
        self.error = error
        self.seen = False

    def __del__(self) -> None:
        if not self.seen:
            _log.error("a command failed and nobody waited for it: %s", self.error)


class Event(Generic[T]):
    """The outcome of a submission, now or later. Thread-safe."""

    __slots__ = (
        "__weakref__",
        "_convert",
        "_done",
        "_end",
        "_failure",
        "_keep",
        "_queue",
        "_start",
        "_value",
        "_what",
        "batch",
    )

    def __init__(self, queue: Queue, what: str, keep: Any = None, convert: Callable[[], T] | None = None) -> None:
        self._queue = queue
        self._what = what
        self._keep = keep
        self._convert = convert
        self._done = False
        self._failure: _UnseenFailure | None = None
        self._value: Any = None
        self._start = self._end = 0
        self.batch: Batch | None = None
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
            self._check_submitted()
            self._queue.wait_until(self.is_done, timeout, self._what)
        self._raise_failure()
        return self

    def result(self, timeout: float | None = None) -> T:
        """Wait like `wait` and return the command's value (None for nop, copy, fill, barrier)."""
        self.wait(timeout)
        if self._convert is not None:
            with self._queue.convert_lock:
                convert = self._convert
                if convert is not None:
                    self._value = convert()
                    self._convert = None
                    self._keep = None
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
            self._check_submitted()
            import asyncio  # whoever awaits has it; nobody else should pay for it

            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.notify(self, future)
            yield from future
        return self.result(0)

    def __repr__(self) -> str:
        state = "failed" if self._failure else "done" if self._done else "pending"
        return f"<Event {self._what} {state}>"

    def _check_submitted(self) -> None:
        if self.batch is not None and self.batch.open:
            raise ValueError("the command is only recorded; leave the batch's with block before waiting for it")

    # --- for the queue -----------------------------------------------------------------------------------------

    def is_done(self) -> bool:
        """Whether it has ended as far as was reaped."""
        return self._done

    def finish(self, status: int, start_tick: int, end_tick: int) -> None:
        """The completion arrived. Idempotent."""
        self._start, self._end = start_tick, end_tick
        if status:
            self.fail(self._queue.command_error(self._what, status))
            return
        if self._convert is None:
            self._keep = None
        self._done = True

    def fail(self, error: NpuError) -> None:
        """End with an error. Idempotent: the first outcome stays."""
        if not self._done:
            self._failure = _UnseenFailure(error)
            self._keep = None
            self._convert = None
            self._done = True

    def keeps(self, thing: object) -> bool:
        """Whether the command, still in flight, uses this buffer."""
        keep = self._keep
        return not self._done and keep is not None and any(kept is thing for kept in keep)

    def kept(self) -> Sequence[Any]:
        """Buffers that the command uses, while it is in flight."""
        return self._keep or ()

    def check_kept(self) -> None:
        """Raise Closed if a buffer of the command was freed. Called with the queue's lock held, right before it counts

        as in flight: from then on `free` refuses, so no command ever runs on memory that was given back.
        """
        for root in self._keep or ():
            root.base_address()

    def drop(self, error: NpuError) -> None:
        """The command will never be submitted."""
        self.fail(error)
        self.take_failure()

    def take_failure(self) -> NpuError | None:
        """The error it ended with, if any; whoever takes it answers for it."""
        if self._failure is None:
            return None
        self._failure.seen = True
        return self._failure.error

    def _raise_failure(self) -> None:
        error = self.take_failure()
        if error is not None:
            raise error.again()


class StatusesEvent(Event["NDArray[np.uint8]"]):
    """Outcome of an array of descriptors: one status byte each, in order."""

    __slots__ = ("_statuses",)

    def __init__(self, queue: Queue, count: int, keep: Any) -> None:
        super().__init__(queue, f"submit of {count} descriptors", keep)
        self._statuses = np.zeros(count, np.uint8)
        self._value = self._statuses
        if count == 0:
            self._done = True

    def absorb(self, position: int, rows: NDArray[Any]) -> None:
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
            self.fail(
                CommandFailed(
                    f"descriptor {index} of {len(self._statuses)} failed: {status_slug(status)}"
                    + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""),
                    status=status,
                    code=status_slug(status),
                    index=index,
                    subsystem="queue",
                    device=self._queue.device_address,
                )
            )
        else:
            self._keep = None
            self._done = True


def set_if_waiting(future: asyncio.Future[None], error: NpuError | None = None) -> None:
    """Resolve a future unless its task was cancelled meanwhile; runs in the future's loop."""
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
