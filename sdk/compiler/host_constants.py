"""Constants of types that the device does not have, computed on the host while compiling.

Exporters write tables in double and shape arithmetic in double or unsigned integers. None of it reaches the device when
what comes of it is of a type that the device has: such nodes are computed by onnx's reference evaluator. A node is
*static* when what it gives follows from constants and shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import onnx

from driver_shim.protocol.types import UnsupportedType, wire_type_of
from sdk.compiler.graph import Graph, GraphInput, GraphNode
from sdk.compiler.host_model import model_of
from sdk.compiler.ir import NoSuchType, Refused, Value
from sdk.compiler.tensor_data import Array

MOST_ELEMENTS = 1 << 20
"""Of the product of a node's operands' sizes, which bounds what broadcasting and products make of them."""
CONSTANTS = frozenset({"Constant", "ConstantOfShape"})
"""Operators whose value is an attribute, of any type."""
_OF_A_SHAPE = frozenset({"ConstantOfShape", "Expand", "Reshape"})
"""Operators that give what their last operand says."""
_FROM_SHAPES = frozenset({"Shape", "Size"})
_UNBOUNDED = frozenset({"Tile", "Range", "Pad", "Resize", "Upsample", "OneHot", "Loop", "Scan", "If"})
"""Operators that give as much as their operands' values say."""
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Dropout"}
)


def is_static(op: str, inputs: Iterable[str], known: Collection[str]) -> bool:
    """Whether a node is static, when all its operands that are static are among `known`."""
    if op in _FROM_SHAPES or op == "Constant":
        return True
    read = [name for name in inputs if name]
    return bool(read) and op not in _RANDOM | _UNBOUNDED and all(name in known for name in read)


def folded(graph: Graph, foreign: Collection[str], refused: Collection[int] = ()) -> frozenset[int]:
    """Positions of static nodes whose results of `foreign` types nothing but such nodes reads.

    `refused` are positions of nodes that could not be computed after all.
    """
    known = set(graph.tensors)
    static: dict[int, GraphNode] = {}
    readers: dict[str, set[int]] = {entry.name: {0} for entry in graph.outputs}
    for node in graph.nodes:
        for name in node.reads:
            readers.setdefault(name, set()).add(node.subject.position)
        possible = not node.problems and not node.captured and node.subject.position not in refused
        if possible and is_static(node.op, node.inputs, known):
            static[node.subject.position] = node
            known.update(node.outputs)
    while True:
        read_elsewhere = [
            position
            for position, node in static.items()
            if any(name in foreign and not readers.get(name, set()) <= static.keys() for name in node.outputs)
        ]
        if not read_elsewhere:
            return frozenset(static)
        for position in read_elsewhere:
            del static[position]


class HostConstants:
    """The constants of foreign types of one compilation."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._arrays: dict[str, Array] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays or self._is_initializer(name)

    def compute(self, node: GraphNode, values: Mapping[str, Value]) -> dict[str, Array]:
        """A static node's results of types that the device has, by name; the others are kept here. Raises Refused."""
        arrays = {name: self._operand(name, node, values) for name in sorted(node.reads)}
        _check_size(node, [arrays[name] for name in node.inputs if name])
        results: dict[str, Array] = {}
        for name, array in self._evaluated(node, arrays).items():
            try:
                results[name] = array.astype(wire_type_of(array.dtype).dtype, copy=False)
            except UnsupportedType:
                self._arrays[name] = array
        return results

    def refusal(self, name: str) -> NoSuchType:
        """Why a value cannot be a command's operand."""
        try:
            wire_type_of(self._array(name).dtype)
        except UnsupportedType as error:
            return NoSuchType(f"its operand {name!r}: {error}")
        raise ValueError(f"{name!r} has a type that the device has")

    def _is_initializer(self, name: str) -> bool:
        return name in self._graph.tensors and name not in self._graph.initializers

    def _array(self, name: str) -> Array:
        if name not in self._arrays:
            tensor, data = self._graph.tensors[name], self._graph.data
            self._arrays[name] = data.array(tensor) if data is not None else onnx.numpy_helper.to_array(tensor)
        return self._arrays[name]

    def _operand(self, name: str, node: GraphNode, values: Mapping[str, Value]) -> Array:
        if name in self:
            return self._array(name)
        constant = values[name].constant
        if constant is None:
            raise self.refusal(next(other for other in node.inputs if other in self))
        return constant

    def _evaluated(self, node: GraphNode, arrays: Mapping[str, Array]) -> dict[str, Array]:
        from onnx.reference import ReferenceEvaluator

        given = {name: array for name, array in arrays.items() if name not in self._graph.tensors}
        names = [name for name in node.outputs if name]
        try:
            model = model_of(self._graph, [node], [_declared(name, array) for name, array in given.items()], names)
            return dict(zip(names, ReferenceEvaluator(model).run(None, given), strict=True))
        except Exception as error:  # the evaluator raises whatever its operators run into
            raise Refused(f"its constant operands cannot be computed with: {error}") from error


def _declared(name: str, array: Array) -> GraphInput:
    try:
        dtype = wire_type_of(array.dtype)
    except UnsupportedType:
        return GraphInput(name, None, array.shape, array.dtype.name)
    return GraphInput(name, dtype, array.shape, dtype.text)


def _check_size(node: GraphNode, operands: list[Array]) -> None:
    """Raise Refused when a node could make much of its operands."""
    size = math.prod(max(1, array.size) for array in operands)
    if node.op in _OF_A_SHAPE and operands:
        size = max(size, abs(math.prod(operands[-1].reshape(-1).tolist())))
    if size > MOST_ELEMENTS or node.op in _UNBOUNDED:
        raise Refused(f"what it gives of constants may be large; {MOST_ELEMENTS} elements are computed on the host")
