"""From a model to its `Graph`: every later stage may rely on what this one found well-formed.

Nodes are in execution order, each name is defined once and before it is read, operators exist at the model's opset
with attributes of the right types. What is wrong is noted, not raised: a node that the device cannot run may run on
the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from driver_shim.protocol.types import UnsupportedType, constant_type, wire_type
from sdk.compiler import contrib
from sdk.compiler.graph import Graph, GraphInput, GraphNode, Opset
from sdk.compiler.host_constants import CONSTANTS, is_static
from sdk.compiler.inlining import function_refusal
from sdk.compiler.loading import Source
from sdk.compiler.problems import MODEL, Problem, Reason, Subject, unsupported
from sdk.compiler.tensor_data import Array

_T = onnx.TensorProto
MIN_OPSET = 7
DEFAULT_DOMAINS = ("", "ai.onnx")

_UNLIMITED = 2**31 - 1
"""Inputs that a schema allows where it sets no limit."""

COMPUTED_WITH = frozenset({_T.DOUBLE, _T.UINT16, _T.UINT32, _T.UINT64})
"""Types that the device does not have but that constants may be of, as long as they are computed with on the host."""
_NAMELESS = frozenset({"", "?", "-1", "None", "none", "unk"})
"""What exporters write as the name of a dimension that has none; two of them need not be equal."""

DECODE_ERRORS = (ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError, MemoryError, OSError)
"""What the onnx package raises when it meets damaged data."""


def read_graph(source: Source, handled: frozenset[str]) -> Graph:
    """The model's graph, with its problems. `handled` names the operators that can be lowered.

    Raises UnsupportedModel for a text that is none.
    """
    check_text(source.model)
    return _Reader(source, handled).read()


def check_text(message: Message) -> None:
    """Raise UnsupportedModel when a text field is no UTF-8: protobuf hands those out as bytes."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for entry in [value] if isinstance(value, Message) else value:
                check_text(entry)
        elif field.type == FieldDescriptor.TYPE_STRING:
            texts = [value] if isinstance(value, (str, bytes)) else value
            broken = next((text for text in texts if not isinstance(text, str)), None)
            if broken is not None:
                raise unsupported([Problem(f"the {field.name} {broken!r} is no UTF-8 text")])


def captured_names(node: onnx.NodeProto) -> frozenset[str]:
    """What a node's graphs read from around it."""
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    graphs += [g for a in node.attribute if a.type == onnx.AttributeProto.GRAPHS for g in a.graphs]
    return frozenset().union(*map(_free_names, graphs))


def _free_names(graph: onnx.GraphProto) -> frozenset[str]:
    own = {tensor.name for tensor in graph.initializer} | {entry.name for entry in graph.input}
    free: set[str] = set()
    for node in graph.node:
        free |= ({name for name in node.input if name} | captured_names(node)) - own
        own.update(node.output)
    return frozenset(free | ({entry.name for entry in graph.output} - own))


