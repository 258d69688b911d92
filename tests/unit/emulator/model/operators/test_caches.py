"""Caches by blocks against values worked out by hand, and against ATTENTION over the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType
from emulator.engines.kernels.choice import prepare
from emulator.engines.kernels.provider import KernelRequest
from emulator.model.operators import OPERATORS, KernelFault, SemanticError
from emulator.model.operators.caches import CacheAttention
from emulator.model.timing import Precision, Work
from tests.support.caches import Cached, attend_whole, random_step

Array = NDArray[Any]
F32 = np.float32
APPEND, ATTENTION = CommandKind.CACHE_APPEND, CommandKind.CACHE_ATTENTION
KERNELS = pytest.mark.parametrize("kernels", ["golden", "numpy"])
TYPES = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


@KERNELS
def test_tokens_go_to_the_blocks_that_their_table_names(kernels: str) -> None:
    cached = Cached(kernels, planes=2, blocks=3, block_tokens=2, heads=1, size=1, tables=[[2, 0]])
    new = np.array([[[[5], [6], [7]]]], F32)
    cached.append(1, new, [(0, 1, 3)])
    assert cached.cache[1, :, :, 0, 0].tolist() == [[6, 7], [0, 0], [0, 5]]
    assert not cached.cache[0].any()


@KERNELS
def test_tokens_that_do_not_count_are_not_written(kernels: str) -> None:
    cached = Cached(kernels, planes=1, blocks=2, block_tokens=2, heads=1, size=1, tables=[[0], [1]])
    new = np.array([[[[1], [2]]], [[[3], [4]]]], F32)
    cached.append(0, new, [(1, 0, 1), (0, 0, 0)])
    assert cached.cache[0, :, :, 0, 0].tolist() == [[0, 0], [1, 0]]


@KERNELS
def test_a_ring_goes_on_at_its_beginning(kernels: str) -> None:
    cached = Cached(kernels, planes=1, blocks=2, block_tokens=2, heads=1, size=1, tables=[[1, 0]])
    cached.append(0, np.array([[[[7], [8]]]], F32), [(0, 5, 2)], ring=3)
    assert cached.cache[0, :, :, 0, 0].tolist() == [[7, 0], [8, 0]]


@KERNELS
@pytest.mark.parametrize("heads", [0, 2])
def test_a_query_is_answered_as_worked_out_by_hand(kernels: str, heads: int) -> None:
    """Two keys, of which one has the score log 3 and the other 0: three quarters of its value, one of the other's."""
    cached = Cached(kernels, planes=2, blocks=2, block_tokens=1, heads=2, size=1, tables=[[1, 0]])
    cached.append(0, np.array([[[[0], [1]], [[1], [0]]]], F32), [(0, 0, 2)])
    cached.append(1, np.array([[[[0], [8]], [[4], [0]]]], F32), [(0, 0, 2)])
    query: Array = np.full((1, 2, 1, 1), np.log(3) / 2, F32)
    if heads:
        query = query.reshape(1, 1, 2)
    y = cached.attend(query, [(0, 1, 1)], scale=2.0, query_heads=heads)
    assert np.allclose(y, np.array([6, 3]).reshape(query.shape))


