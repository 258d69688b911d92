"""Updates of a tensor against values worked out by hand, beside it and in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import CommandKind, ScatterMode
from driver_shim.protocol.types import WireType, wire_type_of
from emulator.model.operators import OPERATORS, KernelFault, SemanticError

F32 = np.float32
SCATTER = OPERATORS[CommandKind.TENSOR_SCATTER]
PAST = np.arange(12, dtype=F32).reshape(2, 3, 2)
UPDATE = -np.arange(1, 9, dtype=F32).reshape(2, 2, 2)


def attributes(mode: int = ScatterMode.LINEAR, axis: int = 1) -> Any:
    return make_attributes(CommandKind.TENSOR_SCATTER, axis=axis, mode=mode)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("mode", "indices", "expected"),
    [
        (ScatterMode.LINEAR, None, [[[-1, -2], [-3, -4], [4, 5]], [[-5, -6], [-7, -8], [10, 11]]]),
        (ScatterMode.LINEAR, [1, 0], [[[0, 1], [-1, -2], [-3, -4]], [[-5, -6], [-7, -8], [10, 11]]]),
        (ScatterMode.CIRCULAR, [2, 1], [[[-3, -4], [2, 3], [-1, -2]], [[6, 7], [-5, -6], [-7, -8]]]),
    ],
)
def test_each_of_the_batch_is_written_from_its_index_on(
    in_place: bool, mode: int, indices: list[int] | None, expected: Any
) -> None:
    past = PAST.copy()
    present = past if in_place else np.empty_like(past)
    seen = past.view()
    seen.flags.writeable = False
    inputs = [seen, UPDATE] if indices is None else [seen, UPDATE, np.array(indices)]
    SCATTER.run(attributes(mode), inputs, [present])
    assert present.tolist() == expected
    assert in_place or past.tolist() == PAST.tolist()


def test_other_axes_than_the_second_are_written_along() -> None:
    past, update = np.zeros((1, 2, 4), F32), np.ones((1, 2, 3), F32)
    present = np.empty_like(past)
    SCATTER.run(attributes(ScatterMode.CIRCULAR, axis=2), [past, update, np.array([2])], [present])
    assert present.tolist() == [[[1, 0, 1, 1], [1, 0, 1, 1]]]


@pytest.mark.parametrize(
    ("mode", "indices"),
    [
        (ScatterMode.LINEAR, [2, 0]),
        (ScatterMode.LINEAR, [0, -1]),
        (ScatterMode.CIRCULAR, [0, 3]),
        (ScatterMode.CIRCULAR, [-1, 0]),
    ],
)
def test_an_index_that_leaves_the_tensor_is_found_before_anything_is_written(mode: int, indices: list[int]) -> None:
    past = PAST.copy()
    with pytest.raises(KernelFault) as caught:
        SCATTER.run(attributes(mode), [past, UPDATE, np.array(indices)], [past])
    assert caught.value.status is Status.INDEX_OUT_OF_RANGE
    assert past.tolist() == PAST.tolist()


@pytest.mark.parametrize(
    ("past", "update", "indices", "axis", "reason"),
    [
        ((2, 3, 2), (2, 4, 2), None, 1, "does not go into"),
        ((2, 3, 2), (1, 2, 2), None, 1, "does not go into"),
        ((2, 3, 2), (2, 2), None, 1, "does not go into"),
        ((2, 3, 2), (2, 2, 2), (3,), 1, "write_indices"),
        ((2, 3, 2), (2, 3, 2), None, 0, "batch"),
        ((2, 3, 2), (2, 3, 2), None, 3, "axis 3"),
    ],
)
def test_operands_that_do_not_go_together_are_refused(
    past: tuple[int, ...], update: tuple[int, ...], indices: tuple[int, ...] | None, axis: int, reason: str
) -> None:
    types = [TensorType(WireType.FLOAT32, past), TensorType(WireType.FLOAT32, update)]
    if indices is not None:
        types.append(TensorType(WireType.INT64, indices))
    with pytest.raises(SemanticError, match=reason):
        SCATTER.infer(attributes(axis=axis), types)


def test_the_output_has_the_type_of_what_is_updated() -> None:
    types = [TensorType(wire_type_of(array.dtype), array.shape) for array in (PAST, UPDATE)]
    assert list(SCATTER.infer(attributes(), types)) == types[:1]
