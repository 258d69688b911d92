"""ROTARY against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators import KernelFault, SemanticError
from tests.support.programs import golden_outputs

F32 = np.float32
Array = NDArray[Any]
COS, SIN = np.array([[1, 0], [0.5, 2]], F32), np.array([[0, 1], [0, 3]], F32)
"""Two positions, two pairs."""
X = np.array([1, 2, 3, 4], F32).reshape(1, 1, 1, 4)


def turn(inputs: list[Array | None], **attributes: Any) -> Array:
    return golden_outputs(CommandKind.ROTARY, inputs, 1, **attributes)[0]


def test_halves_are_pairs() -> None:
    # (1, 3) by cos 1, sin 0; (2, 4) by cos 0, sin 1
    assert turn([X, COS[None, :1], SIN[None, :1]]).reshape(-1).tolist() == [1, -4, 3, 2]


def test_neighbours_are_pairs_where_they_are_interleaved() -> None:
    assert turn([X, COS[None, :1], SIN[None, :1]], interleaved=1).reshape(-1).tolist() == [1, 2, -4, 3]


def test_positions_choose_rows_of_the_caches() -> None:
    # (1, 3) by cos 0.5, sin 0; (2, 4) by cos 2, sin 3
    assert turn([X, COS, SIN, np.array([[1]])]).reshape(-1).tolist() == [0.5, -8, 1.5, 14]


def test_what_is_beyond_the_caches_stays() -> None:
    assert turn([X, COS[None, :1, 1:], SIN[None, :1, 1:]]).reshape(-1).tolist() == [-2, 1, 3, 4]


def test_heads_side_by_side_are_turned_alike() -> None:
    x = np.concatenate([X.reshape(1, 1, 4), X.reshape(1, 1, 4)], 2)
    assert turn([x, COS[None, :1], SIN[None, :1]], heads=2).reshape(-1).tolist() == [1, -4, 3, 2] * 2


@pytest.mark.parametrize("position", [-1, 2])
def test_a_position_beyond_the_caches_fails_the_command(position: int) -> None:
    with pytest.raises(KernelFault, match="outside 0 to 1") as caught:
        turn([X, COS, SIN, np.array([[position]])])
    assert caught.value.status is Status.INDEX_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        ([X, COS[None, :1], SIN[None, :1, :1]], {}, "cosines"),
        ([X, COS[None], SIN[None]], {}, "for 1 samples of 1 places"),
        ([X[0], COS[None, :1], SIN[None, :1]], {}, "rank 4 and none"),
        ([X, COS[None, :1], SIN[None, :1]], {"heads": 2}, "rank 3 and some"),
        ([X[..., :2], COS[None, :1], SIN[None, :1]], {}, "4 of 2 elements"),
        ([X, COS, SIN, np.zeros((1, 1), np.int32)], {}, "they are int64"),
        ([X, COS[None, :1], SIN[None, :1]], {"interleaved": 2}, "flag"),
    ],
)
def test_operands_that_do_not_go_together_are_refused(
    inputs: list[Array | None], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SemanticError, match=message):
        turn(inputs, **attributes)


def test_no_places_need_no_rows() -> None:
    x, none = np.zeros((1, 2, 0, 4), F32), np.zeros((1, 0, 2), F32)
    assert turn([x, none, none]).shape == x.shape
