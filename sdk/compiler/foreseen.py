"""What no shapes can mend: nodes that are refused whatever a model's inputs turn out to be, told when it is read.

Some values are *data*: they come of inputs by commands, so that no compilation knows them. An input counts as data
unless a program might be compiled for its value, which takes few elements and a way to an operator that asks for some.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

import onnx

from driver_shim.protocol.types import UnsupportedType, wire_type
from sdk.compiler.graph import Graph, GraphInput, GraphNode
from sdk.compiler.host_constants import CONSTANTS, is_static
from sdk.compiler.ir import DATA_DEPENDENT
from sdk.compiler.problems import Problem, Reason

MAX_SHAPE_ELEMENTS = 1024
"""Elements of an input that may be compiled for by value: those that say shapes, axes, counts."""
MAX_REAL_ELEMENTS = 8
"""The same of real numbers that are asked for as they are: limits, depths, scales."""

_COMPUTING = """
    Equal Less LessOrEqual Greater GreaterOrEqual Add Sub Mul Div And Or Xor BitwiseAnd BitwiseOr BitwiseXor Max Min Sum
    Mean Pow Mod BitShift Where Abs Neg Sign Floor Ceil Round Exp Log Sqrt Reciprocal Tanh Sigmoid Erf Relu LeakyRelu
    Elu HardSigmoid Softplus Not Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh BitwiseNot IsNaN IsInf Clip Cast
    Identity HardSwish Mish Swish ThresholdedRelu Softsign Gelu Celu Selu PRelu MatMul Gemm Conv ConvTranspose MaxPool
    AveragePool LpPool GlobalMaxPool GlobalAveragePool GlobalLpPool BatchNormalization InstanceNormalization
    LayerNormalization RMSNormalization Softmax LogSoftmax Transpose Flatten
"""
COMPUTING = frozenset(_COMPUTING.split())
"""Operators that ask for no value while compiling, and whose first output is data where any operand is."""
_DECIDING = {"NonZero": 0, "Unique": 0, "Compress": 1, "NonMaxSuppression": 2}
"""Operators that give as much as this operand of theirs holds, which therefore must be known."""


def with_foreseen(graph: Graph) -> Graph:
    """The graph with the problems of nodes that no shapes can mend."""
    found = _Foresight(graph).problems()
    if not found:
        return graph
    nodes = tuple(
        dataclasses.replace(node, problems=(found[node.subject.position],)) if node.subject.position in found else node
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=nodes, problems=(*graph.problems, *found.values()))


def values_given(graph: Graph) -> Graph:
    """The graph without the problems that the values of its inputs may mend: some of those are given."""
    if all(problem.code is not Reason.DATA for problem in graph.problems):
        return graph
    nodes = tuple(dataclasses.replace(node, problems=_without_data(node.problems)) for node in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes, problems=_without_data(graph.problems))


def _without_data(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    return tuple(problem for problem in problems if problem.code is not Reason.DATA)


class _Foresight:
    """One walk through a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._data = {entry.name for entry in graph.inputs if _is_data(entry, graph)}
        self._static = set(graph.tensors)
        self._types: dict[str, int] = {name: tensor.data_type for name, tensor in graph.tensors.items()}
        """Element types of static values, by ONNX's numbers, as far as they are known."""

    def problems(self) -> dict[int, Problem]:
        """What is found against nodes that nothing was found against before, by their position."""
        found = {}
        for node in self._graph.nodes:
            if node.problems:
                continue
            problem = self._problem(node)
            if problem is not None:
                found[node.subject.position] = problem
            else:
                self._follow(node)
        return found

    def _problem(self, node: GraphNode) -> Problem | None:
        """Why a node is refused in any case."""
        if self._is_decided_by_data(node):
            return Problem(DATA_DEPENDENT, node.subject, Reason.DATA)
        if self._data.isdisjoint(node.inputs) or node.op not in COMPUTING:
            return None
        for name in sorted(node.reads):
            refusal = _refusal(self._types.get(name))
            if refusal is not None and name not in self._graph.tensors:  # those are told by themselves
                return Problem(f"its operand {name!r}: {refusal}", node.subject, Reason.TYPE)
        refusal = _refusal(node.attributes.get("to")) if node.op == "Cast" else None
        return None if refusal is None else Problem(refusal, node.subject, Reason.TYPE)

    def _is_decided_by_data(self, node: GraphNode) -> bool:
        position = _DECIDING.get(node.op, len(node.inputs))
        if position >= len(node.inputs):
            return False
        name = node.inputs[position]
        limit = self._graph.initializers.get(name) if node.op == "NonMaxSuppression" else None
        return name in self._data or (limit is not None and bool(limit.any()))

    def _follow(self, node: GraphNode) -> None:
        """Note what a node's outputs are."""
        if node.op in COMPUTING and not self._data.isdisjoint(node.inputs):
            self._data.update(node.outputs[:1])
        elif not node.captured and is_static(node.op, node.inputs, self._static):
            self._static.update(node.outputs)
            kind = self._static_type(node)
            if kind is not None:
                self._types[node.outputs[0]] = kind

    def _static_type(self, node: GraphNode) -> int | None:
        """The type of a static node's first output, where it is that of the first operand or said by an attribute."""
        if node.op == "Cast":
            return int(node.attributes["to"])
        if node.op in CONSTANTS:
            tensors = [attribute.t for attribute in node.proto.attribute if attribute.HasField("t")]
            return tensors[0].data_type if tensors else None
        return self._types.get(node.inputs[0]) if node.inputs and _keeps_type(node) else None


def _is_data(entry: GraphInput, graph: Graph) -> bool:
    """Whether no program can be compiled for the values of an input."""
    if entry.dtype is None:
        return False
    least = math.prod(extent for extent in entry.shape or () if isinstance(extent, int))
    most = MAX_REAL_ELEMENTS if entry.dtype.is_float else MAX_SHAPE_ELEMENTS
    return least > most or not _is_asked_for(entry.name, graph.nodes)


def _is_asked_for(name: str, nodes: Collection[GraphNode]) -> bool:
    """Whether a value goes to operators that may ask for it while compiling."""
    reached = {name}
    for node in nodes:
        if reached.isdisjoint(node.reads):
            continue
        if node.op in COMPUTING:
            reached.update(node.outputs)
        elif node.op not in _DECIDING and not node.problems:
            return True
    return False


def _keeps_type(node: GraphNode) -> bool:
    """Whether ONNX says that an operator's first output is of its first operand's type."""
    if node.proto.domain or not onnx.defs.has(node.op, node.since):
        return False
    schema = onnx.defs.get_schema(node.op, node.since, "")
    if not schema.inputs or not schema.outputs:
        return False
    return bool(schema.inputs[0].type_str == schema.outputs[0].type_str)


def _refusal(number: int | None) -> str | None:
    """Why the device does not take a type; None where it does, or the type is not known."""
    try:
        if number is not None:
            wire_type(number)
    except UnsupportedType as error:
        return str(error)
    return None
