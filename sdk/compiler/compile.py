"""Compilation of a model for one set of input shapes."""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.program import MAX_BINDINGS, MAX_NAME_BYTES, TensorType
from emulator.model.profile import Profile
from sdk import environment
from sdk.compiler.cache import cache_key, cached
from sdk.compiler.chip import key_of, known_chip, products_without_rate
from sdk.compiler.compiled import CompiledProgram, Signature
from sdk.compiler.context import NodeContext, NotConstant
from sdk.compiler.foreseen import MAX_REAL_ELEMENTS, MAX_SHAPE_ELEMENTS, values_given, with_foreseen
from sdk.compiler.graph import Graph, GraphInput, GraphNode
from sdk.compiler.host_constants import HostConstants
from sdk.compiler.inlining import inlined
from sdk.compiler.ir import Builder, DataDependent, NoSuchType, Operation, Refused, Value, check_tensor
from sdk.compiler.loading import ModelSource, open_source
from sdk.compiler.lowering import LOWERINGS
from sdk.compiler.passes import finished, fused
from sdk.compiler.passes.rewriting import Rewriting
from sdk.compiler.plan import NamedValue, encode
from sdk.compiler.problems import Problem, Reason, unsupported
from sdk.compiler.reader import read_graph
from sdk.compiler.states.binding import StatePlan, States, plan_states
from sdk.compiler.states.lengths import check_same, needs_length, other_length
from sdk.compiler.states.memory import context_of
from sdk.compiler.states.pairs import StateLayout, StatePair, find_states
from sdk.compiler.states.roles import ROWS, TABLES
from sdk.compiler.tensor_data import Array

_CODES = ((DataDependent, Reason.DATA), (NoSuchType, Reason.TYPE))
HANDLED = frozenset(LOWERINGS)
Progress = Callable[[int, int], None]
"""Told how many nodes are done, of how many."""


def read_model(source: ModelSource | Graph) -> Graph:
    """A model, read once for all shapes; what is wrong with it is in `problems`.

    Raises UnsupportedModel when it is no ONNX model, OSError when a file cannot be read, TypeError for another source.
    """
    if isinstance(source, Graph):
        return source
    opened = open_source(source)
    if environment.cache_folder() is not None:
        opened.data.begin_digest()  # which the key of the cache needs
    return with_foreseen(read_graph(inlined(opened, HANDLED), HANDLED))


def model_signature(source: ModelSource | Graph) -> Signature:
    """Check everything that can be checked without shapes; returns the model's inputs and outputs as declared.

    Raises UnsupportedModel that lists every unsupported node with operator and reason.
    """
    return _checked(source).signature


def compile_model(
    source: ModelSource | Graph,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Array] | None = None,
    *,
    states: StateLayout | None = None,
    pairs: Sequence[StatePair] | None = None,
    target: str | Path = "",
    progress: Progress | None = None,
) -> CompiledProgram:
    """Compile a model. `shapes` gives inputs' shapes by name; those with fixed dimensions may be left out.

    An initialiser that the model declares as an input, too, is one where `shapes` names it. `values` gives those inputs
    their value for good; the program does not take them. `progress(done, of)` is called for every node, and what it
    raises ends the compilation. Deterministic: equal arguments give equal bytes. Where `NPU_CACHE_DIR` names a folder,
    the program comes from there if it was compiled before, for the same `target`: the name of a chip, or a profile's
    file. Products of types that it has no rate for are refused; a chip that nothing is known of has all.

    `states` has the model's states lie in caches of the device's: the program neither takes nor gives them, and does
    not take what follows from them. `pairs` says which they are; else they are found.

    Raises UnsupportedModel for what the device cannot run, NeedsValues when shapes depend on inputs that `values`
    lacks, ValueError for shapes that do not go with the model.
    """
    if shapes is not None and not isinstance(shapes, Mapping):
        raise TypeError(f'shapes takes a shape by input, {{"x": (1, 3, 224, 224)}}, not a {type(shapes).__name__}')
    graph = _checked(values_given(read_model(source)) if values else source)
    if graph.data is not None:
        graph.data.check_unchanged()
    plan = None
    if states is not None:
        found = find_states(graph) if pairs is None else pairs
        plan = plan_states(graph, found, states, frozenset({**(shapes or {}), **(values or {})}))
    chip = known_chip(target)
    compiler = _Compiler(graph, dict(shapes or {}), dict(values or {}), progress, plan, chip=chip)
    folder = environment.cache_folder()
    if folder is None:
        return compiler.run()
    held = "" if plan is None else f"{plan.layout} {plan.pairs} context {context_of(graph)}"
    key = cache_key(graph, compiler.input_shapes(), values or {}, key_of(target, chip), held)
    return cached(folder, key, graph, compiler.run)


