"""Engine workers that die, jobs that are dropped, an emulator that is killed: nothing hangs and nothing is left."""

from __future__ import annotations

import functools
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from driver_shim.protocol.commands import Status
from emulator.chip.device_memory import DeviceMemory
from emulator.engines.job import Outcome
from emulator.engines.pool import EnginePool, EngineStuck
from tests.support.children import child_commands, has_ended
from tests.support.engine_jobs import PATIENCE_S, collect, image, job, worker_pids
from tests.support.pipes import read_line
from tests.support.waiting import wait_until

EXECUTOR = "tests.support.toy_executor"


@pytest.fixture()
def pool() -> Iterator[EnginePool]:
    memory = DeviceMemory(1 << 16)
    pool = EnginePool(memory.fd, 1, "auto", executor=EXECUTOR)
    yield pool
    pool.close()
    memory.close()


def exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def is_reaped(pool: EnginePool, worker: int) -> bool:
    """Whether an unused pool has taken a worker's exit status."""
    return pool.poll() == [] and not exists(worker)


def open_files() -> set[str]:
    gc.collect()  # what earlier tests left goes now, not while this one counts
    return set(os.listdir("/proc/self/fd"))


def children() -> set[int]:
    """Children of this process, zombies included, but those of the test runner itself."""
    return set(child_commands(os.getpid()))


@pytest.mark.parametrize("command", ["die", "crash"])
def test_a_worker_that_dies_mid_job_completes_it_as_lost_and_is_replaced(pool: EnginePool, command: str) -> None:
    pool.load(1, image(command))
    pool.load(2, image("nothing"))
    pool.start(job(1, 1))
    pool.start(job(2, 2))
    results = {result.job.id: result for result in collect(pool, 2)}
    assert results[1].outcome is Outcome.ENGINE_LOST
    assert results[1].status is Status.ENGINE_LOST
    assert "died" in results[1].message
    assert results[2].outcome is Outcome.OK


def test_an_idle_worker_that_is_killed_is_replaced(pool: EnginePool) -> None:
    pool.load(1, image("nothing"))
    pool.start(job(1))
    pool.release(collect(pool)[0])
    (first,) = worker_pids(pool)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: has_ended(first), "the worker has ended", PATIENCE_S)
    pool.start(job(2))
    assert collect(pool)[0].outcome is Outcome.OK
    assert worker_pids(pool) != [first]
    assert not exists(first)


def test_a_reset_does_not_wait_for_a_worker_that_never_ends(pool: EnginePool) -> None:
    pool.load(1, image("spin"))
    pool.load(2, image("nothing"))
    pool.start(job(1))
    pool.start(job(2, 2))
    (worker,) = worker_pids(pool)
    pool.cancel_all()
    assert worker_pids(pool) == []
    pool.start(job(3, 2))
    assert [result.job.id for result in collect(pool)] == [3]
    wait_until(functools.partial(is_reaped, pool, worker), "the killed worker is reaped", PATIENCE_S)


@pytest.mark.parametrize("end", ["cancel", "cancel_all", "close"])
def test_a_worker_that_may_write_states_has_ended_when_it_is_dropped(pool: EnginePool, end: str) -> None:
    pool.load(1, image("update 4\nspin", states=(4,)))
    pool.start(job(1, states=(64,)))
    (worker,) = worker_pids(pool)
    getattr(pool, end)(*([1] if end == "cancel" else []))
    assert not exists(worker)


