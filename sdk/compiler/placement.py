"""Where each node runs: on the device, or in onnxruntime on the host where the device has no command for it.

A model is cut into regions that run one after the other: what a region reads was computed by earlier ones. Regions are
as large as that allows. What crosses from one to another crosses the bus.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import onnx

from driver_shim.protocol.types import UnsupportedType, wire_type
from sdk.compiler.graph import Graph, GraphInput, GraphNode
from sdk.compiler.host_constants import folded
from sdk.compiler.host_model import model_of
from sdk.compiler.problems import Problem, Reason, unsupported
from sdk.compiler.reading.text import DECODE_ERRORS

FREE = frozenset(
    {"Cast", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that compute nothing worth a way over the bus and back."""
_BETWEEN = Problem("what it reads and what reads it is on the host", code=Reason.BETWEEN)


class Where(enum.StrEnum):
    """What runs a node."""

    DEVICE = "device"
    HOST = "host"


class NodePlacement(NamedTuple):
    """Where one node runs, and why not on the device."""

    node: str
    """Its name, or that of its first output."""
    op: str
    where: Where
    code: str | None = None
    """The kind of reason, in stable words: see `docs/operators.md`. None on the device."""
    reason: str | None = None
    """Why on the host; of a state, what it is and how it was found."""
    crossing_bytes: int | None = 0
    """What crosses the bus in a run because the node is on the host; None before the first run has told."""


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """Nodes that run together."""

    where: Where
    nodes: tuple[GraphNode, ...]
    inputs: tuple[str, ...]
    """What is computed before it, or given."""
    outputs: tuple[str, ...]
    """What is read after it, or asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """A whole model, cut into regions in the order of their running."""

    graph: Graph
    reasons: tuple[Problem | None, ...]
    """Why each node is on the host; None for those on the device."""
    regions: tuple[Region, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the device runs all of it."""
        return all(reason is None for reason in self.reasons)

    def crossing_names(self) -> frozenset[str]:
        """Values that cross the bus because one side computed what the other reads."""
        made = {name: region.where for region in self.regions for name in region.outputs}
        return frozenset(
            name
            for region in self.regions
            for name in region.inputs
            if made.get(name, region.where) is not region.where
        )

    def report(self, sizes: Mapping[str, int] | None = None) -> tuple[NodePlacement, ...]:
        """Every node, in the order of the model. `sizes` has the bytes of the values that cross the bus."""
        crossing = self.crossing_names()
        return tuple(
            _placed(node, reason, crossing, sizes) for node, reason in zip(self.graph.nodes, self.reasons, strict=True)
        )


def place(graph: Graph, refused: Mapping[int, Problem] | None = None) -> Placement:
    """Find a place for each node. `refused` are nodes, by position, that turned out not to fit the device.

    Raises UnsupportedModel for a model that cannot run on the host either.
    """
    fatal = [problem for problem in graph.problems if problem.code.is_fatal]
    if fatal:
        raise unsupported(fatal)
    refused = refused or {}
    reasons = [_reason(node, refused) for node in graph.nodes]
    types = _inferred_types(graph)
    foreign = graph.host_only | {name for name, kind in types.items() if _is_foreign(kind)}
    computed = folded(graph, foreign, refused)
    reasons = [
        known or (None if node.subject.position in computed else _by_type(node, foreign))
        for node, known in zip(graph.nodes, reasons, strict=True)
    ]
    while True:
        regions = _cut(graph, reasons)
        moved = _not_worth_it(graph, regions)
        if not moved:
            _check_tensors(graph, regions, types)
            return Placement(graph, tuple(reasons), regions)
        for position in moved:
            reasons[position] = _BETWEEN


def region_graph(placement: Placement, region: Region, inputs: Iterable[GraphInput]) -> Graph:
    """A device's region as a graph of its own."""
    graph = placement.graph
    reads = set[str]().union(*(node.reads for node in region.nodes))
    declared = {entry.name: entry for entry in graph.outputs}
    outputs = tuple(declared.get(name, GraphInput(name, None, None, "unknown")) for name in region.outputs)
    needed = reads | set(region.outputs)
    initializers = {name: array for name, array in graph.initializers.items() if name in needed}
    return dataclasses.replace(
        graph,
        inputs=tuple(inputs),
        outputs=outputs,
        initializers=initializers,
        nodes=region.nodes,
        optional=(),
        problems=(),
    )


def _reason(node: GraphNode, refused: Mapping[int, Problem]) -> Problem | None:
    if node.problems:
        return node.problems[0]
    return refused.get(node.subject.position)


def _by_type(node: GraphNode, foreign: frozenset[str]) -> Problem | None:
    found = sorted((node.reads | set(node.outputs)) & foreign)
    if not found:
        return None
    return Problem(f"the device has no such type as {found[0]!r} has", node.subject, Reason.TYPE)


