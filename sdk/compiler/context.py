"""The lowering's view of one node: its operands, its attributes, and a builder to emit commands with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from driver_shim.protocol.program import MAX_DIMENSION
from driver_shim.protocol.types import UnsupportedType, WireType, wire_type
from sdk.compiler.graph import Graph, GraphNode
from sdk.compiler.ir import Builder, NoSuchType, Refused, Value

NEWEST = 1 << 16
"""An opset version that every operator's latest meaning is older than."""


class Compiler(Protocol):
    """What a lowering asks of the compiler for operators that are made of others."""

    def run_graph(self, graph: Graph, inputs: Sequence[Value | None]) -> list[Value]:
        """Lower a graph within the node for these inputs; returns its outputs."""

    def run_branch(self, graph: Graph, condition: Value) -> list[Value]:
        """Lower a graph that may be chosen by a condition which is not constant; returns its outputs."""

    def lower(self, node: GraphNode, inputs: Sequence[Value | None]) -> Sequence[Value]:
        """Lower a node; returns its outputs."""

    def is_state(self, value: Value) -> bool:
        """Whether a value is what a state of the device's held before."""


class NotConstant(Refused):
    """Something has to be known while compiling, and `value` is not."""

    def __init__(self, value: Value, message: str) -> None:
        super().__init__(message)
        self.value = value


class NodeContext:
    """One node being lowered."""

    def __init__(self, builder: Builder, node: GraphNode, inputs: Sequence[Value | None], compiler: Compiler) -> None:
        self.builder = builder
        self.inputs = inputs
        self._compiler = compiler
        self._node = node
        self.since = node.since
        """Opset version in which the operator got its present meaning."""
        self.op = node.op
        self.output_count = len(node.outputs)
        self._attributes = node.attributes

    def wants(self, position: int) -> bool:
        """Whether the model reads an output that may be left out."""
        return position < len(self._node.outputs) and bool(self._node.outputs[position])

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, strings decoded."""
        value = self._attributes.get(name)
        return default if value is None else value

    def value(self, position: int) -> Value:
        """A required operand. Raises Refused when it is left out."""
        value = self.optional(position)
        if value is None:
            raise Refused(f"its input {position} is missing")
        return value

    def optional(self, position: int) -> Value | None:
        """An operand that may be left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def constant_ints(self, position: int, what: str) -> list[int] | None:
        """An optional operand that must be constant whole numbers, flattened."""
        value = self.optional(position)
        if value is None:
            return None
        if value.constant is None or value.dtype.is_float:
            raise NotConstant(value, f"its {what} must be constant whole numbers")
        return [int(element) for element in value.constant.reshape(-1)]

    def constant_floats(self, position: int, what: str) -> list[float] | None:
        """An optional operand that must be constant numbers, flattened."""
        value = self.optional(position)
        if value is None:
            return None
        if value.constant is None:
            raise NotConstant(value, f"its {what} must be constant numbers")
        return [float(element) for element in value.constant.reshape(-1)]

    def constant_float(self, position: int, what: str) -> float | None:
        """An optional operand that must be one constant number."""
        value = self.optional(position)
        if value is None:
            return None
        if value.constant is None or value.constant.size != 1:
            raise NotConstant(value, f"its {what} must be one constant number")
        return float(value.constant.reshape(())[()])

    def not_constant(self, position: int, what: str) -> Refused:
        """The error that says that an operand would have to be known: "its `what`"."""
        return NotConstant(self.value(position), f"its {what}")

    def depends(self, value: Value, message: str) -> Refused:
        """The error that says that a value would have to be known."""
        return NotConstant(value, message)

    def is_state(self, position: int) -> bool:
        """Whether an operand is what a state of the device's held before: it has room for what is new."""
        value = self.optional(position)
        return value is not None and self._compiler.is_state(value)

    def graph(self, name: str) -> Graph:
        """An attribute that is a graph. Raises Refused when it is missing."""
        graph = self.attribute(name)
        if not isinstance(graph, Graph):
            raise Refused(f"its {name} is missing")
        return graph

    def apply(self, op: str, inputs: Sequence[Value | None], **attributes: Any) -> Sequence[Value]:
        """Lower another operator, in its newest meaning, as a part of this one."""
        inner = dataclasses.replace(self._node, op=op, inputs=(), attributes=attributes, since=NEWEST)
        return self._compiler.lower(inner, inputs)

    def run_graph(self, graph: Graph, inputs: Sequence[Value | None]) -> list[Value]:
        """Lower a graph within the node for these inputs; returns its outputs."""
        return self._compiler.run_graph(graph, inputs)

    def run_branch(self, graph: Graph, condition: Value) -> list[Value]:
        """The same for a branch. Where it cannot run, it takes the condition's value to tell whether it has to."""
        return self._compiler.run_branch(graph, condition)

    def wire_type(self, number: int) -> WireType:
        """The type with an ONNX number. Raises Refused."""
        try:
            return wire_type(number)
        except UnsupportedType as error:
            raise NoSuchType(str(error)) from None

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from 0. Raises Refused when there is none such."""
        if not -rank <= axis < rank:
            raise Refused(f"axis {axis} of a tensor of rank {rank}")
        return axis % rank

    def axes(self, axes: Sequence[int], rank: int) -> list[int]:
        """Distinct axes counted from 0, sorted. Raises Refused."""
        return sorted(self.axes_as_given(axes, rank))

    def axes_as_given(self, axes: Sequence[int], rank: int) -> list[int]:
        """Distinct axes counted from 0, in the order in which other operands speak of them. Raises Refused."""
        normal = [self.axis(int(axis), rank) for axis in axes]
        if len(set(normal)) != len(normal):
            raise Refused(f"axes {list(axes)} name a dimension twice")
        return normal


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A target shape. Raises Refused when a dimension is impossible."""
    if any(not 0 <= extent <= MAX_DIMENSION for extent in shape):
        raise Refused(f"the shape {list(shape)} is impossible")
    return tuple(int(extent) for extent in shape)


def trimmed(operands: Sequence[Value | None]) -> list[Value | None]:
    """Operands without those that are left out at the end."""
    kept = list(operands)
    while kept and kept[-1] is None:
        del kept[-1]
    return kept


Lowering = Callable[[NodeContext], Sequence[Value]]
"""Emits a node's commands; returns its outputs in order."""
