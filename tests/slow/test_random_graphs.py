"""Random graphs: whole programs on every choice of kernels, node by node on golden ones, and onnxruntime, agree.

A failure names the graph's seed and the smallest part that shows it: a node by itself, with its data, or else the first
nodes of the graph. `random_graph(seed)` makes the same graph again.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import onnx
import pytest
from numpy.typing import NDArray

from emulator.model.choices import KERNELS
from tests.support import onnxruntime_peer
from tests.support.graph_agreement import agree, on_kernels, smallest
from tests.support.needs import module_of_extra
from tests.support.random_graphs import RECIPES, random_graph

Array = NDArray[Any]

BLOCKS = 20
GRAPHS = 50
"""In a block."""
LEAST_SHARE = 0.9
"""Of the graphs, those that onnxruntime has all the types for."""


def onnxruntime(net: onnx.ModelProto, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """The other party."""
    return onnxruntime_peer.run(net.SerializeToString(), inputs)


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
