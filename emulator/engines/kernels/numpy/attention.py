"""ATTENTION over all heads at once, scores computed with in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators import OPERATORS
from emulator.model.operators.arrays import Array, optional, required, widen
from emulator.model.operators.attention import (
    MASK,
    VALID_KEYS,
    Extents,
    by_head,
    extents_of,
    operands_by_head,
    types_of,
)

_MOST_SCORES = 1 << 25
"""That are computed with at once; golden takes them in blocks."""


def attention(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """ATTENTION as golden's; the usual forms with products of whole stacks."""
    extents = extents_of(attributes, types_of(inputs))
    if not _is_usual(attributes, inputs, outputs, extents):
        OPERATORS[CommandKind.ATTENTION].run(attributes, inputs, outputs)
        return
    query, key, value = operands_by_head(extents, inputs)
    for output, present in zip(outputs[1:], (key, value), strict=False):
        output[...] = present
    batch, heads, key_heads = extents[:3]
    stack = (batch, key_heads, heads // key_heads)
    scores = np.matmul(
        query.reshape(*stack, extents.queries, extents.size) * np.float32(attributes.scale),
        key[:, :, None].swapaxes(-1, -2),
    ).reshape(extents.scores)
    mask = optional(inputs, MASK)
    if mask is not None:
        _apply(mask, scores)
    if attributes.causal:
        keys, queries = np.arange(extents.total), np.arange(extents.queries)[:, None] + extents.past
        np.copyto(scores, np.float32(-np.inf), where=keys > queries)
    _softmax(scores)
    results = np.matmul(scores.reshape(*stack, extents.queries, extents.total), value[:, :, None])
    y = by_head(outputs[0], heads) if attributes.query_heads else outputs[0]
    y[...] = results.reshape(batch, heads, extents.queries, extents.value_size)


def _is_usual(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array], extents: Extents) -> bool:
    """Whether nothing but a mask over all keys, or causality, keeps queries from keys, and scores are not asked for."""
    mask = optional(inputs, MASK)
    whole = mask is None or mask.shape[-1] == extents.total
    open_ = attributes.left_window == attributes.right_window == -1 and optional(inputs, VALID_KEYS) is None
    modest = 0 < math.prod(extents.scores) <= _MOST_SCORES
    return whole and open_ and modest and attributes.softcap == 0 and len(outputs) < 4 and required(inputs, 0).size > 0


def _apply(mask: Array, scores: Array) -> None:
    if mask.dtype == np.bool_:
        np.copyto(scores, np.float32(-np.inf), where=~mask)
    else:
        scores += widen(mask)


def _softmax(scores: Array) -> None:
    """Along the last dimension, in place; 0 where nothing may be attended."""
    peak = scores.max(-1, keepdims=True)
    peak[peak == -np.inf] = 0
    scores -= peak
    np.exp(scores, out=scores)
    sums = scores.sum(-1, keepdims=True)
    sums[sums == 0] = 1
    scores /= sums
