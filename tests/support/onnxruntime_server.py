"""onnxruntime in a process of its own that answers one question after another, for tests that ask hundreds.

    with Server() as server:
        server.run(model, inputs) -> {output name: array}

Requests and answers are .npz archives, each after its length in 8 bytes.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tests.support.onnxruntime_peer import PeerError
from tests.support.waiting import PATIENCE_S

_LENGTH_BYTES = 8
_FATAL_ONLY = 4
_MODEL, _ERROR = "model", "error"
EXACT_UINT8 = ("session.x64quantprecision", "1")
"""Without it onnxruntime's uint8 sums saturate at 16 bits on processors without VNNI."""


class Server:
    """The process. Close it, also after a failure."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(PATIENCE_S)

    def run(self, model: bytes, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a model with exact 8-bit sums. Raises PeerError with onnxruntime's message."""
        assert self._process.stdin is not None and self._process.stdout is not None
        _send(self._process.stdin, {_MODEL: np.frombuffer(model, np.uint8), **{f"/{n}": a for n, a in inputs.items()}})
        answer = _receive(self._process.stdout)
        if answer is None:
            raise PeerError(f"onnxruntime's process ended with {self._process.wait(PATIENCE_S)}")
        if _ERROR in answer:
            raise PeerError(str(answer[_ERROR]))
        return {name[1:]: array for name, array in answer.items()}


def _send(stream: IO[bytes], arrays: Mapping[str, Any]) -> None:
    archive = io.BytesIO()
    np.savez(archive, **dict(arrays))
    data = archive.getvalue()
    stream.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> dict[str, NDArray[Any]] | None:
    """The next message, None at the end of the stream."""
    length = stream.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    with np.load(io.BytesIO(stream.read(int.from_bytes(length, "little")))) as archive:
        return dict(archive)


def _session(model: bytes) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(model, _options(EXACT_UINT8), providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        # some operators have no exact kernels for signed activations, which need none
        return onnxruntime.InferenceSession(model, _options(), providers=["CPUExecutionProvider"])


def _options(*entries: tuple[str, str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    for entry in entries:
        options.add_session_config_entry(*entry)
    return options


def _answer(request: dict[str, NDArray[Any]]) -> dict[str, Any]:
    try:
        session = _session(request.pop(_MODEL).tobytes())
        results = session.run(None, {name[1:]: array for name, array in request.items()})
    except Exception as error:  # the asking process raises it
        return {_ERROR: np.array(str(error))}
    return {f"/{output.name}": array for output, array in zip(session.get_outputs(), results, strict=True)}


def _serve() -> None:
    while (request := _receive(sys.stdin.buffer)) is not None:
        _send(sys.stdout.buffer, _answer(request))


if __name__ == "__main__":
    _serve()
