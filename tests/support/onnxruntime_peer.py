"""onnxruntime in a process of its own, so that it is never loaded where the device's answers are computed.

    run(model, inputs, session_config) -> {output name: array}
    run_many([(model, inputs), ...], session_config) -> [{output name: array}, ...]

As a script it reads an .npz request from standard input and writes an .npz answer to standard output.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PEER_TIMEOUT_SECONDS = 120
_MESSAGE_CHARACTERS = 2000
_FATAL_ONLY = 4
_CONFIG = "config"


class PeerError(RuntimeError):
    """onnxruntime refused a model or its inputs; the message is its own."""


Model = bytes | str | os.PathLike[str]
Arrays = Mapping[str, NDArray[Any]]


def run(model: Model, inputs: Arrays, session_config: Mapping[str, str] | None = None) -> dict[str, NDArray[Any]]:
    """Run a model (a path or the bytes of a file) on onnxruntime's CPU provider.

    `session_config` are session configuration entries. Raises PeerError with onnxruntime's message.
    """
    return run_many([(model, inputs)], session_config)[0]


def run_many(
    jobs: Sequence[tuple[Model, Arrays]], session_config: Mapping[str, str] | None = None
) -> list[dict[str, NDArray[Any]]]:
    """`run` for several models in one process."""
    arrays: dict[str, Any] = {_CONFIG: np.frombuffer(json.dumps(dict(session_config or {})).encode(), np.uint8)}
    for index, (model, inputs) in enumerate(jobs):
        data = model if isinstance(model, bytes) else Path(model).read_bytes()
        arrays[f"{index}/model"] = np.frombuffer(data, np.uint8)
        arrays.update({f"{index}/input/{name}": array for name, array in inputs.items()})
    request = io.BytesIO()
    np.savez(request, **arrays)
    done = subprocess.run(
        [sys.executable, __file__],
        input=request.getvalue(),
        capture_output=True,
        timeout=PEER_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise PeerError(done.stderr.decode(errors="replace")[-_MESSAGE_CHARACTERS:])
    with np.load(io.BytesIO(done.stdout)) as answer:
        return [_group(answer, f"{index}/output/") for index in range(len(jobs))]


def _group(arrays: Any, prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


def _serve() -> None:
    import onnxruntime

    request = np.load(io.BytesIO(sys.stdin.buffer.read()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    for key, value in json.loads(request[_CONFIG].tobytes()).items():
        options.add_session_config_entry(key, value)
    results = {}
    for index in range(sum(name.endswith("/model") for name in request.files)):
        data = request[f"{index}/model"].tobytes()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        arrays = session.run(None, _group(request, f"{index}/input/"))
        for output, array in zip(session.get_outputs(), arrays, strict=True):
            results[f"{index}/output/{output.name}"] = array
    answer = io.BytesIO()
    np.savez(answer, **results)
    sys.stdout.buffer.write(answer.getvalue())


if __name__ == "__main__":
    _serve()
