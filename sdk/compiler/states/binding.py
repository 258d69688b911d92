"""A model's states while it is compiled: pasts and what follows from them as values, and the caches they lie in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import ROW_FIELDS
from driver_shim.protocol.types import WireType, constant_type_of
from sdk.compiler.compiled import StateInfo
from sdk.compiler.graph import Graph, GraphInput
from sdk.compiler.ir import Array, Builder, Operation, Refused, Value
from sdk.compiler.problems import Problem, unsupported
from sdk.compiler.states.following import WHOLE, Following
from sdk.compiler.states.memory import cache_places, caches_of, context_of
from sdk.compiler.states.pairs import StateLayout, StatePair, refused, state_infos
from sdk.compiler.states.roles import MAY_BE_GIVEN, ROWS, TABLES, Lengths, Role, derived_inputs, step_of


@dataclasses.dataclass(eq=False, slots=True)
class CachedState:
    """One state that lies in a cache of the device's."""

    pair: StatePair
    past: Value
    """Which stands for what the state held; no program has it."""
    cache: Value
    plane: int
    present: Value | None = None
    """What the model gives as the next value."""


@dataclasses.dataclass(frozen=True, slots=True)
class StatePlan:
    """What is known of a model's states before anything is compiled."""

    pairs: tuple[StatePair, ...]
    layout: StateLayout
    roles: Mapping[str, Role]
    """Of the inputs that nobody has to give."""

    @property
    def cached(self) -> tuple[StatePair, ...]:
        """Those that lie in caches."""
        return tuple(pair for pair in self.pairs if pair.is_cached)

    @property
    def absent(self) -> frozenset[str]:
        """Inputs that the program does not take."""
        return frozenset(self.roles) | {pair.past for pair in self.cached}

    @property
    def presents(self) -> frozenset[str]:
        """Outputs that the program does not give."""
        return frozenset(pair.present for pair in self.cached)

    @property
    def replaced(self) -> tuple[StatePair, ...]:
        """Those that are inputs and outputs of the program."""
        return tuple(pair for pair in self.pairs if not pair.is_cached)

    def replaced_shapes(self, graph: Graph, given: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Shapes of those that are replaced, as far as they follow from shapes that are given."""
        declared = {entry.name: entry.shape or () for entry in graph.inputs}
        extents = {
            name: int(extent)
            for entry, shape in given.items()
            for name, extent in zip(declared.get(entry, ()), shape, strict=False)
        }
        shapes = {
            pair.past: tuple(extents.get(n, n) if isinstance(n, str) else n for n in declared[pair.past])
            for pair in self.replaced
        }
        return {
            name: tuple(map(int, shape))
            for name, shape in shapes.items()
            if shape and not any(isinstance(extent, str) for extent in shape)
        }

    def check_replaced(self, graph: Graph, output: str, value: Value, values: Mapping[str, Value]) -> None:
        """Raise UnsupportedModel where an output is the next value of a state of another type or shape."""
        pair = next((pair for pair in self.replaced if pair.present == output), None)
        past = values.get(pair.past) if pair is not None else None
        if pair is not None and past is not None and past.type != value.type:
            node = next((each.subject for each in graph.nodes if output in each.outputs), None)
            raise refused(pair, f"its next value is {value.type}, and it is {past.type}", node)

    def infos(self, graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> tuple[StateInfo, ...]:
        """What users see of the states, in a program for these shapes."""
        return tuple(
            info if pair.is_cached else info._replace(shape=shapes[pair.past])
            for pair, info in zip(self.pairs, state_infos(graph, self.pairs), strict=True)
        )


def plan_states(graph: Graph, pairs: Sequence[StatePair], layout: StateLayout, given: frozenset[str]) -> StatePlan:
    """Which inputs a program takes, where a caller gives some by name. Raises ValueError for those it must not."""
    roles = derived_inputs(graph, pairs)
    wrong = sorted(name for name in given & roles.keys() if roles[name] not in MAY_BE_GIVEN)
    if wrong:
        raise ValueError(f"input {wrong[0]!r} follows from the state; leave it out")
    past = sorted(given & {pair.past for pair in pairs if pair.is_cached})
    if past:
        raise ValueError(f"input {past[0]!r} is a state, which the device holds; leave it out")
    return StatePlan(tuple(pairs), layout, {name: role for name, role in roles.items() if name not in given})


class States:
    """The states of one program that is being compiled."""

    def __init__(
        self,
        graph: Graph,
        plan: StatePlan,
        shapes: Mapping[str, tuple[int, ...]],
        builder: Builder,
        length: int | None = None,
    ) -> None:
        """`length` is that of the pasts where the model leaves it open; else all that a state may hold."""
        step = step_of(shapes, {pair.past for pair in plan.pairs})
        if step is None:
            raise unsupported([Problem("a model with states takes no input of [rows, tokens], as input_ids are")])
        self.plan = plan
        self.step = step
        self.rows = Value(TensorType(WireType.INT32, (step.rows, len(ROW_FIELDS))))
        self.tables = Value(TensorType(WireType.INT32, (plan.layout.slots, plan.layout.entries)))
        self.graph = graph
        self.length = self._longest() if length is None else length
        self._declared = {entry.name: entry for entry in graph.inputs}
        self.caches: dict[str, Value] = {}
        """By the names of their bindings."""
        self.cached = self._placed()
        self._lengths = Lengths(builder, self.rows, step)
        self._following = self._followed_pasts()

    def inputs(self) -> list[tuple[str, Value]]:
        """What the program takes for them."""
        return [(ROWS, self.rows), (TABLES, self.tables)]

    def values(self) -> dict[str, Value]:
        """The inputs that the program does not take, by name."""
        values = {state.pair.past: state.past for state in self.cached}
        for name, role in self.plan.roles.items():
            entry = self._declared[name]
            try:
                values[name] = self._lengths.of(role, entry.dtype or WireType.INT64, self._shape(entry, role))
            except Refused as error:
                raise unsupported([Problem(f"input {name!r}, {role.value}: {error}")]) from None
        return values

    def _shape(self, entry: GraphInput, role: Role) -> tuple[int, ...]:
        """The shape of an input that follows from the states."""
        shape = entry.shape or ()
        if role in (Role.POSITIONS, Role.PLACES):
            return tuple(self.step)[2 - len(shape) :]
        if role is Role.MASK:
            return self.step.rows, self._width()
        return tuple([self.step.rows if role is not Role.LONGEST else 1, 1][: len(shape)])

    def _width(self) -> int:
        """Tokens that a mask says something about: those of the past, and new ones where it grows."""
        state = self.cached[0]
        return state.past.shape[state.pair.axis or 0] + (self.step.tokens if state.pair.grows else 0)

    @property
    def grows(self) -> bool:
        """Whether the model was compiled for one length of what the states hold."""
        return any(state.pair.grows for state in self.cached)

    def _longest(self) -> int:
        """Tokens of the pasts so that all which a state may hold is there after the step."""
        held = min(self.plan.layout.max_tokens, context_of(self.graph) or self.plan.layout.max_tokens)
        grows = any(pair.grows for pair in self.plan.cached)
        return max(0, held - self.step.tokens) if grows else max(held, self.step.tokens)

    def _placed(self) -> tuple[CachedState, ...]:
        """Each state with its plane of a cache."""
        infos = state_infos(self.graph, self.plan.cached)
        for info in caches_of(infos, self.plan.layout):
            self.caches[info.name] = Value(TensorType(constant_type_of(info.dtype), tuple(map(int, info.shape))))
        caches, places = list(self.caches.values()), cache_places(infos)
        placed = []
        for pair in self.plan.cached:
            place = places[pair.past]
            cache = caches[place.cache]
            placed.append(CachedState(pair, self._past(pair, cache.dtype), cache, place.plane))
        return tuple(placed)

    def _past(self, pair: StatePair, dtype: WireType) -> Value:
        shape = list(self._declared[pair.past].shape or ())
        shape[0] = self.step.rows
        axis = pair.axis or 0
        if isinstance(shape[axis], str):
            shape[axis] = self.length
        return Value(TensorType(dtype, tuple(int(extent) for extent in shape)))

    def are_places(self, value: Value, op: str) -> bool:
        """Whether a constant is where the step's tokens stand, after a past as long as the one compiled for."""
        rows, tokens = self.step
        shapes: list[tuple[int, ...]] = [(1, tokens), (rows, tokens)]
        if op == "Range" and rows == 1:
            shapes.append((tokens,))
        if value.constant is None or value.shape not in shapes or value.dtype not in WHOLE:
            return False
        return bool(np.all(value.constant == self.length + np.arange(tokens)))

    def places(self, value: Value) -> Value:
        """What stands for such a constant: where the tokens of each row stand."""
        shape = value.shape if len(value.shape) == 1 else tuple(self.step)
        return self._lengths.of(Role.POSITIONS, value.dtype, shape)

    def followed(self, value: Value) -> Value:
        """A value; where it is what a state holds and a constant more, as that follows from the rows."""
        more = self._following.beyond_past(value) if self._following is not None else None
        return value if more is None else self._lengths.past_and(more, value.dtype, value.shape)

    def pasts(self) -> list[Array]:
        """Tokens held by each row, made up, for which the model is compiled: any, or those of one length alone."""
        rows, tokens = self.step
        state = self.cached[0]
        extent = state.past.shape[state.pair.axis or 0]
        if self.grows:
            return [np.full(rows, extent)]
        room = extent + 3 if state.pair.ring else max(0, extent - tokens)
        return [np.zeros(rows, np.int64), np.full(rows, room), np.arange(rows) * 7 % (room + 1)]

    def _followed_pasts(self) -> Following | None:
        if not self.cached:
            return None
        pasts = self.pasts()
        other = np.abs(pasts[0] - 1) if self.grows else None
        return Following(self.rows, pasts, self.step.tokens, other)

    def present_of(self, name: str) -> CachedState | None:
        """The state that has this output as its next value."""
        return next((state for state in self.cached if state.pair.present == name), None)

    def refused(self, state: CachedState, reason: str, operation: Operation | None) -> UnsupportedModel:
        """The error that says why a state cannot lie in a cache, and at which node."""
        subjects = {each.subject.node: each.subject for each in self.graph.nodes}
        nodes = () if operation is None else operation.nodes
        return refused(state.pair, reason, next((subjects[node] for node in reversed(nodes) if node in subjects), None))
