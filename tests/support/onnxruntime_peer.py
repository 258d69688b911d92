"""onnxruntime in a process of its own, so that it is never loaded where the device's answers are computed.

    run(model, inputs, session_config) -> {output name: array}
    run_many([(model, inputs), ...], session_config) -> [{output name: array}, ...]
    try_many([(model, inputs), ...]) -> [{output name: array} or PeerError, ...]

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
_ERROR = "error"


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
    answers = try_many(jobs, session_config)
    for answer in answers:
        if isinstance(answer, PeerError):
            raise answer
    return [answer for answer in answers if not isinstance(answer, PeerError)]


def try_many(
    jobs: Sequence[tuple[Model, Arrays]], session_config: Mapping[str, str] | None = None
) -> list[dict[str, NDArray[Any]] | PeerError]:
    """`run_many` whose answer to a job that onnxruntime refuses is its error."""
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
        return [_answer(answer, index) for index in range(len(jobs))]


def _answer(arrays: Any, index: int) -> dict[str, NDArray[Any]] | PeerError:
    error = f"{index}/{_ERROR}"
    if error in arrays.files:
        return PeerError(arrays[error].tobytes().decode(errors="replace"))
    return _group(arrays, f"{index}/output/")


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
    results: dict[str, Any] = {}
    for index in range(sum(name.endswith("/model") for name in request.files)):
        data = request[f"{index}/model"].tobytes()
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            arrays = session.run(None, _group(request, f"{index}/input/"))
        except Exception as error:  # onnxruntime's errors have no common class; the other side raises it
            message = str(error)[-_MESSAGE_CHARACTERS:].encode()
            results[f"{index}/{_ERROR}"] = np.frombuffer(message, np.uint8)
            continue
        for output, array in zip(session.get_outputs(), arrays, strict=True):
            results[f"{index}/output/{output.name}"] = array
    answer = io.BytesIO()
    np.savez(answer, **results)
    sys.stdout.buffer.write(answer.getvalue())


if __name__ == "__main__":
    _serve()
