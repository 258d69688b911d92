"""`Holding`: what one state has, as numbers and buffers."""

from __future__ import annotations

from typing import Any

from sdk.memory.buffers import DeviceBuffer
from sdk.queue.events import Event


class Holding:
    """What one state has. Outlives it in its finaliser."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.blocks: list[int] = []
        self.length = 0
        """Tokens that are there for good."""
        self.masked_tokens = 0
        """What the chunks of its newest run were filled up with."""
        self.replaced: dict[str, list[DeviceBuffer]] = {}
        """The value of each replaced state, and room for the next."""
        self.run: Event[Any] | None = None
        """The run in flight that appends to it."""

    @property
    def in_flight(self) -> bool:
        """Whether a run works on it."""
        return self.run is not None and not self.run.done()

    def commit(self, tokens: int) -> None:
        """A run has appended so many tokens, and left the next value of each replaced state."""
        self.length += tokens
        for pair in self.replaced.values():
            pair.reverse()
