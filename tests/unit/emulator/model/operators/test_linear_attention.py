"""LINEAR_ATTENTION against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators import SemanticError
from tests.support.programs import golden_outputs

F32 = np.float32
Array = NDArray[Any]


def places(*values: float) -> Array:
    """One sample, one head of one element at each place."""
    return np.array(values, F32).reshape(1, -1, 1)


def attend(inputs: list[Array | None], outputs: int = 1, **changes: Any) -> list[Array]:
    fields = {"scale": 1.0, "query_heads": 1, "key_heads": 1, **changes}
    return golden_outputs(CommandKind.LINEAR_ATTENTION, inputs, outputs, **fields)


QKV: list[Array | None] = [places(1, 10), places(2, 3), places(5, 7)]


def test_every_place_reads_what_it_and_those_before_it_wrote() -> None:
    y, state = attend(QKV, 2)
    assert y.reshape(-1).tolist() == [10, 310]  # S = 2·5, then 10 + 3·7
    assert state.item() == 31


def test_the_past_is_where_it_begins_and_the_scale_is_applied_when_reading() -> None:
    y, state = attend([*QKV, np.full((1, 1, 1, 1), 100, F32)], 2, scale=0.5)
    assert y.reshape(-1).tolist() == [55, 655] and state.item() == 131


def test_decay_shrinks_what_was_there_before() -> None:
    y, _ = attend([*QKV, None, places(0, -math.log(2))], 2)
    np.testing.assert_allclose(y.reshape(-1), [10, 260], rtol=1e-6)  # 10 · 0.5 + 21


def test_a_rate_writes_what_the_state_does_not_hold_yet() -> None:
    (y,) = attend([*QKV, None, None, places(1, 0.5)])
    assert y.reshape(-1).tolist() == [10, 10 * (10 + 3 * 0.5 * (7 - 30))]


def test_decay_may_be_of_each_element_of_a_key() -> None:
    key, past = np.array([[[0, 0]]], F32), np.array([4, 8], F32).reshape(1, 1, 2, 1)
    decay = np.log(np.array([[[0.5, 0.25]]], F32))
    _, state = attend([np.zeros((1, 1, 2), F32), key, places(0), past, decay], 2)
    np.testing.assert_allclose(state.reshape(-1), [2, 2], rtol=1e-6)


def test_a_head_of_keys_serves_several_of_queries() -> None:
    query = np.array([[[1, 2]]], F32)
    (y,) = attend([query, places(3), places(5)], query_heads=2)
    assert y.reshape(-1).tolist() == [15, 30]


@pytest.mark.parametrize(
    ("inputs", "changes", "message"),
    [
        (QKV, {"query_heads": 0}, "heads of queries"),
        (QKV, {"query_heads": 1, "key_heads": 2}, "heads of queries"),
        ([QKV[0], places(1), QKV[2]], {}, "beside queries"),
        ([QKV[0], np.zeros((1, 2, 2), F32), QKV[2]], {}, "queries of 1 elements"),
        ([*QKV, np.zeros((1, 1, 2, 1), F32)], {}, "the past"),
        ([np.zeros((1, 1, 1 << 14), F32)] * 3, {}, "a state of shape"),
        ([*QKV, None, np.zeros((1, 2, 3), F32)], {}, "the decay"),
        ([*QKV, None, None, np.zeros((1, 2, 3), F32)], {}, "the rate"),
    ],
)
def test_operands_that_do_not_go_together_are_refused(
    inputs: list[Array | None], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SemanticError, match=message):
        attend(inputs, **changes)


def test_no_places_leave_the_past_as_it_is() -> None:
    none = np.zeros((1, 0, 1), F32)
    y, state = attend([none, none, none, np.full((1, 1, 1, 1), 3, F32)], 2)
    assert y.shape == (1, 0, 1) and state.item() == 3
