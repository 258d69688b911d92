"""What an answer took: tokens, time by either clock, bytes that crossed the bus."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from driver_shim.errors import NpuError
from driver_shim.protocol.commands import COMPLETION_BYTES, SUBMISSION_BYTES
from sdk.chat.port import Counters, Run

COMMAND_BYTES = SUBMISSION_BYTES + COMPLETION_BYTES
"""What crosses the bus for a command, beside the bytes that it copies."""


@dataclasses.dataclass
class Phase:
    """Prefill or decode of one answer."""

    tokens: int = 0
    """That the model read."""
    wall_seconds: float = 0.0
    """With the choice of the next token, without what the caller did with it."""
    device_ticks: int = 0
    """By the device's clock: modelled, where it is an emulator."""
    bus_bytes: int = 0
    masked_tokens: int = 0
    """What chunks were filled up with, which costs its time."""

    def __add__(self, other: Phase) -> Phase:
        return Phase(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass
class Figures:
    """Of one answer, or of several."""

    prefill: Phase = dataclasses.field(default_factory=Phase)
    decode: Phase = dataclasses.field(default_factory=Phase)
    reused_tokens: int = 0
    """Of prompts, that the state had already."""
    first_token_seconds: float | None = None
    """From the question to the first token (wall)."""

    def __add__(self, other: Figures) -> Figures:
        first = other.first_token_seconds if self.first_token_seconds is None else self.first_token_seconds
        reused = self.reused_tokens + other.reused_tokens
        return Figures(self.prefill + other.prefill, self.decode + other.decode, reused, first)


class Meter:
    """Counts what runs take."""

    def __init__(self, device: Counters) -> None:
        self._device = device

    @contextmanager
    def bus_of(self, phase: Phase) -> Iterator[None]:
        """Add to a phase what crosses the bus meanwhile; whose it is cannot be told, so it should be alone."""
        before = self._bus_bytes()
        try:
            yield
        finally:
            with suppress(NpuError):  # a device that was lost counts no more; what lost it is on its way
                phase.bus_bytes += self._bus_bytes() - before

    def _bus_bytes(self) -> int:
        counted = self._device.activity()
        return counted.bytes_copied + (counted.commands - counted.admin_commands) * COMMAND_BYTES


@contextmanager
def timed(phase: Phase) -> Iterator[None]:
    """Add to a phase the wall time that passes meanwhile."""
    began = time.perf_counter()
    try:
        yield
    finally:
        phase.wall_seconds += time.perf_counter() - began


def count_run(phase: Phase, tokens: int, run: Run) -> None:
    """Add a run that has ended well."""
    phase.tokens += tokens
    phase.device_ticks += (run.end_tick or 0) - (run.start_tick or 0)
