"""A spinning wait yields, and naps when its yields show that it shares its CPU with the device."""

from __future__ import annotations

import pytest

from driver_shim.function.spinning import CROWDED_TURN_S, CROWDED_TURNS, Spinner

QUICK_S, SLOW_S = CROWDED_TURN_S / 4, CROWDED_TURN_S * 4


class Bench:
    """A spinner whose yields and naps are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.yields = self.naps = 0
        self.spinner = Spinner(self._progress)
        monkeypatch.setattr("driver_shim.function.spinning.time.sleep", self._sleep)

    def _progress(self) -> None:
        self.yields += 1

    def _sleep(self, seconds: float) -> None:
        self.naps += 1

    def turns(self, *durations_s: float) -> None:
        now = 0.0
        for duration in durations_s:
            self.spinner.turn(now, now + duration)
            now += duration


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_quick_turns_only_yield(bench: Bench) -> None:
    bench.turns(*[QUICK_S] * 1000)
    assert (bench.yields, bench.naps) == (1000, 0)


def test_slow_turns_in_a_row_end_in_one_nap(bench: Bench) -> None:
    bench.turns(*[SLOW_S] * CROWDED_TURNS)
    assert (bench.yields, bench.naps) == (CROWDED_TURNS - 1, 1)


def test_a_quick_turn_between_slow_ones_starts_the_count_anew(bench: Bench) -> None:
    bench.turns(*([SLOW_S] * (CROWDED_TURNS - 1) + [QUICK_S]) * 5)
    assert bench.naps == 0


def test_naps_become_rare_where_they_do_not_help(bench: Bench) -> None:
    bench.turns(*[SLOW_S] * (CROWDED_TURNS * (1 + 2 + 4)))
    assert bench.naps == 3
    bench.turns(*[SLOW_S] * CROWDED_TURNS)
    assert bench.naps == 3
