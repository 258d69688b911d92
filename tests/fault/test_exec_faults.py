"""A program that computes for long meets a dying engine, a reset, a dying emulator: usable after, or plainly lost."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sdk

PATIENCE_S = 60.0
WIDTH = 1024
LONG_STEPS = 500
"""Products of WIDTH x WIDTH matrices: 0.5 T multiply-accumulates, seconds on any machine."""


def chain(steps: int) -> onnx.ModelProto:
    """y = x @ w @ w ... with an orthogonal w, so that numbers stay in range."""
    w = np.roll(np.eye(WIDTH, dtype=np.float32), 1, axis=1)
    names = ["x", *(f"t{i}" for i in range(1, steps)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    shape = [WIDTH, WIDTH]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(w, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


X = np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)


@pytest.fixture()
def device() -> Iterator[sdk.Device]:
    with sdk.Device("emulator", timeout=PATIENCE_S) as device:
        yield device


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {PATIENCE_S} s still not: {what}")
        time.sleep(0.01)


def engine_of(device: sdk.Device) -> int:
    """Process id of the emulator's one engine worker."""
    if device.info.pid is None:
        pytest.fail("the emulator does not tell its process id")
    emulator = Path(f"/proc/{device.info.pid}/task/{device.info.pid}/children")
    children = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in emulator.read_text().split()}
    (worker,) = (pid for pid, command in children.items() if b"emulator.engines.worker" in command)
    return worker


def computes(pid: int) -> bool:
    """Whether a process has used a good part of a second of CPU since it was asked first."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) > os.sysconf("SC_CLK_TCK") // 2


def test_an_engine_that_dies_fails_its_program_only(device: sdk.Device) -> None:
    long, short = device.load(chain(LONG_STEPS)), device.load(chain(1))
    expected = short(X)["y"]
    event = long.submit(X)
    worker = engine_of(device)
    wait_until(lambda: computes(worker), "the engine computes")
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(sdk.CommandFailed) as caught:
        event.result()
    assert caught.value.code == "engine-lost"
    assert np.array_equal(short(X)["y"], expected)
    assert engine_of(device) != worker


def test_copies_complete_and_registers_answer_while_an_engine_computes(device: sdk.Device) -> None:
    event = device.load(chain(LONG_STEPS)).submit(X)
    x, w = device.host_buffer((1 << 16,), "uint8"), device.buffer((1 << 16,), "uint8")
    x.array[:] = 7
    with device.queue() as queue:
        queue.copy(w, x).wait()
        x.array[:] = 0
        queue.copy(x, w).wait()
    assert (x.array == 7).all()
    device.check_alive()
    assert not event.done()
    device.reset()


def test_a_reset_ends_a_program_that_computes_and_the_device_goes_on(device: sdk.Device) -> None:
    event = device.load(chain(LONG_STEPS)).submit(X)
    worker = engine_of(device)
    wait_until(lambda: computes(worker), "the engine computes")  # one that has not begun is not abandoned
    device.reset()
    with pytest.raises(sdk.CommandFailed) as caught:
        event.result()
    assert caught.value.code == "device-reset"
    short = device.load(chain(1))
    assert np.array_equal(short(X)["y"], np.roll(X, 1, axis=1))
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the abandoned engine is gone")


def test_a_killed_emulator_takes_its_engine_along_and_the_host_learns_it() -> None:
    with sdk.Device("emulator", timeout=PATIENCE_S) as device:
        event = device.load(chain(LONG_STEPS)).submit(X)
        worker = engine_of(device)
        os.kill(device.info.pid or 0, signal.SIGKILL)
        with pytest.raises(sdk.DeviceLost):
            event.result()
        wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the engine ends with its emulator")
