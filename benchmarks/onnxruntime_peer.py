"""The peer: onnxruntime in a process of its own, that times models as it is asked to.

with Peer() as peer:
    peer.seconds(model, inputs, threads, rounds)            median of the rounds
    peer.pace(model, inputs, sessions, rounds)              runs per second of sessions of one thread, at once
    peer.quantise(model, inputs, quantised)                 writes an int8 model of QOperator nodes
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

WARM_UP_RUNS = 3
END_PATIENCE_S = 30
ERRORS = 3
"""onnxruntime's severity; it warns of each initialiser that is an input, too."""
Arrays: TypeAlias = Mapping[str, NDArray[Any]]


class PeerProcess:
    """A module of ours as a process that answers requests, both lines of JSON.

    Raises RuntimeError with the process's last words when it died.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        """Start it."""
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe nobody reads would stop it
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        self._requests, self._answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The answer to a request."""
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        return self.read()

    def read(self) -> Any:
        """What it says next."""
        line = self._answers.readline()
        if not line:
            self._complaints.seek(0)
            raise RuntimeError(f"onnxruntime's process ended: {self._complaints.read()}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.communicate(timeout=END_PATIENCE_S)
        self._complaints.close()


class Peer:
    """The process and what is asked of it. Raises RuntimeError with the process's last words when it died."""

    def __init__(self) -> None:
        """Start it. Raises ImportError without onnxruntime."""
        self._folder = tempfile.TemporaryDirectory()
        self._process = PeerProcess("benchmarks.onnxruntime_peer")
        if not self._process.read()["there"]:
            self.close()
            raise ImportError("onnxruntime is missing: make bench installs it")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.close()
        self._folder.cleanup()

    def seconds(self, model: Path, inputs: Arrays, threads: int, rounds: int) -> float:
        """Median seconds of one run with so many threads."""
        return float(self._ask("seconds", model, inputs, threads=threads, rounds=rounds))

    def pace(self, model: Path, inputs: Arrays, sessions: int, rounds: int) -> float:
        """Runs per second of all sessions together, each with a thread of its own and `rounds` runs."""
        return float(self._ask("pace", model, inputs, sessions=sessions, rounds=rounds))

    def quantise(self, model: Path, inputs: Arrays, quantised: Path) -> None:
        """Write the model in int8, per channel, calibrated with one set of inputs."""
        self._ask("quantise", model, inputs, quantised=str(quantised))

    def _ask(self, what: str, model: Path, inputs: Arrays, **facts: Any) -> Any:
        arrays = Path(self._folder.name) / "inputs.npz"
        named: dict[str, Any] = dict(inputs)
        np.savez(arrays, **named)
        return self._process.ask({"what": what, "model": str(model), "inputs": str(arrays), **facts})["answer"]


class _Sessions:
    """The process's side: sessions by model and number of threads, kept until the next model comes."""

    def __init__(self, onnxruntime: Any) -> None:
        self._onnxruntime = onnxruntime
        self._made: dict[tuple[str, int, int], Any] = {}

    def of(self, model: str, threads: int, number: int = 0) -> Any:
        key = model, threads, number
        if key not in self._made:
            if self._made and model != next(iter(self._made))[0]:
                self._made.clear()
            options = self._onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = ERRORS
            self._made[key] = self._onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return self._made[key]

    def seconds(self, model: str, inputs: Arrays, threads: int, rounds: int) -> float:
        session = self.of(model, threads)
        return statistics.median(_timed(session, inputs, rounds))

    def pace(self, model: str, inputs: Arrays, sessions: int, rounds: int) -> float:
        made = [self.of(model, 1, number) for number in range(sessions)]
        for session in made:
            _timed(session, inputs, 1)
        threads = [threading.Thread(target=_timed, args=(session, inputs, rounds, 0)) for session in made]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sessions * rounds / (time.perf_counter() - began)


def _timed(session: Any, inputs: Arrays, rounds: int, warm_up: int = WARM_UP_RUNS) -> list[float]:
    samples = []
    for _ in range(rounds + warm_up):
        began = time.perf_counter()
        session.run(None, inputs)
        samples.append(time.perf_counter() - began)
    return samples[warm_up:]


def _quantise(model: str, inputs: Arrays, quantised: str) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Once(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [inputs]

        def get_next(self) -> Arrays | None:
            return self._left.pop() if self._left else None

    with tempfile.TemporaryDirectory() as folder:
        prepared = f"{folder}/prepared.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=True)  # norms become part of their convolutions
        quantization.quantize_static(
            prepared,
            quantised,
            Once(),
            quant_format=quantization.QuantFormat.QOperator,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,  # what onnxruntime computes fastest on x86
        )


def _serve() -> None:
    try:
        import onnxruntime
    except ImportError:
        _say({"there": False})
        return
    _say({"there": True})
    sessions = _Sessions(onnxruntime)
    answers: dict[str, Callable[..., Any]] = {"seconds": sessions.seconds, "pace": sessions.pace, "quantise": _quantise}
    for line in sys.stdin:
        asked = json.loads(line)
        with np.load(asked.pop("inputs")) as arrays:
            inputs = dict(arrays)
        _say({"answer": answers[asked.pop("what")](inputs=inputs, **asked)})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()
