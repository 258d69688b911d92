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
from emulator.model.timing import Precision, Work
from emulator.model.work import known_work, program_work, row_costs, row_ticks, work_of
from sdk.compiler import compile_model
from tests.support.cache_programs import CacheProgram
from tests.support.models import storage_net
from tests.support.programs import window

F32, F16, INT8 = WireType.FLOAT32, WireType.FLOAT16, WireType.INT8


@pytest.mark.parametrize(
    ("kind", "dtype", "shapes", "fields", "expected"),
    [
        (CommandKind.MATMUL, F32, [(2, 3), (3, 5), (2, 5)], {}, Work(30, 4 * (6 + 15 + 10), Precision.FP32)),
        (
            CommandKind.MATMUL,
            F16,
            [(7, 3, 2), (3, 5), (7, 2, 5)],
            {"transpose_a": 1},
            Work(210, 2 * (42 + 15 + 70), Precision.FP16),
        ),
        (
            CommandKind.CONV,
            F32,
            [(1, 4, 8), (6, 2, 3), (1, 6, 6)],
            {"group": 2, **window()},
            Work(6 * 6 * 2 * 3, 4 * (32 + 36 + 36), Precision.FP32),
        ),
        (
            CommandKind.QCONV,
            INT8,
            [(1, 4, 8), (6, 4, 3), (1, 6, 6)],
            {"group": 1, **window()},
            Work(6 * 6 * 4 * 3, 32 + 72 + 36, Precision.INT8),
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


CACHES = CacheProgram(tokens=2, blocks=64, slots=3, entries=32)
"""Blocks of 4 tokens, 2 key heads of 8 elements in float32: 512 bytes of keys and values; 4 heads of queries."""


def cache_ticks(program: CacheProgram, *rows: tuple[int, int, int]) -> int:
    parsed = program.program()
    (entry,) = parsed.entries
    costs = row_costs(parsed.tensors, entry)
    assert [(each.input, each.times) for each in costs] == [(4, 1)]
    return row_ticks(load_profile("generic"), costs, lambda _: rows)


def test_ticks_follow_from_the_rows_of_an_execution() -> None:
    """256 bytes and 1024 multiply-accumulates a tick; 1024 bytes are queries and results, a key costs 4 · 16."""
    fixed = load_profile("generic").command_fixed_ticks
    assert cache_ticks(CACHES, (0, 0, 0), (0, 0, 0)) == fixed + 4
    assert cache_ticks(CACHES, (0, 5, 1), (2, 0, 2)) == fixed + (3 * 512 + 1024) // 256
    assert cache_ticks(CACHES, (0, 126, 2), (2, 64, 1)) == fixed + ((32 + 17) * 512 + 1024) // 256
    wide = CacheProgram(tokens=64, blocks=64, entries=32)
    seen = 2 * (64 * 64 + 64 * 65 // 2)
    assert cache_ticks(wide, (0, 64, 64), (1, 64, 64)) == fixed + -(-seen * 64 // 1024)


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
