"""What a model's report says of its states."""

from __future__ import annotations

from collections.abc import Iterable

from driver_shim.errors import UnsupportedModel
from sdk.compiler.compiled import StateInfo
from sdk.compiler.graph import Graph
from sdk.compiler.placement import NodePlacement, Where
from sdk.compiler.problems import Reason
from sdk.compiler.states.pairs import StatePair, state_infos


def state_placements(graph: Graph, pairs: Iterable[StatePair]) -> tuple[NodePlacement, ...]:
    """One line for each pair, as those of nodes; where it cannot be a state of the device's, why."""
    return tuple(_line(graph, pair) for pair in pairs)


def states_summary(states: Iterable[StateInfo]) -> str:
    """All pairs in one line: "states: 60 found by name, append, 15,360 bytes a token"."""
    groups: dict[tuple[str, str], list[StateInfo]] = {}
    for state in states:
        groups.setdefault((state.found, str(state.kind)), []).append(state)
    parts = []
    for (found, kind), group in groups.items():
        size = sum(state.bytes_per_token for state in group)
        tokens = f", {size:,} bytes a token" if size else ""
        parts.append(f"{len(group)} found {found}, {kind}{tokens}")
    return f"states: {'; '.join(parts) or 'none'}"


def _line(graph: Graph, pair: StatePair) -> NodePlacement:
    name = f"{pair.past} -> {pair.present}"
    try:
        (state,) = state_infos(graph, [pair])
    except UnsupportedModel as error:
        return NodePlacement(name, "state", Where.DEVICE, Reason.FORM.value, error.problems[0].reason)
    size = f", {state.bytes_per_token:,} bytes a token" if state.bytes_per_token else ""
    return NodePlacement(name, "state", Where.DEVICE, None, f"{state.kind}, found {state.found}{size}")