class _Reader:
    """Reads a model and notes its problems."""

    def __init__(self, source: Source, handled: frozenset[str]) -> None:
        self.model = source.model
        self.data = source.data
        self.handled = handled
        self.problems: list[Problem] = []
        self.versions = {entry.domain: int(entry.version) for entry in self.model.opset_import}
        self.opset = 0
        """The model's version of the default operator set; 0 when there is no usable one."""

    def read(self) -> Graph:
        self.opset = self._opset()
        if not self.model.graph.output:
            self.note("the graph has no outputs")
        scope = _Scope(self, self.model.graph, frozenset(), outermost=True)
        initializers = scope.initializers()
        inputs, optional = scope.inputs()
        nodes = scope.nodes()
        outputs = scope.outputs()
        self.problems[:0] = scope.in_the_way()
        return Graph(
            inputs,
            self._completed(outputs),
            initializers,
            nodes,
            optional,
            tuple(self.problems),
            frozenset(scope.host_only),
            tuple(Opset(domain, version) for domain, version in self.versions.items()),
            self.model.ir_version,
            {entry.key: entry.value for entry in self.model.metadata_props},
            {tensor.name: tensor for tensor in self.model.graph.initializer},
            self.data,
        )

    def note(self, reason: str, subject: Subject = MODEL, code: Reason = Reason.MALFORMED) -> None:
        """Take down a problem."""
        self.problems.append(Problem(reason, subject, code))

    def _opset(self) -> int:
        versions = [entry.version for entry in self.model.opset_import if entry.domain in DEFAULT_DOMAINS]
        newest = onnx.defs.onnx_opset_version()
        if len(versions) > 1:
            self.note(f"the opset is given twice, as {versions[0]} and {versions[1]}")
            return 0
        if not versions:
            others = f", only versions of {', '.join(sorted(map(repr, self.versions)))}" if self.versions else ""
            self.note(f"opset missing: the model names no version of ONNX's own operators{others}")
            return 0
        if not MIN_OPSET <= versions[0] <= newest:
            self.note(
                f"opset {versions[0]} of ONNX's own operators; {MIN_OPSET} to {newest} are supported"
                " (onnx.version_converter converts models)",
                code=Reason.OPSET,
            )
            return 0
        return int(versions[0])

    def _completed(self, outputs: tuple[GraphInput, ...]) -> tuple[GraphInput, ...]:
        """The outputs, with types and ranks that follow from the graph where the model declares none."""
        if self.problems or all(entry.dtype is not None and entry.shape is not None for entry in outputs):
            return outputs
        try:
            inferred = onnx.shape_inference.infer_shapes(self.model)
        except (*DECODE_ERRORS, onnx.shape_inference.InferenceError):
            return outputs
        known = {entry.name: entry for entry in inferred.graph.output}
        return tuple(_refined(entry, known.get(entry.name)) for entry in outputs)


