"""What both kinds of engines promise: run in the caller, and as worker processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver_shim.protocol.commands import Status
from emulator.chip.device_memory import DeviceMemory
from emulator.engines.inline import InlineEngines
from emulator.engines.job import Engines, KernelRun, Outcome
from emulator.engines.pool import EnginePool, worker_limits
from tests.support import toy_executor
from tests.support.engine_jobs import PATIENCE_S, collect, image, job, worker_pids

MEMORY_BYTES = 1 << 20


@pytest.fixture()
def memory() -> Iterator[DeviceMemory]:
    memory = DeviceMemory(MEMORY_BYTES)
    yield memory
    memory.close()


@pytest.fixture(params=["inline", "pool"])
def engines(request: pytest.FixtureRequest, memory: DeviceMemory) -> Iterator[Engines]:
    engines: Engines
    if request.param == "inline":
        engines = InlineEngines(memory.view, toy_executor, "numpy")
    else:
        engines = EnginePool(memory.fd, 2, "numpy", executor="tests.support.toy_executor")
    yield engines
    engines.close()


def test_a_job_reads_device_memory_and_leaves_its_outputs_in_scratch(engines: Engines, memory: DeviceMemory) -> None:
    memory.view[4096:4104] = b"an input"
    memory.view[8192:8198] = b"weight"
    engines.load(1, image("copy 8\nnothing", outputs=((0, 8), (3, 5))))
    engines.load(2, image("constant 6", outputs=((0, 6),), constants=(8192,)))
    engines.start(job(11, inputs=(4096,)))
    (result,) = collect(engines)
    assert result.job == job(11, inputs=(4096,))
    assert result.outcome is Outcome.OK and result.status is Status.SUCCESS
    assert [bytes(output) for output in result.outputs] == [b"an input", b"input"]
    assert all(output.readonly for output in result.outputs)
    assert result.report == (KernelRun("numpy.copy", 1), KernelRun("numpy.nothing", 2))
    assert result.wall_ns > 0
    engines.release(result)
    engines.start(job(12, 2))
    (result,) = collect(engines)
    assert bytes(result.outputs[0]) == b"weight"
    engines.release(result)
    assert memory.view[:16] == bytes(16)


def test_a_job_writes_its_states_in_device_memory_and_nothing_beside(engines: Engines, memory: DeviceMemory) -> None:
    memory.view[4096:4104] = b"an input"
    engines.load(1, image("update 8", states=(8,)))
    engines.start(job(1, inputs=(4096,), states=(8192,)))
    (result,) = collect(engines)
    engines.release(result)
    assert bytes(memory.view[8184:8208]) == bytes(8) + b"an input" + bytes(8)
    engines.load(2, image("update 9", states=(8,)))
    with contextlib.suppress(ValueError):  # in the caller it comes out here
        engines.start(job(2, 2, inputs=(4096,), states=(8192,)))
        assert collect(engines)[0].outcome is Outcome.ENGINE_LOST  # the toy has a programming error
    assert bytes(memory.view[8200:8208]) == bytes(8)


def test_a_fault_names_its_status_and_command_and_the_engine_serves_on(engines: Engines) -> None:
    engines.load(1, image("nothing\nfault INDEX_OUT_OF_RANGE\nnothing"))
    engines.load(2, image("nothing"))
    engines.start(job(1))
    (result,) = collect(engines)
    assert result.outcome is Outcome.FAULT
    assert (result.status, result.command_index) == (Status.INDEX_OUT_OF_RANGE, 1)
    assert result.message == "command 1 was told to fail"
    assert result.outputs == () and result.report == ()
    engines.release(result)
    engines.start(job(2, 2))
    assert collect(engines)[0].outcome is Outcome.OK


def test_more_jobs_than_engines_all_finish(engines: Engines) -> None:
    engines.load(1, image("copy 4", outputs=((0, 4),)))
    for number in range(10):
        engines.start(job(number))
    finished: list[int] = []
    while len(finished) < 10:
        for result in collect(engines):
            finished.append(result.job.id)
            engines.release(result)
    assert sorted(finished) == list(range(10))


def test_scratch_grows_to_what_a_program_needs(engines: Engines, memory: DeviceMemory) -> None:
    size = MEMORY_BYTES
    memory.view[size - 3 : size] = b"end"
    for handle, scratch_bytes in enumerate((16, 100_000, 16, size)):
        engines.load(handle, image("copy 16", ((scratch_bytes - 3, 3),), scratch_bytes))
        engines.start(job(handle, handle))
        (result,) = collect(engines)
        assert result.outcome is Outcome.OK and len(result.outputs[0]) == 3
        assert result.report[0].kernel == "numpy.copy"
        engines.release(result)
    engines.load(9, image(f"copy {size}", ((size - 3, 3),), size))
    engines.start(job(9, 9))
    assert bytes(collect(engines)[0].outputs[0]) == b"end"


def test_handles_are_taken_once_and_free_after_unload(engines: Engines) -> None:
    engines.load(1, image("copy 1"))
    with pytest.raises(ValueError, match="handle 1"):
        engines.load(1, image("nothing"))
    engines.unload(1)
    with pytest.raises(KeyError):
        engines.start(job(1))
    with pytest.raises(KeyError):
        engines.unload(1)
    engines.load(1, image("nothing\nnothing"))
    engines.start(job(1))
    (result,) = collect(engines)
    assert [run.kernel for run in result.report] == ["numpy.nothing", "numpy.nothing"]


def test_a_program_unloaded_while_its_jobs_wait_still_runs_them(engines: Engines) -> None:
    engines.load(1, image("copy 4", ((0, 4),)))
    for number in range(4):
        engines.start(job(number))
    engines.unload(1)
    engines.load(1, image("nothing"))
    seen: list[str] = []
    while len(seen) < 4:
        for result in collect(engines):
            seen.append(result.report[0].kernel)
            engines.release(result)
    assert seen == ["numpy.copy"] * 4


def test_cancelled_jobs_yield_nothing_and_later_ones_do(engines: Engines) -> None:
    engines.load(1, image("copy 4", ((0, 4),)))
    for number in range(3):
        engines.start(job(number))
    engines.cancel(1)
    engines.cancel(99)
    engines.cancel_all()
    assert engines.poll() == []
    engines.start(job(4))
    assert [result.job.id for result in collect(engines)] == [4]


def test_close_is_idempotent(engines: Engines) -> None:
    engines.load(1, image("nothing"))
    engines.close()
    engines.close()


@pytest.mark.parametrize(
    ("engines", "cores", "limits"),
    [(1, 1, (1, 1)), (4, 1, (1, 1)), (2, 2, (2, 1)), (4, 8, (4, 2)), (2, 8, (2, 4)), (1, 8, (1, 8)), (3, 4, (3, 1))],
)
def test_every_engine_has_a_core_while_there_are_cores_and_all_together_no_more(
    engines: int, cores: int, limits: tuple[int, int]
) -> None:
    workers, threads = worker_limits(engines, cores)
    assert (workers, threads) == limits
    assert workers * threads <= cores


def test_nothing_runs_before_the_first_program(memory: DeviceMemory) -> None:
    pool = EnginePool(memory.fd, 2, executor="tests.support.toy_executor")
    try:
        assert worker_pids(pool) == []
        assert pool.poll() == []
        pool.load(1, image("nothing"))
        assert len(worker_pids(pool)) == 1
    finally:
        pool.close()


def test_descriptors_are_readable_only_while_there_is_something_to_collect(memory: DeviceMemory) -> None:
    pool = EnginePool(memory.fd, 1, executor="tests.support.toy_executor")
    try:
        pool.load(1, image("nothing"))
        pool.load(2, image("nothing", scratch_bytes=1 << 62))
        for program, outcome in ((1, Outcome.OK), (2, Outcome.ENGINE_LOST)):
            assert select.select(pool.fds(), [], [], 0)[0] == []
            pool.start(job(program, program))
            assert select.select(pool.fds(), [], [], PATIENCE_S)[0] != []
            (result,) = pool.poll()
            assert result.outcome is outcome
            pool.release(result)
        (worker,) = worker_pids(pool)
        os.kill(worker, signal.SIGKILL)
        assert select.select(pool.fds(), [], [], 0)[0] == []
    finally:
        pool.close()


def test_a_worker_bars_onnxruntime_and_keeps_blas_to_its_threads(memory: DeviceMemory) -> None:
    pool = EnginePool(memory.fd, 1, "numpy", executor="tests.support.toy_executor")
    try:
        pool.load(1, image("environment OPENBLAS_NUM_THREADS", ((0, 2),)))
        pool.start(job(1))
        (result,) = collect(pool)
        threads = int(bytes(result.outputs[0]).rstrip(b"\0"))
        assert threads == worker_limits(1, len(os.sched_getaffinity(0)))[1]
        pool.release(result)
        pool.load(2, image("import onnxruntime"))
        pool.start(job(2, 2))
        assert collect(pool)[0].outcome is Outcome.ENGINE_LOST  # the barred import ended the worker
    finally:
        pool.close()


def test_a_worker_cannot_write_device_memory(memory: DeviceMemory) -> None:
    pool = EnginePool(memory.fd, 1, executor="tests.support.toy_executor")
    try:
        pool.load(1, image("poke"))
        pool.start(job(1))
        assert collect(pool)[0].outcome is Outcome.ENGINE_LOST
        assert memory.view[0] == 0
    finally:
        pool.close()


def test_a_worker_inherits_only_its_own_files(memory: DeviceMemory, tmp_path: Path) -> None:
    secret = os.open(tmp_path, os.O_RDONLY)
    pool = EnginePool(memory.fd, 1, executor="tests.support.toy_executor")
    try:
        pool.load(1, image("nothing"))
        pool.start(job(1))
        collect(pool)
        worker = worker_pids(pool)[0]
        opened = {os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")}
        assert str(tmp_path) not in opened
    finally:
        pool.close()
        os.close(secret)
