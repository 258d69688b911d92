"""Pairs of past and present: which of a model's inputs is an earlier value of which of its outputs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from driver_shim.errors import UnsupportedModel
from sdk.compiler.compiled import StateInfo, StateKind
from sdk.compiler.graph import Graph, GraphInput, GraphNode
from sdk.compiler.problems import MODEL, Problem, Reason, Subject, unsupported
from sdk.compiler.states.config import CONFIG, config_beside, section

BLOCK_TOKENS = 16
"""Tokens of a block, unless a layout says otherwise."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StateLayout:
    """How the caches of a device are divided."""

    blocks: int
    """Of each plane of a cache."""
    slots: int
    """States that have a table at a time."""
    entries: int
    """Of one table: blocks that one state may have."""
    block_tokens: int = BLOCK_TOKENS

    @property
    def max_tokens(self) -> int:
        """That one state may hold."""
        return self.entries * self.block_tokens


class StatePair(NamedTuple):
    """An input and the output that is its next value."""

    past: str
    present: str
    kind: StateKind
    found: str
    """How: "by name", say."""
    axis: int | None = None
    """Along which tokens lie; None for one that is replaced."""
    ring: int = 0
    """Tokens that a ring holds."""
    grows: bool = False
    """Whether the model gives a present that is longer than the past."""

    @property
    def is_cached(self) -> bool:
        """Whether it lies in a cache of the device's, and not in tensors of its own."""
        return self.kind is not StateKind.REPLACE


class _Joint(NamedTuple):
    """The node at which new tokens meet those of the past."""

    node: GraphNode
    axis: int
    is_circular: bool = False
    grows: bool = False


_TOKEN_AXIS = 2
"""Where a node does not say: keys and values are [batch, heads, tokens, size]."""
_NAME_CHANGES = (
    ("past_key_values", "present"),
    ("past_key_values", "present_key_values"),
    ("past_key_values", "new_key_values"),
    ("past", "present"),
    ("past", "new"),
    ("state_in", "state_out"),
    ("cache_in", "cache_out"),
    ("in_cache", "out_cache"),
    ("cache", "cache"),
    ("cache", "new_cache"),
    ("cache", "updated_cache"),
)
"""What the names of a pair differ in."""
_SUFFIXES = ("", "_out", ".out")
"""What a present's name may have besides."""
_OWN_STATES = {
    "Attention": ((1, 4), (2, 5)),
    "com.microsoft.GroupQueryAttention": ((1, 3), (2, 4)),
    "com.microsoft.MultiHeadAttention": ((1, 6), (2, 7)),
}
"""Operators that have a past among their inputs: (place of the present, place of the past)."""
_SHARED = frozenset({"com.microsoft.GroupQueryAttention"})
"""Those whose past has room for what is new, and is their present too."""
_TRANSPARENT = frozenset({"Identity", "Cast"})


def find_states(
    graph: Graph, explicit: Mapping[str, str] | None = None, config: Mapping[str, Any] | None = None
) -> tuple[StatePair, ...]:
    """The pairs of a model, in the order of its outputs.

    By the `genai_config.json` that is given as `config` or lies beside the model's file, by the names of inputs and
    outputs, by the nodes between them; `explicit` names the present of a past, and goes before all of these. Raises
    ValueError for names that the model does not have, UnsupportedModel for two that cannot be a pair.
    """
    found = _explicit(graph, explicit or {})
    for pairs, how in (
        (_configured(graph, config if config is not None else config_beside(graph)), f"by {CONFIG}"),
        (_named(graph), "by name"),
        (_joined(graph), "by the nodes between them"),
    ):
        taken = {*found, *(present for present, _ in found.values())}
        for past, present in pairs:
            if past not in taken and present not in taken:
                found[past] = (present, how)
                taken |= {past, present}
    return _in_order(graph, found)


def state_infos(graph: Graph, pairs: Iterable[StatePair], *, batch: int = 1) -> tuple[StateInfo, ...]:
    """What users see of the pairs. Raises UnsupportedModel where the model does not say how large a token is."""
    declared = {entry.name: entry for entry in graph.inputs}
    return tuple(_info(declared[pair.past], pair, batch) for pair in pairs)


