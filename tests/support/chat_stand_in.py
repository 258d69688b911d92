"""`python -m tests.support.chat_stand_in ARGUMENTS`: npuctl, with a stand-in for the model that `npuctl chat` loads.

Everything else is real, the device it opens too. `STAND_IN_ANSWERS` has the answers, a line each. Where it asks for
that, tokens take a moment, so that there is somebody to interrupt.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from unittest import mock

from numpy.typing import NDArray

import npuctl
import sdk
from sdk.chat.metadata import read_metadata
from sdk.chat.vocabulary import Vocabulary
from tests.support.small_chat import StandInModel, StandInRun, StandInState

ANSWERS = "STAND_IN_ANSWERS"
SECONDS = "STAND_IN_SECONDS"
"""Of a token of an answer."""
A_LONG_TIME_S = 1.0
ASLEEP = "asleep"
"""Said on stderr before a token takes a long time."""


class _SlowModel(StandInModel):
    def submit(self, inputs: Mapping[str, NDArray[Any]], *, state: Any) -> StandInRun:
        seconds = float(os.environ.get(SECONDS, "0"))
        if inputs["input_ids"].size == 1 and seconds:
            if seconds > A_LONG_TIME_S:
                sys.stderr.write(f"{ASLEEP}\n")
            time.sleep(seconds)
        return super().submit(inputs, state=state)


class _Plan(NamedTuple):
    constants_bytes: int = 98_000_000


class _LoadedModel(_SlowModel):
    """As `Device.load` returns it."""

    plan = _Plan()

    def state(self, *, max_tokens: int) -> StandInState:
        return StandInState(max_tokens)


class _Graph(NamedTuple):
    """As `sdk.read_gguf` returns it."""

    vocabulary: Vocabulary
    logits: str


def _read(path: Any, *, logits: str) -> _Graph:
    return _Graph(Vocabulary(read_metadata(path)), logits)


def _load(device: sdk.Device, graph: _Graph, *, shapes: Any, state_memory: int) -> _LoadedModel:
    assert set(shapes) == {"input_ids"} and state_memory > 0
    answers = [graph.vocabulary.encode(line) for line in os.environ[ANSWERS].split("\n")]
    return _LoadedModel(len(graph.vocabulary), answers, int(graph.logits.removeprefix("top-")))


if __name__ == "__main__":
    with mock.patch.object(sdk, "read_gguf", _read), mock.patch.object(sdk.Device, "load", _load):
        npuctl.main()
