"""What a model's states take of a device's memory, known before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from driver_shim.errors import UnsupportedModel
from sdk.compiler.compiled import StateInfo, StateKind, TensorInfo
from sdk.compiler.graph import Graph
from sdk.compiler.states.config import config_beside, section
from sdk.compiler.states.pairs import StateLayout

CONTEXT_LENGTH = "context_length"
"""Key of a model's metadata, and of its configuration: tokens of a sequence that it was made for."""
EXPORTER_CONFIG = "config.json"
_EXPORTER_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")
"""The same in what exporters leave beside a model."""


class CachePlace(NamedTuple):
    """Where the tokens of a state lie."""

    cache: int
    plane: int


def cache_places(states: Sequence[StateInfo]) -> dict[str, CachePlace]:
    """The plane of each state that lies in a cache, by name: states with equal tokens share one."""
    planes: dict[tuple[tuple[int, ...], str], int] = {}
    places: dict[str, CachePlace] = {}
    for info in states:
        if info.kind is not StateKind.REPLACE:
            token = (info.shape, info.dtype)
            plane = planes[token] = planes.get(token, -1) + 1
            places[info.name] = CachePlace(list(planes).index(token), plane)
    return places


def caches_of(states: Sequence[StateInfo], layout: StateLayout) -> tuple[TensorInfo, ...]:
    """The caches of a layout, each [planes, blocks, tokens of a block, heads, size]."""
    places = cache_places(states)
    last = {places[info.name].cache: info for info in states if info.name in places}
    return tuple(
        TensorInfo(
            f"cache.{cache}",
            (places[info.name].plane + 1, layout.blocks, layout.block_tokens, *info.shape),
            info.dtype,
        )
        for cache, info in last.items()
    )


def context_of(graph: Graph) -> int | None:
    """Tokens of a sequence that a model was made for, where it or a configuration beside it says so."""
    text = graph.metadata.get(CONTEXT_LENGTH, "")
    if text.isdecimal():
        return int(text) or None
    configured = section(config_beside(graph), "model").get(CONTEXT_LENGTH)
    exported = _exporters_config(graph)
    said = [configured, *(exported.get(key) for key in _EXPORTER_KEYS)]
    return next((number for number in said if isinstance(number, int) and number > 0), None)


def _exporters_config(graph: Graph) -> Mapping[str, Any]:
    """What an exporter says beside the model; nothing where the file of that name is somebody else's."""
    try:
        return config_beside(graph, EXPORTER_CONFIG)
    except (UnsupportedModel, OSError):
        return {}
