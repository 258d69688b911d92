"""The core's time against the wall's, and its work against its share of a CPU; both clocks are the test's."""

from __future__ import annotations

import pytest

from driver_shim.protocol.management_registers import MTIME_HERTZ
from emulator.management.process.pace import Pace

MS = 1_000_000
TICKS_PER_MS = MTIME_HERTZ // 1000


class Bench:
    """A pace at half a CPU, both clocks at zero."""

    def __init__(self, share: float = 0.5) -> None:
        self.wall_ns = self.cpu_ns = 0
        self.pace = Pace(share, lambda: self.wall_ns, lambda: self.cpu_ns)

    def pass_ms(self, wall: float, cpu: float = 0.0) -> None:
        self.wall_ns += round(wall * MS)
        self.cpu_ns += round(cpu * MS)


def test_a_core_that_is_late_catches_up() -> None:
    bench = Bench()
    bench.pass_ms(3)
    assert bench.pace.lag(TICKS_PER_MS) == 2 * TICKS_PER_MS
    assert bench.pace.lag(3 * TICKS_PER_MS) == 0


def test_short_waits_that_oversleep_do_not_add_up() -> None:
    """Ten deadlines of 0.1 ms in one sleep of 1 ms: time is where the wall's is."""
    bench = Bench()
    tick = 0
    for _ in range(100):
        bench.pass_ms(1)
        while bench.pace.lag(tick) >= TICKS_PER_MS // 10:
            tick += TICKS_PER_MS // 10
    assert tick == 100 * TICKS_PER_MS


def test_a_core_that_is_ahead_stays_so_and_the_wall_does_not_wait_for_it() -> None:
    bench = Bench()
    assert bench.pace.lag(45 * TICKS_PER_MS) == 0
    bench.pass_ms(1)
    assert bench.pace.lag(45 * TICKS_PER_MS) == TICKS_PER_MS


def test_time_in_which_the_process_was_stopped_is_lost() -> None:
    bench = Bench()
    bench.pass_ms(60_000)
    assert bench.pace.lag(0) == 20 * TICKS_PER_MS
    assert bench.pace.lag(20 * TICKS_PER_MS) == 0


def test_an_intended_wait_is_not_lost() -> None:
    bench = Bench()
    bench.pass_ms(1000)
    assert bench.pace.lag(0, idle_ticks=990 * TICKS_PER_MS) == 1000 * TICKS_PER_MS


def test_a_halted_core_does_not_catch_up() -> None:
    bench = Bench()
    bench.pass_ms(50)
    bench.pace.begin(7)
    assert bench.pace.lag(7) == 0


@pytest.mark.parametrize(("share", "rest_ms"), [(0.5, 2.0), (0.25, 6.0), (1.0, 0.0)])
def test_work_is_followed_by_rest(share: float, rest_ms: float) -> None:
    bench = Bench(share)
    bench.pass_ms(10, cpu=2)
    assert bench.pace.rest_s() == pytest.approx(rest_ms / 1000)
    bench.pace.rested(round(rest_ms * MS))
    assert bench.pace.rest_s() == 0.0


def test_little_work_adds_up_until_a_sleep_is_worth_it() -> None:
    bench = Bench()
    bench.pass_ms(1, cpu=0.15)
    assert bench.pace.rest_s() == 0.0
    bench.pass_ms(1, cpu=0.15)
    assert bench.pace.rest_s() == pytest.approx(0.0003)


def test_rest_is_neither_saved_up_nor_owed_for_ever() -> None:
    bench = Bench()
    bench.pace.rested(3600 * 1000 * MS)
    bench.pass_ms(5, cpu=5)
    assert bench.pace.rest_s() == pytest.approx(0.005)
    bench.pass_ms(5000, cpu=5000)
    assert bench.pace.rest_s() == pytest.approx(0.250)


def test_slices_take_a_millisecond_whatever_the_program_does() -> None:
    pace = Bench().pace
    for _ in range(20):
        pace.worked(100_000, whole_slice=True)
    most = pace.instructions
    pace.worked(100_000, whole_slice=True)
    assert pace.instructions == most
    pace.worked(100 * MS, whole_slice=True)
    least = pace.instructions
    assert least == most // 100
    pace.worked(1000, whole_slice=False)  # it waits: that says nothing about whole slices
    assert pace.instructions == least
    pace.worked(1000, whole_slice=True)
    assert pace.instructions == 2 * least
    pace.worked(3600 * 1000 * MS, whole_slice=True)
    assert pace.instructions > 0
