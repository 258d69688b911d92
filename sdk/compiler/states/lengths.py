"""Programs of models that are compiled for one length of the past must be the same for every other.

Such a model's own shapes say how long its past is. What is left of it when its attention is over caches is compared
between two lengths: where that differs, the program would be right for one length alone.
"""

from __future__ import annotations

import numpy as np

from driver_shim.errors import UnsupportedModel
from sdk.compiler.graph import Graph
from sdk.compiler.ir import Array, Operation, Value, fields_of
from sdk.compiler.passes.rewriting import Rewriting
from sdk.compiler.problems import MODEL, Problem, Reason, unsupported
from sdk.compiler.states.binding import StatePlan, States
from sdk.compiler.states.roles import Role

_SHORT = 3
"""Tokens of a past beyond a step's. Fewer would make tensors empty, or of extents that broadcast."""
_NEEDS_NO_LENGTH = frozenset({"TensorScatter", "Attention", "com.microsoft.GroupQueryAttention"})


def needs_length(graph: Graph, plan: StatePlan) -> bool:
    """Whether a model may look at how long its past is, which it leaves open."""
    names = {name for pair in plan.cached for name in (pair.past, pair.present)}
    declared = {entry.name: entry.shape or () for entry in graph.inputs}
    extents = [declared[pair.past][pair.axis] for pair in plan.cached if pair.axis is not None]
    if not any(isinstance(extent, str) for extent in extents):
        return False
    if any(pair.grows for pair in plan.cached) or Role.MASK in plan.roles.values():
        return True
    return any(node.op not in _NEEDS_NO_LENGTH and not names.isdisjoint(node.reads) for node in graph.nodes)


def other_length(states: States) -> int:
    """Another length of a past than the one that it is compiled for: far from it, so that limits lie between."""
    short = states.step.tokens + _SHORT
    if states.length > short:
        return short
    return states.length - 1 if states.grows and states.length else states.length + 1


def check_same(graph: Graph, first: tuple[States, Rewriting], second: tuple[States, Rewriting]) -> None:
    """Raise UnsupportedModel that names the first operation in which two lengths' programs differ."""
    names = (_named(first[0]), _named(second[0]))
    operations = (first[1].operations, second[1].operations)
    for position, (ours, theirs) in enumerate(zip(*operations, strict=False)):
        if not _alike(ours, theirs, names):
            raise _differs(graph, ours)
        for index, pair in enumerate(zip(ours.outputs, theirs.outputs, strict=True)):
            for known, value in zip(names, pair, strict=True):
                known[id(value)] = (position, index)
    if len(operations[0]) != len(operations[1]):
        shorter = min(map(len, operations))
        longer = max(operations, key=len)
        raise _differs(graph, longer[shorter])


def _named(states: States) -> dict[int, object]:
    """Names of what operations read that none of them gives."""
    values = [states.rows, states.tables, *states.caches.values()]
    return {id(value): ("given", place) for place, value in enumerate(values)}


def _alike(ours: Operation, theirs: Operation, names: tuple[dict[int, object], dict[int, object]]) -> bool:
    same = ours.kind is theirs.kind and len(ours.inputs) == len(theirs.inputs)
    same = same and fields_of(ours) == fields_of(theirs)
    same = same and [value.type for value in ours.outputs] == [value.type for value in theirs.outputs]
    return same and all(_same(a, b, names) for a, b in zip(ours.inputs, theirs.inputs, strict=True))


def _same(ours: Value | None, theirs: Value | None, names: tuple[dict[int, object], dict[int, object]]) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    if ours.type != theirs.type:
        return False
    if ours.constant is not None and theirs.constant is not None:
        return _equal(ours.constant, theirs.constant)
    known = (names[0].get(id(ours)), names[1].get(id(theirs)))
    return (ours.constant is None) == (theirs.constant is None) and known[0] == known[1]


def _equal(a: Array, b: Array) -> bool:
    """Whether two constants are the same, by where they lie or by what they hold."""
    at = [array.__array_interface__["data"][0] for array in (a, b)]
    return (at[0] == at[1] and a.strides == b.strides) or np.array_equal(a, b)


def _differs(graph: Graph, operation: Operation) -> UnsupportedModel:
    subjects = {each.subject.node: each.subject for each in graph.nodes}
    subject = next((subjects[node] for node in reversed(operation.nodes) if node in subjects), MODEL)
    reason = (
        "what it computes depends on how long the past is: a program would be right for one length alone. Export the"
        " model with position_ids as an input, or compile it for one row at a time"
    )
    return unsupported([Problem(reason, subject, Reason.FORM)])
