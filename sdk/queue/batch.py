"""Batches: commands recorded for one doorbell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from driver_shim.errors import CommandFailed
from sdk.queue.commands import Commands
from sdk.queue.completions import Completions
from sdk.queue.events import Event, T

Recorded = tuple[Event[Any], Any, int, tuple[Any, ...]]
"""(event, codec, opcode, values) of a command in a batch."""


class Batch(Commands):
    """Commands recorded for one doorbell. Nothing is visible to the device before the `with` block ends."""

    def __init__(self, completions: Completions, submit: Callable[[deque[Recorded]], None]) -> None:
        """Use `Queue.batch`. `submit` makes the commands visible to the device and empties what it is given."""
        super().__init__(completions)
        self._submit = submit
        self._recorded: deque[Recorded] = deque()
        self._state = "new"

    def _issue(self, event: Event[T], codec: Any, opcode: int, values: tuple[Any, ...]) -> Event[T]:
        if self._state != "open":
            raise ValueError(f"the batch is {self._state}; record inside its with block")
        event._recording = self
        self._recorded.append((event, codec, opcode, values))
        return event

    @property
    def _is_open(self) -> bool:
        """Whether the block has not ended."""
        return self._state == "open"

    def __len__(self) -> int:
        return len(self._recorded)

    def __enter__(self) -> Batch:
        if self._state != "new":
            raise ValueError("a batch can be used once; make another with q.batch()")
        self._state = "open"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._state = "submitted" if kind is None else "dropped"
        if kind is None:
            try:
                for event, *_ in self._recorded:
                    event._check_kept()
                self._submit(self._recorded)
            except BaseException:
                self._drop()
                raise
        else:
            self._drop()

    def _drop(self) -> None:
        dropped = CommandFailed(
            "the command was recorded in a batch that was dropped",
            code="batch-dropped",
            device=self._completions.address,
        )
        for event, *_ in self._recorded:
            event._drop(dropped)
