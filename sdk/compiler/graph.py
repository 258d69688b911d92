"""A model's graph, checked for form: every later stage may rely on what this one accepted.

Nodes are in execution order, each name is defined once and before it is read, operators exist at the model's opset
with attributes of the right types, element types are ones the device has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from numpy.typing import NDArray

from driver_shim.errors import ModelProblem, UnsupportedModel
from driver_shim.protocol.types import UnsupportedType, WireType, wire_type
from sdk.compiler import contrib

MIN_OPSET = 7
DEFAULT_DOMAINS = ("", "ai.onnx")
MAX_REPORTED = 20
"""Problems listed in one message."""

_UNLIMITED = 2**31 - 1
"""Inputs that a schema allows where it sets no limit."""

DECODE_ERRORS = (ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError, MemoryError, OSError)
"""What the onnx package raises when it meets damaged data."""


class Subject(NamedTuple):
    """What a problem is about: a node, an initialiser, or the model as a whole."""

    noun: str = ""
    """ "node" or "initialiser"; empty for the model."""
    position: int = 0
    """Place among those of its kind, from 1."""
    name: str = ""
    output: str = ""
    """A node's first output."""
    op: str | None = None

    @property
    def node(self) -> str | None:
        """A node's name for programs."""
        return None if self.op is None else self.name or self.output

    def found_by(self, noun: str = "") -> str:
        """How people find it: by its name, else by its place and output."""
        if self.name:
            return f"{noun} {self.name!r}".lstrip()
        place = f"the {ordinal(self.position)} {noun}".rstrip()
        return f"{place}, output {self.output!r}" if self.output else place

    def says(self, reason: str, count: int = 1) -> str:
        """A reason against this one, or against `count` of its kind of which it is the first."""
        if not self.noun:
            return reason
        who = self.found_by(self.noun) if count == 1 else f"{count} {self.noun}s, first {self.found_by()}"
        return f"{who}: {reason}" if self.op is None else f"{self.op} ({who}): {reason}"


MODEL = Subject()


class Problem(NamedTuple):
    """One reason why a model cannot run."""

    reason: str
    subject: Subject = MODEL

    def record(self) -> ModelProblem:
        """For the error's data."""
        if self.subject.op is None:
            return ModelProblem(self.subject.says(self.reason))
        return ModelProblem(self.reason, self.subject.node, self.subject.op)


@dataclasses.dataclass(frozen=True, slots=True)
class GraphInput:
    """A declared input; a dimension is a number, or the name of an unknown (made up when the model gives none)."""

    name: str
    dtype: WireType
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class GraphNode:
    """A node with its attributes decoded."""

    subject: Subject
    op: str
    """The operator; one of another domain than ONNX's own has that before it: "com.microsoft.FusedMatMul"."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    since: int
    """Opset version in which the operator got the meaning that this model uses."""


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """A model that is well-formed."""

    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphInput, ...]
    """Declared outputs; their shapes are informative."""
    initializers: dict[str, NDArray[Any]]
    nodes: tuple[GraphNode, ...]


def unsupported(problems: Sequence[Problem]) -> UnsupportedModel:
    """The error that lists these problems, those of one kind and reason in one line."""
    kinds: dict[tuple[str, str | None, str], list[Subject]] = {}
    for problem in problems:
        subject = problem.subject
        kinds.setdefault((subject.noun, subject.op, problem.reason), []).append(subject)
    lines = [same[0].says(reason, len(same)) for (_, _, reason), same in kinds.items()]
    if len(lines) > MAX_REPORTED:
        lines[MAX_REPORTED:] = [f"and {len(lines) - MAX_REPORTED} more"]
    first = next((problem.subject for problem in problems if problem.subject.op is not None), MODEL)
    return UnsupportedModel(
        "\n  ".join(["the model cannot run on the device:", *lines]),
        node=first.node,
        op=first.op,
        problems=tuple(problem.record() for problem in problems),
        subsystem="compiler",
    )


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th …"""
    teens = number // 10 % 10 == 1
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def read_graph(model: onnx.ModelProto, handled: frozenset[str]) -> Graph:
    """Check a model's form and operators. Raises UnsupportedModel that lists everything found.

    `handled` names the operators that can be lowered.
    """
    check_text(model)
    return _Reader(model, handled).read()


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


