"""A past, what joins new tokens to it and the attention over both become CACHE_APPEND and CACHE_ATTENTION.

Those see, of each row, the keys up to a query's own position. Whether the model's attention sees the same is not read
off its form: what its mask and counts follow from is computed for rows that are made up, and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from driver_shim.protocol.program_commands import CommandKind
from sdk.compiler.ir import Operation, Refused, Value, shape_fields
from sdk.compiler.passes.rewriting import Rewriting
from sdk.compiler.passes.visibility import NotCausal, Visibility
from sdk.compiler.states.binding import CachedState, States

KEY, VALUE, PAST_KEY, PAST_VALUE = 1, 2, 4, 5
"""Operands of ATTENTION; its first two outputs after y are the presents."""
_BY_HEAD = (0, 2, 1, 3)


class _Read(NamedTuple):
    """A state as one operand of attention."""

    state: CachedState
    update: Value
    """The new tokens."""
    indices: Value | None
    """Where they are written; None where they come after the past."""


def use_caches(program: Rewriting, states: States) -> None:
    """Put commands over caches in place of all that reads a past. Raises UnsupportedModel where that is impossible."""
    _Caches(program, states).use()
    program.keep(program.is_used)
    _check_gone(program, states)


class _Caches:
    def __init__(self, program: Rewriting, states: States) -> None:
        self._program = program
        self._states = states
        self._visibility = Visibility(states)
        self._pasts = {id(state.past): state for state in states.cached}
        self._presents = {id(state.present): state for state in states.cached}
        self._appended: dict[int, Value] = {}
        """The caches after their updates, by the identity of a state."""

    def use(self) -> None:
        position = 0
        while position < len(self._program.operations):
            operation = self._program.operations[position]
            if operation.kind is CommandKind.ATTENTION and self._program.is_used(operation):
                position = self._attend(position, operation)
            position += 1
        for state in self._states.cached:
            if id(state) not in self._appended:
                made = state.present.producer if state.present is not None else None
                reason = "no attention reads it as keys or values"
                raise self._states.refused(state, reason, made)

    def _attend(self, position: int, operation: Operation) -> int:
        """Rewrite an attention, if it is over states; returns its place."""
        keys, values = self._read(operation, KEY), self._read(operation, VALUE)
        found = keys or values
        if found is None:
            return position
        if keys is None or values is None:
            missing = "keys" if keys is None else "values"
            raise self._states.refused(found.state, f"its attention's {missing} are no state", operation)
        ring = keys.state.pair.ring
        if values.state.pair.ring != ring:
            raise self._states.refused(found.state, "its attention's keys and values are rings of two sizes", operation)
        try:
            for read in (keys, values):
                self._visibility.check_written(read.indices, ring)
            window = self._visibility.left_window(operation, ring)
        except NotCausal as error:
            raise self._states.refused(found.state, str(error), operation) from None
        start = position
        for read in (keys, values):
            position = self._append(position, read, operation)
        self._replace(position, operation, keys.state, values.state, window)
        return max(start, position)

    def _read(self, operation: Operation, place: int) -> _Read | None:
        """The state that an attention has as its keys or values; None where it has none."""
        past_at = place - KEY + PAST_KEY
        past = operation.inputs[past_at] if past_at < len(operation.inputs) else None
        new = operation.inputs[place]
        if past is not None:
            state = self._pasts.get(id(past))
            return None if state is None or new is None else self._own(state, operation, place, new)
        state = self._source(new)
        return None if state is None else self._joined(state)

    def _own(self, state: CachedState, operation: Operation, place: int, new: Value) -> _Read:
        """A state that the attention joins new tokens to itself."""
        if place >= len(operation.outputs) or operation.outputs[place] is not state.present:
            raise self._states.refused(state, "its output is not what its attention makes of it", operation)
        return _Read(state, new, None)

    def _source(self, value: Value | None) -> CachedState | None:
        """The state of which a value is the present, with heads repeated or put first."""
        chain: list[Value] = []
        while value is not None and id(value) not in self._presents:
            made = value.producer
            if made is None or made.kind not in (CommandKind.COPY, CommandKind.EXPAND, CommandKind.TRANSPOSE):
                return None
            chain.append(value)
            value = made.inputs[0]
        if value is None:
            return None
        state = self._presents[id(value)]
        return state if _only_repeats(state, value, chain) else None

    def _joined(self, state: CachedState) -> _Read:
        """What joins new tokens to the past of a state."""
        made = state.present.producer if state.present is not None else None
        if made is not None and made.inputs[0] is state.past and len(made.inputs) > 1 and made.inputs[1] is not None:
            update = made.inputs[1]
            if made.kind is CommandKind.TENSOR_SCATTER and made.attributes.axis == state.pair.axis:
                return _Read(state, update, made.inputs[2] if len(made.inputs) > 2 else None)
            if made.kind is CommandKind.CONCAT and len(made.inputs) == 2 and made.attributes.axis == state.pair.axis:
                return _Read(state, update, None)
        raise self._states.refused(state, "its output is not what came before with new tokens after it", made)

    def _append(self, position: int, read: _Read, operation: Operation) -> int:
        """Put a CACHE_APPEND before an attention, unless there is one; returns the attention's place."""
        state, update = read.state, read.update
        if id(state) in self._appended:
            return position
        heads, (rows, tokens) = state.cache.shape[3], self._states.step
        if state.pair.axis == 1:
            flat = (rows, tokens, heads * state.cache.shape[4])
            update = self._program.insert(position, CommandKind.COPY, [update], shape_fields(flat), operation.nodes)
            position += 1
        fields = {"plane": state.plane, "heads": heads if len(update.shape) == 3 else 0, "ring": state.pair.ring}
        inputs = [state.cache, update, self._states.tables, self._states.rows]
        nodes = _nodes(state, operation)
        try:
            cache = self._program.insert(position, CommandKind.CACHE_APPEND, inputs, fields, nodes)
        except Refused as error:
            raise self._states.refused(state, str(error), operation) from None
        self._program.give(cache)
        self._appended[id(state)] = cache
        return position + 1

    def _replace(
        self, position: int, operation: Operation, keys: CachedState, values: CachedState, window: int
    ) -> None:
        fields = {
            "scale": operation.attributes.scale,
            "softcap": operation.attributes.softcap,
            "query_heads": operation.attributes.query_heads,
            "key_plane": keys.plane,
            "value_plane": values.plane,
            "left_window": window,
            "ring": keys.pair.ring,
            "causal": 1,
        }
        caches = [self._appended[id(state)] for state in (keys, values)]
        inputs = [operation.inputs[0], *caches, self._states.tables, self._states.rows]
        try:
            self._program.replace(position, CommandKind.CACHE_ATTENTION, inputs, fields)
        except (Refused, ValueError) as error:
            raise self._states.refused(keys, str(error), operation) from None


