"""The time that work takes on a chip, in whole ticks: the longest of several terms, and a fixed cost.

Pure functions of a `Profile`, computed from the architecture and never fitted to a measurement. Fractions round up:
a started tick is spent. A program has all engines of its chip, which share each command between them; a term whose
figures the profile lacks is absent, so what is told is a bound from below. `docs/timing.md` has the model.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from emulator.model.profile import RATES, Profile

THROTTLE_STEPS = 8
"""Engines are slowed down in eighths."""


class Precision(enum.Enum):
    """The multiply-accumulate rates of an engine; a command runs at one of them."""

    INT8 = "int8"
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


class Product(NamedTuple):
    """Products of matrices that are alike: `batch` of them side by side, and all that `steps` times in a row."""

    rows: int
    depth: int
    columns: int
    batch: int = 1
    steps: int = 1
    left_bits: int = 0
    """Of an element of the left operand as it is stored."""
    right_bits: int = 0
    """Of the right one, which has the weights."""


class Work(NamedTuple):
    """The demand of one program command on the hardware."""

    macs: int
    """Multiply-accumulates; 0 for commands that only move or transform elements."""
    bytes: int
    """Bytes read from and written to device memory."""
    precision: Precision = Precision.FP32
    products: tuple[Product, ...] = ()
    """The products of matrices that it is; none where engines can share it in any way."""


class Binding(enum.StrEnum):
    """What time is spent on."""

    COMPUTE = "compute"
    SRAM = "sram"
    MEMORY = "memory"
    LINK = "link"
    FIXED = "fixed"


class Cost(NamedTuple):
    """What one command takes, term by term; `compute`, `sram` and `memory` overlap."""

    compute: int
    sram: int
    memory: int
    fixed: int
    moved_bytes: int
    """To and from device memory."""

    @property
    def ticks(self) -> int:
        """From its start to its end."""
        return max(self.compute, self.sram, self.memory) + self.fixed

    @property
    def binding(self) -> Binding:
        """The largest term."""
        terms = (Binding.COMPUTE, Binding.SRAM, Binding.MEMORY, Binding.FIXED)
        return max(zip(self[:4], terms, strict=True), key=lambda term: term[0])[1]


class NoRate(ValueError):
    """A chip does not multiply numbers of a type, as far as its profile knows."""

    def __init__(self, profile: Profile, precision: Precision, where: str = "") -> None:
        self.precision = precision
        has = ", ".join(rate.removesuffix("_macs_per_tick") for rate in RATES if getattr(profile, rate) is not None)
        super().__init__(f"{profile.name} has no rate for {precision.value}; it has: {has}{where}")


def macs_per_tick(profile: Profile, precision: Precision) -> int:
    """Peak multiply-accumulates of one engine per tick at `precision`. Raises NoRate."""
    rate: int | None = getattr(profile, f"{precision.value}_macs_per_tick")
    if rate is None:
        raise NoRate(profile, precision)
    return rate


# --- commands of a queue ----------------------------------------------------------------------------------------------


def nop_ticks(profile: Profile) -> int:
    """Cost of a nop."""
    return profile.nop_fixed_ticks


def barrier_ticks(profile: Profile) -> int:
    """Cost of a barrier, beside the waiting."""
    return profile.barrier_fixed_ticks


def copy_ticks(profile: Profile, size_bytes: int, *, from_host: bool, to_host: bool) -> int:
    """Cost of copying `size_bytes`.

    The two directions of the host link work at once, so a copy that crosses it crosses it once; device memory
    serves reads and writes together, so a copy within it costs both.
    """
    link = link_ticks(profile, size_bytes) if from_host or to_host else 0
    device_sides = (not from_host) + (not to_host)
    return max(link, _memory_ticks(profile, size_bytes * device_sides)) + profile.copy_fixed_ticks


def fill_ticks(profile: Profile, size_bytes: int, *, to_host: bool = False) -> int:
    """Cost of filling `size_bytes` with a pattern."""
    rate = link_ticks if to_host else _memory_ticks
    return rate(profile, size_bytes) + profile.fill_fixed_ticks


def link_ticks(profile: Profile, size_bytes: int) -> int:
    """Crossing the host link in one direction; 0 where its rate is not known."""
    return 0 if profile.link_bytes_per_tick is None else _ceil_div(size_bytes, profile.link_bytes_per_tick)


def _memory_ticks(profile: Profile, size_bytes: int) -> int:
    return 0 if profile.memory_bytes_per_tick is None else _ceil_div(size_bytes, profile.memory_bytes_per_tick)


# --- commands of a program --------------------------------------------------------------------------------------------


def command_cost(profile: Profile, work: Work) -> Cost:
    """What one command takes on all engines of a chip, with the tile that suits it best. Raises NoRate."""
    even = math.ceil(peak_ticks(profile, work))
    if not (work.macs and work.products and profile.tiles):
        return Cost(even, 0, _memory_ticks(profile, work.bytes), profile.command_fixed_ticks, work.bytes)
    return min((_tiled(profile, work, tile, even) for tile in profile.tiles), key=lambda cost: cost.ticks)


def _tiled(profile: Profile, work: Work, tile: tuple[int, int], even: int) -> Cost:
    """What a command takes in tiles of one shape: in waves of one for each engine, a part of one as much as a whole."""
    rows, columns = tile
    rate, port = macs_per_tick(profile, work.precision), profile.shared_port_bytes_per_tick
    compute = sram = 0
    moved = work.bytes
    for each in work.products:
        tiles = each.batch * _ceil_div(each.rows, rows) * _ceil_div(each.columns, columns)
        waves = each.steps * _ceil_div(tiles, profile.engines)
        compute += waves * (_ceil_div(rows * columns * each.depth, rate) + profile.fill_ticks)
        if port is not None:
            sram += waves * _ceil_div(each.depth * (rows * each.left_bits + columns * each.right_bits), 8 * port)
        moved += _read_again(profile, each, tile)
    return Cost(max(compute, even), sram, _memory_ticks(profile, moved), profile.command_fixed_ticks, moved)


def _read_again(profile: Profile, product: Product, tile: tuple[int, int]) -> int:
    """Bytes of weights that are read more than once: for each row of tiles, unless something stays on the chip.

    Either what a tile needs of an operand, in an engine's own memory; or an operand as a whole, in what they share.
    """
    if profile.sram_bytes is None:
        return 0
    rows, columns = tile
    left, right = product.depth * product.left_bits, product.depth * product.right_bits
    if min(left * rows, right * columns) <= 8 * profile.sram_bytes:
        return 0
    if min(left * product.rows, right * product.columns) <= 8 * (profile.shared_sram_bytes or 0):
        return 0
    return (_ceil_div(product.rows, rows) - 1) * product.batch * _ceil_div(right * product.columns, 8)


def command_ticks(profile: Profile, work: Work) -> int:
    """Cost of one command of a program. Raises NoRate."""
    return command_cost(profile, work).ticks


def program_ticks(profile: Profile, commands: Iterable[Work]) -> int:
    """Cost of one execution of a program: its commands run one after the other, each on all engines. Raises NoRate."""
    return profile.exec_fixed_ticks + sum(command_ticks(profile, work) for work in commands)


def peak_ticks(profile: Profile, work: Work) -> Fraction:
    """What a command's multiply-accumulates take of all engines at their peak. Raises NoRate."""
    if not work.macs:
        return Fraction(0)
    return Fraction(work.macs, macs_per_tick(profile, work.precision) * profile.engines)


def roofline_ticks(profile: Profile, work: Work) -> Fraction:
    """What no schedule of a command gets below: peak rates, everything at once. Raises NoRate."""
    peak = peak_ticks(profile, work)
    if profile.memory_bytes_per_tick is None:
        return peak
    return max(peak, Fraction(work.bytes, profile.memory_bytes_per_tick))


def _ceil_div(amount: int, rate: int) -> int:
    """`amount` / `rate` rounded up, exact for any size."""
    return -(-amount // rate)


def throttled(ticks: int, level: int) -> int:
    """Ticks of engine work while the engines do only 8 - `level` eighths of it a tick; `level` is 0 to 7."""
    share = THROTTLE_STEPS - level
    return -(-ticks * THROTTLE_STEPS // share)
