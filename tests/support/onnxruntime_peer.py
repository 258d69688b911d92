"""onnxruntime in a process of its own, so that it is never loaded where the device's answers are computed.

    run(model, inputs, session_config) -> {output name: array}

As a script it reads an .npz request from standard input and writes an .npz answer to standard output.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PEER_TIMEOUT_SECONDS = 120
_INPUT = "input:"
_OUTPUT = "output:"


class PeerError(RuntimeError):
    """onnxruntime refused the model or the inputs; the message is its own."""


def run(
    model: bytes | str | os.PathLike[str],
    inputs: Mapping[str, NDArray[Any]],
    session_config: Mapping[str, str] | None = None,
) -> dict[str, NDArray[Any]]:
    """Run a model (a path or the bytes of a file) on onnxruntime's CPU provider.

    `session_config` are session configuration entries. Raises PeerError with onnxruntime's message.
    """
    request = io.BytesIO()
    data = model if isinstance(model, bytes) else Path(model).read_bytes()
    arrays: dict[str, Any] = {_INPUT + name: array for name, array in inputs.items()}
    arrays["model"] = np.frombuffer(data, np.uint8)
    arrays["config"] = np.frombuffer(json.dumps(dict(session_config or {})).encode(), np.uint8)
    np.savez(request, **arrays)
    done = subprocess.run(
        [sys.executable, __file__],
        input=request.getvalue(),
        capture_output=True,
        timeout=PEER_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise PeerError(done.stderr.decode(errors="replace")[-2000:])
    with np.load(io.BytesIO(done.stdout)) as answer:
        return {name.removeprefix(_OUTPUT): answer[name] for name in answer.files}


def _serve() -> None:
    import onnxruntime

    request = np.load(io.BytesIO(sys.stdin.buffer.read()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in json.loads(request["config"].tobytes()).items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(request["model"].tobytes(), options, providers=["CPUExecutionProvider"])
    inputs = {name.removeprefix(_INPUT): request[name] for name in request.files if name.startswith(_INPUT)}
    results = session.run(None, inputs)
    answer = io.BytesIO()
    np.savez(answer, **{_OUTPUT + o.name: r for o, r in zip(session.get_outputs(), results, strict=True)})
    sys.stdout.buffer.write(answer.getvalue())


if __name__ == "__main__":
    _serve()
