"""The machine's own limits: a ping-pong of two processes over shared memory, and a loop of plain Python.

Figures of different machines, or of one machine at different hours, can be compared by these.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.figures import Figure
from sdk.cli.measurements import Spread, best_spread

PING, PONG = 0, 16
"""Words on cache lines of their own."""
ROUNDS = 20_000
LOOP_TURNS = 100_000


def figures() -> list[Figure]:
    """Both baselines."""
    return [
        Figure("raw ping-pong of two processes, p50", ping_pong().p50, "µs"),
        Figure("plain Python, a thousand turns of a loop", python_loop() * 1000, "µs"),
    ]


def ping_pong() -> Spread:
    """Store a word, and wait for the other process's answer; nobody sleeps, yields or fences."""
    words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("I")
    child = os.fork()
    if child == 0:
        _answer(words)
    turn = 0

    def once() -> None:
        nonlocal turn
        turn += 1
        words[PING] = turn
        while words[PONG] != turn:
            pass

    try:
        return best_spread(once, ROUNDS)
    finally:
        words[PING] = _END
        os.waitpid(child, 0)


_END = 0xFFFF_FFFF


def _answer(words: memoryview) -> None:
    """The other process."""
    seen = 0
    while seen != _END:
        word = words[PING]
        if word != seen:
            words[PONG] = seen = word
    os._exit(0)


def python_loop() -> float:
    """Seconds of one turn of a loop that adds: the best of several series."""
    best = float("inf")
    for _ in range(10):
        total = 0
        began = time.perf_counter()
        for number in range(LOOP_TURNS):
            total += number
        best = min(best, time.perf_counter() - began)
    return best / LOOP_TURNS


@contextlib.contextmanager
def busy_neighbours() -> Iterator[None]:
    """One busy process per CPU, at our own priority."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(len(os.sched_getaffinity(0)))
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
