"""A model's graph as data: what `reader.py` makes of a model once, and every shape is compiled from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import onnx

from driver_shim.protocol.types import WireType
from sdk.compiler.compiled import ANY_SHAPE, Signature, TensorInfo
from sdk.compiler.problems import Problem, Subject
from sdk.compiler.tensor_data import Array, TensorData


@dataclasses.dataclass(frozen=True, slots=True)
class GraphInput:
    """A declared input or output; a dimension is a number, or the name of an unknown (made up if it has none)."""

    name: str
    dtype: WireType | None
    """None when the device has no such type, or none is declared."""
    shape: tuple[int | str, ...] | None
    """None when not even the rank is declared."""
    type_name: str
    """numpy's name of the element type, or "unknown"."""

    @property
    def info(self) -> TensorInfo:
        """The same for users."""
        return TensorInfo(self.name, ANY_SHAPE if self.shape is None else self.shape, self.type_name)


@dataclasses.dataclass(frozen=True, slots=True)
class GraphNode:
    """A node with its attributes decoded; those that are graphs are `Graph`s."""

    subject: Subject
    op: str
    """The operator; one of another domain than ONNX's own has that before it: "com.microsoft.FusedMatMul"."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    since: int
    """Opset version in which the operator got the meaning that this model uses."""
    proto: onnx.NodeProto
    problems: tuple[Problem, ...] = ()
    """Why the device cannot run it, as far as that is known without shapes."""
    captured: frozenset[str] = frozenset()
    """Names that its graphs read from around it."""

    @property
    def reads(self) -> set[str]:
        """All names that it reads."""
        return {name for name in self.inputs if name} | self.captured


class Opset(NamedTuple):
    """One operator set that a model uses."""

    domain: str
    version: int


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """A model, or a graph within one. Nodes are in execution order; each name is defined once, before it is read."""

    inputs: tuple[GraphInput, ...]
    """What has to be given; those with a default are in `optional`."""
    outputs: tuple[GraphInput, ...]
    """Declared outputs; their shapes are informative."""
    initializers: dict[str, Array]
    nodes: tuple[GraphNode, ...]
    optional: tuple[GraphInput, ...] = ()
    """Inputs that are initialisers too: those are their defaults."""
    problems: tuple[Problem, ...] = ()
    """Everything found, in the order of the model."""
    host_only: frozenset[str] = frozenset()
    """Names whose values the device cannot hold."""
    opsets: tuple[Opset, ...] = ()
    ir_version: int = 0
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    """What the model says of itself, by keys of its maker's."""
    tensors: dict[str, onnx.TensorProto] = dataclasses.field(default_factory=dict)
    """The initialisers as the model has them, those included that the device cannot hold."""
    data: TensorData | None = None

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        inputs, outputs, optional = (
            tuple(entry.info for entry in entries) for entries in (self.inputs, self.outputs, self.optional)
        )
        return Signature(inputs, outputs, optional)

    def without_defaults(self, names: Iterable[str]) -> Graph:
        """The graph where these inputs have to be given, instead of having a default."""
        given = frozenset(names)
        required = tuple(entry for entry in self.optional if entry.name in given)
        return dataclasses.replace(
            self,
            inputs=(*self.inputs, *required),
            optional=tuple(entry for entry in self.optional if entry.name not in given),
            initializers={name: array for name, array in self.initializers.items() if name not in given},
            tensors={name: tensor for name, tensor in self.tensors.items() if name not in given},
        )