def _nodes(state: CachedState, operation: Operation) -> tuple[str, ...]:
    """The nodes that an append comes from: those that made the present, where they did nothing else."""
    made = state.present.producer if state.present is not None else None
    return operation.nodes if made is None else made.nodes


def _only_repeats(state: CachedState, present: Value, chain: Sequence[Value]) -> bool:
    """Whether operations from the present on give every head once, or several times in a row, and nothing else.

    `chain` has their results, the last first.
    """
    heads, size = state.cache.shape[3:]
    rows, tokens = present.shape[0], present.shape[state.pair.axis or 0]
    order, shape = ("rows", "heads", "tokens") if state.pair.axis == 2 else ("rows", "tokens", "heads"), present.shape
    for value in reversed(chain):
        made = value.producer
        if made is None:
            return False
        if made.kind is CommandKind.TRANSPOSE:
            if order[1] != "tokens" or tuple(made.attributes.permutation[:4]) != _BY_HEAD or len(value.shape) != 4:
                return False
            order = ("rows", "heads", "tokens")
        shape = value.shape
        repeats = value.type.elements // present.type.elements if present.type.elements else 1
        allowed = {
            (rows, heads, tokens, size),
            (rows, heads, 1, tokens, size),
            (rows, heads, repeats, tokens, size),
            (rows, heads * repeats, tokens, size),
        }
        if order[1] == "heads" and shape not in allowed:
            return False
    return order[1] == "heads" and len(shape) == 4


def _check_gone(program: Rewriting, states: States) -> None:
    """Raise UnsupportedModel where something else than attention still reads a past."""
    pasts = {id(state.past): state for state in states.cached}
    for operation in program.operations:
        for value in operation.inputs:
            if id(value) in pasts:
                reason = f"{operation.kind.name} reads it, and only attention may"
                raise states.refused(pasts[id(value)], reason, operation)
