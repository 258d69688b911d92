"""Store buffering between two processes: does `fences.full` keep a load from overtaking an earlier store?

Each round, after a rendezvous, one side stores x and loads y, the other stores y and loads x. If both load the value of
before the round, each load overtook the store ahead of it: the very order in which a wake-up would be lost.
Without a fence that does happen (rarely); with one it must not.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from driver_shim.shared import fences
from tests.support.needs import needs_processors

ROUNDS = 1_000_000
LINE_BYTES = 64
LINE_WORDS = LINE_BYTES // 4
"""Every word the sides exchange has a cache line of its own."""
VALUES, ARRIVALS, SEEN = 0, 2 * LINE_BYTES, 4 * LINE_BYTES
"""Offsets of the two stored values, the two arrival counters and the two arrays of loaded values."""
SIZE = SEEN + 2 * 4 * ROUNDS

SPINS_BEFORE_YIELD = 2_000
JITTER = 11
"""Coprime to 7: each side starts up to 10 empty turns late, so that some rounds meet to the nanosecond."""
SIDE_LIMIT_S = 1200.0
"""One side gives up when its partner has not arrived for all rounds by then. Beside other work they meet only when both
happen to run, and two minutes were not enough."""
TEST_LIMIT_S = SIDE_LIMIT_S + 120.0

FENCES: dict[str, Callable[[], fences.Fence]] = {
    "none": lambda: fences.no_instruction,
    "chosen": lambda: fences.full,
    "membarrier": lambda: fences.membarrier_fence(fences.machine_type()),
}
"""How to get each fence that is played with; made in the process that uses it."""


def play(fd: int, side: int, fence_name: str) -> None:
    """One side's rounds. Raises TimeoutError when the other side does not keep up."""
    deadline = time.monotonic() + SIDE_LIMIT_S
    with mmap.mmap(fd, SIZE) as mapping:
        view = memoryview(mapping)
        words = view[:SEEN].cast("I")
        seen = view[SEEN + side * 4 * ROUNDS : SEEN + (side + 1) * 4 * ROUNDS].cast("I")
        mine, theirs = VALUES // 4 + side * LINE_WORDS, VALUES // 4 + (1 - side) * LINE_WORDS
        arrived, awaited = ARRIVALS // 4 + side * LINE_WORDS, ARRIVALS // 4 + (1 - side) * LINE_WORDS
        fence = FENCES[fence_name]()
        for turn in range(1, ROUNDS + 1):
            words[arrived] = turn
            spins = 0
            while words[awaited] < turn:
                spins += 1
                if spins > SPINS_BEFORE_YIELD:
                    spins = 0
                    os.sched_yield()
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"side {side} waited for its partner in round {turn}")
            for _ in range((7 * turn + 3 * side) % JITTER):
                pass
            words[mine] = turn
            fence()
            seen[turn - 1] = words[theirs]
        for part in (words, seen, view):
            part.release()


def overtakings(fence_name: str) -> int:
    """Rounds in which both sides loaded the value of before the round."""
    fd = os.memfd_create("litmus", os.MFD_CLOEXEC)
    sides: list[subprocess.Popen[bytes]] = []
    try:
        os.ftruncate(fd, SIZE)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
        for side in (0, 1):
            command = [sys.executable, __file__, str(fd), str(side), fence_name]
            sides.append(subprocess.Popen(command, pass_fds=(fd,), env=environment))
        for process in sides:
            assert process.wait(timeout=TEST_LIMIT_S) == 0
        with mmap.mmap(fd, SIZE) as mapping:
            seen = np.frombuffer(bytes(mapping), dtype=np.uint32, offset=SEEN).reshape(2, ROUNDS)
    finally:
        for process in sides:
            process.kill()
            process.wait(TEST_LIMIT_S)
        os.close(fd)
    turns = np.arange(1, ROUNDS + 1)
    return int(np.count_nonzero((seen < turns).all(axis=0)))


needs_two_cpus = needs_processors(2)  # for a load to overtake a store


@pytest.mark.slow
@pytest.mark.timeout(TEST_LIMIT_S)
@needs_two_cpus
def test_without_the_fence_loads_may_overtake_stores(record_property: Callable[[str, object], None]) -> None:
    count = overtakings("none")
    record_property("overtakings_without_fence", count)
    print(f"without the fence: {count} of {ROUNDS} rounds")


@pytest.mark.slow
@pytest.mark.timeout(TEST_LIMIT_S)
@needs_two_cpus
@pytest.mark.parametrize("fence_name", ["chosen", "membarrier"])
def test_with_the_fence_no_load_overtakes_a_store(fence_name: str) -> None:
    assert overtakings(fence_name) == 0


if __name__ == "__main__":
    play(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