class _Scope:
    """One graph being read: the model's own, or one within a node.

    What follows from a noted problem is not noted again: `_doubtful` are the names whose values it leaves open.
    """

    def __init__(
        self, reader: _Reader, graph: onnx.GraphProto, around: frozenset[str], *, outermost: bool = False
    ) -> None:
        self._outermost = outermost
        self._reader = reader
        self._note = reader.note
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
            array = self._array(tensor, subject)
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

    def _array(self, tensor: onnx.TensorProto, subject: Subject, what: str = "") -> Array | None:
        """The tensor's array; None, and noted, when there is none. `what` says what of the subject it is."""
        try:
            kind = constant_type(tensor.data_type)
        except UnsupportedType as error:
            self._note(f"{what}{error}", subject, Reason.TYPE)
            return None
        array = self._raw(tensor, subject, what)
        return None if array is None else array.astype(kind.dtype, copy=False)

    def _raw(self, tensor: onnx.TensorProto, subject: Subject, what: str) -> Array | None:
        """The same, of any type."""
        try:
            return self._reader.data.array(tensor)
        except DECODE_ERRORS as error:
            missing = tensor.data_location == onnx.TensorProto.EXTERNAL
            self._note(f"{what}{'' if missing else 'damaged: '}{error}", subject)
        return None

    def inputs(self) -> tuple[tuple[GraphInput, ...], tuple[GraphInput, ...]]:
        """(those that have to be given, those of which the graph holds a default)"""
        required: list[GraphInput] = []
        optional: list[GraphInput] = []
        for declared in self._graph.input:
            if declared.name in self._initialised:
                if declared.name not in self._doubtful and declared.name not in self._foreign:
                    optional += self._declared(declared, "input")
                continue
            self._define(declared.name, "input")
            entries = self._declared(declared, "input")
            if not entries or entries[0].dtype is None:
                self._doubtful.add(declared.name)
                self.host_only.add(declared.name)
            required += entries
        return tuple(required), tuple(optional)

    def outputs(self) -> tuple[GraphInput, ...]:
        """What the graph declares to give."""
        return tuple(entry for declared in self._graph.output for entry in self._output(declared))

    def in_the_way(self) -> list[Problem]:
        """The initialisers of foreign types that are read by what is not computed while compiling."""
        asked = [entry.name for entry in self._graph.output if entry.name in self._foreign]
        wanted = {*self._in_the_way, *asked}
        return [problem for name, problem in self._foreign.items() if name in wanted]

    def _output(self, declared: onnx.ValueInfoProto) -> list[GraphInput]:
        if declared.name in self._outputs:
            self._note(f"the output {declared.name!r} is declared twice")
        elif declared.name not in self._defined and declared.name not in self._doubtful:
            self._note(f"the output {declared.name!r} is never computed")
        self._outputs.add(declared.name)
        if declared.name in self._doubtful:
            known = len(self._reader.problems)
            entries = self._declared(declared, "output")
            del self._reader.problems[known:]
            return entries or [GraphInput(declared.name, None, None, "unknown")]
        entries = self._declared(declared, "output")
        if entries and entries[0].dtype is None and entries[0].type_name != "unknown":
            self.host_only.add(declared.name)
        return entries

    def _declared(self, declared: onnx.ValueInfoProto, what: str) -> list[GraphInput]:
        where = f"{what} {declared.name!r}"
        kind = declared.type.WhichOneof("value")
        tensor = declared.type.tensor_type
        untyped = kind is None or (kind == "tensor_type" and tensor.elem_type == onnx.TensorProto.UNDEFINED)
        if what == "output" and untyped:
            return [GraphInput(declared.name, None, _shape(declared), "unknown")]
        if kind != "tensor_type":
            self._note(f"{where} is a {kind or 'value without a type'}; only tensors are supported", MODEL, _NO_TENSOR)
            return []
        try:
            dtype = wire_type(tensor.elem_type)
        except UnsupportedType as error:
            self._note(f"{where}: {error}", MODEL, _NO_TENSOR if untyped else Reason.TYPE)
            return [] if untyped else [GraphInput(declared.name, None, _shape(declared), _type_name(tensor.elem_type))]
        return [GraphInput(declared.name, dtype, _shape(declared), dtype.text)]

    # --- nodes -------------------------------------------------------------------------------------------------

    def nodes(self) -> tuple[GraphNode, ...]:
        """The nodes, each with what is wrong with it."""
        return tuple(self._node(proto, index) for index, proto in enumerate(self._graph.node, 1))

    def _node(self, proto: onnx.NodeProto, position: int) -> GraphNode:
        subject = Subject("node", position, proto.name, proto.output[0] if proto.output else "", proto.op_type)
        before = len(self._reader.problems)
        captured = captured_names(proto)
        since, attributes = self._operator(proto, subject)
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
        problems = tuple(self._reader.problems[before:])
        if not problems and not captured and is_static(proto.op_type, proto.input, self._static):
            self._static.update(proto.output)
        else:
            self._in_the_way += [name for name in (*proto.input, *captured) if name in self._foreign]
        if problems or not self._reader.opset or not self._doubtful.isdisjoint((*proto.input, *captured)):
            self._doubtful.update(proto.output)
        return GraphNode(
            subject,
            _key(proto),
            tuple(proto.input),
            tuple(proto.output),
            attributes,
            since,
            proto,
            problems,
            captured,
        )

    def _operator(self, proto: onnx.NodeProto, subject: Subject) -> tuple[int, dict[str, Any]]:
        """(opset version that gave the operator its meaning, the node's attributes), as far as they are right."""
        opset, handled = self._reader.opset, self._reader.handled
        if proto.domain not in DEFAULT_DOMAINS:
            return self._foreign_operator(proto, subject)
        if not opset:  # which operators there are depends on it
            return 0, {}
        if not onnx.defs.has(proto.op_type, opset):
            if proto.op_type in contrib.UNDER_ONNX and proto.op_type in handled:
                return self._form(proto, contrib.UNDER_ONNX[proto.op_type], subject)
            known = onnx.defs.has(proto.op_type) or proto.op_type in handled
            reason = f"the operator does not exist in opset {opset}" if known else "ONNX has no operator of this name"
            self._note(reason, subject)
            return 0, {}
        if proto.op_type not in handled:
            self._note("the operator is not supported", subject, Reason.OPERATOR)
            return 0, {}
        return self._form(proto, onnx.defs.get_schema(proto.op_type, opset, ""), subject)

    def _foreign_operator(self, proto: onnx.NodeProto, subject: Subject) -> tuple[int, dict[str, Any]]:
        """The same for an operator that is none of ONNX's own."""
        schema = contrib.SCHEMAS.get(proto.op_type) if proto.domain == contrib.DOMAIN else self._preview(proto)
        if schema is None or _key(proto) not in self._reader.handled:
            refusal = function_refusal(self._reader.model, proto)
            foreign = f"operators of the domain {proto.domain!r} are not supported", Reason.DOMAIN
            reason, code = refusal or foreign
            self._note(reason, subject, code)
            return 0, {}
        return self._form(proto, schema, subject)

    def _preview(self, proto: onnx.NodeProto) -> Any:
        """The schema of an operator that ONNX has in another domain than its default one; None where it has none."""
        version = self._reader.versions.get(proto.domain, 1)
        known = onnx.defs.has(proto.op_type, version, proto.domain)
        return onnx.defs.get_schema(proto.op_type, version, proto.domain) if known else None

    def _form(self, proto: onnx.NodeProto, schema: Any, subject: Subject) -> tuple[int, dict[str, Any]]:
        """The same, as the operator's schema has it."""
        attributes = self._attributes(proto, schema, subject)
        if not schema.min_input <= len(proto.input) <= schema.max_input:
            takes = _range(schema.min_input, schema.max_input)
            self._note(f"{len(proto.input)} inputs; the operator takes {takes}", subject)
        if not schema.min_output <= len(proto.output) <= schema.max_output:
            has = _range(schema.min_output, schema.max_output)
            self._note(f"{len(proto.output)} outputs; the operator has {has}", subject)
        return schema.since_version, attributes

    def _attributes(self, proto: onnx.NodeProto, schema: Any, subject: Subject) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        for attribute in proto.attribute:
            declared = schema.attributes.get(attribute.name)
            if declared is None or attribute.ref_attr_name or int(declared.type) != attribute.type:
                self._note(f"the attribute {attribute.name!r} is unknown or of a wrong type", subject)
                continue
            attributes[attribute.name] = self._attribute(attribute, subject)
        given = {attribute.name for attribute in proto.attribute}
        missing = [name for name, declared in schema.attributes.items() if declared.required and name not in given]
        for name in missing:
            self._note(f"the attribute {name!r} is missing", subject)
        return attributes

    def _attribute(self, attribute: onnx.AttributeProto, subject: Subject) -> Any:
        if attribute.type == onnx.AttributeProto.TENSOR:
            if self._outermost and subject.op in CONSTANTS and attribute.t.data_type in COMPUTED_WITH:
                return self._raw(attribute.t, subject, f"the attribute {attribute.name!r}: ")
            return self._array(attribute.t, subject, f"the attribute {attribute.name!r}: ")
        if attribute.type == onnx.AttributeProto.GRAPH:
            return _Scope(self._reader, attribute.g, frozenset(self._defined | self._doubtful) | self._around).read()
        try:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
        except DECODE_ERRORS as error:
            self._note(f"the attribute {attribute.name!r} is damaged: {error}", subject)
            return None


