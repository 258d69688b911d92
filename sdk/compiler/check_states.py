"""Whether a model's states could be a device's, said before there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from driver_shim.errors import UnsupportedModel
from sdk.compiler.compile import compile_model
from sdk.compiler.graph import Graph
from sdk.compiler.placement import NodePlacement
from sdk.compiler.states import BLOCK_TOKENS, StateLayout, context_of, derived_inputs, find_states
from sdk.compiler.states.report import state_placements

_CONTEXT = 256
"""Tokens, where the model does not say how many it was made for."""


def checked_states(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> tuple[tuple[NodePlacement, ...], str | None]:
    """A model's states, and why a run with one is refused, if it is; `shapes` are those of a step's inputs."""
    try:
        pairs = find_states(graph)
    except UnsupportedModel as error:
        return (), error.message
    if not pairs:
        return (), None
    found = state_placements(graph, pairs)
    left_out = {pair.past for pair in pairs if pair.is_cached} | derived_inputs(graph, pairs).keys()
    blocks = -(-(context_of(graph) or _CONTEXT) // BLOCK_TOKENS)
    layout = StateLayout(blocks=blocks, slots=1, entries=blocks)
    try:
        given = {name: shape for name, shape in shapes.items() if name not in left_out}
        compile_model(graph, given, pairs=pairs, states=layout)
    except UnsupportedModel as error:
        return found, error.message
    except ValueError as error:
        return found, str(error)
    return found, None
