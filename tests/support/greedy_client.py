"""Greedy decoding on a device, in a process of its own from which onnxruntime is barred.

    decode(model, prompts, tokens=64, steps=(0, 63), kernels="numpy") -> Decoded

Whoever compares the answers with onnxruntime's knows that it took no part: it is barred from this process, the
emulator and its engines, and looked for in all of them when the last word has been said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

PATIENCE_S = 900


class Decoded(NamedTuple):
    """What a device said."""

    tokens: NDArray[np.int64]
    """[prompts, tokens]"""
    rows: NDArray[np.float32]
    """[prompts, steps, words]: the logits of the steps that were asked for."""


def decode(
    model: onnx.ModelProto, prompts: Sequence[Sequence[int]], *, tokens: int, steps: Sequence[int], kernels: str
) -> Decoded:
    """Have each prompt continued, always by the best word, in runs of 32 tokens and then of one."""
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, str(Path(folder) / "model.onnx"))
        request = {"prompts": [*map(list, prompts)], "tokens": tokens, "steps": [*steps], "kernels": kernels}
        done = subprocess.run(
            [sys.executable, "-m", __name__, folder],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with np.load(Path(folder) / "answers.npz") as arrays:
            return Decoded(arrays["tokens"], arrays["rows"])


def _main(folder: Path) -> None:
    from driver_shim.shared import import_guard

    import_guard.install()
    import sdk
    from sdk.validate import barred

    request = json.load(sys.stdin)
    with sdk.Device(f"emulator:generic?kernels={request['kernels']}&core=none") as device:
        loaded = device.load(folder / "model.onnx", shapes={"input_ids": [(1, 32), (1, 1)]}, state_memory="64MiB")
        answers = [_continued(loaded, prompt, request["tokens"], request["steps"]) for prompt in request["prompts"]]
        assert device.info.pid is not None
        processes, holding = barred.holders(device.info.pid)
    assert processes and not holding, "onnxruntime takes part in the device's answer"
    assert os.getpid() not in barred.holders(os.getpid())[1], "onnxruntime is in the client's process"
    tokens, rows = zip(*answers, strict=True)
    np.savez(folder / "answers.npz", tokens=np.array(tokens), rows=np.array(rows))


def _continued(
    model: Any, prompt: list[int], tokens: int, steps: Sequence[int]
) -> tuple[list[int], list[NDArray[np.float32]]]:
    said: list[int] = []
    rows = []
    ids = prompt
    with model.state() as state:
        for step in range(tokens):
            row = model({"input_ids": np.array([ids], np.int64)}, state=state)["logits"][0]
            ids = [int(row.argmax())]
            said += ids
            if step in steps:
                rows.append(row)
    return said, rows


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
