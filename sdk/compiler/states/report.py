"""What a model's report says of its states."""

from __future__ import annotations

from collections.abc import Iterable

from sdk.compiler.compiled import StateInfo
from sdk.compiler.placement import NodePlacement, Where


def state_placements(states: Iterable[StateInfo]) -> tuple[NodePlacement, ...]:
    """One line for each pair, as those of nodes."""
    return tuple(
        NodePlacement(f"{state.name} -> {state.present}", "state", Where.DEVICE, None, _described(state))
        for state in states
    )


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


def _described(state: StateInfo) -> str:
    size = f", {state.bytes_per_token:,} bytes a token" if state.bytes_per_token else ""
    return f"{state.kind}, found {state.found}{size}"
