"""Work of commands, worked out by hand; and the choice of kernels."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from driver_shim.protocol.program import Command, Storage, Tensor, TensorType, make_attributes
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.program_parsing import parse
from driver_shim.protocol.types import WireType
from emulator.model.profile import load_profile
from emulator.model.timing import Precision, Product, Work
from emulator.model.work import known_work, program_work, row_costs, row_ticks, work_of
from sdk.compiler import compile_model
from tests.support.cache_programs import CacheProgram
from tests.support.models import storage_net
from tests.support.programs import window

F32, F16, INT8 = WireType.FLOAT32, WireType.FLOAT16, WireType.INT8


@pytest.mark.parametrize(
    ("kind", "dtype", "shapes", "fields", "expected"),
    [
        (
            CommandKind.MATMUL,
            F32,
            [(2, 3), (3, 5), (2, 5)],
            {},
            Work(30, 4 * (6 + 15 + 10), Precision.FP32, (Product(2, 3, 5, 1, 1, 32, 32),)),
        ),
        (
            CommandKind.MATMUL,
            F16,
            [(7, 3, 2), (3, 5), (7, 2, 5)],
            {"transpose_a": 1},
            Work(210, 2 * (42 + 15 + 70), Precision.FP16, (Product(14, 3, 5, 1, 1, 16, 16),)),
        ),
        (
            CommandKind.MATMUL,
            WireType.BFLOAT16,
            [(7, 2, 3), (7, 3, 5), (7, 2, 5)],
            {},
            Work(210, 2 * (42 + 105 + 70), Precision.BF16, (Product(2, 3, 5, 7, 1, 16, 16),)),
        ),
        (
            CommandKind.CONV,
            F32,
            [(1, 4, 8), (6, 2, 3), (1, 6, 6)],
            {"group": 2, **window()},
            Work(6 * 6 * 2 * 3, 4 * (32 + 36 + 36), Precision.FP32, (Product(6, 6, 3, 2, 1, 32, 32),)),
        ),
        (
            CommandKind.QCONV,
            INT8,
            [(1, 4, 8), (6, 4, 3), (1, 6, 6)],
            {"group": 1, **window()},
            Work(6 * 6 * 4 * 3, 32 + 72 + 36, Precision.INT8, (Product(6, 12, 6, 1, 1, 8, 8),)),
        ),
        (
            CommandKind.CONV_TRANSPOSE,
            F32,
            [(1, 4, 8), (4, 3, 2), (1, 6, 9)],
            {"group": 2, **window()},
            Work(32 * 6, 4 * (32 + 24 + 54), Precision.FP32, (Product(8, 2, 6, 2, 1, 32, 32),)),
        ),
        (CommandKind.UNARY, F32, [(10,), (10,)], {}, Work(0, 80, Precision.FP32)),
    ],
)
def test_work_of_a_command(
    kind: CommandKind, dtype: WireType, shapes: list[tuple[int, ...]], fields: dict[str, Any], expected: Work
) -> None:
    tensors = [Tensor(TensorType(dtype, shape), Storage.WORKSPACE) for shape in shapes]
    command = Command(kind, make_attributes(kind, **fields), tuple(range(len(shapes) - 1)), (len(shapes) - 1,))
    assert work_of(command, tensors) == expected


def test_work_of_a_program_is_that_of_its_commands() -> None:
    compiled = compile_model(storage_net(), {"ids": (1, 4), "mask": (1, 4)})
    work = program_work(parse(compiled.image))
    assert len(work) == compiled.plan.commands
    assert sum(item.bytes for item in work) == compiled.plan.moved_bytes


def test_packed_weights_are_as_many_bytes_as_are_stored() -> None:
    tensors = [
        Tensor(TensorType(F16, (3, 64)), Storage.INPUT),
        Tensor(TensorType(WireType.UINT8, (10, 2, 16)), Storage.CONSTANT),
        Tensor(TensorType(F16, (10, 2)), Storage.CONSTANT),
        Tensor(TensorType(F16, (3, 10)), Storage.OUTPUT),
    ]
    attributes = make_attributes(CommandKind.MATMUL_NBITS, bits=4, block=32)
    command = Command(CommandKind.MATMUL_NBITS, attributes, (0, 1, 2, None, None), (3,))
    stored = 2 * 3 * 64 + 10 * 64 // 2 + 2 * 20 + 2 * 30
    product = Product(3, 64, 10, 1, 1, 16, 4)
    assert work_of(command, tensors) == Work(3 * 64 * 10, stored, Precision.FP16, (product,))


def test_a_tensor_that_the_plan_has_on_the_chip_moves_no_bytes_and_one_byte_beyond_it_does() -> None:
    shape = TensorType(F32, (16,))
    tensors = [Tensor(shape, Storage.WORKSPACE, 64), Tensor(shape, Storage.WORKSPACE), Tensor(shape, Storage.OUTPUT)]
    attributes = make_attributes(CommandKind.UNARY)
    inner = Command(CommandKind.UNARY, attributes, (0,), (1,))
    last = Command(CommandKind.UNARY, attributes, (1,), (2,))
    assert [work_of(inner, tensors, size).bytes for size in (128, 127, 64, 63, 0)] == [0, 64, 64, 128, 128]
    assert [work_of(last, tensors, size).bytes for size in (1 << 30, 64, 63)] == [64, 64, 128]


def test_queries_and_results_of_attention_on_the_chip_move_no_bytes() -> None:
    program = CACHES.program()
    (entry,) = program.entries
    (plain,) = row_costs(program.tensors, entry)
    tensors = [
        dataclasses.replace(each, storage=Storage.WORKSPACE) if each.storage is Storage.OUTPUT else each
        for each in program.tensors
    ]
    (inner,) = row_costs(tensors, entry, 1 << 20)
    assert plain.cost.outer_bytes - inner.cost.outer_bytes == 2 * 2 * 4 * 8 * 4  # batch, tokens, heads, size, float32


CACHES = CacheProgram(tokens=2, blocks=64, slots=3, entries=32)
"""Blocks of 4 tokens, 2 key heads of 8 elements in float32: 512 bytes of keys and values; 4 heads of queries."""


def cache_ticks(program: CacheProgram, *rows: tuple[int, int, int]) -> int:
    parsed = program.program()
    (entry,) = parsed.entries
    costs = row_costs(parsed.tensors, entry)
    assert [(each.input, each.times) for each in costs] == [(4, 1)]
    return row_ticks(load_profile("generic"), costs, lambda _: rows)


def test_ticks_follow_from_the_rows_of_an_execution() -> None:
    """256 bytes and 2 · 1024 multiply-accumulates a tick; 1024 bytes are queries and results, a key costs 4 · 16."""
    fixed = load_profile("generic").command_fixed_ticks
    assert cache_ticks(CACHES, (0, 0, 0), (0, 0, 0)) == fixed + 4
    assert cache_ticks(CACHES, (0, 5, 1), (2, 0, 2)) == fixed + (3 * 512 + 1024) // 256
    assert cache_ticks(CACHES, (0, 126, 2), (2, 64, 1)) == fixed + ((32 + 17) * 512 + 1024) // 256
    wide = CacheProgram(tokens=64, blocks=64, entries=32)
    seen = 2 * (64 * 64 + 64 * 65 // 2)
    assert cache_ticks(wide, (0, 64, 64), (1, 64, 64)) == fixed + -(-seen * 64 // 2048)


@pytest.mark.parametrize(
    ("row", "nearest"),
    [
        ((0, 127, 2), (0, 126, 2)),
        ((9, 2**31 - 1, 1), (0, 127, 1)),
        ((-1, -5, 2), (0, 0, 2)),
        ((0, 10, 100), (0, 10, 2)),
        ((0, 10, -(2**31)), (0, 10, 0)),
    ],
)
def test_an_impossible_row_takes_what_the_nearest_possible_takes(
    row: tuple[int, int, int], nearest: tuple[int, int, int]
) -> None:
    idle = (0, 0, 0)
    assert cache_ticks(CACHES, row, idle) == cache_ticks(CACHES, nearest, idle)


def test_a_ring_takes_the_same_however_long_its_sequence_is() -> None:
    ring = CacheProgram(tokens=2, blocks=64, entries=32, left_window=62, ring=64)
    assert cache_ticks(ring, (0, 100, 1), (0, 0, 0)) == cache_ticks(ring, (0, 2**31 - 1 - 27, 1), (0, 0, 0))


def test_commands_that_are_alike_are_reckoned_once() -> None:
    program = CACHES.program()
    (entry,) = program.entries
    again = dataclasses.replace(entry, commands=(*entry.commands, entry.commands[-1]))
    (cost,) = row_costs(program.tensors, again)
    assert (cost.input, cost.times) == (4, 2)
    assert known_work(program.tensors, again) == [Work(0, 512)] * 2
