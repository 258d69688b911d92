"""RECURRENT: one unit worked out by hand, and what is refused; networks are compared with onnxruntime elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program_commands import Cell, CellActivation, CellDirection, CommandKind
from emulator.model.operators import KernelFault, SemanticError
from tests.support.programs import golden_outputs

F32 = np.float32
Array = NDArray[Any]
AFFINE = {"alphas": [1.0] * 6, "betas": [0.0] * 6}
"""Parameters with which an affine activation changes nothing."""


def column(*values: float) -> Array:
    """Values of one unit as [1, values, 1]."""
    return np.array(values, F32).reshape(1, -1, 1)


def run(cell: Cell, inputs: list[Array | None], outputs: int = 1, **attributes: Any) -> list[Array]:
    count = {Cell.RNN: 1, Cell.GRU: 2, Cell.LSTM: 3}[cell] * (2 if attributes.get("direction") == 2 else 1)
    fields = {"activations": [CellActivation.AFFINE] * count + [0] * (6 - count), **AFFINE, **attributes}
    return golden_outputs(CommandKind.RECURRENT, inputs, outputs, cell=cell, **fields)


def sequence(*values: float) -> Array:
    """One sequence of one input: [steps, 1, 1]."""
    return np.array(values, F32).reshape(-1, 1, 1)


def test_a_plain_cell_adds_input_state_and_both_biases() -> None:
    # h1 = 2·1 + 3·0 + 1, h2 = 2·2 + 3·3 + 1
    y, last = run(Cell.RNN, [sequence(1, 2), column(2), column(3), np.array([[0.25, 0.75]], F32)], 2)
    assert y.reshape(-1).tolist() == [3, 14]
    assert last.tolist() == [[[14]]]


def test_a_plain_cell_in_reverse_begins_at_the_end_and_answers_in_place() -> None:
    y, last = run(Cell.RNN, [sequence(1, 2), column(2), column(3)], 2, direction=CellDirection.REVERSE)
    assert y.reshape(-1).tolist() == [14, 4]  # h(2) = 2·2, h(1) = 2·1 + 3·4
    assert last.tolist() == [[[14]]]


def test_both_directions_lie_side_by_side() -> None:
    weights = [np.full((2, 1, 1), 2, F32), np.full((2, 1, 1), 3, F32)]
    y, last = run(Cell.RNN, [sequence(1, 2), *weights], 2, direction=CellDirection.BIDIRECTIONAL)
    assert y.shape == (2, 2, 1, 1)
    assert y.reshape(2, 2).tolist() == [[2, 14], [10, 4]]
    assert last.reshape(-1).tolist() == [10, 14]


def test_a_shorter_sequence_ends_early_and_leaves_zeros() -> None:
    x = np.array([[1, 1], [2, 2]], F32).reshape(2, 2, 1)
    lengths = np.array([2, 1], np.int32)
    y, last = run(Cell.RNN, [x, column(2), column(3), None, lengths], 2)
    assert y.reshape(2, 2).tolist() == [[2, 2], [10, 0]]
    assert last.reshape(-1).tolist() == [10, 2]


def test_a_sequence_of_no_steps_ends_in_zeros() -> None:
    lengths, initial = np.array([0], np.int32), np.full((1, 1, 1), 7, F32)
    y, last = run(Cell.RNN, [sequence(1, 2), column(2), column(3), None, lengths, initial], 2)
    assert not y.any() and not last.any()


@pytest.mark.parametrize("length", [-1, 3])
def test_a_length_beyond_the_steps_fails_the_command(length: int) -> None:
    with pytest.raises(KernelFault, match="outside 0 to 2") as caught:
        run(Cell.RNN, [sequence(1, 2), column(2), column(3), None, np.array([length], np.int32)])
    assert caught.value.status is Status.VALUE_OUT_OF_RANGE


@pytest.mark.parametrize(("linear", "expected"), [(0, 2.0 + 3.0), (1, 2.0 + 3.0 + 1.25)])
def test_a_gated_unit_resets_before_or_after_its_product(linear: int, expected: float) -> None:
    # Gates z, r, h; weights 0, 0.25, 1, recurrent ones 0, 0, 3; the bias of h's recurrence is 5.
    # x = 2, h = 2: z = 0, r = 0.5; new = 2 + (0.5·2)·3 + 5, or 2 + 0.5·(2·3 + 5)
    bias = np.array([[0, 0, 0, 0, 0, 5]], F32)
    inputs = [sequence(2), column(0, 0.25, 1), column(0, 0, 3), bias, None, np.full((1, 1, 1), 2, F32)]
    (y,) = run(Cell.GRU, inputs, linear_before_reset=linear)
    new = 2 + 0.5 * (2 * 3 + 5) if linear else 2 + 0.5 * 2 * 3 + 5
    assert y.item() == new
    assert expected <= new  # both forms hold the common part


def test_a_gated_unit_keeps_what_its_update_gate_says() -> None:
    # z = 0.25: h = 0.75 · 4 + 0.25 · 8
    inputs = [sequence(1), column(0.25, 0, 4), column(0, 0, 0), None, None, np.full((1, 1, 1), 8, F32)]
    (y,) = run(Cell.GRU, inputs)
    assert y.item() == 5


LSTM = [sequence(1), column(0.5, 2, 0.25, 3), column(0, 0, 0, 0), None, None]
"""i = 0.5, o = 2, f = 0.25, c = 3."""


def test_a_memory_cell_by_hand() -> None:
    states = [np.full((1, 1, 1), 1, F32), np.full((1, 1, 1), 8, F32)]
    y, h, c = run(Cell.LSTM, [*LSTM, *states], 3)
    assert (y.item(), h.item(), c.item()) == (7, 7, 3.5)  # c = 0.25·8 + 0.5·3, h = 2·c


def test_peepholes_see_the_old_state_but_the_output_gate_the_new_one() -> None:
    states = [np.full((1, 1, 1), 1, F32), np.full((1, 1, 1), 8, F32)]
    holes = np.array([[0.125, 1, 0.25]], F32)  # of i, o, f
    y, _, c = run(Cell.LSTM, [*LSTM, *states, holes], 3)
    # i = 0.5 + 1, f = 0.25 + 2, c = 2.25·8 + 1.5·3 = 22.5, o = 2 + 22.5
    assert (c.item(), y.item()) == (22.5, 24.5 * 22.5)


def test_a_coupled_forget_gate_is_what_the_input_gate_leaves() -> None:
    states = [np.full((1, 1, 1), 1, F32), np.full((1, 1, 1), 8, F32)]
    _, _, c = run(Cell.LSTM, [*LSTM, *states], 3, input_forget=1)
    assert c.item() == 0.5 * 8 + 0.5 * 3


def test_clipping_bounds_what_gates_are_given() -> None:
    y, _, c = run(Cell.LSTM, LSTM, 3, clip=1.0)
    assert (c.item(), y.item()) == (0.5, 0.5)  # i = 0.5, c = 1, o = 1; without a state f does not matter


@pytest.mark.parametrize(
    ("function", "alpha", "beta", "expected"),
    [
        (CellActivation.RELU, 0, 0, (0, 2)),
        (CellActivation.TANH, 0, 0, (math.tanh(-2), math.tanh(2))),
        (CellActivation.SIGMOID, 0, 0, (1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2)))),
        (CellActivation.AFFINE, 3, 1, (-5, 7)),
        (CellActivation.LEAKY_RELU, 0.5, 0, (-1, 2)),
        (CellActivation.THRESHOLDED_RELU, 2, 0, (0, 2)),
        (CellActivation.SCALED_TANH, 3, 0.5, (3 * math.tanh(-1), 3 * math.tanh(1))),
        (CellActivation.HARD_SIGMOID, 0.2, 0.5, (0.1, 0.9)),
        (CellActivation.ELU, 2, 0, (2 * math.expm1(-2), 2)),
        (CellActivation.SOFTSIGN, 0, 0, (-2 / 3, 2 / 3)),
        (CellActivation.SOFTPLUS, 0, 0, (math.log1p(math.exp(-2)), 2 + math.log1p(math.exp(-2)))),
    ],
)
def test_activations(function: CellActivation, alpha: float, beta: float, expected: tuple[float, float]) -> None:
    fields = {"activations": [function, *[0] * 5], "alphas": [alpha] * 6, "betas": [beta] * 6}
    x = np.array([-2, 2], F32).reshape(1, 2, 1)
    (y,) = golden_outputs(CommandKind.RECURRENT, [x, column(1), column(0)], 1, cell=Cell.RNN, **fields)
    np.testing.assert_allclose(y.reshape(-1), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "cell", "changes", "message"),
    [
        ([sequence(1), column(1, 1), column(1)], Cell.RNN, {}, "operand 1 is"),
        ([sequence(1), column(1), column(1), np.zeros((1, 3), F32)], Cell.RNN, {}, "operand 3 is"),
        ([sequence(1)[0], column(1), column(1)], Cell.RNN, {}, "both of rank 3"),
        ([sequence(1), column(1), column(1), None, np.zeros(1, np.int64)], Cell.RNN, {}, "they are int32"),
        ([*LSTM[:3], None, None, None, None, np.zeros((1, 1), F32)], Cell.LSTM, {}, "operand 7 is"),
        (
            [sequence(1), column(1), column(1), None, None, None, np.zeros((1, 1, 1), F32)],
            Cell.RNN,
            {},
            "no cell state",
        ),
        ([sequence(1), column(1), column(1)], Cell.RNN, {"activations": [1, 1, 0, 0, 0, 0]}, "more than 1"),
        ([sequence(1), column(1), column(1)], Cell.RNN, {"activations": [0] * 6}, "CellActivation"),
        ([sequence(1), column(1), column(1)], Cell.RNN, {"clip": -1.0}, "must not be negative"),
        ([sequence(1), column(1), column(1)], Cell.RNN, {"direction": 3}, "CellDirection"),
        ([sequence(1), column(1), column(1)], Cell.RNN, {"input_forget": 2}, "flag"),
    ],
)
def test_operands_that_do_not_go_together_are_refused(
    inputs: list[Array | None], cell: Cell, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SemanticError, match=message):
        run(cell, inputs, **changes)


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 2, 0)], ids=str)
def test_extents_of_zero(shape: tuple[int, int, int]) -> None:
    hidden = 2
    x, w, r = np.ones(shape, F32), np.ones((1, hidden, shape[2]), F32), np.ones((1, hidden, hidden), F32)
    y, last = run(Cell.RNN, [x, w, r], 2)
    assert y.shape == (shape[0], 1, shape[1], hidden) and last.shape == (1, shape[1], hidden)
    assert not y.any() and not last.any()