def _info(entry: GraphInput, pair: StatePair, batch: int) -> StateInfo:
    if entry.dtype is None or entry.shape is None:
        raise refused(pair, f"its type {entry.type_name} and shape are not known")
    if not pair.is_cached:
        rows = next((n for n in entry.shape if isinstance(n, str)), None)  # its one open dimension
        whole = tuple(batch if n == rows else n for n in entry.shape)
        shape = _numbers(pair, whole)
        return StateInfo(pair.past, pair.present, shape, entry.dtype.text, pair.kind, 0, pair.found)
    shape = _token_shape(entry, pair)
    size = entry.dtype.stored_bytes(shape[0] * shape[1])
    return StateInfo(pair.past, pair.present, shape, entry.dtype.text, pair.kind, size, pair.found)


def _token_shape(entry: GraphInput, pair: StatePair) -> tuple[int, int]:
    """(heads, elements of each) of one token."""
    shape = entry.shape or ()
    if pair.axis not in (1, 2) or len(shape) != 4:
        where = f"tokens along dimension {pair.axis} of {list(shape)}"
        raise refused(pair, f"{where}; keys and values are [rows, heads, tokens, size] or [rows, tokens, heads, size]")
    heads, size = _numbers(pair, tuple(extent for axis, extent in enumerate(shape) if axis not in (0, pair.axis)))
    return heads, size


def _numbers(pair: StatePair, shape: tuple[int | str, ...]) -> tuple[int, ...]:
    open_one = next((extent for extent in shape if isinstance(extent, str)), None)
    if open_one is not None:
        raise refused(pair, f"its dimension {open_one!r} has to be a number")
    return tuple(int(extent) for extent in shape)


def refused(pair: StatePair, reason: str, subject: Subject | None = None) -> UnsupportedModel:
    """The error that says why a pair is no state of the device's."""
    said = f"the state {pair.past!r} -> {pair.present!r}: {reason}"
    return unsupported([Problem(said, subject or MODEL, Reason.FORM)])


# --- which ----------------------------------------------------------------------------------------------------------


