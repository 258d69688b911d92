"""A cache with its tables, written and attended by the kernels of one provider; and the same without a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType, wire_type_of
from emulator.engines.kernels.choice import prepare
from emulator.engines.kernels.provider import KernelRequest
from emulator.model.operators import OPERATORS
from tests.support.programs import golden

Array = NDArray[Any]
Rows = Sequence[tuple[int, int, int]]
"""(slot, past, count) of each."""
Tokens = list[tuple[Array, Array, Array]]
"""A sequence: query [heads, size], key and value [key heads, size] of each token."""
F32 = np.float32


class Cached:
    """A cache of zeros, and tables."""

    def __init__(
        self,
        kernels: str,
        *,
        planes: int,
        blocks: int,
        block_tokens: int,
        heads: int,
        size: int,
        tables: Sequence[Sequence[int]],
        dtype: str = "float32",
    ) -> None:
        self.kernels = kernels
        kind = WireType[dtype.upper()].dtype
        self.cache: Array = np.zeros((planes, blocks, block_tokens, heads, size), kind)
        self.tables = np.array(tables, np.int32)

    def append(self, plane: int, update: Array, rows: Rows, **fields: int) -> None:
        """One CACHE_APPEND, in place."""
        operands = [self.cache, update, self.tables, np.array(rows, np.int32)]
        self._run(CommandKind.CACHE_APPEND, {"plane": plane, **fields}, operands, self.cache)

    def attend(self, query: Array, rows: Rows, **fields: Any) -> Array:
        """One CACHE_ATTENTION over keys and values in planes 0 and 1, unless other planes are given."""
        fields = {"scale": 1.0, "left_window": -1, "value_plane": 1, **fields}
        heads = fields.get("query_heads", 0)
        if heads and query.ndim == 4:
            packed = query.swapaxes(1, 2).reshape(len(query), query.shape[2], -1)
            y = self.attend(packed, rows, **fields)
            return y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)
        y = np.full(query.shape, 9, query.dtype)
        operands = [query, self.cache, self.cache, self.tables, np.array(rows, np.int32)]
        self._run(CommandKind.CACHE_ATTENTION, fields, operands, y)
        return y

    def _run(self, kind: CommandKind, fields: Mapping[str, Any], operands: Sequence[Array], output: Array) -> None:
        attributes = make_attributes(kind, **fields)
        types = tuple(TensorType(wire_type_of(array.dtype), array.shape) for array in operands)
        outputs = (TensorType(wire_type_of(output.dtype), output.shape),)
        OPERATORS[kind].check(attributes, types, outputs)
        seen = [array.view() for array in operands]
        for array in seen:
            array.flags.writeable = False
        request = KernelRequest(kind, attributes, types, outputs, (None,) * len(operands))
        with np.errstate(all="ignore"):
            prepare(self.kernels, request).run(seen, [output])


def random_step(
    random: np.random.Generator, cached: Cached, whole: list[Tokens], counts: Sequence[int], *, heads: int, tokens: int
) -> tuple[Array, Array, Array, list[tuple[int, int, int]]]:
    """(query, key, value, rows) of a step that gives sequence i `counts[i]` tokens, which `whole[i]` is given, too."""
    key_heads, size, kind = *cached.cache.shape[3:], cached.cache.dtype
    query = random.standard_normal((len(counts), heads, tokens, size)).astype(kind)
    key, value = (random.standard_normal((len(counts), key_heads, tokens, size)).astype(kind) for _ in range(2))
    rows = []
    for sequence, count in enumerate(counts):
        rows.append((sequence, len(whole[sequence]), count))
        for token in range(count):
            whole[sequence].append(
                (query[sequence, :, token], key[sequence, :, token], value[sequence, :, token]),
            )
    return query, key, value, rows


def attend_whole(sequence: Tokens, count: int, options: Mapping[str, Any]) -> Array:
    """[heads, count, size]: ATTENTION, without a cache, of the last `count` tokens over all of a sequence."""
    query = np.stack([query for query, _, _ in sequence[-count:]], 1)[None].astype(F32)
    key, value = (np.stack([token[part] for token in sequence], 1)[None].astype(F32) for part in (1, 2))
    places, queries = np.arange(len(sequence)), np.arange(len(sequence) - count, len(sequence))[:, None]
    window = options.get("left_window", -1)
    allowed = np.ones((count, len(sequence)), bool)
    if options.get("causal"):
        allowed &= places <= queries
    if window >= 0:
        allowed &= places >= queries - window
    fields = {"scale": options.get("scale", 1.0), "softcap": options.get("softcap", 0.0)}
    operands = [query, key, value, np.ascontiguousarray(allowed)]
    found = golden(CommandKind.ATTENTION, operands, query.shape, F32, left_window=-1, right_window=-1, **fields)
    first: Array = found[0]
    return first
