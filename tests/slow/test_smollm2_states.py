"""States of SmolLM2: rows, chunks, forks, rewinds and saves give what a fresh run of the same words gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sdk
from sdk.model.model import Model
from sdk.state.state import State
from tests.models import smollm2
from tests.support.needs import require_all_there
from tests.support.rigs import process_rig

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
"""Of a logit, in parts of the largest."""
ROWS = 4


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """Questions with the beginnings of their answers, of different lengths."""
    require_all_there(smollm2.missing())
    answers = smollm2.recorded()[1]
    return [(answer.prompt + answer.tokens)[: 41 + 13 * number] for number, answer in enumerate(answers[:ROWS])]


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with process_rig(kernels="numpy") as rig, rig.device() as device:
        yield device


@pytest.fixture(scope="module")
def model(device: sdk.Device, texts: list[list[int]]) -> Model:
    """In chunks of 16 tokens."""
    return device.load(
        smollm2.model(), shapes={"input_ids": [(1, 16), (1, 1), (ROWS, 1)]}, state_memory="64MiB", idle_rows=True
    )


@pytest.fixture(scope="module")
def fresh(device: sdk.Device, texts: list[list[int]]) -> dict[tuple[int, int], NDArray[Any]]:
    """The logits behind the first n words of text i, read in one run: {(i, n): logits}."""
    found: dict[tuple[int, int], NDArray[Any]] = {}
    with_all = device.load(
        smollm2.model("all"),
        shapes={"input_ids": [(1, max(map(len, texts)))]},
        state_memory="8MiB",
    )
    for number, text in enumerate(texts):
        with with_all.state() as state:
            rows = with_all({"input_ids": np.array([text])}, state=state)["logits"][0]
        found |= {(number, length + 1): row for length, row in enumerate(rows)}
    with_all.close()
    return found


def read(model: Model, state: State, words: list[int]) -> NDArray[Any]:
    logits: NDArray[Any] = model({"input_ids": np.array([words])}, state=state)["logits"][0]
    return logits


def agree(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert found.argmax() == expected.argmax()


def test_a_text_in_chunks_is_what_it_is_in_one_run(
    model: Model, texts: list[list[int]], fresh: dict[tuple[int, int], NDArray[Any]]
) -> None:
    for number, text in enumerate(texts):
        with model.state() as state:
            agree(read(model, state, text), fresh[number, len(text)])
            assert state.length == len(text)


def test_rows_of_a_step_are_what_each_is_alone(
    model: Model, texts: list[list[int]], fresh: dict[tuple[int, int], NDArray[Any]]
) -> None:
    states = [model.state() for _ in texts]
    starts = [len(text) - 4 for text in texts]
    for state, text, start in zip(states, texts, starts, strict=True):
        read(model, state, text[:start])
    for more, rows in enumerate((ROWS, ROWS, ROWS, ROWS - 1)):  # in the last step one is idle
        ids = [[text[start + more]] for text, start in zip(texts[:rows], starts, strict=False)]
        out = model({"input_ids": np.array(ids)}, states=states[:rows])["logits"]
        for number, row in enumerate(out):
            agree(row, fresh[number, starts[number] + more + 1])
    for state in states:
        state.free()


def test_forked_rewound_and_restored_states_go_on_as_fresh_ones(
    model: Model, texts: list[list[int]], fresh: dict[tuple[int, int], NDArray[Any]]
) -> None:
    whole = model.state_memory_free_bytes
    text, other = texts[3], texts[1]
    state = model.state()
    read(model, state, text[:50])
    fork, saved = state.fork(), state.save()
    read(model, state, other[:20])
    state.rewind(50)
    restored = model.state(restore=saved)
    for each in (state, fork, restored):
        assert each.length == 50
        agree(read(model, each, text[50:57]), fresh[3, 57])
        agree(read(model, each, text[57:58]), fresh[3, 58])
    fork.rewind(0)
    agree(read(model, fork, other[:30]), fresh[1, 30])
    agree(read(model, state, text[58:60]), fresh[3, 60])
    for each in (state, fork, restored):
        each.free()
    assert model.state_memory_free_bytes == whole
