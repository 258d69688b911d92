"""One graph being read: which names are defined in it, and what follows from constants alone."""

from __future__ import annotations

import onnx

from driver_shim.protocol.types import UnsupportedType, wire_type
from sdk.compiler.graph import Graph, GraphInput, GraphNode
from sdk.compiler.host_constants import is_static
from sdk.compiler.problems import Problem, Reason, Subject
from sdk.compiler.reading.declarations import declared
from sdk.compiler.reading.nodes import NodeText, key_of
from sdk.compiler.reading.text import COMPUTED_WITH, ModelText
from sdk.compiler.tensor_data import Array


class Scope:
    """One graph being read: the model's own, or one within a node.

    What follows from a noted problem is not noted again: `_doubtful` are the names whose values it leaves open.
    """

    def __init__(
        self, text: ModelText, graph: onnx.GraphProto, around: frozenset[str], *, outermost: bool = False
    ) -> None:
        self._outermost = outermost
        self._text = text
        self._note = text.note
        self._graph = graph
        self._around = around
        self._initialised = {tensor.name for tensor in graph.initializer}
        self._initialised.update(tensor.values.name for tensor in graph.sparse_initializer)
        self._defined: set[str] = set()
        self._outputs: set[str] = set()
        self._doubtful: set[str] = set()
        self.host_only: set[str] = set()
        self._foreign: dict[str, Problem] = {}
        """Initialisers of types that the device does not have: in the way only of nodes that are not static."""
        self._static = set(self._initialised)
        """Values that follow from constants and shapes."""
        self._in_the_way: list[str] = []

    def read(self) -> Graph:
        """A graph within a node, whose inputs and outputs need not be declared."""
        initializers = self.initializers()
        for entry in self._graph.input:
            self._define(entry.name, "input")
        nodes = self.nodes()
        for entry in self._graph.output:
            if not self._knows(entry.name):
                self._note(f"the output {entry.name!r} of a graph within it is never computed")
        inputs, outputs = (
            tuple(GraphInput(entry.name, None, None, "unknown") for entry in entries)
            for entries in (self._graph.input, self._graph.output)
        )
        return Graph(inputs, outputs, initializers, nodes)

    def _knows(self, name: str) -> bool:
        return name in self._defined or name in self._around or name in self._doubtful

    def _define(self, name: str, what: str) -> None:
        if not name:
            self._note(f"an {what} has no name")
        elif name in self._defined:
            self._note(f"the name {name!r} is defined twice")
        self._defined.add(name)

    # --- inputs, outputs, initialisers -------------------------------------------------------------------------

    def initializers(self) -> dict[str, Array]:
        """The arrays that the graph holds."""
        arrays = {}
        for index, tensor in enumerate(self._graph.initializer, 1):
            self._define(tensor.name, "initialiser")
            subject = Subject("initialiser", index, tensor.name)
            if self._outermost and tensor.data_type in COMPUTED_WITH:
                self._foreign[tensor.name] = Problem(_refusal(tensor.data_type), subject, Reason.TYPE)
                self.host_only.add(tensor.name)
                continue
            array = self._text.array(tensor, subject)
            if array is None:
                self._doubtful.add(tensor.name)
                self.host_only.add(tensor.name)
            else:
                arrays[tensor.name] = array
        sparse = {tensor.values.name for tensor in self._graph.sparse_initializer}
        if sparse:
            self._note("sparse initialisers are not supported: store them densely", code=Reason.INTERFACE)
        self._defined.update(sparse)
        self._doubtful.update(sparse)
        return arrays

    def inputs(self) -> tuple[tuple[GraphInput, ...], tuple[GraphInput, ...]]:
        """(those that have to be given, those of which the graph holds a default)"""
        required: list[GraphInput] = []
        optional: list[GraphInput] = []
        for entry in self._graph.input:
            if entry.name in self._initialised:
                if entry.name not in self._doubtful and entry.name not in self._foreign:
                    optional += declared(self._text, entry, "input")
                continue
            self._define(entry.name, "input")
            entries = declared(self._text, entry, "input")
            if not entries or entries[0].dtype is None:
                self._doubtful.add(entry.name)
                self.host_only.add(entry.name)
            required += entries
        return tuple(required), tuple(optional)

    def outputs(self) -> tuple[GraphInput, ...]:
        """What the graph declares to give."""
        return tuple(entry for declaration in self._graph.output for entry in self._output(declaration))

    def in_the_way(self) -> list[Problem]:
        """The initialisers of foreign types that are read by what is not computed while compiling."""
        asked = [entry.name for entry in self._graph.output if entry.name in self._foreign]
        wanted = {*self._in_the_way, *asked}
        return [problem for name, problem in self._foreign.items() if name in wanted]

    def _output(self, entry: onnx.ValueInfoProto) -> list[GraphInput]:
        if entry.name in self._outputs:
            self._note(f"the output {entry.name!r} is declared twice")
        elif entry.name not in self._defined and entry.name not in self._doubtful:
            self._note(f"the output {entry.name!r} is never computed")
        self._outputs.add(entry.name)
        if entry.name in self._doubtful:
            known = len(self._text.problems)
            entries = declared(self._text, entry, "output")
            del self._text.problems[known:]
            return entries or [GraphInput(entry.name, None, None, "unknown")]
        entries = declared(self._text, entry, "output")
        if entries and entries[0].dtype is None and entries[0].type_name != "unknown":
            self.host_only.add(entry.name)
        return entries

    # --- nodes -------------------------------------------------------------------------------------------------

    def nodes(self) -> tuple[GraphNode, ...]:
        """The nodes, each with what is wrong with it."""
        return tuple(self._node(proto, index) for index, proto in enumerate(self._graph.node, 1))

    def _node(self, proto: onnx.NodeProto, position: int) -> GraphNode:
        subject = Subject("node", position, proto.name, proto.output[0] if proto.output else "", proto.op_type)
        before = len(self._text.problems)
        captured = _captured_names(proto)
        since, attributes = NodeText(self._text, proto, subject, self._read_inner, outermost=self._outermost).read()
        for read in (*proto.input, *sorted(captured)):
            if read and not self._knows(read):
                self._note(
                    f"its input {read!r} is not defined before it (the graph is cyclic, unsorted or incomplete)",
                    subject,
                )
                self._doubtful.add(read)
        for written in proto.output:
            if written:
                self._define(written, "output")
        problems = tuple(self._text.problems[before:])
        if not problems and not captured and is_static(proto.op_type, proto.input, self._static):
            self._static.update(proto.output)
        else:
            self._in_the_way += [name for name in (*proto.input, *captured) if name in self._foreign]
        if problems or not self._text.opset or not self._doubtful.isdisjoint((*proto.input, *captured)):
            self._doubtful.update(proto.output)
        return GraphNode(
            subject,
            key_of(proto),
            tuple(proto.input),
            tuple(proto.output),
            attributes,
            since,
            proto,
            problems,
            captured,
        )

    def _read_inner(self, graph: onnx.GraphProto) -> Graph:
        return Scope(self._text, graph, frozenset(self._defined | self._doubtful) | self._around).read()


def _captured_names(node: onnx.NodeProto) -> frozenset[str]:
    """What a node's graphs read from around it."""
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    graphs += [g for a in node.attribute if a.type == onnx.AttributeProto.GRAPHS for g in a.graphs]
    return frozenset().union(*map(_free_names, graphs))


def _free_names(graph: onnx.GraphProto) -> frozenset[str]:
    own = {tensor.name for tensor in graph.initializer} | {entry.name for entry in graph.input}
    free: set[str] = set()
    for node in graph.node:
        free |= ({name for name in node.input if name} | _captured_names(node)) - own
        own.update(node.output)
    return frozenset(free | ({entry.name for entry in graph.output} - own))


def _refusal(number: int) -> str:
    """Why the device does not take this type."""
    try:
        wire_type(number)
    except UnsupportedType as error:
        return str(error)
    raise ValueError(f"type {number} is on the wire")
