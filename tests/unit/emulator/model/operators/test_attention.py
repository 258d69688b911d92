"""ATTENTION against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.program_commands import CommandKind, Scores
from emulator.model.operators import SemanticError, attention
from tests.support.programs import golden_outputs

F32 = np.float32
Array = NDArray[Any]
OPEN = {"left_window": -1, "right_window": -1}


def attend(inputs: list[Array | None], outputs: int = 1, **attributes: Any) -> list[Array]:
    return golden_outputs(CommandKind.ATTENTION, inputs, outputs, **{"scale": 1.0, **OPEN, **attributes})


def heads(*rows: list[float]) -> Array:
    """One head of one sample: [1, 1, rows, size]."""
    return np.array(rows, F32).reshape(1, 1, len(rows), -1)


LN3 = math.log(3)
KEYS, VALUES = heads([0], [LN3]), heads([0, 8], [4, 0])
"""A query q has probabilities 1 : 3^q."""


def test_values_are_weighed_by_how_keys_match() -> None:
    (y,) = attend([heads([1], [0]), KEYS, VALUES])
    np.testing.assert_allclose(y[0, 0], [[3, 2], [2, 4]], rtol=1e-6)


def test_products_are_scaled_and_capped() -> None:
    y, _, _, scores = attend([heads([1]), KEYS, VALUES], 4, scale=2.0)
    np.testing.assert_allclose(scores[0, 0], [[0, 2 * LN3]], rtol=1e-6)
    np.testing.assert_allclose(y[0, 0], [[3.6, 0.8]], rtol=1e-6)
    _, _, _, capped = attend([heads([1]), KEYS, VALUES], 4, softcap=0.5, scores=Scores.CAPPED)
    np.testing.assert_allclose(capped[0, 0], [[0, 0.5 * math.tanh(2 * LN3)]], rtol=1e-6)


def test_a_bool_mask_says_what_takes_part() -> None:
    (y,) = attend([heads([1], [1]), KEYS, VALUES, np.array([[True, False], [False, True]])])
    assert y[0, 0].tolist() == [[0, 8], [4, 0]]


def test_a_float_mask_is_added_after_the_cap() -> None:
    mask = np.array([[0, -LN3]], F32)
    y, _, _, biased = attend([heads([1]), KEYS, VALUES, mask], 4, scores=Scores.BIASED)
    np.testing.assert_allclose(biased[0, 0], [[0, 0]], atol=1e-6)
    np.testing.assert_allclose(y[0, 0], [[2, 4]], rtol=1e-6)


def test_a_mask_of_fewer_keys_leaves_the_others_out() -> None:
    (y,) = attend([heads([1]), KEYS, VALUES, np.zeros(1, F32)])
    assert y[0, 0].tolist() == [[0, 8]]


@pytest.mark.parametrize("mask", [np.zeros((1, 2), bool), np.full((1, 2), -np.inf, F32)], ids=["bool", "float"])
def test_a_query_that_may_attend_nothing_gives_zeros(mask: Array) -> None:
    y, _, _, probabilities = attend([heads([1]), KEYS, VALUES, mask], 4, scores=Scores.PROBABILITIES)
    assert not y.any() and not probabilities.any()


def test_causal_queries_see_no_later_keys() -> None:
    (y,) = attend([heads([1], [0]), KEYS, VALUES], causal=1)
    np.testing.assert_allclose(y[0, 0], [[0, 8], [2, 4]], rtol=1e-6)


def test_windows_reach_to_both_sides() -> None:
    keys, values = heads([0], [0], [0], [0]), heads([1], [2], [4], [8])
    queries = heads([0], [0], [0], [0])
    (left,) = attend([queries, keys, values], left_window=1, right_window=0)
    assert left.reshape(-1).tolist() == [1, 1.5, 3, 6]
    (right,) = attend([queries, keys, values], left_window=0, right_window=1)
    assert right.reshape(-1).tolist() == [1.5, 3, 6, 8]


def test_the_past_comes_before_the_new_and_both_are_handed_on() -> None:
    y, keys, values = attend([heads([1]), heads([LN3]), heads([4, 0]), None, heads([0]), heads([0, 8])], 3, causal=1)
    np.testing.assert_allclose(y[0, 0], [[3, 2]], rtol=1e-6)
    assert keys.tolist() == KEYS.tolist() and values.tolist() == VALUES.tolist()


def test_only_valid_keys_of_a_cache_are_attended_and_causal_queries_are_the_last_of_them() -> None:
    keys, values = heads([0], [0], [9]), heads([1], [3], [100])
    (y,) = attend([heads([1]), keys, values, None, None, None, np.array([2])])
    assert y.item() == 2
    (last,) = attend([heads([1], [1]), keys, values, None, None, None, np.array([2])], causal=1)
    assert last.reshape(-1).tolist() == [1, 2]


def test_heads_of_keys_serve_several_heads_of_queries() -> None:
    query = np.zeros((1, 4, 1, 1), F32)
    key = np.zeros((1, 2, 1, 1), F32)
    value = np.array([5, 7], F32).reshape(1, 2, 1, 1)
    (y,) = attend([query, key, value])
    assert y.reshape(-1).tolist() == [5, 5, 7, 7]


def test_heads_side_by_side_are_the_same_as_heads_apart() -> None:
    random = np.random.default_rng(0)
    query, key, value = (random.normal(size=(2, h, n, 3)).astype(F32) for h, n in ((4, 5), (2, 6), (2, 6)))
    apart = attend([query, key, value], 4)
    flat = [x.swapaxes(1, 2).reshape(2, x.shape[2], -1).copy() for x in (query, key, value)]
    beside = attend(list(flat), 4, query_heads=4, key_heads=2)
    np.testing.assert_array_equal(beside[0].reshape(2, 5, 4, 3).swapaxes(1, 2), apart[0])
    for one, other in zip(beside[1:], apart[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_scores_are_computed_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    inputs: list[Array | None] = [random.normal(size=(1, 2, 7, 3)).astype(F32) for _ in range(3)]
    inputs.append(random.normal(size=(7, 7)).astype(F32))
    whole = attend(inputs, 4, causal=1)
    monkeypatch.setattr(attention, "_BLOCK", 15)
    for one, other in zip(attend(inputs, 4, causal=1), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_half_precision_is_summed_in_float32() -> None:
    query = np.full((1, 1, 1, 2), 200, np.float16)  # 200 · 200 · 2 is beyond float16
    y, _, _, scores = attend([query, query, np.ones((1, 1, 1, 1), np.float16)], 4, scores=Scores.PROBABILITIES)
    assert y.dtype == np.float16 and y.item() == 1 and scores.item() == 1


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ([heads([1]), KEYS, heads([1])], {}, "keys, 1 of 1 values"),
        ([heads([1, 2]), KEYS, VALUES], {}, "queries of 2 elements"),
        ([np.zeros((2, 1, 1, 1), F32), KEYS, VALUES], {}, "batches of 2, 1 and 1"),
        ([np.zeros((1, 3, 1, 1), F32), *[np.zeros((1, 2, 1, 1), F32)] * 2], {}, "3 heads of queries for 2"),
        ([heads([1]), KEYS, VALUES], {"query_heads": 1, "key_heads": 1}, "belong together"),
        ([heads([1]), KEYS, VALUES, np.zeros((1, 3), F32)], {}, "for 2 keys"),
        ([heads([1]), KEYS, VALUES, np.zeros((3, 2), F32)], {}, "the mask"),
        ([heads([1]), KEYS, VALUES, np.zeros((1, 2), np.float16)], {}, "bool or float32"),
        ([heads([1]), KEYS, VALUES, None, KEYS], {}, "go together"),
        ([heads([1]), KEYS, VALUES, None, KEYS, KEYS], {}, "a past of"),
        ([heads([1]), KEYS, VALUES, None, None, None, np.zeros(1, np.int32)], {}, "int64"),
        ([heads([1]), KEYS, VALUES], {"left_window": -2}, "a window is -1"),
        ([heads([1]), KEYS, VALUES], {"softcap": -1.0}, "softcap"),
        ([heads([1]), KEYS, VALUES], {"scores": 4}, "Scores"),
        ([heads([1]), KEYS, VALUES], {"causal": 2}, "flag"),
    ],
)
def test_operands_that_do_not_go_together_are_refused(
    inputs: list[Array | None], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SemanticError, match=message):
        attend(inputs, **attributes)


@pytest.mark.parametrize(("queries", "keys", "size"), [(0, 2, 3), (2, 0, 3), (2, 2, 0)])
def test_extents_of_zero(queries: int, keys: int, size: int) -> None:
    query, key = np.ones((1, 1, queries, size), F32), np.ones((1, 1, keys, size), F32)
    y, present, _, _ = attend([query, key, np.ones((1, 1, keys, 2), F32)], 4)
    assert present.shape == (1, 1, keys, size)
    np.testing.assert_array_equal(y, np.full((1, 1, queries, 2), 1 if keys else 0, F32))