@KERNELS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": 1},
        {"causal": 1, "left_window": 5},
        {"causal": 1, "left_window": 5, "ring": 12},
        {"left_window": 2},
        {"left_window": 7, "ring": 14},
        {"causal": 1, "softcap": 2.0, "scale": 0.5},
        {"causal": 1, "query_heads": 6},
    ],
    ids=str,
)
def test_steps_give_what_attention_gives_over_the_whole_sequence(
    kernels: str, dtype: str, options: dict[str, Any]
) -> None:
    """Three sequences whose blocks lie mixed, in steps of several sizes, one of them idle at times."""
    random = np.random.default_rng(3)
    tables = [[7, 2, 9, 4, 11], [1, 0, 3, 5, 6], [8, 10, 12, 13, 14]]
    cached = Cached(kernels, planes=3, blocks=15, block_tokens=4, heads=2, size=8, tables=tables, dtype=dtype)
    whole: list[list[tuple[Array, Array, Array]]] = [[], [], []]
    for counts in ([4, 3, 0], [5, 1, 2], [1, 1, 1], [1, 0, 5], [2, 5, 4]):
        query, key, value, rows = random_step(random, cached, whole, counts, heads=6, tokens=5)
        cached.append(2, key, rows, ring=options.get("ring", 0))
        cached.append(0, value, rows, ring=options.get("ring", 0))
        y = cached.attend(query, rows, key_plane=2, value_plane=0, **options)
        for row, (sequence, _, count) in enumerate(rows):
            expected = attend_whole(whole[sequence], count, options) if count else 0
            assert np.allclose(y[row, :, :count].astype(F32), expected, rtol=TYPES[dtype], atol=TYPES[dtype])
            assert not y[row, :, count:].any()


@KERNELS
def test_two_sequences_may_share_a_block(kernels: str) -> None:
    random = np.random.default_rng(4)
    cached = Cached(kernels, planes=2, blocks=4, block_tokens=2, heads=1, size=4, tables=[[3, 0], [3, 1]])
    whole: list[list[tuple[Array, Array, Array]]] = [[], []]
    query, key, value, rows = random_step(random, cached, whole, [2], heads=1, tokens=2)
    cached.append(0, key, rows)
    cached.append(1, value, rows)
    whole[1] = list(whole[0])
    query, key, value, rows = random_step(random, cached, whole, [1, 2], heads=1, tokens=2)
    cached.append(0, key, rows)
    cached.append(1, value, rows)
    y = cached.attend(query, rows)
    for row, count in enumerate([1, 2]):
        assert np.allclose(y[row, :, :count], attend_whole(whole[row], count, {}), rtol=1e-5, atol=1e-5)


BAD_ROWS = [
    (2, 0, 1),
    (-1, 0, 1),
    (0, -1, 1),
    (0, 0, -1),
    (0, 0, 3),
    (0, 7, 2),
    (0, 8, 1),
    (0, 2**31 - 1, 2),
    (2, 0, 0),
    (1, 0, 1),
    (1, 3, 2),
]
"""Slots, tokens and counts that there are not; the table of slot 1 begins with no block, nor ends with one."""


@KERNELS
@pytest.mark.parametrize("bad", BAD_ROWS, ids=str)
def test_what_leaves_tables_or_cache_is_found_before_anything_is_written(
    kernels: str, bad: tuple[int, int, int]
) -> None:
    cached = Cached(
        kernels,
        planes=2,
        blocks=4,
        block_tokens=2,
        heads=1,
        size=1,
        tables=[[0, 1, 2, 3], [-1, 4, 2**31 - 1, -(2**31)]],
    )
    new, rows = np.ones((2, 1, 2, 1), F32), [(0, 0, 2), bad]
    for attempt in (lambda: cached.append(0, new, rows), lambda: cached.attend(new, rows)):
        with pytest.raises(KernelFault) as caught:
            attempt()
        assert caught.value.status is Status.INDEX_OUT_OF_RANGE
    assert not cached.cache.any()


@KERNELS
def test_only_entries_that_are_needed_must_be_blocks(kernels: str) -> None:
    cached = Cached(kernels, planes=2, blocks=4, block_tokens=2, heads=1, size=1, tables=[[-1, 3, 9], [-1, -1, -1]])
    new = np.ones((2, 1, 1, 1), F32)
    rows = [(0, 3, 1), (1, 3, 0)]
    cached.append(1, new, rows)
    assert cached.attend(new, rows, causal=1, left_window=1)[0] == 0.5


def types(**changes: Any) -> dict[str, TensorType]:
    """Operands that go together, in the order of both kinds."""
    float32, int32 = WireType.FLOAT32, WireType.INT32
    found = {
        "query": TensorType(float32, (2, 6, 3, 8)),
        "cache": TensorType(float32, (2, 5, 4, 2, 8)),
        "values": TensorType(float32, (2, 5, 4, 2, 8)),
        "update": TensorType(float32, (2, 2, 3, 8)),
        "tables": TensorType(int32, (7, 3)),
        "rows": TensorType(int32, (2, 3)),
    }
    return found | changes