_NO_TENSOR = Reason.INTERFACE


def _refusal(number: int) -> str:
    """Why the device does not take this type."""
    try:
        wire_type(number)
    except UnsupportedType as error:
        return str(error)
    raise ValueError(f"type {number} is on the wire")


def _key(proto: onnx.NodeProto) -> str:
    return proto.op_type if proto.domain in DEFAULT_DOMAINS else f"{proto.domain}.{proto.op_type}"


def _range(least: int, most: int) -> str:
    """How many a schema allows."""
    if most >= _UNLIMITED:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"


def _type_name(number: int) -> str:
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number)).name)
    except DECODE_ERRORS:
        return "unknown"


def _shape(declared: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    """The declared shape; a dimension that exporters leave open (missing, 0, negative, "?") gets a name of its own."""
    tensor = declared.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    shape: list[int | str] = []
    for axis, dimension in enumerate(tensor.shape.dim):
        if dimension.HasField("dim_value") and dimension.dim_value > 0:
            shape.append(dimension.dim_value)
        else:
            named = dimension.dim_param not in _NAMELESS
            shape.append(dimension.dim_param if named else f"{declared.name}.{axis}")
    return tuple(shape)


def _refined(entry: GraphInput, inferred: onnx.ValueInfoProto | None) -> GraphInput:
    if inferred is None:
        return entry
    dtype, type_name = entry.dtype, entry.type_name
    if dtype is None:
        number = inferred.type.tensor_type.elem_type
        try:
            dtype, type_name = wire_type(number), wire_type(number).text
        except UnsupportedType:
            type_name = _type_name(number)
    return GraphInput(entry.name, dtype, _shape(inferred) if entry.shape is None else entry.shape, type_name)
