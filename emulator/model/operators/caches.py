"""The kinds that keep keys and values of many sequences in one state: written by blocks, attended through tables.

A cache has *planes*, one for each tensor that a token leaves behind, of *blocks* of tokens. The *table* of a sequence
names its blocks in order; the *rows* of a command say which table each sequence of the batch has, how many tokens it
has and how many come. Nothing else of a cache is read or written, so what it costs follows from the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import ROW_FIELDS, CommandKind
from driver_shim.protocol.types import FLOATS, WireType
from emulator.model.operators.arrays import Array, KernelFault, required, widen
from emulator.model.operators.attention import by_head, by_head_shape, cap, softmax
from emulator.model.operators.operator import STEP_EFFORT, Operator, Types, given, one_type
from emulator.model.operators.shapes import need
from emulator.model.timing import Precision, Work

_SCORE_EFFORT = 64
"""Bytes that one score makes a host move, over all steps from product to probability."""
_TOKEN_PASSES = 8


class CacheShape(NamedTuple):
    """The shape of a cache."""

    planes: int
    blocks: int
    block_tokens: int
    heads: int
    size: int
    """Of one head of one token."""


class Row(NamedTuple):
    """What a sequence has, and what comes; checked."""

    slot: int
    past: int
    """Tokens that it has."""
    new: int
    """Tokens of it in this command; token t is at position past + t."""

    @property
    def end(self) -> int:
        """Tokens that it has in the end."""
        return self.past + self.new


class CacheAppend(Operator):
    """CACHE_APPEND."""

    kind = CommandKind.CACHE_APPEND

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        cache, update, tables, rows = (given(inputs, i) for i in range(4))
        one_type([cache, update], FLOATS)
        shape = _cache_shape(cache, attributes.plane)
        batch, heads, tokens, size = by_head_shape(update, attributes.heads)
        need((heads, size) == (shape.heads, shape.size), f"{heads} heads of {size} do not go into {cache}")
        capacity = _capacity(shape, tables, rows, batch)
        _check_ring(attributes.ring, tokens, capacity)
        return [cache]

    def work(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> Work:
        """The update is read and written; of the cache nothing else is touched, of the tables next to nothing."""
        return Work(0, 2 * given(inputs, 1).size_bytes, self.precision(inputs, outputs))

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        batch, _, tokens, _ = by_head_shape(given(inputs, 1), attributes.heads)
        return batch * tokens

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Token t of a row, written to the place of position past + t in one plane; nothing where t ≥ count."""
        cache, update, tables = required(inputs, 0), required(inputs, 1), required(inputs, 2).copy()
        rows = rows_of(attributes.ring, cache.shape, tokens_of(update, attributes.heads), inputs[2:])
        pieces = [pieces_of(tables[row.slot], stored(row.past, row.end, attributes.ring), cache.shape) for row in rows]
        if not np.may_share_memory(cache, outputs[0]):
            outputs[0][...] = cache
        plane = outputs[0][attributes.plane]
        for written, new in zip(pieces, by_token(update, attributes.heads), strict=True):
            token = 0
            for block, begin, end in written:
                plane[block, begin:end] = new[token : token + end - begin]
                token += end - begin