class _Reader:
    """Reads a model and notes its problems.

    What follows from a noted problem is not noted again: `_doubtful` are the names whose values it leaves open.
    """

    def __init__(self, model: onnx.ModelProto, handled: frozenset[str]) -> None:
        self._model = model
        self._handled = handled
        self._problems: list[Problem] = []
        graph = model.graph
        self._initialised = {tensor.name for tensor in graph.initializer}
        self._initialised.update(tensor.values.name for tensor in graph.sparse_initializer)
        self._defined: set[str] = set()
        self._outputs: set[str] = set()
        self._doubtful: set[str] = set()

    def read(self) -> Graph:
        graph = self._model.graph
        opset = self._opset()
        if not graph.output:
            self._note("the graph has no outputs")
        initializers = self._initializers()
        inputs = [entry for declared in graph.input for entry in self._input(declared)]
        nodes = [node for index, proto in enumerate(graph.node, 1) for node in self._node(proto, index, opset)]
        outputs = [entry for declared in graph.output for entry in self._output(declared)]
        if self._problems:
            raise unsupported(self._problems)
        return Graph(tuple(inputs), tuple(outputs), initializers, tuple(nodes))

    def _note(self, reason: str, subject: Subject = MODEL) -> None:
        self._problems.append(Problem(reason, subject))

    def _opset(self) -> int:
        """The model's version of the default operator set; 0 when there is no usable one."""
        versions = [entry.version for entry in self._model.opset_import if entry.domain in DEFAULT_DOMAINS]
        newest = onnx.defs.onnx_opset_version()
        if len(versions) > 1:
            self._note(f"the opset is given twice, as {versions[0]} and {versions[1]}")
            return 0
        if not versions or not MIN_OPSET <= versions[0] <= newest:
            self._note(
                f"opset {versions[0] if versions else 'missing'}; {MIN_OPSET} to {newest} are supported"
                " (onnx.version_converter converts models)"
            )
            return 0
        return int(versions[0])

    def _define(self, name: str, what: str) -> None:
        if not name:
            self._note(f"an {what} has no name")
        elif name in self._defined:
            self._note(f"the name {name!r} is defined twice")
        self._defined.add(name)

    def _initializers(self) -> dict[str, NDArray[Any]]:
        arrays = {}
        for index, tensor in enumerate(self._model.graph.initializer, 1):
            self._define(tensor.name, "initialiser")
            subject = Subject("initialiser", index, tensor.name)
            array = self._array(tensor, subject)
            if array is None:
                self._doubtful.add(tensor.name)
            else:
                arrays[tensor.name] = array
        sparse = {tensor.values.name for tensor in self._model.graph.sparse_initializer}
        if sparse:
            self._note("sparse initialisers are not supported: store them densely")
        self._defined.update(sparse)
        self._doubtful.update(sparse)
        return arrays

    def _array(self, tensor: onnx.TensorProto, subject: Subject, what: str = "") -> NDArray[Any] | None:
        """The tensor's array; None, and noted, when there is none. `what` says what of the subject it is."""
        try:
            return decode_tensor(tensor)
        except UnsupportedType as error:
            self._note(f"{what}{error}", subject)
        except DECODE_ERRORS as error:
            self._note(f"{what}damaged: {error}", subject)
        return None

    def _input(self, declared: onnx.ValueInfoProto) -> list[GraphInput]:
        """The input; nothing for an initialiser, which older models declare as an input too."""
        if declared.name in self._initialised:
            return []
        self._define(declared.name, "input")
        entries = self._declared(declared, "input")
        if not entries:
            self._doubtful.add(declared.name)
        return entries

    def _output(self, declared: onnx.ValueInfoProto) -> list[GraphInput]:
        if declared.name in self._outputs:
            self._note(f"the output {declared.name!r} is declared twice")
        elif declared.name not in self._defined and declared.name not in self._doubtful:
            self._note(f"the output {declared.name!r} is never computed")
        self._outputs.add(declared.name)
        return [] if declared.name in self._doubtful else self._declared(declared, "output")

    def _declared(self, declared: onnx.ValueInfoProto, what: str) -> list[GraphInput]:
        where = f"{what} {declared.name!r}"
        kind = declared.type.WhichOneof("value")
        if kind != "tensor_type":
            self._note(f"{where} is a {kind or 'value without a type'}; only tensors are supported")
            return []
        tensor = declared.type.tensor_type
        try:
            dtype = wire_type(tensor.elem_type)
        except UnsupportedType as error:
            self._note(f"{where}: {error}")
            return []
        if what == "input" and not tensor.HasField("shape"):
            self._note(f"{where} has no shape; declare one (dimensions may be symbolic)")
            return []
        shape: list[int | str] = []
        for axis, dimension in enumerate(tensor.shape.dim):
            fixed = dimension.HasField("dim_value")
            if fixed and dimension.dim_value < 1:
                self._note(f"{where} has the dimension {dimension.dim_value}; it must be at least 1")
            shape.append(dimension.dim_value if fixed else dimension.dim_param or f"{declared.name}.{axis}")
        return [GraphInput(declared.name, dtype, tuple(shape))]

    def _node(self, proto: onnx.NodeProto, position: int, opset: int) -> list[GraphNode]:
        """The node, or nothing when something is wrong with it or with what it reads."""
        subject = Subject("node", position, proto.name, proto.output[0] if proto.output else "", proto.op_type)
        before = len(self._problems)
        since, attributes = self._operator(proto, subject, opset)
        for read in proto.input:
            if read and read not in self._defined and read not in self._doubtful:
                self._note(
                    f"its input {read!r} is not defined before it (the graph is cyclic, unsorted or incomplete)",
                    subject,
                )
                self._doubtful.add(read)
        for written in proto.output:
            if written:
                self._define(written, "output")
        if len(self._problems) > before or not opset or not self._doubtful.isdisjoint(proto.input):
            self._doubtful.update(proto.output)
            return []
        return [GraphNode(subject, operator_key(proto), tuple(proto.input), tuple(proto.output), attributes, since)]

    def _operator(self, proto: onnx.NodeProto, subject: Subject, opset: int) -> tuple[int, dict[str, Any]]:
        """(opset version that gave the operator its meaning, the node's attributes), as far as they are right."""
        if proto.domain not in DEFAULT_DOMAINS:
            return self._foreign_operator(proto, subject)
        if not opset:  # which operators there are depends on it
            return 0, {}
        if proto.op_type not in self._handled or not onnx.defs.has(proto.op_type, opset):
            self._note(self._unknown(proto.op_type, opset), subject)
            return 0, {}
        return self._form(proto, onnx.defs.get_schema(proto.op_type, opset, ""), subject)

    def _foreign_operator(self, proto: onnx.NodeProto, subject: Subject) -> tuple[int, dict[str, Any]]:
        """The same for an operator that is none of ONNX's own."""
        schema = contrib.SCHEMAS.get(proto.op_type) if proto.domain == contrib.DOMAIN else None
        if schema is None or operator_key(proto) not in self._handled:
            self._note(f"operators of the domain {proto.domain!r} are not supported", subject)
            return 0, {}
        return self._form(proto, schema, subject)

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

    def _unknown(self, op: str, opset: int) -> str:
        if op in self._handled:
            return f"the operator does not exist in opset {opset}"
        return "the operator is not supported"

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
            return self._array(attribute.t, subject, f"the attribute {attribute.name!r}: ")
        try:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
        except DECODE_ERRORS as error:
            self._note(f"the attribute {attribute.name!r} is damaged: {error}", subject)
            return None


def operator_key(proto: onnx.NodeProto) -> str:
    """The name of a node's operator; one that is none of ONNX's own has its domain before it."""
    return proto.op_type if proto.domain in DEFAULT_DOMAINS else f"{proto.domain}.{proto.op_type}"


def _range(least: int, most: int) -> str:
    """How many a schema allows."""
    if most >= _UNLIMITED:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"


def decode_tensor(tensor: onnx.TensorProto) -> NDArray[Any]:
    """The array in a TensorProto. Raises UnsupportedType, or one of DECODE_ERRORS when it is damaged."""
    dtype = wire_type(tensor.data_type)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError("its data lies in another file, which was not loaded: give the model's path")
    if min(tensor.dims, default=0) < 0:
        raise ValueError(f"its shape is {list(tensor.dims)}")
    array = onnx.numpy_helper.to_array(tensor)
    if dtype is WireType.BOOL:
        # Bytes other than 0 and 1 make a bool array that numpy does not handle consistently.
        array = array.view(np.uint8) != 0
    return np.ascontiguousarray(array, dtype.dtype).reshape(tuple(tensor.dims))
