"""Waits that spin without starving anybody, and that do not share a CPU with the device they wait for."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from driver_shim.function import spinning
from driver_shim.function.spinning import CROWDED_TURN_S, FIRST_LOOK_S, LONGEST_LOOK_S, MISSES, Spinner, part_from
from driver_shim.transport.base import Transport
from tests.support.needs import needs_processors
from tests.support.waiting import wait_until

CPUS = sorted(os.sched_getaffinity(0))
several_cpus = needs_processors(2)


class Clock:
    """Time as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("driver_shim.function.spinning.time.monotonic", lambda: self.now)


class OneWay:
    """As much of a transport as a spinner needs; each turn takes `turn_s`."""

    def __init__(self, clock: Clock, turn_s: float = 0.0, peer_pid: int | None = None) -> None:
        self.clock, self.turn_s, self.peer_pid = clock, turn_s, peer_pid
        self.turns = 0

    def progress(self) -> None:
        self.turns += 1
        self.clock.now += self.turn_s


def spinner(transport: OneWay) -> Spinner:
    return Spinner(transport)  # type: ignore[arg-type] # a part of one does


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Processes that were looked at; one whose number is negative could not be moved."""
    seen: list[int] = []

    def look(pid: int) -> bool:
        seen.append(pid)
        return pid > 0

    monkeypatch.setattr(spinning, "part_from", look)
    return seen


@pytest.mark.parametrize(("turn_s", "expected"), [(CROWDED_TURN_S / 4, True), (CROWDED_TURN_S * 4, False)])
def test_a_yield_that_takes_long_says_that_somebody_else_needs_the_cpu(
    clock: Clock, turn_s: float, expected: bool
) -> None:
    transport = OneWay(clock, turn_s)
    assert spinner(transport).yields() is expected
    assert transport.turns == 1


def test_one_looks_who_runs_where_only_after_several_misses(clock: Clock, looks: list[int]) -> None:
    one = spinner(OneWay(clock, peer_pid=77))
    for _ in range(MISSES - 1):
        one.missed(clock.now)
    assert looks == []
    one.missed(clock.now)
    assert looks == [77]


def test_looks_become_rare_where_they_do_not_help(clock: Clock, looks: list[int]) -> None:
    one = spinner(OneWay(clock, peer_pid=-1))  # never moved
    times = []
    for _ in range(4000):
        before = len(looks)
        for _ in range(MISSES):
            one.missed(clock.now)
        if len(looks) > before:
            times.append(clock.now)
        clock.now += FIRST_LOOK_S
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] < 3 * FIRST_LOOK_S and gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(LONGEST_LOOK_S, rel=0.1)


def test_a_device_that_is_no_process_is_not_looked_for(clock: Clock, looks: list[int]) -> None:
    one = spinner(OneWay(clock))
    for _ in range(10 * MISSES):
        one.missed(clock.now)
    assert looks == []


@pytest.fixture
def busy_process() -> Iterator[int]:
    """A process that never waits."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def on_one_cpu() -> Iterator[int]:
    """This thread's CPU, which it keeps."""
    os.sched_setaffinity(0, {CPUS[0]})
    yield CPUS[0]
    os.sched_setaffinity(0, CPUS)


def runs_on(pid: int, cpu: int) -> bool:
    return spinning._last_cpu(str(pid)) == cpu


@several_cpus
def test_a_process_on_our_cpu_is_moved_and_may_use_what_it_could(busy_process: int, on_one_cpu: int) -> None:
    os.sched_setaffinity(busy_process, {on_one_cpu})
    wait_until(lambda: runs_on(busy_process, on_one_cpu), "it runs on our CPU")
    os.sched_setaffinity(busy_process, CPUS)
    assert part_from(busy_process) or not runs_on(busy_process, on_one_cpu)  # the scheduler may have been quicker
    assert os.sched_getaffinity(busy_process) == set(CPUS)


@several_cpus
def test_a_process_that_is_elsewhere_or_cannot_move_is_left_alone(busy_process: int, on_one_cpu: int) -> None:
    os.sched_setaffinity(busy_process, {CPUS[1]})
    wait_until(lambda: runs_on(busy_process, CPUS[1]), "it runs elsewhere")
    assert not part_from(busy_process)
    os.sched_setaffinity(busy_process, {on_one_cpu})
    wait_until(lambda: runs_on(busy_process, on_one_cpu), "it runs on our CPU")
    assert not part_from(busy_process)


def test_a_process_that_is_gone_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(timeout=30)
    assert not part_from(process.pid)


def test_a_transport_names_no_process_unless_it_knows_one() -> None:
    assert Transport.peer_pid is None
