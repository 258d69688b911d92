"""What a conversation needs of a language model, its state and its device; `sdk.Device` and what it loads have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from sdk.log_pages import Activity


class Run(Protocol):
    """A run of the model that was started."""

    @property
    def start_tick(self) -> int | None:
        """When the device began, on its own clock; None before the end, and where it has none."""

    @property
    def end_tick(self) -> int | None:
        """When the device was done."""

    def result(self, timeout: float | None = None) -> Mapping[str, NDArray[Any]]:
        """Wait for the outputs."""


class State(Protocol):
    """One sequence's memory on the device."""

    @property
    def length(self) -> int:
        """Tokens in it."""

    @property
    def max_tokens(self) -> int:
        """Tokens that it takes at most."""

    @property
    def memory_bytes(self) -> int:
        """Device memory that they lie in."""

    @property
    def masked_tokens(self) -> int:
        """What the chunks of its newest run were filled up with."""

    def rewind(self, length: int) -> None:
        """Forget all tokens behind the first `length`."""


class LanguageModel(Protocol):
    """A model on the device."""

    def submit(self, inputs: Mapping[str, NDArray[Any]], *, state: Any) -> Run:
        """Start a run that appends the tokens of its input to a state."""


class Counters(Protocol):
    """The device's own counters."""

    def activity(self) -> Activity:
        """What it did since power-on."""
