"""A model's graph, checked for form: every later stage may rely on what this one accepted.

Nodes are in execution order, each name is defined once and before it is read, operators exist at the model's opset
with attributes of the right types, element types are ones the device has.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.types import UnsupportedType, WireType, wire_type

MIN_OPSET = 11
DEFAULT_DOMAINS = ("", "ai.onnx")
MAX_REPORTED = 20
"""Problems listed in one message."""

DECODE_ERRORS = (ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError, MemoryError, OSError)
"""What the onnx package raises when it meets damaged data."""


class Problem(NamedTuple):
    """One reason why a model cannot run."""

    node: str | None
    op: str | None
    reason: str

    def __str__(self) -> str:
        place = f"node {self.node!r} ({self.op}): " if self.op is not None else ""
        return f"{place}{self.reason}"


@dataclasses.dataclass(frozen=True, slots=True)
class GraphInput:
    """A declared input; a dimension is a number, or the name of an unknown (made up when the model gives none)."""

    name: str
    dtype: WireType
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class GraphNode:
    """A node with its attributes decoded."""

    name: str
    op: str
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


def unsupported(problems: list[Problem]) -> UnsupportedModel:
    """The error that lists these problems; it carries node and operator of the first."""
    lines = [str(problem) for problem in problems[:MAX_REPORTED]]
    if len(problems) > MAX_REPORTED:
        lines.append(f"and {len(problems) - MAX_REPORTED} more")
    text = "the model cannot run on the device: " + "; ".join(lines)
    return UnsupportedModel(text, node=problems[0].node, op=problems[0].op, subsystem="compiler")


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
                raise unsupported([Problem(None, None, f"the {field.name} {broken!r} is no UTF-8 text")])


class _Reader:
    def __init__(self, model: onnx.ModelProto, handled: frozenset[str]) -> None:
        self._model = model
        self._handled = handled
        self._problems: list[Problem] = []
        self._defined: set[str] = set()

    def read(self) -> Graph:
        graph = self._model.graph
        opset = self._opset()
        if graph.sparse_initializer:
            self._note("sparse initialisers are not supported: store them densely")
        if not graph.output:
            self._note("the graph has no outputs")
        initializers = self._initializers()
        inputs = []
        for declared in graph.input:
            if declared.name not in initializers:
                inputs.extend(self._declared(declared, "input"))
                self._define(declared.name, "input")
        nodes = [node for proto in graph.node for node in self._node(proto, opset)] if opset else []
        outputs = [entry for declared in graph.output for entry in self._declared(declared, "output")]
        self._check_outputs()
        if self._problems:
            raise unsupported(self._problems)
        return Graph(tuple(inputs), tuple(outputs), initializers, tuple(nodes))

    def _note(self, reason: str, node: str | None = None, op: str | None = None) -> None:
        self._problems.append(Problem(node, op, reason))

    def _opset(self) -> int:
        """The model's version of the default operator set; 0 when there is no usable one."""
        versions = [entry.version for entry in self._model.opset_import if entry.domain in DEFAULT_DOMAINS]
        newest = onnx.defs.onnx_opset_version()
        if len(versions) != 1 or not MIN_OPSET <= versions[0] <= newest:
            self._note(f"opset {versions[0] if versions else 'missing'}; {MIN_OPSET} to {newest} are supported")
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
        for tensor in self._model.graph.initializer:
            self._define(tensor.name, "initialiser")
            array = self._array(tensor, f"initialiser {tensor.name!r}")
            if array is not None:
                arrays[tensor.name] = array
        return arrays

    def _array(self, tensor: onnx.TensorProto, what: str) -> NDArray[Any] | None:
        try:
            return decode_tensor(tensor)
        except UnsupportedType as error:
            self._note(f"{what}: {error}")
        except DECODE_ERRORS as error:
            self._note(f"{what} is damaged: {error}")
        return None

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

    def _node(self, proto: onnx.NodeProto, opset: int) -> list[GraphNode]:
        """The node, or nothing when something is wrong with it."""
        name = proto.name or (proto.output[0] if proto.output else "")
        before = len(self._problems)
        since, attributes = 0, {}
        if proto.domain not in DEFAULT_DOMAINS:
            self._note(f"operators of the domain {proto.domain!r} are not supported", name, proto.op_type)
        elif proto.op_type not in self._handled or not onnx.defs.has(proto.op_type, opset):
            self._note(self._unknown(proto.op_type, opset), name, proto.op_type)
        else:
            schema = onnx.defs.get_schema(proto.op_type, opset, "")
            since = schema.since_version
            attributes = self._attributes(proto, schema, name)
            if not schema.min_input <= len(proto.input) <= schema.max_input:
                self._note(
                    f"{len(proto.input)} inputs; the operator has {schema.min_input} at least", name, proto.op_type
                )
            if not schema.min_output <= len(proto.output) <= schema.max_output:
                self._note(f"{len(proto.output)} outputs", name, proto.op_type)
        for read in proto.input:
            if read and read not in self._defined:
                self._note(
                    f"its input {read!r} is not defined before it (the graph is cyclic, unsorted or incomplete)",
                    name,
                    proto.op_type,
                )
        for written in proto.output:
            if written:
                self._define(written, "output")
        if len(self._problems) > before:
            return []
        return [GraphNode(name, proto.op_type, tuple(proto.input), tuple(proto.output), attributes, since)]

    def _unknown(self, op: str, opset: int) -> str:
        if op in self._handled:
            return f"the operator does not exist in opset {opset}"
        return "the operator is not supported"

    def _attributes(self, proto: onnx.NodeProto, schema: Any, name: str) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        for attribute in proto.attribute:
            declared = schema.attributes.get(attribute.name)
            if declared is None or attribute.ref_attr_name or int(declared.type) != attribute.type:
                self._note(f"the attribute {attribute.name!r} is unknown or of a wrong type", name, proto.op_type)
                continue
            attributes[attribute.name] = self._attribute(attribute, name, proto.op_type)
        missing = [a for a, declared in schema.attributes.items() if declared.required and a not in attributes]
        if missing:
            self._note(f"the attribute {missing[0]!r} is missing", name, proto.op_type)
        return attributes

    def _attribute(self, attribute: onnx.AttributeProto, name: str, op: str) -> Any:
        if attribute.type == onnx.AttributeProto.TENSOR:
            return self._array(attribute.t, f"attribute {attribute.name!r}")
        try:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
        except DECODE_ERRORS as error:
            self._note(f"the attribute {attribute.name!r} is damaged: {error}", name, op)
            return None

    def _check_outputs(self) -> None:
        seen: set[str] = set()
        for declared in self._model.graph.output:
            if declared.name not in self._defined:
                self._note(f"the output {declared.name!r} is never computed")
            if declared.name in seen:
                self._note(f"the output {declared.name!r} is declared twice")
            seen.add(declared.name)


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
