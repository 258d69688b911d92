"""What a model's report says of its states."""

from __future__ import annotations

from collections.abc import Iterable

from driver_shim.errors import UnsupportedModel
from sdk.compiler.graph import Graph
from sdk.compiler.placement import NodePlacement, Where
from sdk.compiler.problems import Reason
from sdk.compiler.states.pairs import StatePair, state_infos


def state_placements(graph: Graph, pairs: Iterable[StatePair]) -> tuple[NodePlacement, ...]:
    """One line for each pair, as those of nodes; where it cannot be a state of the device's, why."""
    return tuple(_line(graph, pair) for pair in pairs)


def _line(graph: Graph, pair: StatePair) -> NodePlacement:
    name = f"{pair.past} -> {pair.present}"
    try:
        (state,) = state_infos(graph, [pair])
    except UnsupportedModel as error:
        return NodePlacement(name, "state", Where.DEVICE, Reason.FORM.value, error.problems[0].reason)
    size = f", {state.bytes_per_token:,} bytes a token" if state.bytes_per_token else ""
    return NodePlacement(name, "state", Where.DEVICE, None, f"{state.kind}, found {state.found}{size}")
