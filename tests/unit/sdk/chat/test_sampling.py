"""The choice of tokens: properties that hold for any scores, and the shares that chance gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from driver_shim.errors import NpuError
from sdk.chat.sampling import Candidates, Sampler, Sampling

SCORES = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(lambda row: np.array(row, np.float32))
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
    repetition_penalty=st.floats(0.5, 2),
)
SEEDS = st.integers(0, 2**32)


def top(logits: NDArray[np.float32], count: int) -> Candidates:
    """What a TopK of the logits gives."""
    best = np.argsort(-logits, kind="stable")[:count]
    return Candidates(logits[best], best.astype(np.int64))


@given(SCORES, SEEDS)
def test_greedy_takes_the_best_token_and_of_equal_ones_the_first(logits: NDArray[np.float32], seed: int) -> None:
    assert Sampler(Sampling(), seed).choose(Candidates.of_all(logits)) == int(np.argmax(logits))


@given(SCORES, SAMPLINGS, SEEDS)
def test_the_same_seed_gives_the_same_tokens(logits: NDArray[np.float32], sampling: Sampling, seed: int) -> None:
    first, second = Sampler(sampling, seed), Sampler(sampling, seed)
    for _ in range(5):
        assert first.choose(Candidates.of_all(logits)) == second.choose(Candidates.of_all(logits))


@given(SCORES, SAMPLINGS, SEEDS)
def test_a_token_is_among_the_best_k(logits: NDArray[np.float32], sampling: Sampling, seed: int) -> None:
    sampling = Sampling(sampling.temperature, sampling.top_k, sampling.top_p)
    token = Sampler(sampling, seed).choose(Candidates.of_all(logits))
    better = int((logits > logits[token]).sum())
    assert better < (sampling.top_k or logits.size)


@given(SCORES, SAMPLINGS, SEEDS)
def test_a_token_is_among_the_fewest_that_have_the_share(
    logits: NDArray[np.float32], sampling: Sampling, seed: int
) -> None:
    token = Sampler(Sampling(sampling.temperature, 0, sampling.top_p), seed).choose(Candidates.of_all(logits))
    shares = np.exp((logits - logits.max()).astype(np.float64) / sampling.temperature)
    shares /= shares.sum()
    assert shares[logits > logits[token]].sum() <= sampling.top_p + 1e-9


@given(SCORES, SAMPLINGS, SEEDS, st.integers(1, 40))
def test_candidates_of_a_topk_give_the_token_that_all_scores_give(
    logits: NDArray[np.float32], sampling: Sampling, seed: int, brought: int
) -> None:
    limited = Sampling(sampling.temperature, min(sampling.top_k or brought, brought), sampling.top_p)
    whole = Sampler(limited, seed).choose(Candidates.of_all(logits))
    assert Sampler(limited, seed).choose(top(logits, brought)) == whole


@given(SCORES, SAMPLINGS, SEEDS)
def test_the_order_of_candidates_does_not_matter(logits: NDArray[np.float32], sampling: Sampling, seed: int) -> None:
    backwards = Candidates(logits[::-1], np.arange(logits.size)[::-1])
    assert Sampler(sampling, seed).choose(backwards) == Sampler(sampling, seed).choose(Candidates.of_all(logits))


def test_tokens_come_as_often_as_their_scores_say() -> None:
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(Sampling(temperature=1), seed=7)
    drawn = [sampler.choose(Candidates.of_all(np.log(shares))) for _ in range(4000)]
    assert np.abs(np.bincount(drawn, minlength=4) / 4000 - shares).max() < 0.03


def test_half_the_temperature_squares_the_shares() -> None:
    sampler = Sampler(Sampling(temperature=0.5), seed=7)
    drawn = [sampler.choose(Candidates.of_all(np.log([0.75, 0.25]))) for _ in range(4000)]
    assert abs(np.mean(drawn) - 0.1) < 0.02


@pytest.mark.parametrize("temperature", [1e-300, 1e-12, 1e6])
def test_extreme_temperatures_choose_a_token(temperature: float) -> None:
    logits = np.array([3.0, 5.0, 4.0, -math.inf])
    token = Sampler(Sampling(temperature), seed=1).choose(Candidates.of_all(logits))
    assert token == 1 if temperature < 1 else token in (0, 1, 2)


def test_what_was_said_becomes_less_likely() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.5])
    greedy = Sampler(Sampling(repetition_penalty=2))
    assert greedy.choose(Candidates.of_all(logits), said=[0]) == 1
    assert greedy.choose(Candidates.of_all(logits), said=[0, 1]) == 0
    assert greedy.choose(Candidates.of_all(-np.array([9.0, 9.0, 1.0, 1.5])), said=[2, 2]) == 3
    assert Sampler(Sampling()).choose(Candidates.of_all(logits), said=[0]) == 0


def test_a_seed_that_was_not_given_is_told_and_repeats_the_run() -> None:
    logits = Candidates.of_all(np.zeros(1000))
    drawn = Sampler(Sampling(temperature=1))
    again = Sampler(Sampling(temperature=1), drawn.seed)
    assert [drawn.choose(logits) for _ in range(8)] == [again.choose(logits) for _ in range(8)]
    assert Sampler(Sampling(temperature=1)).seed != drawn.seed


@pytest.mark.parametrize("scores", [[math.nan, 1], [math.inf, 1], [-math.inf, -math.inf], []])
def test_scores_that_are_no_numbers_are_refused(scores: list[float]) -> None:
    with pytest.raises(NpuError, match="no numbers"):
        Sampler(Sampling()).choose(Candidates.of_all(np.array(scores)))


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ({"temperature": -1.0}, "0 or more"),
        ({"temperature": math.nan}, "0 or more"),
        ({"top_k": -1}, r"0 \(all\)"),
        ({"top_p": 0.0}, "above 0 and at most 1"),
        ({"top_p": 1.1}, "above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: dict[str, float], meant: str) -> None:
    with pytest.raises(ValueError, match=meant):
        Sampling(**setting)  # type: ignore[arg-type]