@pytest.mark.parametrize(
    ("fields", "changes", "reason"),
    [
        ({"plane": 2}, {}, "plane 2 of"),
        ({"heads": 2}, {}, "belong together"),
        ({}, {"cache": TensorType(WireType.FLOAT32, (2, 5, 4, 16))}, "is no cache"),
        ({}, {"cache": TensorType(WireType.FLOAT32, (2, 5, 0, 2, 8))}, "blocks of 0 tokens"),
        ({}, {"cache": TensorType(WireType.FLOAT16, (2, 5, 4, 2, 8))}, "different types"),
        ({}, {"update": TensorType(WireType.FLOAT32, (2, 3, 3, 8))}, "3 heads of 8 do not go into"),
        ({}, {"update": TensorType(WireType.FLOAT32, (2, 2, 3, 4))}, "2 heads of 4 do not go into"),
        ({}, {"tables": TensorType(WireType.INT64, (7, 3))}, "tables are int64"),
        ({}, {"tables": TensorType(WireType.INT32, (7,))}, "tables are int32"),
        ({}, {"rows": TensorType(WireType.INT32, (3, 3))}, "rows are int32"),
        ({}, {"rows": TensorType(WireType.INT64, (2, 3))}, "rows are int64"),
        ({"ring": 2}, {}, "a ring of 2 tokens; 3 must fit"),
        ({"ring": 13}, {}, "places for 12"),
    ],
)
def test_what_cannot_be_appended_is_refused(fields: dict[str, int], changes: dict[str, Any], reason: str) -> None:
    found = types(**changes)
    with pytest.raises(SemanticError, match=reason):
        OPERATORS[APPEND].infer(
            make_attributes(APPEND, **fields), [found[name] for name in ("cache", "update", "tables", "rows")]
        )


