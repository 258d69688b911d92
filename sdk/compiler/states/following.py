"""Values that a model computes in ways of its own, found to be what a state holds and a constant more.

How many ones a mask has is how many tokens there are; a running sum of it is where they stand. Commands for that work
on all that a state may hold, and on a mask of one length alone: what takes their place reads the rows.
"""

from __future__ import annotations

import numpy as np

from driver_shim.protocol.types import WireType
from sdk.compiler.ir import Array, Value
from sdk.compiler.states.evaluation import Evaluation, Unknown

WHOLE = (WireType.INT32, WireType.INT64)


class Following:
    """For one program."""

    def __init__(self, rows: Value, pasts: list[Array], tokens: int, other: Array | None) -> None:
        """`pasts` are tokens held by each row, for which the model is right. For `other` it need not be."""
        self._pasts = pasts
        self._tokens = tokens
        counts = [tokens, max(0, tokens - 1)]
        self._samples = [(past, _sample(rows, past, count)) for past in pasts for count in counts]
        self._other = None if other is None else _sample(rows, other, tokens)

    def beyond_past(self, value: Value) -> Array | None:
        """What a value is beyond the tokens held, the same for all rows, however many those are; None if it is not."""
        batch = len(self._pasts[0])
        by_row = len(value.shape) > 0 and value.shape[0] == batch
        if value.constant is not None or value.dtype not in WHOLE or not by_row:
            return None
        if not 0 < value.type.elements <= batch * self._tokens:
            return None
        try:
            return self._same(value)
        except Unknown:
            return None

    def _same(self, value: Value) -> Array | None:
        found: Array | None = None
        for past, sample in self._samples:
            more = sample.of(value) - past.reshape(-1, *[1] * (len(value.shape) - 1))
            if np.any(more != more[:1]) or (found is not None and np.any(more[:1] != found)):
                return None
            found = more[:1]
        if self._other is not None and np.array_equal(self._other.of(value), self._samples[0][1].of(value)):
            return None  # a constant, at that length
        return found


def _sample(rows: Value, past: Array, count: int) -> Evaluation:
    held = np.stack([np.arange(len(past)), past, np.full(len(past), count)], 1).astype(np.int32)
    return Evaluation({rows: held})
