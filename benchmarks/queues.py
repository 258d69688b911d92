"""Round trips and descriptors per second between two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import sdk
from benchmarks.figures import MEGA, MICRO, Figure
from benchmarks.pocl import Peer
from benchmarks.raw import busy_neighbours
from sdk.cli.measurements import array_per_s, round_trip, singles_per_s

ROUND_TRIP_P50_S, ROUND_TRIP_P99_S = 5 * MICRO, 15 * MICRO
ONE_CORE_P50_S = 200 * MICRO
SHARE_OF_POCL, BUSY_SHARE_OF_POCL = 0.25, 1.0
"""The first is 0.35 on machines whose Python is half as fast as most."""
SINGLES_PER_S, ARRAY_PER_S = 0.4 * MEGA, 5 * MEGA
ONE_CORE_ROUNDS = 2_000
ONE_CORE_TIMEOUT_S = 300


def figures(device: sdk.Device, pocl: Peer | None) -> list[Figure]:
    """All figures of this topic, beside PoCL's empty kernel."""
    trip = round_trip(device)
    peer = pocl.trip if pocl else None
    with busy_neighbours():
        busy = round_trip(device)
    found = [
        Figure("round trip, p50", trip.p50, "µs", pocl and "PoCL", peer.p50 if peer else None, budget=ROUND_TRIP_P50_S),
        Figure("round trip, p99", trip.p99, "µs", pocl and "PoCL", peer.p99 if peer else None, budget=ROUND_TRIP_P99_S),
    ]
    if peer:
        found.append(Figure("round trip over PoCL, p50", trip.p50 / peer.p50, "×", budget=SHARE_OF_POCL))
    theirs = pocl.busy_trip.p50 if pocl else None
    found.append(Figure("round trip beside busy processes, p50", busy.p50, "µs", pocl and "PoCL", theirs))
    if theirs:
        found.append(Figure("the same over PoCL, p50", busy.p50 / theirs, "×", budget=BUSY_SHARE_OF_POCL))
    return [
        *found,
        Figure("round trip, one core, p50", _on_one_core(), "µs", budget=ONE_CORE_P50_S),
        Figure("commands one by one", singles_per_s(device), "M/s", budget=SINGLES_PER_S, at_least=True),
        Figure("commands in arrays", array_per_s(device), "M/s", budget=ARRAY_PER_S, at_least=True),
    ]


def _on_one_core() -> float:
    """The median in a process that, with its emulator, may use one core only."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.queues"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=ONE_CORE_TIMEOUT_S,
    )
    return float(json.loads(done.stdout)["p50_seconds"])


def main() -> None:
    """The one-core process: pin, measure, print JSON."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with sdk.Device("emulator") as device:
        sys.stdout.write(json.dumps(round_trip(device, ONE_CORE_ROUNDS).entry()))


if __name__ == "__main__":
    main()
