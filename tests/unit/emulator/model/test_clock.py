"""Device time: scheduled work plus idle wall time, never backwards, deterministic with an injected wall clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.model.clock import TickClock


class Wall:
    """A wall clock that stands still until told."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.ns


def test_idle_time_counts_at_the_tick_rate() -> None:
    wall = Wall()
    clock = TickClock(700_000_000, wall)
    assert clock.now() == 0
    wall.ns += 1_000
    assert clock.now() == 700
    assert clock.snapshot() == (700, 1_000_000_001_000)


def test_work_counts_its_cost_and_wall_time_meanwhile_does_not() -> None:
    wall = Wall()
    clock = TickClock(1_000_000_000, wall)
    wall.ns += 500
    assert clock.begin() == 500
    wall.ns += 1_000_000
    assert clock.schedule(0, 100) == (500, 600)
    assert clock.now() == 500
    clock.complete(600)
    assert clock.now() == 600
    wall.ns += 1_000_000
    clock.idle()
    assert clock.now() == 600
    wall.ns += 7
    assert clock.now() == 607


def test_work_follows_what_it_must_and_what_was_seen_to_complete() -> None:
    clock = TickClock(1_000_000_000, Wall())
    clock.begin()
    assert clock.schedule(0, 1_000) == (0, 1_000)
    assert clock.schedule(0, 10) == (0, 10)  # another queue, at the same time
    clock.complete(10)
    assert clock.schedule(0, 10) == (10, 20)
    assert clock.schedule(1_000, 5) == (1_000, 1_005)
    clock.idle()
    assert clock.now() == 1_005


def test_begin_while_busy_and_idle_while_idle_do_nothing() -> None:
    wall = Wall()
    clock = TickClock(1_000_000_000, wall)
    clock.begin()
    clock.schedule(0, 50)
    wall.ns += 100
    assert clock.begin() == 0
    clock.idle()
    wall.ns += 10
    clock.idle()
    assert clock.now() == 60
    assert not clock.busy


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="tick_hz is 0"):
        TickClock(0)


@given(
    st.sampled_from([1_000, 700_000_000, 1_000_000_000, 3_333_333_333]),
    st.lists(
        st.tuples(st.sampled_from(["begin", "schedule", "complete", "idle", "wall"]), st.integers(0, 10**7)),
        max_size=40,
    ),
)
def test_time_never_goes_back_and_a_run_repeats_to_the_tick(tick_hz: int, steps: list[tuple[str, int]]) -> None:
    def run() -> list[int]:
        wall = Wall()
        clock = TickClock(tick_hz, wall)
        seen = []
        ends = [0]
        for step, amount in steps:
            if step == "wall":
                wall.ns += amount
            elif step == "begin":
                clock.begin()
            elif step == "schedule" and clock.busy:
                before = clock.now()
                start, end = clock.schedule(ends[-1], amount)
                assert start >= max(before, ends[-1]) and end == start + amount
                ends.append(end)
            elif step == "complete" and clock.busy:
                clock.complete(ends[-1])
                assert clock.now() >= ends[-1]
            elif step == "idle":
                clock.idle()
                assert clock.now() >= ends[-1]
            seen.append(clock.now())
        assert seen == sorted(seen)
        return seen

    assert run() == run()
