"""What `npuctl chat` reports: an answer as a document's keys, and the device's part in lines for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from sdk.chat.conversation import Answer
from sdk.chat.figures import Figures, Phase
from sdk.chat.sampling import Sampler
from sdk.chat.sequence import TokenSequence


@dataclasses.dataclass(frozen=True)
class Setting:
    """What stays the same during a session."""

    model: str
    address: str
    kernels: str | None
    tick_hz: float | None
    weights_bytes: int | None
    load_seconds: float
    sampler: Sampler

    def entry(self, answer: Answer, prompt: str, sequence: TokenSequence) -> dict[str, Any]:
        """An answer, for programs."""
        figures = answer.figures
        return {
            "model": self.model,
            "kernels": self.kernels,
            "prompt": prompt,
            "text": answer.text,
            "finish": answer.finish,
            "prompt_tokens": answer.prompt_tokens,
            "reused_tokens": figures.reused_tokens,
            "tokens": answer.tokens,
            "wall_load_seconds": self.load_seconds,
            "wall_first_token_seconds": figures.first_token_seconds,
            "prefill": self._phase_entry(figures.prefill),
            "decode": self._phase_entry(figures.decode),
            "context_tokens": sequence.context,
            "state_tokens": sequence.length,
            "state_bytes": sequence.state_bytes,
            "weights_bytes": self.weights_bytes,
            "sampling": {**dataclasses.asdict(self.sampler.sampling), "seed": self.sampler.seed},
        }

    def lines(self, figures: Figures, sequence: TokenSequence) -> list[str]:
        """What the device did, for people, in lines of at most 80 columns."""
        first = figures.first_token_seconds
        begun = "" if first is None else f", {first:.2f} s to the first token"
        weights = "unknown" if self.weights_bytes is None else f"{self.weights_bytes:,} bytes"
        held = f"{sequence.length:,} of {sequence.context:,} tokens"
        return [
            f"{self.address}, kernels {self.kernels}:",
            f"  {self.load_seconds:.2f} s to load{begun} (wall)",
            *self._phase_lines("prefill", "read", figures.prefill),
            *self._phase_lines("decode", "made", figures.decode),
            f"  weights: {weights} resident",
            f"  state: {sequence.state_bytes:,} bytes for {held}",
            f"  {self._sampling()}",
        ]

    def _phase_entry(self, phase: Phase) -> dict[str, Any]:
        return {
            "tokens": phase.tokens,
            "wall_seconds": phase.wall_seconds,
            "device_model_seconds": self._device_seconds(phase),
            "bus_bytes": phase.bus_bytes,
            "masked_tokens": phase.masked_tokens,
        }

    def _device_seconds(self, phase: Phase) -> float | None:
        return phase.device_ticks / self.tick_hz if self.tick_hz else None

    def _phase_lines(self, name: str, done: str, phase: Phase) -> list[str]:
        if not phase.tokens:
            return [f"  {name}: no tokens {done}"]
        rates = f"{_rate(phase.tokens, phase.wall_seconds)} tokens/s (wall)"
        device_seconds = self._device_seconds(phase)
        if device_seconds:
            rates += f", {_rate(phase.tokens, device_seconds)} tokens/s (device_model)"
        masked = f"\n    {phase.masked_tokens:,} tokens more filled up chunks" if phase.masked_tokens else ""
        return [
            f"  {name}: {phase.tokens:,} tokens, for each {phase.bus_bytes / phase.tokens:,.0f} bytes crossed the bus",
            f"    {rates}{masked}",
        ]

    def _sampling(self) -> str:
        sampling = self.sampler.sampling
        if sampling.temperature == 0:
            return "greedy: the same answer every time"
        return f"temperature {sampling.temperature:g}, seed {self.sampler.seed}: --seed repeats it"


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.1f}" if seconds else "unknown"