def _checked(source: ModelSource | Graph) -> Graph:
    graph = read_model(source)
    if graph.problems:
        raise unsupported(graph.problems)
    return graph


class NodeRefused(UnsupportedModel):
    """A node cannot run on the device with these shapes."""

    def __init__(self, message: str, *, position: int = 0, others: Sequence[int] = (), **details: Any) -> None:
        super().__init__(message, **details)
        self.position = position
        """Which of the model's nodes it is, or is within; from 1."""
        self.positions = (position, *others)
        """All for which the same reason stands."""


class NeedsValues(NodeRefused):
    """Shapes depend on what these inputs hold: a program can be compiled for each of their values."""

    def __init__(self, message: str, *, inputs: tuple[str, ...] = (), **details: Any) -> None:
        super().__init__(message, **details)
        self.inputs = inputs


class PastLength(NamedTuple):
    """What a model with states is lowered for."""

    tokens: int | None = None
    """Of the past, where the model leaves that open; None for all that it may hold."""
    places: frozenset[str] = frozenset()
    """Values that would say where tokens stand after such a past, and are to follow from the rows."""


class _Lowered(NamedTuple):
    """A model as commands."""

    operations: list[Operation]
    inputs: list[NamedValue]
    outputs: list[NamedValue]
    states: States | None
    places: frozenset[str]

    def fused(self) -> Rewriting:
        """The operations with what goes best together as one command."""
        return fused(self.operations, [value for _, value in self.outputs], self.states)