def test_a_worker_that_does_not_end_is_never_taken_for_one_that_has(
    pool: EnginePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.load(1, image("spin", states=(4,)))
    pool.start(job(1, states=(64,)))
    (engine,) = pool._engines
    with monkeypatch.context() as patch:
        patch.setattr(engine.process, "wait", lambda timeout_s: False)
        with pytest.raises(EngineStuck, match="may still write"):
            pool.cancel_all()


def test_a_stopped_worker_is_replaced_by_a_reset_and_ended_by_close(pool: EnginePool) -> None:
    pool.load(1, image("nothing"))
    for number in (1, 2):
        pool.start(job(number))
        pool.release(collect(pool)[0])
        (worker,) = worker_pids(pool)
        os.kill(worker, signal.SIGSTOP)
        pool.start(job(number + 10))
        assert pool.poll() == []
        pool.cancel_all()
        pool.start(job(number + 20))
        (result,) = collect(pool)
        assert result.job.id == number + 20
        pool.release(result)
        wait_until(functools.partial(is_reaped, pool, worker), "the stopped worker is reaped", PATIENCE_S)
    os.kill(worker_pids(pool)[0], signal.SIGSTOP)
    (worker,) = worker_pids(pool)
    pool.close()
    assert not exists(worker)


def test_a_reset_gives_back_the_memory_of_large_programs(pool: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emulator.engines.pool.KEPT_SCRATCH_BYTES", 1 << 16)
    pool.load(1, image("nothing", scratch_bytes=1 << 12))
    pool.load(2, image("nothing", scratch_bytes=1 << 20))
    for program, kept in ((1, True), (2, False)):
        pool.start(job(program, program))
        pool.release(collect(pool)[0])
        workers = worker_pids(pool)
        pool.cancel_all()
        assert (worker_pids(pool) == workers) is kept
    pool.start(job(3))
    assert collect(pool)[0].outcome is Outcome.OK


def test_cancelling_one_job_lets_the_next_one_run(pool: EnginePool) -> None:
    pool.load(1, image("spin"))
    pool.load(2, image("nothing"))
    for number, program in ((1, 1), (2, 2), (3, 2)):
        pool.start(job(number, program))
    pool.cancel(2)
    pool.cancel(1)
    assert [result.job.id for result in collect(pool)] == [3]


def test_a_result_that_was_not_released_keeps_its_outputs(pool: EnginePool) -> None:
    pool.load(1, image("copy 4", ((0, 4),)))
    pool.start(job(1))
    (held,) = collect(pool)
    pool.start(job(2))
    os.kill(worker_pids(pool)[0], signal.SIGKILL)
    wait_until(
        lambda: [result.job.id for result in pool.poll()] == [2], "the waiting job runs on a new worker", PATIENCE_S
    )
    assert bytes(held.outputs[0]) == bytes(4)
    pool.release(held)


def test_workers_killed_at_random_points_lose_at_most_the_job_they_ran() -> None:
    memory = DeviceMemory(1 << 16)
    before_files, before_children = open_files(), children()
    pool = EnginePool(memory.fd, 2, "auto", executor=EXECUTOR)
    random_points = random.Random(20240611)
    pool.load(1, image("copy 8\nsleep 0.002\nnothing", ((0, 8),)))
    try:
        for number in range(40):
            pool.start(job(number))
            if random_points.random() < 0.3:
                time.sleep(random_points.random() * 0.02)
                for pid in worker_pids(pool):
                    os.kill(pid, signal.SIGKILL)
            (result,) = collect(pool)
            assert result.job.id == number
            assert result.outcome in (Outcome.OK, Outcome.ENGINE_LOST)
            pool.release(result)
    finally:
        pool.close()
    del result
    assert children() <= before_children  # what earlier tests left may go meanwhile
    assert open_files() <= before_files
    memory.close()


def test_a_storm_of_starts_and_cancels_leaves_nothing() -> None:
    memory = DeviceMemory(1 << 16)
    before_files, before_children = open_files(), children()
    pool = EnginePool(memory.fd, 2, "auto", executor=EXECUTOR)
    choices = random.Random(7)
    outstanding: set[int] = set()
    loaded: set[int] = set()
    try:
        for number in range(300):
            step = choices.random()
            handle = choices.randrange(4)
            if handle not in loaded:
                pool.load(handle, image(choices.choice(["nothing", "copy 64", "sleep 0.001", "fault EXECUTION_FAULT"])))
                loaded.add(handle)
            pool.start(job(number, handle))
            outstanding.add(number)
            if step < 0.05:
                pool.cancel_all()
                outstanding.clear()
            elif step < 0.10:
                pool.cancel(number)
                outstanding.discard(number)
            elif step < 0.2:
                pool.unload(handle)
                loaded.discard(handle)
            elif step < 0.5:
                for result in pool.poll():
                    assert result.job.id in outstanding
                    outstanding.discard(result.job.id)
                    pool.release(result)
        while outstanding:
            for result in collect(pool):
                outstanding.discard(result.job.id)
                pool.release(result)
    finally:
        pool.close()
    assert children() <= before_children  # what earlier tests left may go meanwhile
    assert open_files() <= before_files
    memory.close()


def test_scratch_that_the_system_refuses_loses_the_job_only(pool: EnginePool) -> None:
    pool.load(1, image("nothing", scratch_bytes=1 << 62))
    pool.load(2, image("nothing"))
    pool.start(job(1))
    (result,) = collect(pool)
    assert result.outcome is Outcome.ENGINE_LOST
    assert "no engine could take the program" in result.message
    pool.start(job(2, 2))
    assert collect(pool)[0].outcome is Outcome.OK


@pytest.mark.parametrize("command", ["spin", "nothing"])
def test_workers_end_when_their_emulator_is_killed(command: str) -> None:
    script = (
        "import sys, time\n"
        "from emulator.chip.device_memory import DeviceMemory\n"
        "from emulator.engines.pool import EnginePool\n"
        "from tests.support.engine_jobs import collect, image, job, worker_pids\n"
        f"pool = EnginePool(DeviceMemory(1 << 16).fd, 1, executor={EXECUTOR!r})\n"
        "pool.load(2, image('nothing'))\n"
        "pool.start(job(1, 2))\n"
        "pool.release(collect(pool)[0])\n"
        f"pool.load(1, image({command!r}))\n"
        "pool.start(job(2))\n"
        "print(worker_pids(pool)[0], flush=True)\n"
        "time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        worker = int(read_line(owner.stdout))
        assert exists(worker)
    finally:
        owner.kill()
        owner.wait(PATIENCE_S)
        owner.stdout.close() if owner.stdout else None
    wait_until(lambda: has_ended(worker), "the worker ends with its emulator", PATIENCE_S)
