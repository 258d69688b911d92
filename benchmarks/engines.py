"""Engine workers by themselves; magika on fast and golden kernels beside onnxruntime with as many threads."""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure
from driver_shim.protocol.program import (
    Binding,
    Command,
    EntryPoint,
    Program,
    Storage,
    Tensor,
    TensorType,
    align_up,
    build,
    make_attributes,
)
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType
from emulator.chip.device_memory import DeviceMemory
from emulator.engines.job import EngineJob, JobResult, Outcome, ProgramImage
from emulator.engines.pool import EnginePool, worker_limits
from emulator.model.verify import verify
from sdk.cli.measurements import Spread
from sdk.compiler import compile_model, read_model

MEMORY_BYTES = 1 << 26
CONSTANTS_ADDRESS = 1 << 20
STARTS, EMPTY_JOBS, MODEL_JOBS, WARM_UP_JOBS = 5, 2_000, 40, 5
START_BUDGET_S = 0.4
ANSWER_PATIENCE_S = 60.0
MODEL_INPUT = "bytes"
MODEL_TOKENS = 2048
TOKEN_VALUES = 257

_PEER = """
import statistics, sys, time
import numpy, onnxruntime
path, threads, count, warm_up, name, tokens, values = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
x = numpy.random.default_rng(0).integers(0, int(values), (1, int(tokens))).astype(numpy.int32)
seconds = []
for _ in range(int(count) + int(warm_up)):
    began = time.perf_counter()
    session.run(None, {name: x})
    seconds.append(time.perf_counter() - began)
print(statistics.median(seconds[int(warm_up):]))
"""


def figures() -> list[Figure]:
    """All figures of this topic."""
    starts = [_first_answer() for _ in range(STARTS)]
    empty = _empty_jobs()
    found = [
        Figure("engine worker, start to first answer", statistics.median(starts), "ms", budget=START_BUDGET_S),
        Figure("empty program on an engine, p50", empty.p50, "µs"),
        Figure("empty program on an engine, p99", empty.p99, "µs"),
    ]
    model = _magika()
    if model is None:
        return found
    peer = _onnxruntime(model)
    found += [
        Figure(f"magika, one file, {kernels} kernels", _magika_jobs(model, kernels), "ms", "onnxruntime", peer)
        for kernels in ("auto", "golden")
    ]
    return found


@contextmanager
def _pool(
    container: bytes, constants: Sequence[NDArray[Any]] = (), kernels: str = "auto", first: bytes = b""
) -> Iterator[Callable[[], JobResult]]:
    """A pool of one engine with a program; yields what runs it once. Input 0 lies at address 0 and is `first`."""
    memory = DeviceMemory(MEMORY_BYTES)
    memory.view[: len(first)] = first
    addresses, end = [], CONSTANTS_ADDRESS
    for array in constants:
        memory.view[end : end + array.nbytes] = array.tobytes()
        addresses.append(end)
        end += align_up(array.nbytes)
    image = ProgramImage.of(container, verify(container), tuple(addresses))
    pool = EnginePool(memory.fd, 1, kernels)
    job = EngineJob(1, 0, 1, (0,))

    def run() -> JobResult:
        pool.start(job)
        while not (results := pool.poll()):
            if not select.select(pool.fds(), [], [], ANSWER_PATIENCE_S)[0]:
                raise TimeoutError(f"no answer from an engine within {ANSWER_PATIENCE_S} s")
        pool.release(results[0])
        if results[0].outcome is not Outcome.OK:
            raise RuntimeError(f"the engine failed: {results[0].message}")
        return results[0]

    try:
        pool.load(1, image)
        yield run
    finally:
        pool.close()
        memory.close()


def _seconds(run: Callable[[], JobResult], count: int) -> list[float]:
    samples = []
    for _ in range(count + WARM_UP_JOBS):
        began = time.perf_counter()
        run()
        samples.append(time.perf_counter() - began)
    return samples[WARM_UP_JOBS:]


def _first_answer() -> float:
    began = time.perf_counter()
    with _pool(_empty_program()) as run:
        run()
        return time.perf_counter() - began


def _empty_jobs() -> Spread:
    with _pool(_empty_program()) as run:
        return Spread.of(_seconds(run, EMPTY_JOBS))


def _magika_jobs(path: Path, kernels: str) -> float:
    return seconds_of(path, MODEL_INPUT, _tokens(), MODEL_JOBS, kernels)


def seconds_of(path: Path, name: str, x: NDArray[Any], jobs: int = EMPTY_JOBS, kernels: str = "auto") -> float:
    """Median seconds of a model of one input on an engine that is asked directly."""
    compiled = compile_model(read_model(path), {name: x.shape})
    constants = [constant.array for constant in compiled.constants]
    with _pool(compiled.image, constants, kernels, x.tobytes()) as run:
        return statistics.median(_seconds(run, jobs))


def _empty_program() -> bytes:
    """One copy of one number."""
    scalar = TensorType(WireType.INT32, ())
    tensors = (Tensor(scalar, Storage.INPUT), Tensor(scalar, Storage.OUTPUT))
    command = Command(CommandKind.COPY, make_attributes(CommandKind.COPY), (0,), (1,))
    return build(Program(tensors, (EntryPoint((command,), (Binding("x", 0),), (Binding("y", 1),)),)))


def _tokens() -> NDArray[np.int32]:
    return np.random.default_rng(0).integers(0, TOKEN_VALUES, (1, MODEL_TOKENS)).astype(np.int32)


def _magika() -> Path | None:
    """The model file of the installed magika package, None without it."""
    try:
        package = resources.files("magika")
    except ModuleNotFoundError:
        return None
    return next(Path(str(package)).rglob("model.onnx"), None)


def _onnxruntime(path: Path) -> float:
    """onnxruntime's median on the same input, in a process of its own, with an engine's number of threads."""
    threads = worker_limits(1, len(os.sched_getaffinity(0)))[1]
    facts = (path, threads, MODEL_JOBS, WARM_UP_JOBS, MODEL_INPUT, MODEL_TOKENS, TOKEN_VALUES)
    command = [sys.executable, "-c", _PEER, *map(str, facts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_PATIENCE_S, check=True)
    return float(done.stdout)
