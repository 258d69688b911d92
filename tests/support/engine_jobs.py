"""Jobs and programs of the toy executor, and waiting for engines the way the device does."""

from __future__ import annotations

import select
import time

import pytest

from emulator.engines.job import EngineJob, Engines, EntryPlan, JobResult, ProgramImage
from emulator.engines.pool import EnginePool

PATIENCE_S = 120.0
"""A worker yields to all else on the machine, from its start on."""


def image(
    text: str,
    outputs: tuple[tuple[int, int], ...] = (),
    scratch_bytes: int = 4096,
    *,
    constants: tuple[int, ...] = (),
    states: tuple[int, ...] = (),
) -> ProgramImage:
    """A program of the toy executor: its commands as lines."""
    plan = EntryPlan(scratch_bytes, outputs, len(text.splitlines()), states)
    return ProgramImage(text.encode(), (plan,), constants)


def job(number: int, program: int = 1, *, inputs: tuple[int, ...] = (0,), states: tuple[int, ...] = ()) -> EngineJob:
    """One execution; its generation is 7."""
    return EngineJob(number, 7, program, inputs, states)


def worker_pids(pool: EnginePool) -> list[int]:
    """Process ids of the workers that the pool has not given up."""
    return [engine.process.pid for engine in pool._engines]


def collect(engines: Engines, count: int = 1) -> list[JobResult]:
    """Wait for `count` results the way the device does: by the descriptors."""
    results: list[JobResult] = []
    deadline = time.monotonic() + PATIENCE_S
    while True:
        results += engines.poll()
        if len(results) >= count:
            return results
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not engines.fds():
            pytest.fail(f"{len(results)} of {count} results after {PATIENCE_S} s")
        select.select(engines.fds(), [], [], remaining)
