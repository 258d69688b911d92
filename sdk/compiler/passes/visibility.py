"""What an attention's queries see, found by computing its mask and counts for rows that are made up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from emulator.model.operators.attention import MASK, PAST_KEY, VALID_KEYS, Extents, extents_of, mask_of
from sdk.compiler.ir import Array, Operation, Value
from sdk.compiler.states.binding import States
from sdk.compiler.states.evaluation import Evaluation, Unknown

_FAR_BELOW = -1e4
"""What is added to a score at most where a key is left out."""


class NotCausal(Exception):
    """An attention sees something else than the keys up to each query's own; the message says what."""


class _Sample(NamedTuple):
    """Rows that are made up."""

    past: Array
    values: Evaluation


class Visibility:
    """Of one program's attentions."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._samples = [_sample(states, past) for past in states.pasts()]
        self._windows: dict[tuple[object, ...], int] = {}
        self._written: set[tuple[int, int]] = set()
        self._kept: list[Value] = []
        """So that no other value gets the identity of one that is known."""

    def check_written(self, indices: Value | None, ring: int) -> None:
        """Raise NotCausal unless new tokens are written where those of the past end."""
        if indices is None or (id(indices), ring) in self._written:
            return
        for sample in self._samples:
            found = self._computed(sample, indices, "where new tokens are written")
            wanted = sample.past
            if ring:
                found, wanted = found % ring, wanted % ring
            if not np.array_equal(found, wanted):
                raise NotCausal("new tokens are not written where those of the past end")
        self._written.add((id(indices), ring))
        self._kept.append(indices)

    def left_window(self, operation: Operation, ring: int) -> int:
        """How many keys before its own a query sees; -1 for all. Raises NotCausal where it sees anything else."""
        operands = [operation.inputs[i] if i < len(operation.inputs) else None for i in range(VALID_KEYS + 1)]
        mask, valid, past = operands[MASK], operands[VALID_KEYS], operands[PAST_KEY]
        fields = operation.attributes
        shapes = tuple(None if each is None else each.type for each in operands[:MASK])
        key = (id(mask), id(valid), past is None, shapes, fields.causal, fields.left_window, fields.right_window, ring)
        if key not in self._windows:
            self._kept += [each for each in (mask, valid) if each is not None]
            self._windows[key] = self._found(operation, operands, ring)
        return self._windows[key]

    def _found(self, operation: Operation, operands: list[Value | None], ring: int) -> int:
        types = [None if each is None else each.type for each in operands]
        extents = extents_of(operation.attributes, types)
        if extents.batch != self._states.step.rows or extents.queries != self._states.step.tokens:
            rows, tokens = self._states.step
            raise NotCausal(f"it has {extents.batch} rows of {extents.queries} tokens, the step {rows} of {tokens}")
        if operands[MASK] is None and operation.attributes.right_window <= 0:
            return self._by_counts(operation, operands, extents, ring)
        if ring:
            raise NotCausal("a ring with a mask")
        window = -1
        for sample in self._samples:
            window = max(window, self._by_elements(operation, operands, extents, sample))
        for sample in self._samples:
            _compare(self._rows(operation, operands, extents, sample), sample.past, window)
        return window

    def _by_counts(self, operation: Operation, operands: list[Value | None], extents: Extents, ring: int) -> int:
        """The window where no mask says anything: what is there, and the order, say all."""
        fields, valid = operation.attributes, operands[VALID_KEYS]
        for sample in self._samples:
            total = sample.past + extents.queries
            if operands[PAST_KEY] is not None and valid is None:
                there: Array = np.full(extents.batch, extents.total)
            elif valid is None:
                there = np.full(extents.batch, extents.queries)  # the first query is the first key's
            else:
                there = self._computed(sample, valid, "how many keys are there")
            if ring:
                there, total = np.minimum(there, ring), np.minimum(total, ring)
            if not np.array_equal(there, total):
                raise NotCausal("it does not see all keys up to each query's own")
        if extents.queries > 1 and not fields.causal and fields.right_window != 0:
            raise NotCausal("queries see later keys: it is not causal")
        if ring and (extents.queries > 1 or fields.left_window >= 0):
            raise NotCausal("a ring takes one token a step, and no window")
        return ring - 1 if ring else int(fields.left_window)

    def _by_elements(
        self, operation: Operation, operands: list[Value | None], extents: Extents, sample: _Sample
    ) -> int:
        """The widest window that fits what one sample's queries see; -1 where they see from the first key on."""
        widest = -1
        for row, seen in self._rows(operation, operands, extents, sample):
            first = np.argmax(seen, 1)
            places = np.arange(extents.queries) + int(sample.past[row])
            if np.any(first > 0):
                widest = max(widest, int(np.max((places - first)[first > 0])))
        return widest

    def _rows(
        self, operation: Operation, operands: list[Value | None], extents: Extents, sample: _Sample
    ) -> Iterator[tuple[int, Array]]:
        """(row, which keys each query sees) of every row, and of every head that has a mask of its own."""
        arrays: list[Array | None] = [None] * (VALID_KEYS + 1)
        for place, what in ((MASK, "its mask"), (VALID_KEYS, "how many keys are there")):
            value = operands[place]
            arrays[place] = None if value is None else self._computed(sample, value, what)
        if operands[PAST_KEY] is not None:
            arrays[PAST_KEY] = np.empty(0)
        mask = arrays[MASK]
        heads = 1 if mask is None or mask.ndim < 3 or mask.shape[-3] == 1 else extents.heads
        for row in range(extents.batch):
            for head in range(heads):
                bias, allowed = mask_of(operation.attributes, arrays, extents, (row, head, slice(None)))
                seen = np.broadcast_to(allowed & (bias > _FAR_BELOW), (extents.queries, extents.total))
                if np.any(np.broadcast_to(bias, seen.shape)[seen]):
                    raise NotCausal("its mask adds something to scores")
                yield row, seen

    def _computed(self, sample: _Sample, value: Value, what: str) -> Array:
        try:
            return sample.values.of(value)
        except Unknown:
            raise NotCausal(f"{what} does not follow from the states alone") from None


def _sample(states: States, past: Array) -> _Sample:
    rows, tokens = states.step
    held = np.stack([np.arange(rows), past, np.full(rows, tokens)], 1).astype(np.int32)
    return _Sample(past.astype(np.int64), Evaluation({states.rows: held}))


def _compare(found: Iterator[tuple[int, Array]], past: Array, window: int) -> None:
    """Raise NotCausal unless every query sees the keys up to its own, within a window."""
    for row, seen in found:
        queries, total = seen.shape
        places = np.arange(queries)[:, None] + int(past[row])
        keys = np.arange(total)
        wanted = keys <= places
        if window >= 0:
            wanted = wanted & (keys >= places - window)
        if np.array_equal(seen, wanted):
            continue
        later = "later keys" if np.any(seen & (keys > places)) else "not all keys up to its own"
        raise NotCausal(f"its mask is not causal: a query sees {later}")
