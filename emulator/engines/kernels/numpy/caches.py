"""CACHE_APPEND and CACHE_ATTENTION, for which adjacent blocks are one array: nothing of a cache is copied.

What a step costs follows from the tokens that its sequences have. Few queries meet keys in chunks, since BLAS has fast
kernels for small products only, and those that lie together; many meet as many keys at once as a cache of the host
holds scores.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array, required, widen
from emulator.model.operators.attention import by_head
from emulator.model.operators.caches import Row, by_token, first_seen, no_block, rows_of, stored, tokens_of

_CHUNK = 128
"""Keys that few queries meet at once."""
_VERY_FEW, _FEW = 4, 32
_MOST_SCORES = 1 << 19
"""Scores computed with at once, which the host's caches hold."""
_MOST_QUERIES = 64
"""Of one head at once: what comes after the last of them is not computed where a command is causal."""
_PIECE_BYTES = 1 << 15
"""Pieces of a plane that are smaller on average are put together, to be multiplied at once."""
_KEPT, _KEPT_BYTES = 512, 1 << 16
"""Parts of tables whose runs are remembered, and how large one may be."""
_LOWEST = np.finfo(np.float32).min
_TINY = np.finfo(np.float32).tiny
_MINUS_INFINITY = np.float32(-np.inf)


def prepare_append(request: KernelRequest) -> Kernel:
    """CACHE_APPEND as golden's; what goes to adjacent blocks at once."""
    attributes = request.attributes
    return functools.partial(_append, attributes.plane, attributes.heads, attributes.ring)


