"""Compilation of a model for one set of input shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import onnx

from driver_shim.protocol.program import MAX_BINDINGS, MAX_NAME_BYTES, TensorType
from sdk.compiler.compiled import CompiledProgram, Signature, TensorInfo
from sdk.compiler.context import NodeContext
from sdk.compiler.graph import Graph, GraphInput, GraphNode, Problem, read_graph, unsupported
from sdk.compiler.ir import Builder, Refused, Value, check_tensor
from sdk.compiler.lowering import LOWERINGS
from sdk.compiler.plan import NamedValue, encode

HANDLED = frozenset(LOWERINGS)


def model_signature(model: onnx.ModelProto) -> Signature:
    """Check everything that can be checked without shapes; returns the model's inputs and outputs as declared.

    Raises UnsupportedModel that lists every unsupported node with operator and reason.
    """
    graph = read_graph(model, HANDLED)
    return Signature(tuple(map(_declared, graph.inputs)), tuple(map(_declared, graph.outputs)))


def compile_model(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> CompiledProgram:
    """Compile a model. `shapes` gives inputs' shapes by name; those with fixed dimensions may be left out.

    Deterministic: equal models and shapes give equal bytes. Raises UnsupportedModel for what the device cannot run,
    ValueError for shapes that do not go with the model.
    """
    graph = read_graph(model, HANDLED)
    return _Compiler(graph, dict(shapes or {})).run()


def _declared(entry: GraphInput) -> TensorInfo:
    return TensorInfo(entry.name, entry.shape, entry.dtype.text)


class _Compiler:
    def __init__(self, graph: Graph, shapes: dict[str, Sequence[int]]) -> None:
        self._graph = graph
        self._builder = Builder()
        self._values: dict[str, Value] = {}
        self._shapes = shapes
        self._uses = Counter(name for node in graph.nodes for name in node.inputs)
        self._uses.update(entry.name for entry in graph.outputs)

    def run(self) -> CompiledProgram:
        names = [entry.name for entry in self._graph.inputs]
        unknown = self._shapes.keys() - set(names)
        if unknown:
            raise ValueError(f"the model has no input {min(unknown)!r}; its inputs are {', '.join(map(repr, names))}")
        self._check_bindings()
        inputs = [self._input(entry) for entry in self._graph.inputs]
        for name, array in self._graph.initializers.items():
            self._bind(name, self._builder.constant(array))
        for node in self._graph.nodes:
            self._lower(node)
        outputs = self._outputs()
        return encode(self._builder.operations, inputs, outputs)

    def _check_bindings(self) -> None:
        entries = [*self._graph.inputs, *self._graph.outputs]
        if len(entries) > MAX_BINDINGS:
            raise unsupported([Problem(f"{len(entries)} inputs and outputs; at most {MAX_BINDINGS}")])
        for entry in entries:
            if len(entry.name.encode()) > MAX_NAME_BYTES:
                raise unsupported([Problem(f"the name {entry.name[:40]!r}… exceeds {MAX_NAME_BYTES} bytes")])

    def _bind(self, name: str, value: Value) -> None:
        value.uses += self._uses[name]
        self._values[name] = value

    def _input(self, entry: GraphInput) -> NamedValue:
        value = Value(TensorType(entry.dtype, _concrete(entry, self._shapes.get(entry.name))))
        try:
            check_tensor(value.type)
        except Refused as refused:
            raise unsupported([Problem(f"input {entry.name!r}: {refused}")]) from None
        self._bind(entry.name, value)
        return entry.name, value

    def _lower(self, node: GraphNode) -> None:
        self._builder.node = node.subject.node or ""
        inputs = [self._values[name] if name else None for name in node.inputs]
        try:
            results = LOWERINGS[node.op](NodeContext(self._builder, node, inputs))
        except Refused as refused:
            raise unsupported([Problem(str(refused), node.subject)]) from None
        named = [(name, value) for name, value in zip(node.outputs, results, strict=False) if name]
        if len(named) < sum(bool(name) for name in node.outputs):
            raise unsupported([Problem(f"only its first {len(results)} outputs are supported", node.subject)])
        for name, value in named:
            self._bind(name, value)

    def _outputs(self) -> list[NamedValue]:
        """Each output the result of an operation of its own; inputs, constants and repeated ones are copied."""
        outputs: list[NamedValue] = []
        taken: set[int] = set()
        for entry in self._graph.outputs:
            value = self._values[entry.name]
            if value.dtype is not entry.dtype:
                raise unsupported(
                    [Problem(f"output {entry.name!r} is {value.dtype.text}, declared {entry.dtype.text}")]
                )
            if value.producer is None or id(value) in taken:
                self._builder.node = entry.name
                try:
                    value = self._builder.copy(value)
                except Refused as refused:
                    raise unsupported([Problem(f"output {entry.name!r}: {refused}")]) from None
            taken.add(id(value))
            outputs.append((entry.name, value))
        return outputs


def _concrete(entry: GraphInput, given: Sequence[int] | None) -> tuple[int, ...]:
    """An input's shape in numbers. Raises ValueError when the given shape does not go with the declared one."""
    declared = ", ".join(map(str, entry.shape))
    if given is None:
        if not all(isinstance(extent, int) for extent in entry.shape):
            raise ValueError(
                f"input {entry.name!r} has the shape ({declared}): give numbers, shapes={{{entry.name!r}: (...)}}"
            )
        return tuple(int(extent) for extent in entry.shape)
    shape = tuple(int(extent) for extent in given)
    fits = len(shape) == len(entry.shape) and all(
        isinstance(wanted, str) or wanted == extent for wanted, extent in zip(entry.shape, shape, strict=True)
    )
    if not fits or min(shape, default=0) < 0:
        raise ValueError(f"input {entry.name!r} has the shape ({declared}); {shape} does not go with it")
    return shape
