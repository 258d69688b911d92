"""`python -m tests.support.chat_stand_in ARGUMENTS`: npuctl, with a stand-in for the model that `npuctl chat` loads.

Everything else is real, the device it opens too. `STAND_IN_ANSWERS` has the answers, a line each. Where it asks for
that, tokens take a moment, so that there is somebody to interrupt.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

import npuctl
from sdk.chat import loading
from sdk.chat.vocabulary import Vocabulary
from tests.support.small_chat import StandInModel, StandInRun, StandInState

ANSWERS = "STAND_IN_ANSWERS"
SECONDS = "STAND_IN_SECONDS"
"""Of a token of an answer."""
A_LONG_TIME_S = 1.0
ASLEEP = "asleep"
"""Said on stderr before a token takes a long time."""
WEIGHTS_BYTES = 98_000_000


class _SlowModel(StandInModel):
    def submit(self, inputs: Mapping[str, NDArray[Any]], *, state: Any) -> StandInRun:
        seconds = float(os.environ.get(SECONDS, "0"))
        if inputs["input_ids"].size == 1 and seconds:
            if seconds > A_LONG_TIME_S:
                sys.stderr.write(f"{ASLEEP}\n")
            time.sleep(seconds)
        return super().submit(inputs, state=state)


def _load(device: Any, path: Any, metadata: Mapping[str, Any], *, context: int, candidates: int) -> loading.Loaded:
    vocabulary = Vocabulary(metadata)
    answers = [vocabulary.encode(line) for line in os.environ[ANSWERS].split("\n")]
    return loading.Loaded(_SlowModel(len(vocabulary), answers, candidates), StandInState(context), WEIGHTS_BYTES)


if __name__ == "__main__":
    setattr(loading, "load", _load)  # noqa: B010 - what mypy would rather not see is meant
    npuctl.main()
