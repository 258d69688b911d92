"""The choice of the next token: on the host, with numpy, the same for the same seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import NpuError


class Candidates(NamedTuple):
    """What the model says of the next token: scores (logits), and the tokens they are of."""

    scores: NDArray[Any]
    tokens: NDArray[np.int64]

    @classmethod
    def of_all(cls, logits: NDArray[Any]) -> Candidates:
        """Of a whole row of logits, a score for every token."""
        return cls(logits, np.arange(logits.size))


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Raises ValueError for what means nothing.

    The order is: repetition penalty, temperature, the `top_k` best, the fewest that together have `top_p` of the
    probability. Of a TopK's candidates, `top_p` is a share of what those have.
    """

    temperature: float = 0.0
    """0 takes the best token, always; 1 the model's own probabilities; more makes rare tokens likelier."""
    top_k: int = 0
    """0 is all."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    """Divides the scores of tokens that were said before (multiplies negative ones)."""

    def __post_init__(self) -> None:
        wrong = [
            name
            for name, right in (
                ("temperature", 0 <= self.temperature < math.inf),
                ("top_k", self.top_k >= 0),
                ("top_p", 0 < self.top_p <= 1),
                ("repetition_penalty", 0 < self.repetition_penalty < math.inf),
            )
            if not right
        ]
        if wrong:
            raise ValueError(f"{wrong[0]}={getattr(self, wrong[0])}: it has to be {_MEANT[wrong[0]]}")


_MEANT = {
    "temperature": "0 or more",
    "top_k": "0 (all) or more",
    "top_p": "above 0 and at most 1",
    "repetition_penalty": "above 0",
}


class Sampler:
    """Chooses tokens, one after the other, with random numbers of its own."""

    def __init__(self, sampling: Sampling, seed: int | None = None) -> None:
        self.sampling = sampling
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        """What makes a run repeatable; drawn where none was given."""
        self._random = np.random.default_rng(self.seed)

    def choose(self, candidates: Candidates, said: Iterable[int] = ()) -> int:
        """A token of the candidates; `said` are those before it. Raises NpuError for scores that are no numbers."""
        ordered = _best_first(_penalised(candidates, said, self.sampling.repetition_penalty))
        if self.sampling.temperature == 0:
            return int(ordered.tokens[0])
        tokens, shares = probabilities(ordered, self.sampling)
        reached = np.cumsum(shares)
        place = int(np.searchsorted(reached, self._random.random() * reached[-1], side="right"))
        return int(tokens[min(place, tokens.size - 1)])


def probabilities(ordered: Candidates, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens among which chance decides, and their probabilities, of candidates in order."""
    if sampling.top_k:
        ordered = Candidates(ordered.scores[: sampling.top_k], ordered.tokens[: sampling.top_k])
    with np.errstate(over="ignore", under="ignore"):  # what is far behind the best has no share
        shares = np.exp((ordered.scores - ordered.scores[0]) / sampling.temperature)
    shares /= shares.sum()
    if sampling.top_p < 1:
        count = int(np.searchsorted(np.cumsum(shares), sampling.top_p)) + 1
        shares = shares[:count] / shares[:count].sum()
    return ordered.tokens[: shares.size], shares


def _penalised(candidates: Candidates, said: Iterable[int], penalty: float) -> Candidates:
    scores = np.asarray(candidates.scores, np.float64)
    if penalty != 1:
        before = np.isin(candidates.tokens, np.fromiter(said, np.int64))
        scores = np.where(before, np.where(scores > 0, scores / penalty, scores * penalty), scores)
    return Candidates(scores, candidates.tokens)


def _best_first(candidates: Candidates) -> Candidates:
    """By score, equal ones by token. Raises NpuError."""
    if not np.isfinite(candidates.scores.max(initial=-math.inf)):  # nan is the largest, too
        raise NpuError("the model's scores of the next token are no numbers", subsystem="sampling", code="not-a-number")
    order = np.lexsort((candidates.tokens, -candidates.scores))
    return Candidates(candidates.scores[order], candidates.tokens[order])
