"""Ticks of every kind of work, against figures computed by hand."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.model.profile import load_profile
from emulator.model.timing import (
    Precision,
    Work,
    barrier_ticks,
    command_ticks,
    copy_ticks,
    fill_ticks,
    nop_ticks,
    program_ticks,
)

CHIP = dataclasses.replace(
    load_profile("generic"),
    int8_macs_per_tick=1000,
    fp16_macs_per_tick=100,
    fp32_macs_per_tick=10,
    memory_bytes_per_tick=64,
    link_bytes_per_tick=16,
    nop_fixed_ticks=3,
    barrier_fixed_ticks=4,
    copy_fixed_ticks=50,
    fill_fixed_ticks=30,
    exec_fixed_ticks=200,
    command_fixed_ticks=20,
)


def test_nop_and_barrier_cost_their_fixed_ticks() -> None:
    assert nop_ticks(CHIP) == 3
    assert barrier_ticks(CHIP) == 4


@pytest.mark.parametrize(
    ("size", "from_host", "to_host", "ticks"),
    [
        (0, True, False, 50),
        (1, True, False, 51),  # a started tick is spent
        (4096, True, False, 306),  # 4096 / 16 = 256 on the link, 64 in memory
        (4096, False, True, 306),
        (4096, True, True, 306),  # both directions at once, no device memory
        (4096, False, False, 178),  # 8192 bytes of memory traffic / 64 = 128
        (4097, False, False, 179),
    ],
)
def test_copies(size: int, from_host: bool, to_host: bool, ticks: int) -> None:
    assert copy_ticks(CHIP, size, from_host=from_host, to_host=to_host) == ticks


@pytest.mark.parametrize(("size", "to_host", "ticks"), [(0, False, 30), (65, False, 32), (65, True, 35)])
def test_fills(size: int, to_host: bool, ticks: int) -> None:
    assert fill_ticks(CHIP, size, to_host=to_host) == ticks


@pytest.mark.parametrize(
    ("work", "ticks"),
    [
        (Work(0, 0), 20),
        (Work(1_000_000, 64, Precision.INT8), 1020),  # compute bound
        (Work(1_000_000, 64, Precision.FP16), 10_020),
        (Work(1_000_000, 64, Precision.FP32), 100_020),
        (Work(1_000, 6_400, Precision.INT8), 120),  # memory bound: 100 against 1
        (Work(1_001, 0, Precision.INT8), 22),
    ],
)
def test_program_commands(work: Work, ticks: int) -> None:
    assert command_ticks(CHIP, work) == ticks


def test_a_program_is_its_start_and_its_commands_one_after_the_other() -> None:
    assert program_ticks(CHIP, []) == 200
    assert program_ticks(CHIP, [Work(1_000_000, 64, Precision.INT8), Work(0, 128)]) == 200 + 1020 + 22


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.sampled_from(Precision))
def test_costs_are_exact_integers_at_any_size(macs: int, size: int, precision: Precision) -> None:
    profile = load_profile("generic")
    ticks = command_ticks(profile, Work(macs, size, precision)) - profile.command_fixed_ticks
    rate = {"int8": 16384, "fp16": 4096, "fp32": 1024}[precision.value]
    assert isinstance(ticks, int)
    assert ticks * rate >= macs and ticks * 256 >= size
    assert (ticks - 1) * rate < macs or (ticks - 1) * 256 < size or ticks == 0