def _append(plane: int, heads: int, ring: int, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    cache, update, tables = required(inputs, 0), required(inputs, 1), required(inputs, 2)
    rows = rows_of(ring, cache.shape, tokens_of(update, heads), inputs[2:])
    pieces = [_pieces(row, tables, row.past, row.end, ring, cache) for row in rows]
    if not np.may_share_memory(cache, outputs[0]):
        outputs[0][...] = cache
    places = _tokens_of_plane(outputs[0], plane)
    for written, new in zip(pieces, by_token(update, heads), strict=True):
        for start, stop, at in written:
            places[start:stop] = new[at : at + stop - start]


class _Piece(NamedTuple):
    """Tokens that lie one after the other in a plane."""

    start: int
    stop: int
    at: int
    """How many of what is wanted come before."""


def _pieces(row: Row, tables: Array, first: int, end: int, ring: int, cache: Array) -> list[_Piece]:
    """Where the positions `first` to `end` - 1 of a row lie in a plane. Raises KernelFault for what is no block."""
    block_tokens = cache.shape[2]
    pieces = []
    at = 0
    for start, stop in stored(first, end, ring) if row.new else ():
        entry = start // block_tokens
        table = tables[row.slot, entry : -(-stop // block_tokens)].tobytes()
        offset, left = start - entry * block_tokens, stop - start
        runs = _runs(table, cache.shape[1]) if len(table) <= _KEPT_BYTES else _runs_of(table, cache.shape[1])
        for begin, length in runs:
            size = min(length * block_tokens - offset, left)
            pieces.append(_Piece(begin * block_tokens + offset, begin * block_tokens + offset + size, at))
            at, left, offset = at + size, left - size, 0
    return pieces


def _runs_of(table: bytes, blocks: int) -> tuple[tuple[int, int], ...]:
    """(first, number) of the adjacent blocks that a part of a table names. Raises KernelFault for what is no block."""
    entries = np.frombuffer(table, np.int32)
    bad = entries[(entries < 0) | (entries >= blocks)]
    if bad.size:
        raise no_block(int(bad[0]), blocks)
    breaks = np.flatnonzero(np.diff(entries) != 1) + 1
    firsts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([firsts, [len(entries)]]))
    return tuple(zip(entries[firsts].tolist(), lengths.tolist(), strict=True))


_runs = functools.lru_cache(_KEPT)(_runs_of)
"""The same: layers meet the same tables."""


def _tokens_of_plane(cache: Array, plane: int) -> Array:
    """[tokens, heads, size] of one plane, block after block; a view."""
    _, blocks, block_tokens, heads, size = cache.shape
    tokens: Array = cache[plane].reshape(blocks * block_tokens, heads, size)
    return tokens


class _Fields(NamedTuple):
    """The attributes, which are read often: those of a container take half a microsecond each."""

    scale: Array
    softcap: float
    query_heads: int
    key_plane: int
    value_plane: int
    left_window: int
    ring: int
    causal: int


def prepare_attention(request: KernelRequest) -> Kernel:
    """CACHE_ATTENTION as golden's, with products from BLAS."""
    fields = {name: request.attributes[name] for name in _Fields._fields}
    return functools.partial(_attention, _Fields(**(fields | {"scale": np.float32(request.attributes.scale)})))


def _attention(fields: _Fields, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    query, keys, values, tables = (required(inputs, i) for i in range(4))
    ring, causal = fields.ring, fields.causal
    queries, results = (
        by_head(each, fields.query_heads) if fields.query_heads else each for each in (query, outputs[0])
    )
    key_plane = _tokens_of_plane(keys, fields.key_plane)
    value_plane = _tokens_of_plane(values, fields.value_plane)
    heads, tokens = queries.shape[1:3]
    for at, row in enumerate(rows_of(ring, keys.shape, tokens, inputs[3:])):
        if row.new < tokens:
            results[at, :, row.new :] = 0
        if not row.new:
            continue
        start = first_seen(fields, row.past)
        pieces = _pieces(row, tables, start, row.end, ring, keys)
        key_parts, value_parts = _parts(key_plane, pieces), _parts(value_plane, pieces)
        step = max(1, min(_MOST_QUERIES, _MOST_SCORES // (heads * row.end)))
        for begin in range(0, row.new, step):  # some of the queries, with the keys that they may see
            end = min(begin + step, row.new)
            first, last = first_seen(fields, row.past + begin), row.past + end if causal else row.end
            seen = (first - start, last - start)
            y = _attended(
                fields,
                queries[at, :, begin:end],
                _part_of(key_parts, *seen),
                _part_of(value_parts, *seen),
                row.past + begin - first,
            )
            results[at, :, begin:end] = y.reshape(heads, end - begin, value_plane.shape[2])


def _attended(fields: _Fields, queries: Array, keys: Sequence[Array], values: Sequence[Array], before: int) -> Array:
    """[key heads, queries, size]: what queries [heads, tokens, size] make of the parts of keys and values.

    `before` of the keys come before the position of the first query.
    """
    heads, tokens, size = queries.shape
    key_heads = keys[0].shape[1]
    stacked = (widen(queries) * fields.scale).reshape(key_heads, heads // key_heads * tokens, size)
    scores = _products(stacked, keys)
    if fields.softcap:
        _cap(fields.softcap, scores)
    if tokens > 1:
        _hide(fields, scores, tokens, before)
    sums = _exponentials(scores)
    y = _weighted(scores, values)
    y /= sums
    return y


def _part_of(parts: Sequence[Array], begin: int, end: int) -> Sequence[Array]:
    """What parts, one after the other, have from token `begin` to `end` - 1."""
    at, found = 0, []
    for part in parts:
        if begin < at + len(part) and at < end:
            found.append(part[max(begin - at, 0) : end - at])
        at += len(part)
    return found


def _parts(plane: Array, pieces: Sequence[_Piece]) -> list[Array]:
    """[tokens, heads, size] of each piece in float32: views, unless many small pieces make one array."""
    if plane.dtype == np.float32:
        if len(pieces) == 1:
            return [plane[pieces[0].start : pieces[0].stop]]
        total = sum(piece.stop - piece.start for piece in pieces)
        if total * plane[0].nbytes >= len(pieces) * _PIECE_BYTES:
            return [plane[start:stop] for start, stop, _ in pieces]
    last = pieces[-1]
    gathered = np.empty((last.at + last.stop - last.start, *plane.shape[1:]), np.float32)
    for start, stop, at in pieces:
        gathered[at : at + stop - start] = plane[start:stop]
    return [gathered]


def _products(queries: Array, keys: Sequence[Array]) -> Array:
    """[key heads, queries, keys]: queries [key heads, queries, size] times the keys of all parts."""
    key_heads, count, size = queries.shape
    scores = np.empty((key_heads, count, sum(map(len, keys))), np.float32)
    at = 0
    for part in keys:
        out = scores[:, :, at : at + len(part)] if len(keys) > 1 else scores
        whole = _in_chunks(count, len(part))
        if whole:
            chunks = part[:whole].reshape(whole // _CHUNK, _CHUNK, key_heads, size)
            target = out[:, :, :whole].reshape(key_heads, count, whole // _CHUNK, _CHUNK)
            np.matmul(queries[:, None], chunks.transpose(2, 0, 3, 1), out=target.swapaxes(1, 2))
        if whole < len(part):
            np.matmul(queries, part[whole:].transpose(1, 2, 0), out=out[:, :, whole:])
        at += len(part)
    return scores


def _weighted(weights: Array, values: Sequence[Array]) -> Array:
    """[key heads, queries, size]: weights [key heads, queries, keys] times the values of all parts."""
    key_heads, count, _ = weights.shape
    total: Array | None = None
    at = 0
    for part in values:
        whole = _in_chunks(count, len(part))
        sums = []
        if whole:
            chunks = part[:whole].reshape(whole // _CHUNK, _CHUNK, key_heads, part.shape[2])
            taken = weights[:, :, at : at + whole].reshape(key_heads, count, whole // _CHUNK, _CHUNK)
            sums.append(np.add.reduce(np.matmul(taken.swapaxes(1, 2), chunks.transpose(2, 0, 1, 3)), 1))
        if whole < len(part):
            sums.append(np.matmul(weights[:, :, at + whole : at + len(part)], part[whole:].swapaxes(0, 1)))
        for each in sums:
            total = each if total is None else np.add(total, each, out=total)
        at += len(part)
    if total is None:
        raise ValueError("a row with new tokens sees none; it was not checked")
    return total


def _in_chunks(queries: int, keys: int) -> int:
    """How many of the keys go in chunks."""
    direct = queries > _FEW or keys <= (2 * _CHUNK if queries <= _VERY_FEW else _CHUNK)
    return 0 if direct else keys - keys % _CHUNK


def _hide(fields: _Fields, scores: Array, tokens: int, before: int) -> None:
    """Take from each query the keys that it may not see; `before` of them come before the first query's position."""
    keys = scores.shape[2]
    by_query = scores.reshape(scores.shape[0], -1, tokens, keys)
    positions, places = np.arange(before, before + tokens)[:, None], np.arange(keys)
    if fields.causal:
        np.copyto(by_query[..., before:], _MINUS_INFINITY, where=places[before:] > positions)
    if fields.left_window >= 0:
        np.copyto(by_query, _MINUS_INFINITY, where=places < positions - fields.left_window)


def _cap(softcap: float, scores: Array) -> None:
    """Draw scores into ±softcap."""
    limit = np.float32(softcap)
    scores /= limit
    np.tanh(scores, out=scores)
    scores *= limit


def _exponentials(scores: Array) -> Array:
    """Probabilities but for their common factor, in place; gives their sums, at least what may divide."""
    peak = np.maximum.reduce(scores, 2, keepdims=True)
    np.maximum(peak, _LOWEST, out=peak)
    np.subtract(scores, peak, out=scores)
    np.exp(scores, out=scores)
    sums: Array = np.add.reduce(scores, 2, keepdims=True)
    return np.maximum(sums, _TINY, out=sums)