def _inferred_types(graph: Graph) -> dict[str, onnx.TypeProto]:
    """The types of values by name, as far as ONNX can infer them."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model_of(graph, graph.nodes, graph.inputs, with_data=False))
    except (*DECODE_ERRORS, onnx.shape_inference.InferenceError):
        return {}
    return {entry.name: entry.type for entry in (*inferred.graph.value_info, *inferred.graph.output)}


def _is_foreign(kind: onnx.TypeProto) -> bool:
    """Whether it is a tensor of elements that the device does not have."""
    return kind.HasField("tensor_type") and not _is_on_the_wire(kind.tensor_type.elem_type)


def _check_tensors(graph: Graph, regions: Iterable[Region], types: Mapping[str, onnx.TypeProto]) -> None:
    """Raise UnsupportedModel where a region gives what is no tensor, such as a sequence: no array can hold it."""
    asked = {entry.name for entry in graph.outputs}
    problems = []
    for name in dict.fromkeys(name for region in regions for name in region.outputs):
        kind = types[name].WhichOneof("value") if name in types else None
        if kind not in (None, "tensor_type"):
            where = "output" if name in asked else "value between regions"
            reason = f"the {where} {name!r} is a {kind.removesuffix('_type')}, no array"
            problems.append(Problem(f"{reason}; only tensors are supported", code=Reason.INTERFACE))
    if problems:
        raise unsupported(problems)


def _is_on_the_wire(number: int) -> bool:
    try:
        wire_type(number)
    except UnsupportedType:
        return bool(number == onnx.TensorProto.UNDEFINED)
    return True


def _is_constant(node: GraphNode) -> bool:
    return node.op == "Constant"


def _cut(graph: Graph, reasons: list[Problem | None]) -> tuple[Region, ...]:
    """The regions: each node in the earliest one of its side that comes after all it reads."""
    level: dict[str, int] = {}
    members: dict[int, list[GraphNode]] = {}
    constants = {name: node for node in graph.nodes if _is_constant(node) for name in node.outputs}
    asked = {entry.name for entry in graph.outputs}
    for node, reason in zip(graph.nodes, reasons, strict=True):
        if _is_constant(node) and asked.isdisjoint(node.outputs):
            continue  # each region that reads it has its own
        side = 0 if reason is None else 1
        after = max((level[name] for name in node.reads if name in level), default=0)
        place = after if after % 2 == side else after + 1
        members.setdefault(place, []).append(node)
        level.update(dict.fromkeys(node.outputs, place))
    regions = [_region(graph, Where.HOST if place % 2 else Where.DEVICE, members[place]) for place in sorted(members)]
    read = [set(region.inputs) for region in regions]
    return tuple(
        _finished(region, constants, asked.union(*read[position + 1 :])) for position, region in enumerate(regions)
    )


def _region(graph: Graph, where: Where, nodes: list[GraphNode]) -> Region:
    made = {name for node in nodes for name in node.outputs}
    read = dict.fromkeys(name for node in nodes for name in sorted(node.reads))
    known = graph.tensors.keys()
    return Region(where, tuple(nodes), tuple(name for name in read if name not in made and name not in known), ())


def _finished(region: Region, constants: Mapping[str, GraphNode], wanted: set[str]) -> Region:
    """The region with the constants that it reads, and what others want of it."""
    needed = {constants[name].subject.position: constants[name] for name in region.inputs if name in constants}
    outputs = tuple(name for node in region.nodes for name in node.outputs if name and name in wanted)
    inputs = tuple(name for name in region.inputs if name not in constants)
    own = {node.subject.position for node in region.nodes}
    nodes = (*(node for position, node in sorted(needed.items()) if position not in own), *region.nodes)
    return Region(region.where, nodes, inputs, outputs)


def _not_worth_it(graph: Graph, regions: tuple[Region, ...]) -> list[int]:
    """Places of the nodes of device regions that compute nothing, and read or are read on the host alone."""
    made = {name: region.where for region in regions for name in region.outputs}
    asked = {entry.name for entry in graph.outputs}
    readers: dict[str, set[Where]] = {}
    for region in regions:
        for name in region.inputs:
            readers.setdefault(name, set()).add(region.where)
    moved = []
    for region in regions:
        if region.where is Where.HOST or any(node.op not in FREE and not _is_constant(node) for node in region.nodes):
            continue
        from_host = bool(region.inputs) and all(made.get(name) is Where.HOST for name in region.inputs)
        to_host = all(name not in asked and readers.get(name) == {Where.HOST} for name in region.outputs)
        if (from_host or to_host) and len(regions) > 1:
            moved += [node.subject.position for node in region.nodes if not _is_constant(node)]
    places = {node.subject.position: place for place, node in enumerate(graph.nodes)}
    return [places[position] for position in moved]


def _placed(
    node: GraphNode, reason: Problem | None, crossing: frozenset[str], sizes: Mapping[str, int] | None
) -> NodePlacement:
    name = node.subject.node or ""
    if reason is None:
        return NodePlacement(name, node.op, Where.DEVICE)
    touched = (node.reads | set(node.outputs)) & crossing
    known = sizes is not None and all(each in sizes for each in touched)
    total = sum(sizes[each] for each in touched) if sizes is not None and known else None
    return NodePlacement(name, node.op, Where.HOST, reason.code.value, reason.reason, total if touched else 0)
