"""Tokens of one sequence, asked of the device one after the other."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import NpuError
from sdk.chat.figures import Figures, Meter, Phase, count_run, timed
from sdk.chat.port import LanguageModel, State
from sdk.chat.sampling import Candidates, Sampler

INPUT = "input_ids"


class Finish(enum.StrEnum):
    """Why an answer ended."""

    END = "end"
    """The model said so."""
    TOKENS = "tokens"
    """It has as many tokens as were asked for."""
    CONTEXT = "context"
    """The state is full."""
    STOPPED = "stopped"
    """The caller wants no more."""


class ContextFull(NpuError, ValueError):
    """What is to be read does not fit the context; nothing has changed."""

    code = "context-full"

    def __init__(self, message: str, *, tokens: int = 0, context: int = 0, **details: Any) -> None:
        super().__init__(message, **details)
        self.tokens = tokens
        self.context = context


class Generation:
    """An iterator over the tokens of one answer. `finish` and `figures` are whole when it has ended."""

    def __init__(self, steps: Callable[[Generation], Generator[int, None, None]]) -> None:
        self.finish: Finish | None = None
        self.figures = Figures()
        self._steps = steps(self)

    def __iter__(self) -> Iterator[int]:
        return self._steps

    def stop(self) -> None:
        """End it here."""
        self._steps.close()
        if self.finish is None:
            self.finish = Finish.STOPPED


class TokenSequence:
    """One state of a model, and which tokens are in it. Not thread-safe; one generation at a time."""

    def __init__(self, model: LanguageModel, state: State, meter: Meter) -> None:
        self._model = model
        self._state = state
        self._meter = meter
        self._held: list[int] = []

    @property
    def context(self) -> int:
        """Tokens that fit."""
        return self._state.max_tokens

    @property
    def length(self) -> int:
        """Tokens that are there."""
        return self._state.length

    @property
    def state_bytes(self) -> int:
        """Device memory that they take."""
        return self._state.memory_bytes

    def follow(
        self, prompt: list[int], sampler: Sampler, *, ends: AbstractSet[int], most: int | None = None
    ) -> Generation:
        """The tokens that follow `prompt`, at most `most`, until one of `ends`; of it, only what is new is read.

        Raises ContextFull, ValueError for an empty prompt.
        """
        if not prompt:
            raise ValueError("the prompt has no tokens")
        if len(prompt) > self.context:
            raise ContextFull(
                f"all that was said takes {len(prompt):,} tokens; the context has room for {self.context:,}",
                tokens=len(prompt),
                context=self.context,
                subsystem="chat",
                remedy="begin anew, or make the context larger",
            )
        return Generation(lambda generation: self._tokens(generation, prompt, sampler, ends, most))

    def _tokens(
        self, generation: Generation, prompt: list[int], sampler: Sampler, ends: AbstractSet[int], most: int | None
    ) -> Generator[int, None, None]:
        began, figures = time.perf_counter(), generation.figures
        figures.reused_tokens = self._rewind(prompt)
        with self._meter.bus_of(figures.prefill), timed(figures.prefill):
            token = sampler.choose(self._read(prompt[figures.reused_tokens :], figures.prefill), self._held)
        figures.first_token_seconds = time.perf_counter() - began
        said = 0
        with self._meter.bus_of(figures.decode):
            while token not in ends:
                yield token
                said += 1
                if said == most or self.length == self.context:
                    generation.finish = Finish.TOKENS if said == most else Finish.CONTEXT
                    return
                with timed(figures.decode):
                    token = sampler.choose(self._read([token], figures.decode), self._held)
        generation.finish = Finish.END

    def _rewind(self, prompt: list[int]) -> int:
        """Keep what the state and the prompt begin with in common, less one token where that is all of the prompt.

        The model has to read something to say what comes next.
        """
        held = self._held[: self._state.length]  # of a run that failed, nothing is there
        common = 0
        while common < min(len(held), len(prompt) - 1) and held[common] == prompt[common]:
            common += 1
        self._state.rewind(common)
        self._held = held[:common]
        return common

    def _read(self, tokens: list[int], phase: Phase) -> Candidates:
        """Have the model read tokens; what it says of the next one."""
        run = self._model.submit({INPUT: np.array([tokens], np.int64)}, state=self._state)
        outputs = run.result()
        self._held += tokens
        count_run(phase, len(tokens), run)
        phase.masked_tokens += self._state.masked_tokens
        return last_candidates(outputs)


def last_candidates(outputs: Mapping[str, NDArray[Any]]) -> Candidates:
    """What outputs say of the token behind the last one: a row of logits, or a TopK's scores and tokens."""
    scores = tokens = None
    for array in outputs.values():
        row = array.reshape(-1, array.shape[-1])[-1]
        if np.issubdtype(array.dtype, np.integer):
            tokens = row.astype(np.int64)
        else:
            scores = row.astype(np.float32)
    if scores is None:
        raise NpuError(f"the model gives no scores; its outputs are {', '.join(outputs)}", subsystem="chat")
    return Candidates.of_all(scores) if tokens is None else Candidates(scores, tokens)
