"""Processor time of an emulator that nobody uses, and register reads idle and while an engine computes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

import sdk
from benchmarks.figures import MILLI, Figure
from sdk.cli.measurements import Spread, timed_rounds, warm_up

SETTLE_S, IDLE_S = 1.0, 5.0
IDLE_SHARE = 0.01
READS, WARM_UP_READS = 2_000, 100
BUSY_READ_P99_S = 10 * MILLI
BUSY_EXTENT, BUSY_LAYERS, BUSY_RUNS = 2048, 4, 4
_UTIME, _STIME = 11, 12
"""Fields 14 and 15 of /proc/PID/stat (proc(5)), counted from the one after the command's name."""


def figures(device: sdk.Device) -> list[Figure]:
    """All figures of this topic; `device` is a private emulator."""
    idle = _idle_share(device)
    quiet = _reads(device)
    busy = _reads_while_computing(device)
    found = [] if idle is None else [Figure("idle emulator", idle, "%", budget=IDLE_SHARE)]
    return [
        *found,
        Figure("register, idle, p50", quiet.p50, "µs"),
        Figure("register, idle, p99", quiet.p99, "µs"),
        Figure("register, busy, p50", busy.p50, "µs"),
        Figure("register, busy, p99", busy.p99, "µs", budget=BUSY_READ_P99_S),
    ]


def _idle_share(device: sdk.Device) -> float | None:
    pid = device.info.pid
    if pid is None:
        return None
    time.sleep(SETTLE_S)
    before, began = _processor_seconds(pid), time.monotonic()
    time.sleep(IDLE_S)
    return (_processor_seconds(pid) - before) / (time.monotonic() - began)


def _processor_seconds(pid: int) -> float:
    """User and system time of a process and its children so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    total = (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return total + sum(_processor_seconds(int(child)) for child in children)


def _reads(device: sdk.Device) -> Spread:
    warm_up(device.registers.identity.read)
    return Spread.of(timed_rounds(device.registers.identity.read, READS))


def _reads_while_computing(device: sdk.Device) -> Spread:
    """Reads for as long as an engine works through large matrix products."""
    model = device.load(_heavy_model())
    x = np.ones((BUSY_EXTENT, BUSY_EXTENT), np.float32)
    model(x)
    running = [model.submit(x) for _ in range(BUSY_RUNS)]
    samples = timed_rounds(device.registers.identity.read, 1)
    while not running[-1].done():
        samples += timed_rounds(device.registers.identity.read, 1)
    for event in running:
        event.result()
    model.close()
    return Spread.of(samples)


def _heavy_model() -> object:
    shape = [BUSY_EXTENT, BUSY_EXTENT]
    weight = np.full(shape, 1 / BUSY_EXTENT, np.float32)
    nodes = [helper.make_node("MatMul", [f"t{n}", "w"], [f"t{n + 1}"]) for n in range(BUSY_LAYERS)]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"t{BUSY_LAYERS}", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, shape, weight.tobytes(), raw=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
