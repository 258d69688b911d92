"""Weights that normalisation was folded into are not kept a second time: they are multiplied when they are sent."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sdk.compiler import CompiledProgram, compile_model, read_model
from sdk.compiler.derived import Derived
from tests.support.models import model, node
from tests.support.programs import run

F32 = np.float32
CHANNELS, LARGE = 64, 512


def random(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(F32)


def normalised(op: str = "Conv", channels: int = CHANNELS, seed: int = 1, twice: bool = False) -> onnx.ModelProto:
    """A convolution whose result is normalised, once or twice in succession."""
    nodes = [node(op, ["x", "w"], ["c"])]
    constants = {"w": random(channels, channels, 3, 3)}
    result = "c"
    for number in range(1 + twice):
        names = [f"{kind}{number}" for kind in ("scale", "bias", "mean", "variance")]
        constants |= {name: random(channels, seed=seed + at + number) for at, name in enumerate(names)}
        nodes.append(node("BatchNormalization", [result, *names], [f"n{number}"]))
        result = f"n{number}"
    nodes.append(node("Relu", [result], ["y"]))
    return model(nodes, {"x": (F32, ("n", channels, "h", 5))}, {"y": F32}, constants)


def weights_of(compiled: CompiledProgram) -> Any:
    return max(compiled.constants, key=lambda constant: constant.type.size_bytes)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_the_program_gives_what_it_gave_and_keeps_no_second_copy(op: str, twice: bool) -> None:
    net = normalised(op, twice=twice)
    x = random(1, CHANNELS, 5, 5, seed=9)
    compiled = compile_model(net, {"x": x.shape})
    assert isinstance(weights_of(compiled).source, Derived)
    assert [info.name for info in compiled.outputs] == ["y"] and compiled.plan.commands == 1
    kept = onnx.ModelProto()
    kept.CopyFrom(net)
    for at, normalisation in enumerate([each for each in kept.graph.node if each.op_type == "BatchNormalization"]):
        kept.graph.output.append(onnx.helper.make_empty_tensor_value_info(normalisation.input[0]))
        kept.graph.output[-1].name = normalisation.input[0]
        assert at <= twice
    apart = compile_model(kept, {"x": x.shape})
    assert apart.plan.commands > 1
    np.testing.assert_allclose(run(compiled, {"x": x})["y"], run(apart, {"x": x})["y"], rtol=2e-5)


def test_one_key_means_one_array_whatever_the_shapes() -> None:
    graph = read_model(normalised())
    first, second = (compile_model(graph, {"x": (1, CHANNELS, height, 5)}) for height in (5, 7))
    assert weights_of(first).key == weights_of(second).key
    np.testing.assert_array_equal(weights_of(first).array, weights_of(second).array)


def test_other_factors_or_another_layout_are_another_key() -> None:
    shape = {"x": (1, CHANNELS, 5, 5)}
    nets = [normalised(), normalised(seed=2), normalised("ConvTranspose"), normalised(twice=True)]
    assert len({weights_of(compile_model(net, shape)).key for net in nets}) == len(nets)


@pytest.mark.parametrize("cached", [False, True])
def test_compiling_takes_less_host_memory_than_the_weights_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    onnx.save(normalised(channels=LARGE, twice=True), tmp_path / "net.onnx")
    if cached:
        monkeypatch.setenv("NPU_CACHE_DIR", str(tmp_path / "cache"))
    graph = read_model(tmp_path / "net.onnx")
    compile_model(normalised(), {"x": (1, CHANNELS, 5, 5)})  # what is imported on the way
    tracemalloc.start()
    try:
        compiled = compile_model(graph, {"x": (1, LARGE, 5, 5)})
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = weights_of(compiled).type.size_bytes
    assert size == LARGE * LARGE * 9 * 4
    assert left < size / 8
    assert peak < size / 4 or cached
