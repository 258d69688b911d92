"""Measurements of an open device by the wall clock; `npuctl bench` and the benchmarks share them."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sdk.device import Device

WARM_UP_S = 0.3
"""Until then both processes have found a CPU each, and the pages and caches are warm."""
ROUND_TRIPS = 16_000
BLOCKS = 8
SINGLE_DESCRIPTORS = 100_000
ARRAY_ROUNDS = 100
ARRAY_DESCRIPTORS = 4096
COPY_MEBIBYTES = (1, 4, 16, 64)
COPY_ROUNDS = 15
DEPTH = 4096
MEBIBYTE = 1 << 20


class Spread(NamedTuple):
    """Percentiles of a series, in seconds."""

    p50: float
    p90: float
    p99: float
    largest: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """From the series."""
        p50, p90, p99 = np.percentile(seconds, (50, 90, 99))
        return cls(float(p50), float(p90), float(p99), max(seconds), len(seconds))

    def entry(self) -> dict[str, Any]:
        """As the report's keys."""
        return {
            "p50_seconds": self.p50,
            "p90_seconds": self.p90,
            "p99_seconds": self.p99,
            "max_seconds": self.largest,
            "rounds": self.rounds,
        }


def warm_up(action: Callable[[], object], seconds: float = WARM_UP_S) -> None:
    """Repeat `action` for so long, at least once."""
    until = time.monotonic() + seconds
    action()
    while time.monotonic() < until:
        action()


def timed_rounds(action: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each of `rounds` calls."""
    clock = time.perf_counter_ns
    nanoseconds = []
    for _ in range(rounds):
        began = clock()
        action()
        nanoseconds.append(clock() - began)
    return [value / 1e9 for value in nanoseconds]


def best_spread(action: Callable[[], object], rounds: int) -> Spread:
    """Percentiles of the quietest of BLOCKS series of together `rounds` calls: other work on the machine only adds."""
    warm_up(action)
    series = (timed_rounds(action, max(1, rounds // BLOCKS)) for _ in range(BLOCKS))
    return min((Spread.of(one) for one in series), key=lambda spread: spread.p50)


def round_trip(device: Device, rounds: int = ROUND_TRIPS) -> Spread:
    """Submit a nop and wait for it, one at a time."""
    with device.queue() as queue:
        return best_spread(lambda: queue.nop().wait(), rounds)


def singles_per_s(device: Device, count: int = SINGLE_DESCRIPTORS) -> float:
    """nops per second, one call each, many in flight."""
    with device.queue(depth=DEPTH) as queue:
        warm_up(lambda: queue.nop().wait())
        began = time.perf_counter()
        for _ in range(count):
            queue.nop()
        queue.barrier().wait()
        return count / (time.perf_counter() - began)


def array_per_s(device: Device, rounds: int = ARRAY_ROUNDS) -> float:
    """nops per second, submitted as arrays of `ARRAY_DESCRIPTORS`."""
    import sdk

    descriptors = np.zeros(ARRAY_DESCRIPTORS, sdk.DESCRIPTOR)  # all zero is a nop
    with device.queue(depth=DEPTH) as queue:
        warm_up(lambda: queue.submit(descriptors).wait())
        began = time.perf_counter()
        for _ in range(rounds):
            last = queue.submit(descriptors)
        last.wait()
        return rounds * ARRAY_DESCRIPTORS / (time.perf_counter() - began)


class CopyTimes(NamedTuple):
    """Medians for one size, in seconds."""

    bytes: int
    to_device: float
    to_host: float
    memcpy: float
    """Between two host arrays, in the same run."""


def copies(device: Device, mebibytes: Sequence[int] = COPY_MEBIBYTES, rounds: int = COPY_ROUNDS) -> list[CopyTimes]:
    """Host to device and back beside numpy's copy, all pages touched before."""
    results = []
    for size in mebibytes:
        count = size * MEBIBYTE
        source, target = np.ones(count, np.uint8), np.zeros(count, np.uint8)
        with device.queue() as queue:
            host, memory = device.host_buffer(count, "uint8"), device.buffer(count, "uint8")
            host.array[...] = 1
            samples: tuple[list[float], list[float], list[float]] = ([], [], [])
            actions = (
                lambda q=queue, m=memory, h=host: q.copy(m, h).wait(),
                lambda q=queue, m=memory, h=host: q.copy(h, m).wait(),
                lambda t=target, s=source: np.copyto(t, s),
            )
            for action in actions:
                warm_up(action)
            for _ in range(rounds):  # interleaved, so that a slow moment of the machine meets all three
                for series, action in zip(samples, actions, strict=True):
                    series += timed_rounds(action, 1)
            to_device, to_host, memcpy = (statistics.median(series) for series in samples)
            results.append(CopyTimes(count, to_device, to_host, memcpy))
            memory.free()
    return results
