"""The memory of many states: wherever their blocks lie, each is itself, up to the last block and from any process."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from sdk.model.model import Model
from sdk.state.memory import StateMemory
from sdk.state.state import State
from tests.support.decoders import Scattering, Size, whole
from tests.support.npuctl import Npuctl
from tests.support.rigs import process_rig
from tests.support.waiting import PATIENCE_S

SIZE = Size(context=256)
BLOCK = 16
BLOCK_BYTES = BLOCK * 2 * 2 * SIZE.layers * SIZE.key_heads * SIZE.size * 2
BLOCKS = 64
ROWS = 8
TEXTS = [
    [int(word) for word in np.random.default_rng(seed).integers(0, SIZE.words, SIZE.context)] for seed in range(ROWS)
]
SHAPES = {"input_ids": [(1, 16), (1, 1), (ROWS, 1), (ROWS, 4)]}


@pytest.fixture(scope="module")
def decoder() -> onnx.ModelProto:
    return Scattering(SIZE).model()


@pytest.fixture(scope="module")
def expected(decoder: onnx.ModelProto) -> list[NDArray[Any]]:
    """The logits of each text."""
    return [whole(decoder, text) for text in TEXTS]


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with process_rig() as rig, rig.device() as device:
        yield device


@pytest.fixture
def loaded(device: sdk.Device, decoder: onnx.ModelProto) -> Iterator[Model]:
    lm = device.load(decoder, shapes=SHAPES, state_memory=BLOCKS * BLOCK_BYTES)
    yield lm
    assert lm.state_memory_free_bytes == BLOCKS * BLOCK_BYTES
    lm.close()


def ids(*rows: list[int]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": np.array(rows, np.int64)}


def memory_of(model: Model) -> StateMemory:
    memory: StateMemory = model._stateful.states.memory  # type: ignore[attr-defined]
    return memory


def near(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    return bool(np.allclose(found, expected, rtol=1e-4, atol=1e-5))


def gaps(state: State) -> int:
    """How often a state's next block is not the one behind the last."""
    return int((np.diff(state._holding.blocks) != 1).sum())


def scattered(model: Model, seed: int) -> list[State]:
    """States that grew by chance, each time into the one block that somebody had just left somewhere."""
    chance = random.Random(seed)
    states = [model.state() for _ in TEXTS]
    others = [model.state() for _ in range(BLOCKS - ROWS)]
    for number, other in enumerate(others):
        model(ids([1] * (17 if number < ROWS else 1)), state=other)
    assert not model.state_memory_free_bytes
    while min(state.length for state in states) < 34:
        row = chance.choice([row for row, state in enumerate(states) if state.length < 70])
        if not model.state_memory_free_bytes:
            others.pop(chance.randrange(len(others))).free()
        start = states[row].length
        model(ids(TEXTS[row][start : start + chance.choice([3, 9, 16])]), state=states[row])
    for other in others:
        other.free()
    return states


@pytest.mark.parametrize("seed", range(4))
def test_rows_give_what_each_gives_alone_whatever_blocks_they_lie_in(
    loaded: Model, expected: list[NDArray[Any]], seed: int
) -> None:
    states = scattered(loaded, seed)
    assert min(map(gaps, states)) >= 1 and sum(map(gaps, states)) > 2 * ROWS
    forks = [state.fork() for state in states]
    for tokens in (1, 4, 1):
        starts = [state.length for state in states]
        pieces = [text[start : start + tokens] for text, start in zip(TEXTS, starts, strict=True)]
        together = loaded(ids(*pieces), states=states)["logits"]
        for row, (piece, fork, start) in enumerate(zip(pieces, forks, starts, strict=True)):
            alone = loaded(ids(piece), state=fork)["logits"][0]
            assert near(together[row], alone)
            assert near(alone, expected[row][start : start + tokens])
    for state in (*states, *forks):
        state.free()


