"""Linear attention: a state of keys times values that every place reads after it has written to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import FLOATS
from emulator.model.operators.arrays import Array, optional, required, widen
from emulator.model.operators.attention import by_head
from emulator.model.operators.operator import Operator, Types, given, one_type
from emulator.model.operators.shapes import need

_PAST, _DECAY, _RATE = 3, 4, 5
"""Positions of the optional operands."""
_STEP_PASSES = 12
_MOST_STATE = 1 << 26
"""Elements of a state, which is kept in float32 also where it is no output."""


class LinearAttention(Operator):
    """LINEAR_ATTENTION."""

    kind = CommandKind.LINEAR_ATTENTION

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        query, key, value = (given(inputs, i) for i in range(3))
        past, decay, rate = (optional(inputs, i) for i in (_PAST, _DECAY, _RATE))
        dtype = one_type((query, key, value, decay, rate), FLOATS)
        heads, key_heads = attributes.query_heads, attributes.key_heads
        need(
            key_heads > 0 and heads > 0 and heads % key_heads == 0, f"{heads} heads of queries for {key_heads} of keys"
        )
        for tensor, count in ((query, heads), (key, key_heads), (value, key_heads)):
            good = len(tensor.shape) == 3 and tensor.shape[2] % count == 0 and tensor.shape[:2] == query.shape[:2]
            need(good, f"{tensor} in {count} heads beside queries {query}")
        batch, length = query.shape[:2]
        size, value_size = query.shape[2] // heads, value.shape[2] // key_heads
        need(key.shape[2] // key_heads == size, f"queries of {size} elements, keys {key} in {key_heads} heads")
        for name, by_place, widths in (("decay", decay, (key_heads, key_heads * size)), ("rate", rate, (key_heads, 1))):
            good = by_place is None or (by_place.shape[:-1] == (batch, length) and by_place.shape[-1] in widths)
            need(good, f"the {name} {by_place} for {batch} samples of {length} places")
        state = (batch, key_heads, size, value_size)
        need(math.prod(state) <= _MOST_STATE, f"a state of shape {state}; at most {_MOST_STATE} elements are possible")
        need(past is None or (past.shape == state and past.dtype in FLOATS), f"the past {past}; its shape is {state}")
        present = TensorType(dtype if past is None else past.dtype, state)
        return [TensorType(dtype, (batch, length, heads * value_size)), present]

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        # Writing and reading go over a head's state once each; what corrects a value reads it once more.
        reads = attributes.query_heads + attributes.key_heads * (1 if optional(inputs, _RATE) is None else 2)
        state = given(inputs, 1).shape[2] * given(inputs, 2).shape[2] // attributes.key_heads**2
        return int(math.prod(outputs[0].shape[:2]) * state * reads)

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return 1 + outputs[0].shape[1] * _STEP_PASSES

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        whole = super().effort(attributes, inputs, outputs)
        query, key, value = (given(inputs, i) for i in range(3))
        state = query.shape[0] * key.shape[2] * value.shape[2] // attributes.key_heads
        return int(whole + query.shape[1] * state * 4 * _STEP_PASSES)

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """LinearAttention (opset 27) in float32, one place after the other; heads lie side by side.

        S becomes exp(decay) · S + k ⊗ v, where with a rate v is rate · (v - exp(decay) · S · k); y is scale · q · S.
        Every head of keys serves as many heads of queries in a row.
        """
        heads, key_heads = attributes.query_heads, attributes.key_heads
        query, key, value = (
            widen(by_head(required(inputs, i), count)) for i, count in enumerate((heads, key_heads, key_heads))
        )
        past, decay, rate = (optional(inputs, i) for i in (_PAST, _DECAY, _RATE))
        batch, _, length, size = query.shape
        state = np.zeros((batch, key_heads, size, value.shape[3]), np.float32) if past is None else widen(past)
        by_place = None if decay is None else np.exp(widen(by_head(decay, key_heads)))[..., None]
        rates = None if rate is None else widen(by_head(rate, rate.shape[2]))
        shared = heads // key_heads
        grouped = query.reshape(batch, key_heads, shared, length, size)
        y = outputs[0].reshape(batch, length, key_heads, shared, value.shape[3])
        for place in range(length):
            if by_place is not None:
                state = state * by_place[:, :, place]
            k, v = key[:, :, place, :, None], value[:, :, place, None, :]
            if rates is not None:
                v = rates[:, :, place, None] * (v - np.sum(state * k, 2, keepdims=True))
            state = state + k * v
            y[:, place] = np.float32(attributes.scale) * (grouped[:, :, :, place] @ state)
        if len(outputs) > 1:
            outputs[1][...] = state


OPERATORS: tuple[Operator, ...] = (LinearAttention(),)
