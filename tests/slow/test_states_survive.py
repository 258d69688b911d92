"""Conversations that are disturbed at seeded moments go on as if nothing had happened, or say that they are closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from sdk.model.model import Model
from sdk.state.state import State
from tests.support.children import children_that_run
from tests.support.decoders import Scattering, Size, whole
from tests.support.rigs import Rig, process_rig

pytestmark = pytest.mark.slow

SIZE = Size(context=256)
BLOCK = 16
BLOCKS = 64
SPEAKERS = 3
MOMENTS = 500
LONGEST_PAUSE_S = 0.01
"""About as long as a step takes."""
TEXT = [int(word) for word in np.random.default_rng(4).integers(0, SIZE.words, SIZE.context)]
RESET_SHARE = 0.1
RESET_TIMEOUT_S = 60


class Conversations:
    """States that hold beginnings of one text, whose logits are known; some of them share blocks."""

    def __init__(self, rig: Rig, device: sdk.Device, decoder: onnx.ModelProto, seed: int) -> None:
        self.rig, self.device, self.decoder = rig, device, decoder
        self.random = random.Random(seed)
        self.expected = whole(decoder, TEXT)
        self.ends: Counter[str] = Counter()
        self.begin()

    def begin(self) -> None:
        """Load the model anew, and begin to speak."""
        block = BLOCK * 4 * 2 * SIZE.layers * SIZE.key_heads * SIZE.size
        shapes = {"input_ids": [(1, 8), (1, 1)]}
        self.model: Model = self.device.load(self.decoder, shapes=shapes, state_memory=BLOCKS * block)
        self.whole_memory = self.model.state_memory_free_bytes
        self.states: list[State] = [self.model.state() for _ in range(SPEAKERS)]

    def next_words(self, state: State) -> list[int]:
        """What comes next in a conversation; one that is at its end begins again somewhere."""
        if state.length > SIZE.context - 40:
            state.rewind(self.random.randrange(SIZE.context // 2))
        count = self.random.choice([1, 1, 2, 7, 8, 9, 16, 20])
        return TEXT[state.length : state.length + count]

    def check(self, state: State, logits: NDArray[Any], start: int) -> None:
        np.testing.assert_allclose(logits, self.expected[start : start + len(logits)], rtol=1e-4, atol=1e-5)

    def speak(self, state: State) -> None:
        """One step that nothing disturbs."""
        words, start = self.next_words(state), state.length
        try:
            out = self.model(ids(words), state=state)
        except sdk.CommandFailed as error:  # of an engine that was killed when its run had just ended
            assert error.code == "engine-lost"
            assert state.length == start
            self.ends["engine found lost"] += 1
            out = self.model(ids(words), state=state)
        self.check(state, out["logits"][0], start)
        assert state.length == start + len(words)

    def pause(self) -> None:
        time.sleep(self.random.uniform(0, LONGEST_PAUSE_S))

    # --- moments --------------------------------------------------------------------------------------------------

    def engine_killed(self, state: State) -> None:
        words, start = self.next_words(state), state.length
        event = self.model.submit(ids(words), state=state)
        self.pause()
        assert self.rig.pid is not None
        for engine in children_that_run(self.rig.pid, "emulator.engines.worker"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine, signal.SIGKILL)
        try:
            self.check(state, event.result()["logits"][0], start)
            assert state.length == start + len(words)
            self.ends["killed too late"] += 1
        except sdk.CommandFailed as error:
            assert error.code == "engine-lost"
            assert state.length == start
            self.ends["engine lost"] += 1

    def task_cancelled(self, state: State) -> None:
        words, start = self.next_words(state), state.length

        async def cancelled() -> None:
            task = asyncio.ensure_future(self.model.run_async(ids(words), state=state))
            await asyncio.sleep(self.random.uniform(0, LONGEST_PAUSE_S))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        self.settle(state)
        assert state.length in (start, start + len(words))
        self.ends["cancelled" if state.length == start else "cancelled too late"] += 1

    def patience_lost(self, state: State) -> None:
        words, start = self.next_words(state), state.length
        try:
            self.model(ids(words), state=state, timeout=self.random.uniform(1e-5, LONGEST_PAUSE_S))
            self.ends["in time"] += 1
        except sdk.Timeout:
            self.settle(state)
            self.ends["went on after its time-out"] += 1
        assert state.length == start + len(words)

    def word_unknown(self, state: State) -> None:
        words, start = self.next_words(state), state.length
        words[self.random.randrange(len(words))] = 1 << 20
        with pytest.raises(sdk.CommandFailed, match="index-out-of-range"):
            self.model(ids(words), state=state)
        assert state.length == start
        self.ends["failed"] += 1

    def device_reset(self, state: State) -> None:
        event = self.model.submit(ids(self.next_words(state)), state=state)
        thread = threading.Timer(self.random.uniform(0, LONGEST_PAUSE_S), self.device.reset)
        thread.start()
        with contextlib.suppress(sdk.CommandFailed):
            event.wait()
        thread.join(RESET_TIMEOUT_S)
        assert not thread.is_alive()
        for each in self.states:
            assert each.closed
            with pytest.raises(sdk.Closed):
                self.model(ids([1]), state=each)
        self.ends["reset"] += 1
        self.begin()

    def forked(self, state: State) -> None:
        at = self.states.index(state)
        self.states[at] = state.fork()
        if self.random.random() < 0.5:
            state.free()
        self.ends["forked"] += 1

    def settle(self, state: State) -> None:
        """Wait until no run works on it."""
        deadline = time.monotonic() + 30
        while state._holding.in_flight:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def disturb(self) -> None:
        state = self.random.choice(self.states)
        moments = (self.engine_killed, self.task_cancelled, self.patience_lost, self.word_unknown, self.forked)
        moment = self.device_reset if self.random.random() < RESET_SHARE else self.random.choice(moments)
        moment(state)


def ids(words: list[int]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": np.array([words], np.int64)}


@pytest.mark.timeout(600)
def test_conversations_survive_whatever_disturbs_them() -> None:
    with process_rig() as rig, rig.device() as device:
        conversations = Conversations(rig, device, Scattering(SIZE).model(), seed=11)
        for _ in range(MOMENTS):
            conversations.disturb()
            for state in conversations.states:
                conversations.speak(state)
        for state in conversations.states:
            state.free()
        assert conversations.model.state_memory_free_bytes == conversations.whole_memory
        for end in ("engine lost", "cancelled too late", "went on after its time-out", "failed", "reset"):
            assert conversations.ends[end], conversations.ends
