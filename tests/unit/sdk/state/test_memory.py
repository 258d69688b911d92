"""Memory of states: what one queue has still to do to blocks and tables is done before another uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.errors import Timeout
from sdk.compiler import TensorInfo
from sdk.compiler.states import StateLayout
from sdk.state.holding import Holding
from sdk.state.memory import StateMemory

BLOCKS, BLOCK_TOKENS = 8, 2


class Memory:
    """A device whose memory is numpy's."""

    address = "nowhere"

    def device_buffer(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        return np.full(shape, 7, dtype)


class Pending:
    """The end of a command."""

    def __init__(self, queue: LateQueue) -> None:
        self._queue = queue

    def _await_end(self) -> None:
        if self._queue.hangs:
            raise Timeout("the queue does not answer")
        self._queue.catch_up()


class LateQueue:
    """A queue that carries out its commands when somebody waits for them."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self.hangs = False

    def fill(self, to: NDArray[Any], value: int) -> Pending:
        return self._later(lambda: to.fill(value))

    def copy(self, to: NDArray[Any], source: NDArray[Any]) -> Pending:
        return self._later(lambda: np.copyto(to, source))

    def _later(self, command: Callable[[], None]) -> Pending:
        self._waiting.append(command)
        return Pending(self)

    @property
    def is_behind(self) -> bool:
        return bool(self._waiting)

    def catch_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            command()


class Rig:
    """States in one cache of one plane, and two queues."""

    def __init__(self) -> None:
        layout = StateLayout(blocks=BLOCKS, slots=4, entries=BLOCKS, block_tokens=BLOCK_TOKENS)
        cache = TensorInfo("cache.0", (1, BLOCKS, BLOCK_TOKENS, 1, 1), "float32")
        self.memory: Any = StateMemory(Memory(), layout, [cache])  # type: ignore[arg-type]
        self.blocks: Any = self.memory.caches[0].buffer
        self.late, self.other = LateQueue(), LateQueue()

    def append(self, holding: Holding, tokens: list[float], queue: LateQueue) -> None:
        """What a run on a queue does, which has to do the rest of what is in it before."""
        self.memory.extend([holding], len(tokens), queue)
        queue.catch_up()
        entries = self.table(holding)
        for place, token in enumerate(tokens, holding.length):
            self.blocks[entries[place // BLOCK_TOKENS], place % BLOCK_TOKENS] = token
        holding.length += len(tokens)

    def table(self, holding: Holding) -> list[int]:
        """What the device finds the blocks of a state by."""
        first = holding.slot * BLOCKS
        return [int(block) for block in self.memory.tables[first : first + len(holding.blocks)]]

    def tokens(self, holding: Holding) -> list[float]:
        """What the device has of a state."""
        return [float(each) for each in self.blocks[self.table(holding)].reshape(-1)[: holding.length]]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_what_one_queue_will_erase_is_no_other_queues_before(rig: Rig) -> None:
    used = rig.memory.new()
    rig.append(used, [1.0] * BLOCKS * BLOCK_TOKENS, rig.other)
    rig.memory.give_back(used)
    first, second = rig.memory.new(), rig.memory.new()
    rig.memory.extend([first], 1, rig.late)  # has free blocks behind its own erased with it
    rig.append(second, [2.0, 3.0, 4.0], rig.other)
    rig.late.catch_up()
    assert rig.tokens(second) == [2.0, 3.0, 4.0]


def test_a_block_that_one_queue_will_copy_is_no_other_queues_before(rig: Rig) -> None:
    first = rig.memory.new()
    rig.append(first, [1.0, 2.0, 3.0], rig.other)
    second = rig.memory.fork(first, rig.other)
    rig.other.catch_up()
    rig.memory.extend([second], 1, rig.late)  # takes the shared block's tokens with it
    first.length = 2
    rig.append(first, [9.0], rig.other)  # which writes over them
    rig.late.catch_up()
    assert rig.tokens(second) == [1.0, 2.0, 3.0]
    assert rig.tokens(first) == [1.0, 2.0, 9.0]


def test_a_table_that_one_queue_will_enter_is_no_other_queues_before(rig: Rig) -> None:
    first, second = rig.memory.new(), rig.memory.new()
    rig.memory.extend([first], 3, rig.late)  # for a run that was not started after all
    rig.memory.trim(first)
    rig.append(second, [5.0], rig.other)
    rig.append(first, [1.0, 2.0, 3.0, 4.0, 5.0], rig.other)
    rig.late.catch_up()
    assert rig.table(first) == first.blocks
    assert rig.tokens(first) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_slot_of_a_state_that_never_ran_is_no_other_queues_before(rig: Rig) -> None:
    gone = rig.memory.new()
    rig.memory.extend([gone], 1, rig.late)
    rig.memory.give_back(gone)
    other = rig.memory.new()
    assert other.slot == gone.slot
    keep = rig.memory.new()
    rig.append(keep, [1.0], rig.other)
    rig.append(other, [2.0], rig.other)
    rig.late.catch_up()
    assert rig.table(other) == other.blocks


def test_what_is_read_back_was_prepared_whatever_queue_did_it(rig: Rig) -> None:
    first = rig.memory.new()
    rig.append(first, [1.0, 2.0, 3.0], rig.other)
    second = rig.memory.fork(first, rig.other)
    rig.other.catch_up()
    rig.memory.extend([second], 1, rig.late)
    rig.memory.await_prepared(second, rig.other)
    assert rig.tokens(second) == [1.0, 2.0, 3.0]


def test_a_queue_does_not_wait_for_itself(rig: Rig) -> None:
    first = rig.memory.new()
    rig.memory.extend([first], 3, rig.late)
    rig.memory.extend([first], 3, rig.late)
    assert rig.late.is_behind


def test_queues_whose_states_have_nothing_in_common_do_not_wait(rig: Rig) -> None:
    first, second = rig.memory.new(), rig.memory.new()
    rig.memory.extend([first], 3, rig.late)
    rig.append(second, [1.0, 2.0, 3.0], rig.other)
    assert rig.late.is_behind


def test_a_queue_that_is_waited_for_in_vain_costs_no_blocks(rig: Rig) -> None:
    used = rig.memory.new()
    rig.append(used, [1.0] * BLOCKS * BLOCK_TOKENS, rig.other)
    rig.memory.give_back(used)
    first, second = rig.memory.new(), rig.memory.new()
    rig.memory.extend([first], 1, rig.late)
    free = rig.memory.free_bytes
    rig.late.hangs = True
    with pytest.raises(Timeout):
        rig.memory.extend([second], 1, rig.other)
    assert rig.memory.free_bytes == free
    rig.late.hangs = False
    rig.append(second, [2.0], rig.other)
    assert rig.blocks[second.blocks[0]].tolist() == [2.0, 0.0]
