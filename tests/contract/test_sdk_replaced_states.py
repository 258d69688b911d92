"""States of constant shape, which each run replaces: recurrent nets that go on where they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from sdk.model.model import Model
from tests.support.models import model as model_of
from tests.support.models import node
from tests.support.rigs import process_rig

HIDDEN, WIDTH = 5, 3
LENGTH = 11


def recurrent(batch: int | str = "batch") -> onnx.ModelProto:
    """A GRU of x [steps, batch, width] over h [1, batch, hidden]; y are its values of every step."""
    random = np.random.default_rng(2)
    w = random.standard_normal((1, 3 * HIDDEN, WIDTH)).astype(np.float32)
    r = random.standard_normal((1, 3 * HIDDEN, HIDDEN)).astype(np.float32)
    nodes = [
        node("GRU", ["x", "w", "r", "", "", "h"], ["y", "h_next"], hidden_size=HIDDEN),
    ]
    inputs: dict[str, Any] = {"x": (np.float32, ("steps", batch, WIDTH)), "h": (np.float32, (1, batch, HIDDEN))}
    return model_of(nodes, inputs, {"y": np.float32, "h_next": np.float32}, {"w": w, "r": r})


def sequence(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((LENGTH, 1, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with process_rig() as rig, rig.device() as device:
        yield device


@pytest.fixture(scope="module")
def loaded(device: sdk.Device) -> Model:
    return device.load(recurrent(), states={"h": "h_next"})


def at_once(model: Model, x: NDArray[Any]) -> NDArray[Any]:
    """All steps in one run without a state."""
    return model({"x": x, "h": np.zeros((1, x.shape[1], HIDDEN), np.float32)})["y"]  # type: ignore[no-any-return]


def test_a_sequence_in_pieces_is_what_it_is_at_once(loaded: Model) -> None:
    x = sequence(1)
    state = loaded.state()
    pieces = [loaded({"x": x[start:stop]}, state=state)["y"] for start, stop in ((0, 4), (4, 5), (5, LENGTH))]
    np.testing.assert_allclose(np.concatenate(pieces), at_once(loaded, x), rtol=1e-5, atol=1e-6)
    assert state.length == LENGTH
    assert state.memory_bytes == 2 * 4 * HIDDEN
    assert [str(info.kind) for info in loaded.states] == ["replace"]


def test_rows_have_states_of_their_own_wherever_rows_lie(loaded: Model) -> None:
    x, other = sequence(1), sequence(2)
    first, second = loaded.state(), loaded.state()
    loaded({"x": x[:3]}, state=first)
    loaded({"x": other[:7]}, state=second)
    both = np.concatenate([x[3:6], other[7:10]], 1)
    y = loaded({"x": both}, states=[first, second])["y"]
    np.testing.assert_allclose(y[:, :, :1], at_once(loaded, x)[3:6], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[:, :, 1:], at_once(loaded, other)[7:10], rtol=1e-5, atol=1e-6)


def test_chunks_are_exact_since_nothing_can_be_masked(device: sdk.Device) -> None:
    model = device.load(recurrent(), states={"h": "h_next"}, shapes={"x": [(4, 1, WIDTH), (1, 1, WIDTH)]})
    x = sequence(3)
    state = model.state()
    y = model({"x": x}, state=state)["y"]
    np.testing.assert_allclose(y, at_once(model, x), rtol=1e-5, atol=1e-6)
    model.close()


def test_a_step_of_more_commands_than_a_queue_takes_is_refused_and_the_state_goes_on(device: sdk.Device) -> None:
    model = device.load(recurrent(), states={"h": "h_next"}, shapes={"x": [(1, 1, WIDTH)]})
    state = model.state()
    x = np.concatenate([sequence(seed) for seed in range(23)])
    with pytest.raises(ValueError, match=r"takes 1265 commands; at most 1024 .* in several calls"):
        model({"x": x}, state=state)
    assert state.length == 0
    y = model({"x": x[:LENGTH]}, state=state)["y"]
    np.testing.assert_allclose(y, at_once(model, x[:LENGTH]), rtol=1e-5, atol=1e-6)
    model.close()


def test_a_fork_and_a_saved_state_go_on_from_there(loaded: Model) -> None:
    x = sequence(4)
    state = loaded.state()
    loaded({"x": x[:6]}, state=state)
    fork, restored = state.fork(), loaded.state(restore=state.save())
    loaded({"x": sequence(9)}, state=state)
    for each in (fork, restored):
        assert each.length == 6
        y = loaded({"x": x[6:]}, state=each)["y"]
        np.testing.assert_allclose(y, at_once(loaded, x)[6:], rtol=1e-5, atol=1e-6)


def test_what_was_overwritten_cannot_be_rewound_to(loaded: Model) -> None:
    state = loaded.state()
    loaded({"x": sequence(1)}, state=state)
    with pytest.raises(ValueError, match="cannot be rewound: 'h' is of kind replace"):
        state.rewind(3)
    state.rewind(LENGTH)


def test_a_model_of_one_row_has_states_too(device: sdk.Device) -> None:
    model = device.load(recurrent(batch=1), states={"h": "h_next"})
    x = sequence(5)
    with model.state() as state:
        pieces = [model({"x": x[at : at + 1]}, state=state)["y"] for at in range(LENGTH)]
    np.testing.assert_allclose(np.concatenate(pieces), at_once(model, x), rtol=1e-5, atol=1e-6)
    model.close()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"g": "h_next"}, "names 'g', which is no input"),
        ({"h": "z"}, "names 'z', which is no output"),
        (["h"], "states takes outputs by input: .*, got list"),
    ],
)
def test_pairs_that_there_are_not_are_refused(device: sdk.Device, states: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        device.load(recurrent(), states=states)
