"""Inputs that follow from how many tokens a state holds: nobody has to give them, and the device computes them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind, ReduceFunction
from driver_shim.protocol.types import WireType
from sdk.compiler.graph import Graph, GraphInput, GraphNode
from sdk.compiler.ir import Array, Builder, Value
from sdk.compiler.lowering.elementwise import binary, cast
from sdk.compiler.lowering.movement import cut
from sdk.compiler.states.pairs import StatePair

ROWS = "state.rows"
"""The program's input that says (slot, past, count) of each row."""
TABLES = "state.tables"
"""The program's input that holds the block numbers of every slot."""


class Role(enum.Enum):
    """What an input says of the state, of each row."""

    PAST = "tokens held before the step"
    TOTAL = "tokens held after the step"
    LAST = "the place of the step's last token"
    LONGEST = "tokens held after the step, of the longest row"
    COUNT = "tokens of the step that count"
    POSITIONS = "the place of every token of the step"
    PLACES = "the same for one row alone"
    MASK = "which tokens there are"


BY_NAME = {
    "position_ids": Role.POSITIONS,
    "cache_position": Role.PLACES,
    "attention_mask": Role.MASK,
    "token_counts": Role.COUNT,
    "write_indices": Role.PAST,
    "nonpad_kv_seqlen": Role.TOTAL,
    "seqlens_k": Role.LAST,
    "total_sequence_length": Role.LONGEST,
}
BY_USE = {
    ("TensorScatter", 2): Role.PAST,
    ("Attention", 6): Role.TOTAL,
    ("com.microsoft.GroupQueryAttention", 5): Role.LAST,
    ("com.microsoft.GroupQueryAttention", 6): Role.LONGEST,
}
"""(operator, place of the operand) → what the operand says."""
MAY_BE_GIVEN = frozenset({Role.POSITIONS, Role.PLACES})
"""What a caller may say otherwise: where tokens stand in a text is the caller's, where they lie in memory is not."""
_RANKS = {
    Role.PAST: (1,),
    Role.TOTAL: (1,),
    Role.LAST: (1, 2),
    Role.LONGEST: (0, 1),
    Role.COUNT: (1,),
    Role.POSITIONS: (2,),
    Role.PLACES: (1,),
    Role.MASK: (2,),
}
_STEP_INPUTS = ("input_ids", "inputs_embeds", "tokens", "decoder_input_ids")


class Step(NamedTuple):
    """What one execution of a program takes."""

    rows: int
    tokens: int
    """Of each row, at most."""


def derived_inputs(graph: Graph, pairs: Sequence[StatePair]) -> dict[str, Role]:
    """The inputs that follow from the states, by name; none where nothing is cached."""
    if not any(pair.is_cached for pair in pairs):
        return {}
    pasts = {pair.past for pair in pairs}
    used = _by_use(graph)
    roles = {entry.name: used.get(entry.name) or BY_NAME.get(entry.name) for entry in graph.inputs}
    return {
        entry.name: role
        for entry in graph.inputs
        if (role := roles[entry.name]) is not None and entry.name not in pasts and _fits(entry, role)
    }


def _by_use(graph: Graph) -> dict[str, Role]:
    """What inputs say that a node which knows states reads, as they are or in another type."""
    sources = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.op in ("Cast", "Identity")}
    return {_source(sources, node, at): role for node in graph.nodes for at, role in _roles_of(node)}


def _roles_of(node: GraphNode) -> list[tuple[int, Role]]:
    return [(at, role) for (op, at), role in BY_USE.items() if op == node.op and at < len(node.inputs)]


def _source(sources: Mapping[str, str], node: GraphNode, at: int) -> str:
    name = node.inputs[at]
    while name in sources:
        name = sources[name]
    return name


def _fits(entry: GraphInput, role: Role) -> bool:
    return entry.dtype is not None and entry.shape is not None and len(entry.shape) in _RANKS[role]


def step_of(shapes: Mapping[str, tuple[int, ...]], taken: Collection[str]) -> Step | None:
    """Rows and tokens of a step, by the shapes of what it takes; None where nothing says them."""
    name = step_input({name: len(shape) for name, shape in shapes.items()}, taken)
    return None if name is None else Step(*shapes[name][:2])


def step_input(ranks: Mapping[str, int], taken: Collection[str]) -> str | None:
    """The input whose first two dimensions are rows and tokens; None where there is none but those `taken`."""
    names = [*(name for name in _STEP_INPUTS if name in ranks), *ranks]
    return next((name for name in names if name not in taken and ranks[name] >= 2), None)