class _Compiler:
    def __init__(
        self,
        graph: Graph,
        shapes: dict[str, Sequence[int]],
        values: dict[str, Array],
        progress: Progress | None,
        plan: StatePlan | None = None,
        past: PastLength | None = None,
        chip: Profile | None = None,
    ) -> None:
        self._graph = graph
        self._chip = chip
        self._progress = progress
        self._builder = Builder()
        self._values: ChainMap[str, Value] = ChainMap()
        self._host = HostConstants(graph)
        self._shapes = shapes
        self._fixed = values
        self._plan = plan
        self._past = past or PastLength()
        self._states: States | None = None
        self._places: set[str] = set()
        """Constants of the model that say where the step's tokens stand."""
        self._input_names: dict[int, str] = {}
        """Names of the program's inputs by the identity of their values."""
        self._outermost = 0
        """Position of the model's own node that is being lowered."""

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what the program takes. Raises ValueError for names and shapes that do not go with the model.

        Those with a default are among it where a shape was given for them.
        """
        self._check_names()
        taken = [entry for entry in self._graph.optional if entry.name in self._shapes]
        absent = frozenset() if self._plan is None else self._plan.absent
        given = self._shapes
        if self._plan is not None:
            given = {**self._plan.replaced_shapes(self._graph, given), **given}
        return {
            entry.name: _concrete(entry, given.get(entry.name))
            for entry in (*self._graph.inputs, *taken)
            if entry.name not in self._fixed and entry.name not in absent
        }

    def run(self) -> CompiledProgram:
        shapes = self.input_shapes()
        self._check_bindings()
        lowered = self._lowered(shapes)
        if lowered.states is not None and needs_length(self._graph, lowered.states.plan):
            lowered, rewriting = self._for_all_lengths(shapes, lowered, lowered.states)
        else:
            rewriting = lowered.fused()
        caches = [] if lowered.states is None else list(lowered.states.caches.items())
        infos = () if self._plan is None else self._plan.infos(self._graph, shapes)
        operations = finished(rewriting)
        self._check_rates(operations)
        program = encode(operations, lowered.inputs, lowered.outputs, self._graph.initializers, caches, infos)
        for operation in (*lowered.operations, *operations):
            operation.outputs = ()  # they refer to each other, and with them constants would wait for the collector
        return program

    def _lowered(self, shapes: Mapping[str, tuple[int, ...]]) -> _Lowered:
        """Every node as commands."""
        overridden = {entry.name for entry in self._graph.optional if entry.name in self._shapes}
        declared = {entry.name: entry for entry in (*self._graph.inputs, *self._graph.optional)}
        inputs = [self._input(declared[name], shape) for name, shape in shapes.items()]
        for name, array in {**self._graph.initializers, **self._fixed}.items():
            if name not in overridden or name in self._fixed:
                self._values[name] = self._builder.constant(array)
        if self._plan is not None and self._plan.cached:
            self._states = States(self._graph, self._plan, shapes, self._builder, self._past.tokens)
            self._values.update(self._states.values())
            inputs += self._states.inputs()
        for done, node in enumerate(self._graph.nodes):
            if self._progress is not None:
                self._progress(done, len(self._graph.nodes))
            self._outermost = node.subject.position
            self._lower(node)
        outputs = self._outputs()
        return _Lowered(self._builder.operations, inputs, outputs, self._states, frozenset(self._places))

    def _for_all_lengths(
        self, shapes: Mapping[str, tuple[int, ...]], lowered: _Lowered, states: States
    ) -> tuple[_Lowered, Rewriting]:
        """A program for one length of the past that is the same for another. Raises UnsupportedModel if it is not."""
        lengths = (states.length, other_length(states))
        rewriting = lowered.fused()  # whatever is wrong with one length is said of that
        other = self._anew(PastLength(lengths[1]), shapes)
        places = lowered.places & other.places
        if places:
            lowered, other = (self._anew(PastLength(each, places), shapes) for each in lengths)
            rewriting = lowered.fused()
        if lowered.states is not None and other.states is not None:
            check_same(self._graph, (lowered.states, rewriting), (other.states, other.fused()))
        return lowered, rewriting

    def _anew(self, past: PastLength, shapes: Mapping[str, tuple[int, ...]]) -> _Lowered:
        """The same lowered for another length of the past, or with its places following from the rows."""
        return _Compiler(self._graph, self._shapes, self._fixed, self._progress, self._plan, past)._lowered(shapes)

    def _check_names(self) -> None:
        """Raise ValueError for shapes and values of inputs that there are not."""
        entries = (*self._graph.inputs, *self._graph.optional)
        names = [entry.name for entry in entries]
        unknown = (self._shapes.keys() | self._fixed.keys()) - set(names)
        if unknown:
            raise ValueError(f"the model has no input {min(unknown)!r}; its inputs are {', '.join(map(repr, names))}")
        for entry in entries:
            array = self._fixed.get(entry.name)
            if array is not None and (entry.dtype is None or array.dtype != entry.dtype.dtype):
                raise ValueError(f"input {entry.name!r} is {entry.type_name}; a value of {array.dtype} was given")

    def _check_rates(self, operations: Sequence[Operation]) -> None:
        """Raise NodeRefused for nodes that multiply what the chip does not, UnsupportedModel where none is to blame."""
        if self._chip is None:
            return
        problems = products_without_rate(self._graph, operations, self._chip)
        if not problems:
            return
        error = unsupported(problems)
        first, *others = (problem.subject.position for problem in problems)
        if not first:
            raise error
        details = {"node": error.node, "op": error.op, "problems": error.problems, "subsystem": "compiler"}
        raise NodeRefused(error.message, position=first, others=others, **details)

    def _check_bindings(self) -> None:
        entries = [*self._graph.inputs, *self._graph.outputs]
        if self._plan is not None:
            entries = [entry for entry in entries if entry.name not in self._plan.absent | self._plan.presents]
            taken = next((entry.name for entry in entries if entry.name in (ROWS, TABLES)), None)
            if taken is not None:
                reason = f"a run with states has an input {taken!r} of its own: give the model's another name"
                raise unsupported([Problem(reason, code=Reason.FORM)])
        if len(entries) > MAX_BINDINGS:
            raise unsupported([Problem(f"{len(entries)} inputs and outputs; at most {MAX_BINDINGS}")])
        for entry in entries:
            if len(entry.name.encode()) > MAX_NAME_BYTES:
                raise unsupported([Problem(f"the name {entry.name[:40]!r}… exceeds {MAX_NAME_BYTES} bytes")])

    def _input(self, entry: GraphInput, shape: tuple[int, ...]) -> NamedValue:
        if entry.dtype is None:
            raise ValueError(f"input {entry.name!r} has a type that no program takes")
        value = Value(TensorType(entry.dtype, shape))
        try:
            check_tensor(value.type)
        except Refused as refused:
            raise unsupported([Problem(f"input {entry.name!r}: {refused}", code=Reason.FORM)]) from None
        self._values[entry.name] = value
        self._input_names[id(value)] = entry.name
        return entry.name, value

    def _lower(self, node: GraphNode) -> None:
        outer, self._builder.node = self._builder.node, node.subject.node or ""
        try:
            self._values.update(self._followed(node, self._results(node)))
        except NotConstant as refused:
            raise self._needs_values(refused, node) or self._refusal(refused, node) from None
        except Refused as refused:
            raise self._refusal(refused, node) from None
        self._builder.node = outer

    def _followed(self, node: GraphNode, results: dict[str, Value]) -> dict[str, Value]:
        """The results of a node, where they say how long the past is: as they follow from the rows."""
        if self._states is None:
            return results
        for name, value in results.items():
            results[name] = self._states.followed(value)
            if self._states.are_places(value, node.op):
                self._places.add(name)
                if name in self._past.places:
                    results[name] = self._states.places(value)
        return results

    def _results(self, node: GraphNode) -> dict[str, Value]:
        """What a node gives, by name, but for what only the host can hold. Raises Refused."""
        if any(name in self._host for name in node.reads):
            return self._computed(node)
        try:
            results = self.lower(node, [self._values[name] if name else None for name in node.inputs])
        except NoSuchType:
            if any(self._values[name].constant is None for name in node.reads):
                raise
            return self._computed(node)
        named = {name: value for name, value in zip(node.outputs, results, strict=False) if name}
        if len(named) < sum(bool(name) for name in node.outputs):
            raise Refused(f"only its first {len(results)} outputs are supported")
        return named

    def _computed(self, node: GraphNode) -> dict[str, Value]:
        """The same for a node of constants that reads or gives types that the device does not have."""
        return {name: self._builder.constant(array) for name, array in self._host.compute(node, self._values).items()}

    def lower(self, node: GraphNode, inputs: Sequence[Value | None]) -> Sequence[Value]:
        """Emit a node's commands. Raises Refused."""
        return LOWERINGS[node.op](NodeContext(self._builder, node, inputs, self))

    def is_state(self, value: Value) -> bool:
        """Whether a value is what a state of the device's held before."""
        return self._states is not None and any(value is state.past for state in self._states.cached)

    def run_graph(self, graph: Graph, inputs: Sequence[Value | None]) -> list[Value]:
        """Lower a graph within a node; it sees all that is around it."""
        if len(inputs) != len(graph.inputs):
            raise Refused(f"a graph within it takes {len(graph.inputs)} inputs, not {len(inputs)}")
        around, self._values = self._values, self._values.new_child()
        try:
            for entry, value in zip(graph.inputs, inputs, strict=True):
                if value is not None:
                    self._values[entry.name] = value
            for name, array in graph.initializers.items():
                self._values[name] = self._builder.constant(array)
            for node in graph.nodes:
                self._lower(node)
            return [self._values[entry.name] for entry in graph.outputs]
        finally:
            self._values = around

    def run_branch(self, graph: Graph, condition: Value) -> list[Value]:
        """Lower a graph within a node that is chosen by a condition; what cannot run may never be chosen."""
        try:
            return self.run_graph(graph, [])
        except NeedsValues:
            raise
        except NodeRefused as error:
            why = "; ".join(f"{problem.op} {problem.node!r}: {problem.reason}" for problem in error.problems)
            raise NotConstant(condition, f"its condition is not constant, and a branch cannot run: {why}") from None

    def _needs_values(self, refused: NotConstant, node: GraphNode) -> NeedsValues | None:
        """The error that asks for the inputs' values, where those alone make up what has to be constant."""
        roots = _roots(refused.value)
        names = [self._input_names.get(id(root)) for root in roots]
        few = all(root.type.elements <= (1 if root.dtype.is_float else MAX_SHAPE_ELEMENTS) for root in roots)
        few = few or (roots == [refused.value] and refused.value.type.elements <= MAX_REAL_ELEMENTS)
        known = tuple(sorted(name for name in names if name is not None))
        if not few or not known or len(known) < len(roots):
            return None
        error = self._refusal(refused, node)
        return NeedsValues(
            f"{error.message}; it depends on the values of {', '.join(map(repr, known))}",
            inputs=known,
            position=error.position,
            node=error.node,
            op=error.op,
            problems=error.problems,
            subsystem="compiler",
        )

    def _refusal(self, refused: Refused, node: GraphNode) -> NodeRefused:
        code = next((code for kind, code in _CODES if isinstance(refused, kind)), Reason.FORM)
        error = unsupported([Problem(str(refused), node.subject, code)])
        return NodeRefused(
            error.message,
            position=self._outermost,
            node=error.node,
            op=error.op,
            problems=error.problems,
            subsystem="compiler",
        )

    def _outputs(self) -> list[NamedValue]:
        """Each output the result of an operation of its own; inputs, constants and repeated ones are copied."""
        outputs: list[NamedValue] = []
        taken: set[int] = set()
        for entry in self._graph.outputs:
            if entry.name in self._host:
                refusal = str(self._host.refusal(entry.name))
                raise unsupported([Problem(f"output {entry.name!r}: {refusal}", code=Reason.TYPE)])
            value = self._values[entry.name]
            state = None if self._states is None else self._states.present_of(entry.name)
            if state is not None:
                state.present = value
                continue
            if self._plan is not None:
                self._plan.check_replaced(self._graph, entry.name, value, self._values)
            if entry.dtype is not None and value.dtype is not entry.dtype:
                raise unsupported([Problem(f"output {entry.name!r} is {value.dtype.text}, declared {entry.type_name}")])
            if value.producer is None or id(value) in taken:
                self._builder.node = entry.name
                try:
                    value = self._builder.copy(value)
                except Refused as refused:
                    raise unsupported([Problem(f"output {entry.name!r}: {refused}")]) from None
            taken.add(id(value))
            outputs.append((entry.name, value))
        return outputs


