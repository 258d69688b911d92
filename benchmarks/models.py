"""Whole networks through the SDK and the emulator, beside onnxruntime with as many threads, in turns."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import sdk
from benchmarks import engines
from benchmarks.figures import Figure
from benchmarks.onnxruntime_peer import Peer
from emulator.engines.pool import worker_limits
from sdk.cli.measurements import best_spread, timed_rounds
from sdk.model.model import Model
from tests.models import image_networks, minilm, packages

BLOCKS = 8
"""Series of ours and of the peer's in turns; of each the quietest counts, since other work on the machine only adds."""
SENTENCES = 3
TOKENS = 16
PEER, INT8_PEER = "onnxruntime", "its int8"
HOST_BUDGET_S = 150e-6
COMPILE_BUDGET_S, CACHE_BUDGET_S = 3.0, 0.5
TWO_ENGINES_SHARE = 0.95
IN_FLIGHT = 2
COLD_TIMEOUT_S = 300
MLP_WIDTHS = (64, 64, 64, 10)
MLP_ROUNDS = 8_000

_COLD = """
import json, sys, time
import numpy, sdk
path, arrays = sys.argv[1:]
inputs = dict(numpy.load(arrays))
with sdk.Device("emulator:generic?core=none") as device:
    began = time.perf_counter()
    device.load(path, shapes={name: [array.shape] for name, array in inputs.items()})
    sys.stdout.write(json.dumps(time.perf_counter() - began))
"""

Arrays = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, what goes in, and how many times onnxruntime's time it may take."""

    name: str
    path: Path
    inputs: Arrays
    rounds: int
    budgets: Mapping[str, float | None]
    """By kernels; None where the ratio is only printed."""


def left_out() -> list[str]:
    """What cannot be measured here, and why."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ["whole networks: onnxruntime is missing; make bench installs it"]
    reason = packages.missing(minilm.PACKAGE)
    return [f"MiniLM: {reason}"] if reason else []


def figures() -> Iterator[Figure]:
    """All figures of this topic; none without onnxruntime."""
    if importlib.util.find_spec("onnxruntime") is None:
        return
    with tempfile.TemporaryDirectory() as name, Peer() as peer:
        folder = Path(name)
        networks = list(_networks(folder))
        for network in networks:
            for kernels in network.budgets:
                yield from _beside(network, kernels, peer)
        resnet = networks[0]
        yield _two_in_flight(resnet, peer)
        yield _host_time(folder)
        yield from _loading(resnet, folder)
        yield from _quantised(resnet, folder / "resnet50_int8.onnx", peer)


def _networks(folder: Path) -> Iterator[Network]:
    for name, rounds, budgets in (
        ("resnet50", 5, {"auto": 1.3, "numpy": 2.6}),
        ("squeezenet", 15, {"auto": 1.5, "numpy": None}),
    ):
        net = image_networks.with_random_weights(name, seed=1, opset=17)
        yield Network(
            f"{name} fp32, batch 1",
            _saved(net, folder / f"{name}.onnx"),
            image_networks.picture_for(net),
            rounds,
            budgets,
        )
    if packages.missing(minilm.PACKAGE) is None:
        inputs = {
            "input_ids": np.random.default_rng(1).integers(1000, 20000, (SENTENCES, TOKENS)),
            "attention_mask": np.ones((SENTENCES, TOKENS), np.int64),
        }
        path = _saved(minilm.model(), folder / "minilm.onnx")
        yield Network(f"MiniLM, {SENTENCES} × {TOKENS} tokens", path, inputs, 15, {"auto": 1.5, "numpy": None})


def _saved(net: onnx.ModelProto, path: Path) -> Path:
    onnx.save(net, path)
    return path


def engine_threads() -> int:
    """Threads of each of the emulator's engines on this machine."""
    with sdk.Device("emulator:generic?core=none") as device:
        return worker_limits(device.info.engines or 1, len(os.sched_getaffinity(0)))[1]


def _in_turns(network: Network, kernels: str, peer: Peer, theirs: list[Path]) -> tuple[float, list[float]]:
    """Seconds of one run of ours, and of the peer with each of its models: each the quietest series' median."""
    threads = engine_threads()
    ours: list[float] = []
    others: list[list[float]] = [[] for _ in theirs]
    with sdk.Device(f"emulator:generic?kernels={kernels}&core=none") as device:
        model = device.load(network.path, shapes={name: [array.shape] for name, array in network.inputs.items()})
        model(network.inputs)
        for _ in range(BLOCKS):
            ours.append(statistics.median(timed_rounds(lambda: model(network.inputs), network.rounds)))
            for path, seconds in zip(theirs, others, strict=True):
                seconds.append(peer.seconds(path, network.inputs, threads, network.rounds))
    return min(ours), [min(seconds) for seconds in others]


