"""Ticks of every kind of work, against figures computed by hand; and that faults in the model are caught by those."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.model import timing
from emulator.model.profile import Profile, load_profile
from emulator.model.timing import NoRate, Precision, Product, Work

CHIP = dataclasses.replace(
    load_profile("generic"),
    engines=1,
    int8_macs_per_tick=1000,
    fp16_macs_per_tick=100,
    bf16_macs_per_tick=50,
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


def tiled(engines: int, **figures: Any) -> Profile:
    """64 int8 multiply-accumulates a tick in tiles of 4 x 4; 32 bytes a tick; 20 ticks a command."""
    usual: dict[str, Any] = {"int8_macs_per_tick": 64, "memory_bytes_per_tick": 32, "tiles": ((4, 4),)}
    return dataclasses.replace(CHIP, engines=engines, **usual | figures)


def matmul(rows: int, depth: int, columns: int, batch: int = 1, left: int = 8, right: int = 8) -> Work:
    """A product of matrices whose results are of 8 bits."""
    moved = batch * (rows * depth * left + depth * columns * right + rows * columns * 8) // 8
    products = (Product(rows, depth, columns, batch, 1, left, right),)
    return Work(batch * rows * depth * columns, moved, Precision.INT8, products)


BOTH = ((4, 4), (8, 16))
Case = tuple[Profile, Work, int, str]
PRODUCTS: Sequence[Case] = [
    # 1 tile: 4·4·16 / 64 = 4 ticks; 64 + 64 + 16 bytes / 32 = 4.5
    (tiled(1), matmul(4, 16, 4), 5 + 20, "fixed"),
    # a row more is another whole tile: 2 waves of 4; 164 bytes / 32 = 5.1
    (tiled(1), matmul(5, 16, 4), 8 + 20, "fixed"),
    # which a second engine takes: 1 wave of 4; memory takes 6
    (tiled(2), matmul(5, 16, 4), 6 + 20, "fixed"),
    # 2 x 2 tiles on 3 engines are 2 waves
    (tiled(3), matmul(5, 16, 5), 8 + 20, "fixed"),
    # 3 x 4 tiles on 4 engines: 3 waves of 16·100 / 64 = 25; 2992 bytes / 32 = 93.5
    (tiled(4), matmul(12, 100, 16), 94 + 20, "memory"),
    # twice the bandwidth: 46.75 against 75
    (tiled(4, memory_bytes_per_tick=64), matmul(12, 100, 16), 75 + 20, "compute"),
    # one result takes a whole tile of one engine: 16·7 / 64 = 1.75
    (tiled(8), matmul(1, 7, 1), 2 + 20, "fixed"),
    # 3 x 3 tiles on 2 engines: 5 waves of 16 + 5
    (tiled(2, fill_ticks=5), matmul(9, 64, 9), 5 * 21 + 20, "compute"),
    # tiles of 8 x 16 would take one wave of 128 + 5: more
    (tiled(2, fill_ticks=5, tiles=BOTH), matmul(9, 64, 9), 5 * 21 + 20, "compute"),
    # here they take 4 waves of 133, the others 32 waves of 21
    (tiled(2, fill_ticks=5, tiles=BOTH), matmul(32, 64, 32), 4 * 133 + 20, "compute"),
    # 4 waves, each of 64·(4 + 4) bytes through a port of 8 a tick
    (tiled(1, shared_port_bytes_per_tick=8), matmul(8, 64, 8), 4 * 64 + 20, "sram"),
    # weights of 4 bits are half the bytes there: 64·(4 + 2) / 8
    (tiled(1, shared_port_bytes_per_tick=8), matmul(8, 64, 8, right=4), 4 * 48 + 20, "sram"),
    # 3 products of one tile each on 2 engines: 2 waves of 4; 432 bytes / 32 = 13.5
    (tiled(2), matmul(4, 16, 4, batch=3), 14 + 20, "fixed"),
    # neither 4 rows nor 4 columns of 64 bytes fit 255: weights are read for each of 3 rows of tiles; 1584 / 32 = 49.5
    (tiled(1, sram_bytes=255), matmul(12, 64, 4), 50 + 20, "memory"),
    # one byte more and they are read once: 1072 / 32 = 33.5 against 3 waves of 16
    (tiled(1, sram_bytes=256), matmul(12, 64, 4), 48 + 20, "compute"),
    # or all weights fit what engines share
    (tiled(1, sram_bytes=255, shared_sram_bytes=256), matmul(12, 64, 4), 48 + 20, "compute"),
    (tiled(1, sram_bytes=255, shared_sram_bytes=255), matmul(12, 64, 4), 50 + 20, "memory"),
    # no memory of its own, or of unknown speed: the term is absent
    (tiled(1, memory_bytes_per_tick=None), matmul(4, 16, 4), 4 + 20, "fixed"),
    # without tiles engines share it evenly: 19200 / (64·4)
    (tiled(4, tiles=(), memory_bytes_per_tick=None), matmul(12, 100, 16), 75 + 20, "compute"),
    # what comes after its equals: 5 steps of 4 tiles on 2 engines, 1 tick each
    (
        tiled(2, memory_bytes_per_tick=None),
        Work(640, 0, Precision.INT8, (Product(2, 4, 8, 2, 5),)),
        10 + 20,
        "fixed",
    ),
    # nothing to compute takes a command's time
    (tiled(2), matmul(0, 16, 4), 2 + 20, "fixed"),
]


def wrong_products(model: Any) -> list[int]:
    """The cases that a model gets wrong."""
    found = []
    for at, (profile, work, ticks, binding) in enumerate(PRODUCTS):
        cost = model.command_cost(profile, work)
        if (cost.ticks, str(cost.binding)) != (ticks, binding):
            found.append(at)
    return found


@pytest.mark.parametrize("case", PRODUCTS, ids=[str(at) for at in range(len(PRODUCTS))])
def test_a_product_of_matrices_takes_what_was_computed_by_hand(case: Case) -> None:
    profile, work, ticks, binding = case
    cost = timing.command_cost(profile, work)
    assert (cost.ticks, cost.binding) == (ticks, binding)


COPIES = [
    (0, True, False, 50),
    (1, True, False, 51),  # a started tick is spent
    (4096, True, False, 306),  # 4096 / 16 = 256 on the link, 64 in memory
    (4096, False, True, 306),
    (4096, True, True, 306),  # both directions at once, no device memory
    (4096, False, False, 178),  # 8192 bytes of memory traffic / 64 = 128
    (4097, False, False, 179),
]
EVEN = [
    (Work(0, 0), 20),
    (Work(1_000_000, 64, Precision.INT8), 1020),  # compute bound
    (Work(1_000_000, 64, Precision.FP16), 10_020),
    (Work(1_000_000, 64, Precision.BF16), 20_020),
    (Work(1_000_000, 64, Precision.FP32), 100_020),
    (Work(1_000, 6_400, Precision.INT8), 120),  # memory bound: 100 against 1
    (Work(1_001, 0, Precision.INT8), 22),
]


def wrong_others(model: Any) -> list[str]:
    """What else a model gets wrong."""
    checks = {
        "copies": all(
            model.copy_ticks(CHIP, size, from_host=here, to_host=there) == ticks for size, here, there, ticks in COPIES
        ),
        "even": all(model.command_ticks(CHIP, work) == ticks for work, ticks in EVEN),
        "program": model.program_ticks(CHIP, [EVEN[1][0], Work(0, 128)]) == 200 + 1020 + 22,
        "fills": [model.fill_ticks(CHIP, 65, to_host=there) for there in (False, True)] == [32, 35],
        "roofline": model.roofline_ticks(CHIP, EVEN[5][0]) == 100 and model.roofline_ticks(CHIP, EVEN[1][0]) == 1000,
    }
    return [name for name, right in checks.items() if not right]


def test_nop_and_barrier_cost_their_fixed_ticks() -> None:
    assert timing.nop_ticks(CHIP) == 3
    assert timing.barrier_ticks(CHIP) == 4


def test_copies_fills_even_work_and_programs_take_what_was_computed_by_hand() -> None:
    assert wrong_others(timing) == []
    assert timing.program_ticks(CHIP, []) == 200


def test_without_a_rate_of_link_or_memory_copies_take_their_fixed_ticks() -> None:
    bare = dataclasses.replace(CHIP, link_bytes_per_tick=None, memory_bytes_per_tick=None)
    assert timing.copy_ticks(bare, 4096, from_host=True, to_host=False) == 50
    assert timing.fill_ticks(bare, 4096) == 30


FAULTS = [
    ("tiles = each.batch * _ceil_div(each.rows, rows)", "tiles = each.batch * (each.rows // rows)"),
    ("* _ceil_div(each.columns, columns)", "* (each.columns // columns)"),
    ("tiles = each.batch * ", "tiles = "),
    ("waves = each.steps * _ceil_div(tiles, profile.engines)", "waves = each.steps * tiles"),
    ("waves = each.steps * ", "waves = "),
    (
        "_ceil_div(rows * columns * each.depth, rate) + profile.fill_ticks",
        "_ceil_div(rows * columns * each.depth, rate)",
    ),
    ("rows * each.left_bits + columns * each.right_bits", "(rows + columns) * each.left_bits"),
    ("min((_tiled(profile, work, tile, even)", "max((_tiled(profile, work, tile, even)"),
    ("moved += _read_again(profile, each, tile)", "pass"),
    ("min(left * rows, right * columns) <= 8", "min(left * rows, right * columns) < 8"),
    ("min(left * product.rows, right * product.columns) <= 8", "min(left * product.rows, right * product.columns) < 8"),
    ("(_ceil_div(product.rows, rows) - 1)", "_ceil_div(product.rows, rows)"),
    ("max(self.compute, self.sram, self.memory) + self.fixed", "max(self.compute, self.memory) + self.fixed"),
    ("max(self.compute, self.sram, self.memory) + self.fixed", "self.compute + self.sram + self.memory + self.fixed"),
    ("profile, work.precision) * profile.engines)", "profile, work.precision))"),
    ("return profile.exec_fixed_ticks + sum", "return sum"),
    ("device_sides = (not from_host) + (not to_host)", "device_sides = 1"),
    ("return -(-amount // rate)", "return amount // rate"),
    ('f"{precision.value}_macs_per_tick"', '"int8_macs_per_tick"'),
    ("return max(peak, Fraction(work.bytes, profile.memory_bytes_per_tick))", "return peak"),
]
"""One line each: what the model says, and a fault in its place."""


@pytest.mark.parametrize("fault", FAULTS, ids=[str(at) for at in range(len(FAULTS))])
def test_a_fault_planted_in_the_model_is_caught(fault: tuple[str, str]) -> None:
    source = Path(str(timing.__file__)).read_text()
    assert source.count(fault[0]) == 1
    planted = types.ModuleType("planted")
    exec(compile(source.replace(*fault), "planted", "exec"), planted.__dict__)
    assert wrong_products(planted) or wrong_others(planted)


def test_a_type_that_a_chip_lacks_is_refused_by_name_unless_nothing_is_multiplied() -> None:
    chip = dataclasses.replace(CHIP, fp32_macs_per_tick=None, bf16_macs_per_tick=None)
    with pytest.raises(NoRate, match="generic has no rate for fp32; it has: int8, fp16"):
        timing.command_ticks(chip, Work(1, 0, Precision.FP32))
    assert timing.command_ticks(chip, Work(0, 64, Precision.FP32)) == 21


# --- what holds for all -----------------------------------------------------------------------------------------------

SIDES = st.integers(0, 300)
MATMULS = st.builds(matmul, SIDES, st.integers(1, 600), SIDES, st.integers(0, 5), st.sampled_from([8, 16, 32]))
TILES = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), max_size=3).map(tuple)
OPTIONAL = st.none() | st.integers(1, 10_000)
CHIPS = st.builds(
    tiled,
    st.integers(1, 40),
    int8_macs_per_tick=st.integers(1, 5000),
    memory_bytes_per_tick=OPTIONAL,
    tiles=TILES,
    fill_ticks=st.integers(0, 50),
    sram_bytes=OPTIONAL,
    shared_sram_bytes=OPTIONAL,
    shared_port_bytes_per_tick=OPTIONAL,
)


@given(CHIPS, MATMULS)
def test_nothing_is_faster_than_the_roofline(chip: Profile, work: Work) -> None:
    assert timing.command_ticks(chip, work) - chip.command_fixed_ticks >= math.ceil(timing.roofline_ticks(chip, work))


IMPROVED = [
    "engines",
    "int8_macs_per_tick",
    "memory_bytes_per_tick",
    "sram_bytes",
    "shared_sram_bytes",
    "shared_port_bytes_per_tick",
]


@given(CHIPS, MATMULS, st.sampled_from(IMPROVED), st.integers(1, 200))
def test_more_of_anything_never_takes_longer(chip: Profile, work: Work, figure: str, more: int) -> None:
    before: int | None = getattr(chip, figure)
    if before is not None:
        better = dataclasses.replace(chip, **{figure: before + more})  # type: ignore[arg-type]
        assert timing.command_ticks(better, work) <= timing.command_ticks(chip, work)


@given(CHIPS, SIDES, st.integers(1, 600), SIDES, st.integers(1, 50))
def test_a_larger_batch_never_takes_less(chip: Profile, rows: int, depth: int, columns: int, more: int) -> None:
    for larger in (matmul(rows + more, depth, columns), matmul(rows, depth, columns, batch=1 + more)):
        assert timing.command_ticks(chip, larger) >= timing.command_ticks(chip, matmul(rows, depth, columns))


@given(CHIPS, MATMULS)
def test_a_faster_clock_takes_less_time_though_as_many_ticks(chip: Profile, work: Work) -> None:
    faster = dataclasses.replace(chip, tick_hz=2 * chip.tick_hz)
    ticks = timing.command_ticks(chip, work)
    assert timing.command_ticks(faster, work) == ticks
    assert ticks / faster.tick_hz < ticks / chip.tick_hz


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.sampled_from(Precision))
def test_costs_are_exact_integers_at_any_size(macs: int, size: int, precision: Precision) -> None:
    profile = load_profile("generic")
    ticks = timing.command_ticks(profile, Work(macs, size, precision)) - profile.command_fixed_ticks
    rate = 2 * {"int8": 16384, "fp16": 4096, "bf16": 4096, "fp32": 1024}[precision.value]
    assert isinstance(ticks, int)
    assert ticks * rate >= macs and ticks * 256 >= size
    assert (ticks - 1) * rate < macs or (ticks - 1) * 256 < size or ticks == 0
