"""The time that work takes on a chip, in whole ticks: max(MACs / peak, bytes / bandwidth) plus a fixed cost.

Pure functions of a `Profile`, computed from the architecture and never fitted to a measurement. Fractions round up:
a started tick is spent. Contention between engines for memory is not modelled.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

from emulator.model.profile import Profile

THROTTLE_STEPS = 8
"""Engines are slowed down in eighths."""


class Precision(enum.Enum):
    """The multiply-accumulate rates of an engine; a command runs at one of them."""

    INT8 = "int8"
    FP16 = "fp16"
    """Also bf16."""
    FP32 = "fp32"


class Work(NamedTuple):
    """The demand of one program command on the hardware."""

    macs: int
    """Multiply-accumulates; 0 for commands that only move or transform elements."""
    bytes: int
    """Bytes read from and written to device memory."""
    precision: Precision = Precision.FP32


def macs_per_tick(profile: Profile, precision: Precision) -> int:
    """Peak multiply-accumulates of one engine per tick at `precision`."""
    if precision is Precision.INT8:
        return profile.int8_macs_per_tick
    if precision is Precision.FP16:
        return profile.fp16_macs_per_tick
    return profile.fp32_macs_per_tick


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
    link = _ceil_div(size_bytes, profile.link_bytes_per_tick) if from_host or to_host else 0
    device_sides = (not from_host) + (not to_host)
    memory = _ceil_div(size_bytes * device_sides, profile.memory_bytes_per_tick)
    return max(link, memory) + profile.copy_fixed_ticks


def fill_ticks(profile: Profile, size_bytes: int, *, to_host: bool = False) -> int:
    """Cost of filling `size_bytes` with a pattern."""
    rate = profile.link_bytes_per_tick if to_host else profile.memory_bytes_per_tick
    return _ceil_div(size_bytes, rate) + profile.fill_fixed_ticks


def command_ticks(profile: Profile, work: Work) -> int:
    """Cost of one command of a program on one engine."""
    compute = _ceil_div(work.macs, macs_per_tick(profile, work.precision))
    memory = _ceil_div(work.bytes, profile.memory_bytes_per_tick)
    return max(compute, memory) + profile.command_fixed_ticks


def program_ticks(profile: Profile, commands: Iterable[Work]) -> int:
    """Cost of one execution of a program: its commands run one after the other on one engine."""
    return profile.exec_fixed_ticks + sum(command_ticks(profile, work) for work in commands)


def _ceil_div(amount: int, rate: int) -> int:
    """`amount` / `rate` rounded up, exact for any size."""
    return -(-amount // rate)


def throttled(ticks: int, level: int) -> int:
    """Ticks of engine work while the engines do only 8 - `level` eighths of it a tick; `level` is 0 to 7."""
    share = THROTTLE_STEPS - level
    return -(-ticks * THROTTLE_STEPS // share)
