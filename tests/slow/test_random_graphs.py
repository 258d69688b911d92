"""Random graphs: whole programs on every choice of kernels, node by node on golden ones, and onnxruntime, agree.

A failure names the graph's seed and the smallest part that shows it: a node by itself, with its data, or else the first
nodes of the graph. `random_graph(seed)` makes the same graph again.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from emulator.model.choices import KERNELS
from sdk.compiler import compile_model
from tests.support import onnxruntime_peer
from tests.support.needs import module_of_extra
from tests.support.programs import run
from tests.support.random_graphs import RECIPES, Graph, Step, random_graph, shapes_of, single

Array = NDArray[Any]
Engine = Callable[[onnx.ModelProto, Mapping[str, Array]], Mapping[str, Array]]

BLOCKS = 20
GRAPHS = 50
"""In a block."""
RELATIVE, OF_THE_LARGEST = 1e-3, 1e-4
"""How far two engines may lie apart: of an element, and of the largest in its tensor (1 at least)."""
LEAST_SHARE = 0.95
"""Of the graphs, those that onnxruntime has all the types for."""


def on_kernels(kernels: str) -> Engine:
    """The compiler and the emulator's engine."""
    return lambda net, inputs: run(compile_model(net, shapes_of(inputs)), inputs, kernels)


def onnxruntime(net: onnx.ModelProto, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """The other party."""
    return onnxruntime_peer.run(net.SerializeToString(), inputs)


def agree(found: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    """Whether all that is expected was found, but for the last bits of floats."""
    return all(near(found[name], array) for name, array in expected.items())


def near(found: Array, expected: Array) -> bool:
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return False
    if expected.dtype.kind in "biu":
        return bool(np.array_equal(found, expected))
    absolute = OF_THE_LARGEST * float(np.max(np.abs(expected), initial=1))
    return bool(np.allclose(found, expected, rtol=RELATIVE, atol=absolute))


def smallest(graph: Graph, engine: Engine) -> str:
    """The smallest part of a graph that an engine computes otherwise than golden kernels do node by node."""
    for step in graph.steps:
        found = engine(single(step), step.given)
        if not agree(found, step.results):
            return f"{told(step)}\n gives {dict(found)}\n instead of {dict(step.results)}"
    for count in range(1, len(graph.steps) + 1):
        if not agree(engine(graph.model(count), graph.inputs), graph.expected(count)):
            return "the nodes together: " + "; ".join(map(told, graph.steps[:count]))
    return "nothing smaller than the whole"


def told(step: Step) -> str:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in step.proto.attribute}
    operands = [str({**step.given, **step.constants}[name].tolist()) for name in step.proto.input]
    return f"{step.proto.op_type} {attributes} of {', '.join(operands)}"


def seeds(block: int) -> range:
    return range(block * GRAPHS, (block + 1) * GRAPHS)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_kernels_agree_on_random_graphs(block: int) -> None:
    module_of_extra("onnxruntime", "models")
    for seed in seeds(block):
        graph = random_graph(seed)
        net = graph.model()
        for kernels in KERNELS:
            engine = on_kernels(kernels)
            if not agree(engine(net, graph.inputs), graph.expected()):
                pytest.fail(f"seed {seed}, {kernels} kernels: {smallest(graph, engine)}", pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_onnxruntime_agrees_on_random_graphs(block: int) -> None:
    module_of_extra("onnxruntime", "models")
    graphs = {seed: random_graph(seed) for seed in seeds(block)}
    jobs = [(graph.model().SerializeToString(), graph.inputs) for graph in graphs.values()]
    answered = 0
    for (seed, graph), answer in zip(graphs.items(), onnxruntime_peer.try_many(jobs), strict=True):
        if isinstance(answer, onnxruntime_peer.PeerError):
            assert "NOT_IMPLEMENTED" in str(answer), f"seed {seed}: {answer}"
            continue
        answered += 1
        if not agree(answer, graph.expected()):
            pytest.fail(f"seed {seed}, onnxruntime: {smallest(graph, onnxruntime)}", pytrace=False)
    assert answered >= LEAST_SHARE * len(graphs)


@pytest.mark.slow
def test_every_recipe_gives_nodes() -> None:
    made: collections.Counter[str] = collections.Counter()
    for seed, recipe in enumerate(recipe for recipe in RECIPES for _ in range(20)):
        graph = random_graph(seed, nodes=2, attempts=2)
        made[recipe.name] += graph.grow(recipe)
    assert [recipe.name for recipe in RECIPES if not made[recipe.name]] == []