def _explicit(graph: Graph, explicit: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The pairs that a caller names."""
    _known(explicit, graph.inputs, "input")
    _known(explicit.values(), graph.outputs, "output")
    twice = [name for name in explicit.values() if list(explicit.values()).count(name) > 1]
    if twice:
        raise ValueError(f"states= names the output {twice[0]!r} for several inputs")
    return {past: (present, "as named") for past, present in explicit.items()}


def _known(names: Iterable[str], entries: Iterable[GraphInput], what: str) -> None:
    known = [entry.name for entry in entries]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"states= names {unknown[0]!r}, which is no {what}; those are {', '.join(map(repr, known))}")


def _configured(graph: Graph, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs that a configuration names by patterns: "past_key_values.%d.key" and "present.%d.key"."""
    inputs, outputs = (section(config, "model", "decoder", names) for names in ("inputs", "outputs"))
    pairs = []
    for role, pattern in inputs.items():
        wanted = outputs.get(role.replace("past", "present", 1))
        if role.startswith("past") and isinstance(pattern, str) and isinstance(wanted, str):
            pairs += _of_pattern(graph, pattern, wanted)
    return pairs


def _of_pattern(graph: Graph, past: str, present: str) -> list[tuple[str, str]]:
    outputs = {entry.name for entry in graph.outputs}
    form = re.compile(re.escape(past).replace("%d", r"(\d+)") + r"\Z")
    pairs = []
    for entry in graph.inputs:
        match = form.match(entry.name)
        if match is None:
            continue
        name = present.replace("%d", match[1]) if match.groups() else present
        if name in outputs:
            pairs.append((entry.name, name))
    return pairs


def _named(graph: Graph) -> list[tuple[str, str]]:
    """The pairs whose names differ as those of exporters do."""
    outputs = {entry.name: entry for entry in graph.outputs}
    pairs = []
    for entry in graph.inputs:
        names = (
            entry.name.replace(old, new, 1) + suffix
            for old, new in _NAME_CHANGES
            if old in entry.name
            for suffix in _SUFFIXES
        )
        name = next((name for name in names if name in outputs and _alike(entry, outputs[name])), None)
        if name is not None:
            pairs.append((entry.name, name))
    return pairs


def _alike(past: GraphInput, present: GraphInput) -> bool:
    """Whether they may be values of one state, as far as they are declared."""
    types = past.dtype is present.dtype or present.dtype is None
    ranks = past.shape is None or present.shape is None or len(past.shape) == len(present.shape)
    return types and ranks


def _joined(graph: Graph) -> list[tuple[str, str]]:
    """The pairs that a node joins: the end of a past is where its output begins."""
    makers = _makers(graph)
    inputs = {entry.name for entry in graph.inputs}
    pairs = []
    for entry in graph.outputs:
        past = _past_of(makers, entry.name)
        if past in inputs:
            pairs.append((past, entry.name))
    return pairs


# --- of what kind ---------------------------------------------------------------------------------------------------


def _in_order(graph: Graph, found: Mapping[str, tuple[str, str]]) -> tuple[StatePair, ...]:
    places = {entry.name: place for place, entry in enumerate(graph.outputs)}
    makers = _makers(graph)
    declared = {entry.name: entry for entry in graph.inputs}
    others = {extent for entry in graph.inputs if entry.name not in found for extent in entry.shape or ()}
    pairs = (_pair(makers, declared[past], present, how, others) for past, (present, how) in found.items())
    return tuple(sorted(pairs, key=lambda pair: places[pair.present]))


def _pair(
    makers: Mapping[str, GraphNode], past: GraphInput, present: str, how: str, others: Collection[int | str]
) -> StatePair:
    """`others` are extents of inputs that are no states: one of those says how many rows there are."""
    joint = _joint(makers, past, present)
    if joint is None:
        extents = () if past.shape is None else past.shape[1:]
        grows = any(isinstance(extent, str) and extent not in others for extent in extents)
        if not grows:
            return StatePair(past.name, present, StateKind.REPLACE, how)
        return StatePair(past.name, present, StateKind.APPEND, how, _TOKEN_AXIS, grows=True)
    if not joint.is_circular:
        return StatePair(past.name, present, StateKind.APPEND, how, joint.axis, grows=joint.grows)
    extent = past.shape[joint.axis] if past.shape is not None else None
    pair = StatePair(past.name, present, StateKind.RING, how, joint.axis, extent if isinstance(extent, int) else 0)
    if not pair.ring:
        raise refused(pair, f"a ring of {extent!r} tokens; how many has to be a number", joint.node.subject)
    return pair


def _makers(graph: Graph) -> dict[str, GraphNode]:
    return {name: node for node in graph.nodes for name in node.outputs if name}


def _seen_through(makers: Mapping[str, GraphNode], name: str) -> str:
    """The name of what a value was before nodes that change nothing."""
    while name in makers and makers[name].op in _TRANSPARENT:
        name = makers[name].inputs[0]
    return name


def _past_of(makers: Mapping[str, GraphNode], present: str) -> str | None:
    """What the node that gives a present takes as its past."""
    name = _seen_through(makers, present)
    node = makers.get(name)
    if node is None:
        return None
    if node.op == "TensorScatter" or (node.op == "Concat" and len(node.inputs) == 2):
        return _seen_through(makers, node.inputs[0])
    places = dict(_OWN_STATES.get(node.op, ()))
    past = places.get(node.outputs.index(name))
    if past is None or past >= len(node.inputs):
        return None
    return _seen_through(makers, node.inputs[past])


def _joint(makers: Mapping[str, GraphNode], past: GraphInput, present: str) -> _Joint | None:
    if _past_of(makers, present) != past.name:
        return None
    node = makers[_seen_through(makers, present)]
    rank = len(past.shape) if past.shape is not None else 4
    if node.op == "TensorScatter":
        return _Joint(node, node.attributes.get("axis", -2) % rank, node.attributes.get("mode") == "circular")
    if node.op == "Concat":
        return _Joint(node, node.attributes.get("axis", _TOKEN_AXIS) % rank, grows=True)
    return _Joint(node, _TOKEN_AXIS, grows=node.op not in _SHARED)