def _beside(network: Network, kernels: str, peer: Peer) -> list[Figure]:
    ours, (theirs,) = _in_turns(network, kernels, peer, [network.path])
    name = f"{network.name}, {kernels} kernels"
    return [
        Figure(name, ours, "ms", PEER, theirs),
        Figure(f"{name}, of {PEER}'s time", ours / theirs, "×", budget=network.budgets[kernels]),
    ]


def _quantised(network: Network, path: Path, peer: Peer) -> list[Figure]:
    """The network in int8, of QOperator nodes, beside onnxruntime's int8 and its float."""
    peer.quantise(network.path, network.inputs, path)
    quantised = dataclasses.replace(network, path=path)
    ours, (theirs, floats) = _in_turns(quantised, "auto", peer, [path, network.path])
    name = "resnet50 int8, batch 1, auto kernels"
    return [
        Figure(name, ours, "ms", f"{PEER}, {INT8_PEER}", theirs),
        Figure(f"{name}, of {PEER}'s int8 time", ours / theirs, "×", budget=1.5),
        Figure(f"{name}, of {PEER}'s fp32 time", ours / floats, "×", budget=1.0),
    ]


def _two_in_flight(network: Network, peer: Peer) -> Figure:
    """Runs per second of two engines, beside two sessions, all of one thread each."""
    rounds = IN_FLIGHT * network.rounds
    ours, theirs = [], []
    with sdk.Device("emulator:generic?core=none") as device:
        model = device.load(network.path, shapes={name: [array.shape] for name, array in network.inputs.items()})
        for _ in range(BLOCKS):
            ours.append(_pace(model, network.inputs, rounds))
            theirs.append(peer.pace(network.path, network.inputs, IN_FLIGHT, network.rounds))
    name = f"{network.name}, two in flight, of {PEER}'s pace with two sessions"
    return Figure(name, max(ours) / max(theirs), "×", budget=TWO_ENGINES_SHARE, at_least=True)


def _pace(model: Model, inputs: Arrays, rounds: int) -> float:
    """Runs per second with always two in flight."""
    flying = deque(model.submit(inputs) for _ in range(IN_FLIGHT))
    flying.popleft().result()
    began = time.perf_counter()
    for _ in range(rounds):
        flying.append(model.submit(inputs))
        flying.popleft().result()
    pace = rounds / (time.perf_counter() - began)
    flying.popleft().result()
    return pace


def _host_time(folder: Path) -> Figure:
    """A small network's run less what its program takes on an engine that is asked directly."""
    path = _saved(_perceptron(), folder / "perceptron.onnx")
    x = np.random.default_rng(1).normal(size=(1, MLP_WIDTHS[0])).astype(np.float32)
    with sdk.Device("emulator:generic?core=none") as device:
        model = device.load(path, shapes={"x": [x.shape]})
        whole = best_spread(lambda: model(x), MLP_ROUNDS).p50
    ours = whole - engines.seconds_of(path, "x", x)
    return Figure("small network, host time of one run", ours, "µs", budget=HOST_BUDGET_S)


def _perceptron() -> onnx.ModelProto:
    random = np.random.default_rng(1)
    nodes, weights, last = [], [], "x"
    for index, (taken, given) in enumerate(itertools.pairwise(MLP_WIDTHS)):
        weight = random.normal(0, taken**-0.5, (taken, given)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{index}"], [f"p{index}"]),
            helper.make_node("Relu", [f"p{index}"], [f"r{index}"]),
        ]
        last = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, MLP_WIDTHS[0]])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, MLP_WIDTHS[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _loading(network: Network, folder: Path) -> list[Figure]:
    """`load` in two fresh processes, of which the second finds what the first compiled."""
    arrays = folder / "inputs.npz"
    named: dict[str, Any] = dict(network.inputs)
    np.savez(arrays, **named)
    environment = {**os.environ, "NPU_CACHE_DIR": str(folder / "cache")}
    seconds = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _COLD, str(network.path), str(arrays)],
            stdout=subprocess.PIPE,
            check=True,
            timeout=COLD_TIMEOUT_S,
            env=environment,
        )
        seconds.append(float(json.loads(done.stdout)))
    return [
        Figure("resnet50, load and compile", seconds[0], "s", budget=COMPILE_BUDGET_S),
        Figure("resnet50, load from the compile cache", seconds[1], "s", budget=CACHE_BUDGET_S),
    ]