@pytest.mark.parametrize(
    ("fields", "changes", "reason"),
    [
        ({"key_plane": 2}, {}, "plane 2 of"),
        ({"value_plane": 2}, {}, "plane 2 of"),
        ({"left_window": -2}, {}, "a window is -1"),
        ({"softcap": -1.0}, {}, "softcap"),
        ({"query_heads": 6}, {}, "belong together"),
        ({"ring": 6}, {}, "left_window is open"),
        ({"ring": 6, "left_window": 4}, {}, "a ring of 6 tokens; 7 must fit"),
        ({"ring": 13, "left_window": 4}, {}, "places for 12"),
        ({"causal": 2}, {}, "neither 0 nor 1"),
        ({}, {"values": TensorType(WireType.FLOAT16, (2, 5, 4, 2, 8))}, "different types"),
        ({}, {"values": TensorType(WireType.FLOAT32, (2, 6, 4, 2, 8))}, "blocks of"),
        ({}, {"values": TensorType(WireType.FLOAT32, (2, 5, 4, 3, 8))}, "blocks of"),
        ({}, {"query": TensorType(WireType.FLOAT32, (2, 5, 3, 8))}, "5 heads of queries for 2 of keys"),
        ({}, {"query": TensorType(WireType.FLOAT32, (2, 6, 3, 4))}, "queries of 4 elements, keys of 8"),
        ({}, {"query": TensorType(WireType.FLOAT32, (3, 6, 3, 8))}, "rows are int32"),
        ({}, {"tables": TensorType(WireType.FLOAT32, (7, 3))}, "tables are float32"),
    ],
)
def test_what_cannot_be_attended_is_refused(fields: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    found = types(**changes)
    attributes = make_attributes(ATTENTION, **{"scale": 1.0, "left_window": -1, **fields})
    operands = [found[name] for name in ("query", "cache", "values", "tables", "rows")]
    with pytest.raises(SemanticError, match=reason):
        OPERATORS[ATTENTION].check(attributes, operands, OPERATORS[ATTENTION].infer(attributes, operands))


def test_values_may_have_another_size_than_keys() -> None:
    found = types(values=TensorType(WireType.FLOAT32, (1, 5, 4, 2, 3)))
    attributes = make_attributes(ATTENTION, scale=1.0, left_window=-1)
    operands = [found[name] for name in ("query", "cache", "values", "tables", "rows")]
    assert OPERATORS[ATTENTION].infer(attributes, operands) == [TensorType(WireType.FLOAT32, (2, 6, 3, 3))]


# --- what it costs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "rows", "seen", "blocks"),
    [
        ({"causal": 1}, [(0, 3)], 1 + 2 + 3, 1),
        ({"causal": 1}, [(4, 1), (5, 2)], 5 + 6 + 7, 2 + 2),
        ({}, [(2, 3)], 3 * 5, 2),
        ({}, [(7, 0), (0, 0)], 0, 0),
        ({"causal": 1, "left_window": 1}, [(0, 3)], 1 + 2 + 2, 1),
        ({"causal": 1, "left_window": 1}, [(8, 2)], 2 + 2, 2),
        ({"left_window": 1}, [(8, 2)], 3 + 2, 2),
        ({"causal": 1, "left_window": 3, "ring": 8}, [(8, 2)], 4 + 4, 2),
        ({"causal": 1, "left_window": 3, "ring": 8}, [(11, 1)], 4, 1),
    ],
    ids=str,
)
def test_work_follows_from_the_rows(
    fields: dict[str, Any], rows: Sequence[tuple[int, int]], seen: int, blocks: int
) -> None:
    """Six heads of 8 and 8 elements; a block is 4 tokens of two key heads, in float32; queries and results 2·6·3·8."""
    attributes = make_attributes(ATTENTION, **{"scale": 1.0, "left_window": -1, **fields})
    operands = [types()[name] for name in ("query", "cache", "values", "tables", "rows")]
    operator = OPERATORS[ATTENTION]
    assert isinstance(operator, CacheAttention)
    cost = operator.cost(attributes, operands, operator.infer(attributes, operands))
    outer, block = 2 * 4 * 2 * 6 * 3 * 8, 4 * 4 * 2 * 16
    assert cost.work(rows) == Work(6 * 16 * seen, block * blocks + outer, Precision.FP32)


def test_work_without_rows_is_that_of_full_tables() -> None:
    attributes = make_attributes(ATTENTION, scale=1.0, left_window=-1, causal=1)
    operands = [types()[name] for name in ("query", "cache", "values", "tables", "rows")]
    operator = OPERATORS[ATTENTION]
    outputs = operator.infer(attributes, operands)
    outer, block = 2 * 4 * 2 * 6 * 3 * 8, 4 * 4 * 2 * 16
    assert operator.work(attributes, operands, outputs) == Work(2 * 6 * 16 * (10 + 11 + 12), 2 * 3 * block + outer)
    assert operator.effort(attributes, operands, outputs) > operator.work(attributes, operands, outputs).macs


def test_an_append_reads_and_writes_what_is_new() -> None:
    operands = [types()[name] for name in ("cache", "update", "tables", "rows")]
    attributes = make_attributes(APPEND)
    work = OPERATORS[APPEND].work(attributes, operands, OPERATORS[APPEND].infer(attributes, operands))
    assert work == Work(0, 2 * 4 * 2 * 2 * 3 * 8)


def test_both_kinds_have_kernels_of_numpy() -> None:
    found = types()
    for kind, names in (
        (APPEND, ("cache", "update", "tables", "rows")),
        (ATTENTION, ("query", "cache", "values", "tables", "rows")),
    ):
        attributes = make_attributes(kind, **({"scale": 1.0, "left_window": -1} if kind is ATTENTION else {}))
        operands = tuple(found[name] for name in names)
        outputs = tuple(OPERATORS[kind].infer(attributes, operands))
        request = KernelRequest(kind, attributes, operands, outputs, (None,) * len(operands))
        assert prepare("numpy", request).name == f"numpy.{kind.name.lower()}"