def _roots(value: Value) -> list[Value]:
    """The values that nothing computes, of which this one is made; constants left out."""
    roots: dict[int, Value] = {}
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if found.producer is not None:
            waiting += [operand for operand in found.producer.inputs if operand is not None]
        elif found.constant is None:
            roots[id(found)] = found
    return list(roots.values())


def _numbers(name: str, given: Any) -> tuple[int, ...]:
    """A given shape as whole numbers. Raises TypeError for what is none."""
    try:
        return tuple(operator.index(extent) for extent in given)
    except TypeError:
        raise TypeError(
            f"input {name!r}: {given!r} is no shape; compile takes one shape for an input, in whole numbers:"
            f" shapes={{{name!r}: (1, 3, 224, 224)}}"
        ) from None


def _concrete(entry: GraphInput, given: Sequence[int] | None) -> tuple[int, ...]:
    """An input's shape in numbers. Raises ValueError when the given shape does not go with the declared one."""
    declared = f"({', '.join(map(str, entry.shape))})" if entry.shape is not None else "of any rank"
    if given is None:
        if entry.shape is None or not all(isinstance(extent, int) for extent in entry.shape):
            raise ValueError(
                f"input {entry.name!r} has the shape {declared}: give numbers, shapes={{{entry.name!r}: (...)}}"
            )
        return tuple(int(extent) for extent in entry.shape)
    shape = _numbers(entry.name, given)
    if min(shape, default=0) < 0:
        raise ValueError(f"input {entry.name!r}: {shape} has a negative dimension")
    fits = entry.shape is None or (
        len(shape) == len(entry.shape)
        and all(isinstance(wanted, str) or wanted == extent for wanted, extent in zip(entry.shape, shape, strict=True))
    )
    if not fits:
        raise ValueError(f"input {entry.name!r} has the shape {declared}; {shape} does not go with it")
    return shape