class Lengths:
    """What follows from the rows, each computed once, by commands."""

    def __init__(self, builder: Builder, rows: Value, step: Step) -> None:
        self._builder = builder
        self._rows = rows
        self._step = step
        self._sums: dict[tuple[WireType, tuple[int, ...], bytes], Value] = {}
        self._known: dict[tuple[Role, WireType, tuple[int, ...]], Value] = {}

    def of(self, role: Role, dtype: WireType, shape: tuple[int, ...]) -> Value:
        """An input of this role. Raises Refused for a shape that it cannot have."""
        found = self._known.get((role, dtype, shape))
        if found is None:
            value = cast(self._builder, _MAKERS[role](self, shape), dtype)
            found = self._known[role, dtype, shape] = self._builder.reshape(value, shape)
        return found

    def column(self, index: int) -> Value:
        """One number of each row: int32[rows, 1]."""
        key = Role.PAST if index == 1 else Role.COUNT, WireType.INT32, (self._step.rows, 1)
        if key not in self._known:
            self._known[key] = cut(self._builder, self._rows, [0, index], [1, 1], (self._step.rows, 1))
        return self._known[key]

    def past_plus(self, number: int) -> Value:
        """The tokens held before, and some more."""
        if not number:
            return self.column(1)
        return binary(self._builder, BinaryFunction.ADD, self.column(1), self._constant(number))

    def past_and(self, more: Array, dtype: WireType, shape: tuple[int, ...]) -> Value:
        """The tokens held before, and a constant more, of every row: as a value of this type and shape.

        Where that counts the step's tokens, it is where they stand, as `positions` has it.
        """
        first = int(more.flat[0])
        if more.size > 1 and np.array_equal(more.reshape(-1), first + np.arange(self._step.tokens)):
            return self._places_from(first, dtype, shape)
        key = dtype, shape, more.tobytes()
        if key not in self._sums:
            held = cast(
                self._builder, self._builder.reshape(self.column(1), (shape[0], *[1] * (len(shape) - 1))), dtype
            )
            added = self._builder.constant(more.astype(dtype.dtype))
            self._sums[key] = binary(self._builder, BinaryFunction.ADD, held, added) if np.any(more) else held
        return self._builder.expand(self._sums[key], shape)

    def _places_from(self, first: int, dtype: WireType, shape: tuple[int, ...]) -> Value:
        """Where the step's tokens stand, counted from `first` for the first of all."""
        places = self.of(Role.POSITIONS, dtype, shape)
        if not first:
            return places
        return binary(self._builder, BinaryFunction.ADD, places, self._builder.constant(np.array(first, dtype.dtype)))

    def longest(self) -> Value:
        """Tokens after the step, of the longest row: int32[1, 1]."""
        total = self.past_plus(self._step.tokens)
        return self._builder.emit(CommandKind.REDUCE, [total], function=ReduceFunction.MAX, axes=1, keep=1)

    def positions(self) -> Value:
        """int32[rows, tokens]; tokens that do not count stand where the last one does, which is within any table."""
        builder, first = self._builder, self.column(1)
        if self._step.tokens == 1:
            return first
        counted = binary(builder, BinaryFunction.MAX, self.column(2), self._constant(1))
        last = binary(
            builder, BinaryFunction.ADD, first, binary(builder, BinaryFunction.SUB, counted, self._constant(1))
        )
        steps = builder.constant(np.arange(self._step.tokens, dtype=np.int32)[None])
        return binary(builder, BinaryFunction.MIN, binary(builder, BinaryFunction.ADD, first, steps), last)

    def mask(self, width: int) -> Value:
        """bool[rows, width]"""
        places = self._builder.constant(np.arange(width, dtype=np.int32)[None])
        return binary(self._builder, BinaryFunction.LESS, places, self.past_plus(self._step.tokens))

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self._step.tokens

    def _constant(self, number: int) -> Value:
        return self._builder.constant(np.array([[number]], np.int32))


_MAKERS: dict[Role, Callable[[Lengths, tuple[int, ...]], Value]] = {
    Role.PAST: lambda lengths, shape: lengths.column(1),
    Role.TOTAL: lambda lengths, shape: lengths.past_plus(lengths.tokens),
    Role.LAST: lambda lengths, shape: lengths.past_plus(lengths.tokens - 1),
    Role.LONGEST: lambda lengths, shape: lengths.longest(),
    Role.COUNT: lambda lengths, shape: lengths.column(2),
    Role.POSITIONS: lambda lengths, shape: lengths.positions(),
    Role.PLACES: lambda lengths, shape: lengths.positions(),
    Role.MASK: lambda lengths, shape: lengths.mask(shape[-1]),
}