def test_a_block_table_that_says_another_block_gives_another_answer(
    device: sdk.Device, loaded: Model, expected: list[NDArray[Any]]
) -> None:
    """So that all other tests here would see it."""
    states = [loaded.state() for _ in TEXTS]
    for text, state in zip(TEXTS, states, strict=True):
        loaded(ids(text[:40]), state=state)
    memory, (victim, other) = memory_of(loaded), states[:2]
    entry = victim._holding.slot * memory.layout.entries + 1
    right, wrong = victim._holding.blocks[1], other._holding.blocks[1]
    following = [text[40:41] for text in TEXTS]
    for block, is_right in ((right, True), (wrong, False), (right, True)):
        with device.queue() as queue:
            queue.fill(memory.tables[entry : entry + 1], block).wait()
        rows = loaded(ids(*following), states=states)["logits"]
        assert near(rows[0], expected[0][40:41]) == is_right
        assert all(near(row, expected[at][40:41]) for at, row in enumerate(rows[1:], 1))
        for state in states:
            state.rewind(40)
    for state in states:
        state.free()


def test_32_states_fill_the_device_to_the_last_block_and_what_does_not_fit_stops_nobody(
    loaded: Model, expected: list[NDArray[Any]]
) -> None:
    states = [loaded.state() for _ in range(32)]
    for number, state in enumerate(states):
        loaded(ids(TEXTS[number % ROWS][:30]), state=state)
    assert loaded.state_memory_free_bytes == 0
    with pytest.raises(sdk.OutOfDeviceMemory, match=r"40 more tokens take 3 blocks of 16; 0 of 64 .*: 2 would"):
        loaded(ids([1] * 40), state=states[5])
    with pytest.raises(sdk.OutOfDeviceMemory, match=r"4 more tokens in each of the states.*: 2 would have fitted"):
        loaded(ids(*[[1] * 4] * ROWS), states=states[8:16])

    def goes_on(first: int) -> None:
        """A group of rows reads a token more."""
        group = states[first : first + ROWS]
        start = group[0].length
        rows = loaded(ids(*[text[start : start + 1] for text in TEXTS]), states=group)["logits"]
        for row, wanted in zip(rows, expected, strict=True):
            assert near(row, wanted[start : start + 1])

    for first in (0, 8, 16, 24):
        goes_on(first)
        goes_on(first)
    assert {state.length for state in states} == {32}
    with pytest.raises(sdk.OutOfDeviceMemory, match=r"1 more tokens take 1 blocks.*: 0 would have fitted") as refused:
        loaded(ids([1]), state=states[31])
    assert (refused.value.requested, refused.value.available) == (BLOCK_BYTES, 0)
    for state in states[28:]:
        state.free()
    assert loaded.state_memory_free_bytes == 8 * BLOCK_BYTES
    goes_on(8)
    assert loaded.state_memory_free_bytes == 0
    for state in states[:28]:
        state.free()


# --- several processes ------------------------------------------------------------------------------------------------

_both_are_there: Any = None


def _wait_for_each_other(barrier: Any) -> None:
    global _both_are_there
    _both_are_there = barrier


def _talk(address: str, model: bytes, text: list[int]) -> tuple[int, list[NDArray[Any]], int]:
    """In a process of its own: a text word by word."""
    with sdk.Device(address) as device:
        lm = device.load(model, shapes={"input_ids": [(1, 1)]}, state_memory=BLOCKS * BLOCK_BYTES)
        with lm.state() as state:
            _both_are_there.wait(PATIENCE_S)
            rows = [lm(ids([word]), state=state)["logits"][0, 0] for word in text]
            _both_are_there.wait(PATIENCE_S)
        return os.getpid(), rows, BLOCKS * BLOCK_BYTES - lm.state_memory_free_bytes


def test_two_conversations_in_two_processes_go_on_on_two_served_devices(
    tmp_path: Path, decoder: onnx.ModelProto, expected: list[NDArray[Any]]
) -> None:
    tool, sockets = Npuctl(tmp_path), [tmp_path / "a.sock", tmp_path / "b.sock"]
    spawn = multiprocessing.get_context("spawn")
    model = decoder.SerializeToString()
    pool = ProcessPoolExecutor(2, spawn, _wait_for_each_other, (spawn.Barrier(2),))
    with tool.served(sockets[0]), tool.served(sockets[1]), pool:
        addresses = [f"vfio-user:{path}" for path in sockets]
        ends = list(pool.map(_talk, addresses, [model] * 2, [text[:60] for text in TEXTS[:2]]))
    (pid, *_), (other_pid, *_) = ends
    assert pid != other_pid
    for (_, rows, left), wanted in zip(ends, expected, strict=False):
        assert near(np.array(rows), wanted[:60])
        assert left == 0
