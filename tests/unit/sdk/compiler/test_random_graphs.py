"""A few random graphs, whole and node by node; the slow lane has many, and onnxruntime beside."""

from __future__ import annotations

import pytest

from tests.support.graph_agreement import agree, on_kernels, smallest
from tests.support.random_graphs import random_graph


@pytest.mark.parametrize("kernels", ["golden", "numpy"])
@pytest.mark.parametrize("seed", range(1_000_000, 1_000_008))
def test_a_whole_graph_gives_what_its_nodes_give_one_by_one(seed: int, kernels: str) -> None:
    graph, engine = random_graph(seed), on_kernels(kernels)
    if not agree(engine(graph.model(), graph.inputs), graph.expected()):
        pytest.fail(f"seed {seed}: {smallest(graph, engine)}", pytrace=False)


def test_a_seed_always_makes_the_same_graph() -> None:
    first, second = random_graph(7), random_graph(7)
    assert first.model().SerializeToString() == second.model().SerializeToString()