class CacheAttention(Operator):
    """CACHE_ATTENTION."""

    kind = CommandKind.CACHE_ATTENTION
    flags = ("causal",)

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        query, keys, values, tables, rows = (given(inputs, i) for i in range(5))
        need(attributes.left_window >= -1, "a window is -1 (open) or not negative")
        need(attributes.softcap >= 0, f"softcap is {attributes.softcap}; it must not be negative")
        dtype = one_type([query, keys, values], FLOATS)
        key, value = _cache_shape(keys, attributes.key_plane), _cache_shape(values, attributes.value_plane)
        need(key[1:4] == value[1:4], f"blocks of {keys} and of {values} differ")
        batch, heads, tokens, size = by_head_shape(query, attributes.query_heads)
        need(heads % key.heads == 0 < heads, f"{heads} heads of queries for {key.heads} of keys")
        need(size == key.size, f"queries of {size} elements, keys of {key.size}")
        capacity = _capacity(key, tables, rows, batch)
        window = attributes.left_window
        need(not attributes.ring or window >= 0, "what a ring has lost must lie outside a window; left_window is open")
        _check_ring(attributes.ring, window + tokens, capacity)
        wide = (batch, tokens, heads * value.size) if attributes.query_heads else (batch, heads, tokens, value.size)
        return [TensorType(dtype, wide)]

    def work(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> Work:
        """That of full tables."""
        cost = self.cost(attributes, inputs, outputs)
        return cost.work([cost.uniform(cost.capacity)] * cost.batch)

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        cost = self.cost(attributes, inputs, outputs)
        scores = cost.batch * cost.heads * cost.seen(*cost.uniform(cost.capacity))
        steps = cost.batch * cost.tokens * _TOKEN_PASSES
        return super().effort(attributes, inputs, outputs) + scores * _SCORE_EFFORT + steps * STEP_EFFORT

    def cost(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> AttentionCost:
        """What the work follows from, beside the rows."""
        query, keys, values, tables = (given(inputs, i) for i in range(4))
        batch, heads, tokens, _ = by_head_shape(query, attributes.query_heads)
        key, value = CacheShape(*keys.shape), CacheShape(*values.shape)
        return AttentionCost(
            batch,
            tokens,
            heads,
            key.size + value.size,
            key.block_tokens,
            key.block_tokens * key.heads * (key.size + value.size) * keys.dtype.size,
            query.size_bytes + outputs[0].size_bytes,
            tables.shape[1] * key.block_tokens,
            attributes.left_window,
            attributes.ring,
            attributes.causal,
            self.precision(inputs, outputs).value,
        )

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """ATTENTION over what a sequence has in the end, in float32, rounded once.

        A query sees the keys from `left_window` before its position on: up to its position where the command is causal,
        else all. The rows of tokens that do not count are 0.
        """
        query, keys, values = (required(inputs, i) for i in range(3))
        tables, heads, ring = required(inputs, 3).copy(), attributes.query_heads, attributes.ring
        rows = rows_of(ring, keys.shape, tokens_of(query, heads), inputs[3:])
        for row, queries, y in zip(rows, by_token(query, heads), by_token(outputs[0], heads), strict=True):
            y[row.new :] = 0
            if not row.new:
                continue
            first = first_seen(attributes, row.past)
            pieces = pieces_of(tables[row.slot], stored(first, row.end, ring), keys.shape)
            key = _gathered(keys[attributes.key_plane], pieces)
            value = _gathered(values[attributes.value_plane], pieces)
            for token in range(row.new):
                position = row.past + token
                begin = first_seen(attributes, position) - first
                end = (position + 1 if attributes.causal else row.end) - first
                y[token] = _attended(attributes, queries[token], key[begin:end], value[begin:end])


def _gathered(plane: Array, pieces: Iterable[tuple[int, int, int]]) -> Array:
    """[keys, heads, size] in float32: what one plane has of a sequence, block by block."""
    return widen(np.concatenate([plane[block, begin:end] for block, begin, end in pieces]))


def _attended(attributes: Any, query: Array, key: Array, value: Array) -> Array:
    """What one query [heads, size] makes of all these keys and values [keys, heads, size]; heads of both are shared."""
    heads, key_heads = len(query), key.shape[1]
    by_key_head = widen(query).reshape(key_heads, heads // key_heads, key.shape[2])
    products = np.einsum("kgd,nkd->kgn", by_key_head, key) * np.float32(attributes.scale)
    probabilities = softmax(cap(attributes, products.reshape(heads, len(key)))).reshape(products.shape)
    sums: Array = np.einsum("kgn,nkd->kgd", probabilities, value)
    return sums.reshape(heads, value.shape[2])


def _cache_shape(cache: TensorType, plane: int) -> CacheShape:
    """What the dimensions of a cache are. Raises SemanticError for none, or one without this plane."""
    need(len(cache.shape) == len(CacheShape._fields), f"{cache} is no cache: {', '.join(CacheShape._fields)}")
    shape = CacheShape(*cache.shape)
    need(plane < shape.planes, f"plane {plane} of {cache}, which has {shape.planes}")
    need(min(shape.block_tokens, shape.heads) > 0, f"blocks of {shape.block_tokens} tokens of {shape.heads} heads")
    return shape


def _capacity(shape: CacheShape, tables: TensorType, rows: TensorType, batch: int) -> int:
    """Tokens that a table has places for. Raises SemanticError unless tables and rows have their form."""
    need(
        tables.dtype is WireType.INT32 and len(tables.shape) == 2, f"tables are {tables}, must be int32[slots, entries]"
    )
    wanted = TensorType(WireType.INT32, (batch, len(ROW_FIELDS)))
    need(rows == wanted, f"rows are {rows}, must be {wanted}")
    return tables.shape[1] * shape.block_tokens


def _check_ring(ring: int, least: int, capacity: int) -> None:
    """Raise SemanticError for a ring that does not hold what must be there, or has no place in a table."""
    need(not ring or least <= ring, f"a ring of {ring} tokens; {least} must fit")
    need(ring <= capacity, f"a ring of {ring} tokens in tables with places for {capacity}")


# --- rows and places ------------------------------------------------------------------------------------------------


def rows_of(ring: int, cache: Sequence[int], tokens: int, operands: Sequence[Array | None]) -> list[Row]:
    """The rows, copied before they are checked: the host may write them at any time.

    `cache` is its shape, `operands` are tables and rows. Raises KernelFault for a row that leaves its table.
    """
    tables, rows = required(operands, 0), required(operands, 1)
    slots, capacity = len(tables), tables.shape[1] * cache[2]
    found = [Row(*row) for row in rows.tolist()]
    for at, (slot, past, new) in enumerate(found):
        if not (0 <= slot < slots and past >= 0 and 0 <= new <= tokens and (ring or past + new <= capacity)):
            raise KernelFault(
                Status.INDEX_OUT_OF_RANGE,
                f"row {at} has slot {slot}, past {past}, count {new}; possible are {slots} slots of {capacity} tokens,"
                f" and {tokens} new ones",
            )
    return found


def stored(first: int, end: int, ring: int) -> list[tuple[int, int]]:
    """The places of positions `first` to `end` - 1 in a table: one run (start, stop), two where a ring goes round."""
    if first >= end:
        return []
    start = first % ring if ring else first
    stop = start + end - first
    return [(start, ring), (0, stop - ring)] if ring and stop > ring else [(start, stop)]


def pieces_of(table: Array, places: Iterable[tuple[int, int]], cache: Sequence[int]) -> list[tuple[int, int, int]]:
    """(block, first, last + 1 of its tokens) of places, in order. Raises KernelFault for what is no block."""
    _, blocks, block_tokens, *_ = cache
    pieces = []
    for start, stop in places:
        for entry in range(start // block_tokens, -(-stop // block_tokens)):
            block, before = int(table[entry]), entry * block_tokens
            if not 0 <= block < blocks:
                raise no_block(block, blocks)
            pieces.append((block, max(0, start - before), min(stop - before, block_tokens)))
    return pieces


def no_block(block: int, blocks: int) -> KernelFault:
    """The fault of a table that names what is no block."""
    return KernelFault(Status.INDEX_OUT_OF_RANGE, f"a table names block {block}; the cache has {blocks}")


def first_seen(attributes: Any, position: int) -> int:
    """The first position that a query at `position` sees."""
    return max(0, position - attributes.left_window) if attributes.left_window >= 0 else 0


def by_token(array: Array, heads: int) -> Array:
    """[batch, tokens, heads, size] of an operand, which has no dimension of heads where their number is given."""
    return (by_head(array, heads) if heads else array).swapaxes(1, 2)


def tokens_of(array: Array, heads: int) -> int:
    """The tokens of such an operand."""
    return int(array.shape[1 if heads else 2])


# --- what it costs --------------------------------------------------------------------------------------------------


class AttentionCost(NamedTuple):
    """What the work of one CACHE_ATTENTION follows from, beside its rows."""

    batch: int
    tokens: int
    heads: int
    sizes: int
    """Of a key and a value together."""
    block_tokens: int
    block_bytes: int
    """Of one block in both planes."""
    outer_bytes: int
    """Of queries and results."""
    capacity: int
    """Tokens that a table has places for."""
    left_window: int
    ring: int
    causal: int
    precision: str

    def uniform(self, context: int) -> tuple[int, int]:
        """(past, count) of a sequence that has `context` tokens in the end."""
        count = min(self.tokens, context)
        return context - count, count

    def clipped(self, past: int, count: int) -> tuple[int, int]:
        """The nearest row that is possible."""
        count, past = max(0, min(count, self.tokens)), max(0, past)
        if not self.ring:
            count = min(count, self.capacity)
            past = min(past, self.capacity - count)
        return past, count

    def seen(self, past: int, count: int) -> int:
        """Keys that the queries of one row see, all together."""
        end = past + count
        upper = _triangle(end) - _triangle(past) if self.causal else count * end
        if self.left_window < 0:
            return upper
        return upper - _triangle(end - 1 - self.left_window) + _triangle(past - 1 - self.left_window)

    def blocks(self, past: int, count: int) -> int:
        """Blocks that one row reads."""
        if not count:
            return 0
        places = stored(first_seen(self, past), past + count, self.ring)
        return sum(-(-stop // self.block_tokens) - start // self.block_tokens for start, stop in places)

    def work(self, rows: Iterable[tuple[int, int]]) -> Work:
        """Of rows with these (past, count): each block that is needed is read once a row, whole."""
        seen = blocks = 0
        for past, count in rows:
            seen += self.seen(past, count)
            blocks += self.blocks(past, count)
        moved = blocks * self.block_bytes + self.outer_bytes
        return Work(self.heads * self.sizes * seen, moved, Precision(self.precision))


def _triangle(n: int) -> int:
    """1 + 2 + … + n; 0 where n is not positive."""
    return n * (n + 1) // 2 if n > 0 else 0


OPERATORS: tuple[Operator, ...] = (CacheAppend(), CacheAttention())
