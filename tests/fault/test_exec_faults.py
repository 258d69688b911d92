"""A program that computes for long meets a dying engine, a reset, a dying emulator: usable after, or plainly lost."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sdk
from tests.support.children import children_that_run, has_ended
from tests.support.waiting import PATIENCE_S, wait_until

WIDTH = 1024
LONG_STEPS = 2000
"""Softmax of WIDTH x WIDTH values takes some 10 ms, however many cores there are: longer than a test may be starved."""
BUSY_S = 0.3
"""An engine that has used this much CPU time computes; to take a program in costs a tenth of it."""


def chain(steps: int) -> onnx.ModelProto:
    """y = x @ w, each row of x turned by one, and softmax of that in the steps that follow."""
    w = np.roll(np.eye(WIDTH, dtype=np.float32), 1, axis=1)
    names = ["x", *(f"t{i}" for i in range(1, steps)), "y"]
    first, *rest = itertools.pairwise(names)
    nodes = [helper.make_node("MatMul", [first[0], "w"], [first[1]])]
    nodes += [helper.make_node("Softmax", [a], [b]) for a, b in rest]
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


def engine_of(device: sdk.Device) -> int:
    """Process id of the emulator's one engine worker."""
    if device.info.pid is None:
        pytest.fail("the emulator does not tell its process id")
    (worker,) = children_that_run(device.info.pid, "emulator.engines.worker")
    return worker


def cpu_time_s(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def compute_for_long(device: sdk.Device) -> tuple[sdk.Event[dict[str, Any]], int]:
    """Start the long program; it and the worker that computes it."""
    long, short = device.load(chain(LONG_STEPS)), device.load(chain(1))
    short(X)  # what the worker does at its start is done with
    worker = engine_of(device)
    before_s = cpu_time_s(worker)
    event = long.submit(X)
    wait_until(lambda: cpu_time_s(worker) > before_s + BUSY_S, "the engine computes")
    return event, worker


def test_an_engine_that_dies_fails_its_program_only(device: sdk.Device) -> None:
    short = device.load(chain(1))
    expected = short(X)["y"]
    event, worker = compute_for_long(device)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(sdk.CommandFailed) as caught:
        event.result()
    assert caught.value.code == "engine-lost"
    assert np.array_equal(short(X)["y"], expected)
    assert engine_of(device) != worker


def test_copies_complete_and_registers_answer_while_an_engine_computes(device: sdk.Device) -> None:
    event, _ = compute_for_long(device)
    x, w = device.host_buffer((1 << 16,), "uint8"), device.buffer((1 << 16,), "uint8")
    x.array[:] = 7
    with device.queue() as queue:
        queue.copy(w, x).wait()
        x.array[:] = 0
        queue.copy(x, w).wait()
    assert (x.array == 7).all()
    device._function.check_alive()
    assert not event.done()
    device.reset()


def test_a_reset_ends_a_program_that_computes_and_the_device_goes_on(device: sdk.Device) -> None:
    event, worker = compute_for_long(device)  # an engine that has not begun is not abandoned
    device.reset()
    with pytest.raises(sdk.CommandFailed) as caught:
        event.result()
    assert caught.value.code == "device-reset"
    short = device.load(chain(1))
    assert np.array_equal(short(X)["y"], np.roll(X, 1, axis=1))
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the abandoned engine is reaped")


def test_a_killed_emulator_takes_its_engine_along_and_the_host_learns_it() -> None:
    with sdk.Device("emulator", timeout=PATIENCE_S) as device:
        event, worker = compute_for_long(device)
        os.kill(device.info.pid or 0, signal.SIGKILL)
        with pytest.raises(sdk.DeviceLost):
            event.result()
        wait_until(lambda: has_ended(worker), "the engine ends with its emulator")
