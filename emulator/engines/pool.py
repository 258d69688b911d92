"""Engines as worker processes: started when the first program is loaded, fed one job at a time, replaced when they die.

The controller owns the pool from one thread and never waits for it: `fds` tells when `poll` has something to say.
A job's results stay in the worker's private scratch until the controller has copied and released them, so that
nothing of a cancelled job ever reaches device memory. States alone are written in place: a worker that is killed over a
job with states has ended before the call that killed it returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable

from driver_shim.protocol.commands import Status
from emulator import timeouts
from emulator.engines.job import EngineJob, EntryPlan, JobResult, Outcome, ProgramImage
from emulator.engines.messages import REPLY, unpadded
from emulator.engines.process import WorkerProcess, program_file

_logger = logging.getLogger("npu.emulator.engines")

EXECUTOR = "emulator.engines.executor"

KEPT_SCRATCH_BYTES = 64 << 20
"""A reset also ends idle workers that have used more scratch than this: starting one anew costs 0.15 s, once."""


class EngineStuck(Exception):
    """A killed worker does not end, and its job's states cannot be given to anybody else. The emulator ends by it."""


@dataclasses.dataclass(slots=True)
class _Program:
    """A loaded program and the file its container travels in."""

    number: int
    """What workers call it; never used again, as handles are."""
    image: ProgramImage
    fd: int
    waiting: int = 0
    """Jobs in line for it."""
    unloaded: bool = False

    def close_if_unused(self) -> None:
        """Let the file go once nobody can need it."""
        if self.unloaded and not self.waiting:
            os.close(self.fd)


@dataclasses.dataclass(slots=True)
class _Engine:
    """One worker and what it is doing."""

    process: WorkerProcess
    job: EngineJob | None = None
    """Running on it."""
    plan: EntryPlan | None = None
    """What `job` runs, also after its program was unloaded."""
    held: int | None = None
    """Id of the finished job whose outputs are not released yet."""

    @property
    def free(self) -> bool:
        return self.job is None and self.held is None


def worker_limits(engines: int, cores: int) -> tuple[int, int]:
    """(workers, threads of each) for a chip with `engines` engines on `cores` host cores.

    An engine has a core of its own where there are as many. The bus gets its share of one of them all the same: it
    sleeps while engines compute, and they give way to it (`process.ENGINE_NICENESS`).
    """
    workers = min(engines, cores)
    return workers, cores // workers


class EnginePool:
    """`Engines` as worker processes."""

    def __init__(self, memory_fd: int, engines: int, kernels: str = "auto", executor: str = EXECUTOR) -> None:
        """Start nothing yet. `memory_fd` is device memory's file; `executor` names the module that runs programs."""
        self.kernels = kernels
        self._memory_fd = memory_fd
        self._executor = executor
        self._workers, self._threads = worker_limits(engines, len(os.sched_getaffinity(0)))
        self._programs: dict[int, _Program] = {}
        self._numbers = itertools.count(1)
        self._engines: list[_Engine] = []
        self._waiting: deque[tuple[EngineJob, _Program]] = deque()
        self._lost: list[JobResult] = []
        """Results of jobs whose worker could not be fed; handed out by the next `poll`."""
        self._lost_event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable while there are any."""
        self._ending: list[WorkerProcess] = []
        """Killed workers not yet reaped."""
        self._closed = False

    # --- programs ---------------------------------------------------------------------------------------------

    def load(self, handle: int, image: ProgramImage) -> None:
        """Keep the program in a sealed file and warm up a worker with it.

        Raises ValueError when the handle is taken, OSError when the system refuses a file.
        """
        if handle in self._programs:
            raise ValueError(f"program handle {handle} is loaded already")
        program = _Program(next(self._numbers), image, program_file(image))
        self._programs[handle] = program
        try:
            engine = self._find_engine(program.number)
        except OSError as error:
            _logger.warning("cannot start an engine worker yet: %s", error)
            return
        if engine is not None:
            engine.process.send_program(program.number, image, program.fd)

    def warm_up(self) -> None:
        """Start the first worker."""
        if not self._engines:
            with contextlib.suppress(OSError):  # then the first job finds out, and says so
                self._find_engine(0)

    def unload(self, handle: int) -> None:
        """Forget a program here and in every worker. Jobs of it that run or wait are not disturbed."""
        program = self._programs.pop(handle)
        program.unloaded = True
        program.close_if_unused()
        for engine in self._engines:
            engine.process.drop_program(program.number)

    # --- jobs -------------------------------------------------------------------------------------------------

    def start(self, job: EngineJob) -> None:
        """Run the job on a free engine, else when one is. Raises KeyError when its program is not loaded."""
        program = self._programs[job.program]
        program.waiting += 1
        self._waiting.append((job, program))
        self._feed()

    def poll(self) -> list[JobResult]:
        """Collect what finished or died, and feed engines that are free."""
        results = self._take_lost()
        for engine in list(self._engines):
            message = engine.process.receive()
            if message is None:
                continue
            if message:
                results.append(self._finish(engine, message))
            else:
                _logger.warning("engine worker %d died", engine.process.pid)
                if engine.job is not None:
                    results.append(_lost_result(engine.job))
                self._drop(engine)
        self._feed()
        return results

    def release(self, result: JobResult) -> None:
        """The outputs are copied: the engine may overwrite them. Ignored for results that a cancel made void."""
        for engine in self._engines:
            if engine.held == result.job.id:
                engine.held = None
                self._feed()
                return

    def fds(self) -> list[int]:
        """Descriptors that become readable when a running job ends, also by its worker's death.

        An idle worker's death is noticed, and it is reaped, when the pool is next used.
        """
        return [self._lost_event, *(engine.process.fd for engine in self._engines if engine.job is not None)]

    def cancel(self, job_id: int) -> None:
        """Drop one job: taken from the line, or its worker is killed and replaced when next needed."""
        self._forget_waiting(lambda job: job.id == job_id)
        self._lost = [result for result in self._take_lost() if result.job.id != job_id]
        if self._lost:
            os.eventfd_write(self._lost_event, 1)
        for engine in list(self._engines):
            if engine.job is not None and engine.job.id == job_id:
                self._abandon(engine)
            elif engine.held == job_id:
                engine.held = None
        self._feed()

    def cancel_all(self) -> None:
        """Drop every job. Workers that compute are killed; idle ones live on unless they hold much memory."""
        self._forget_waiting(lambda job: True)
        self._take_lost()
        for engine in list(self._engines):
            engine.held = None
            if engine.process.scratch_bytes > KEPT_SCRATCH_BYTES:
                self._drop(engine)
            elif engine.job is not None:
                self._abandon(engine)

    def close(self) -> None:
        """Kill and reap every worker, close every file; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._forget_waiting(lambda job: True)
        self._take_lost()
        for engine in list(self._engines):
            self._drop(engine)
        for process in self._ending:
            if not process.wait(timeouts.REAP_S):
                _logger.error("engine worker %d does not end", process.pid)
        self._ending = []
        for program in self._programs.values():
            os.close(program.fd)
        self._programs = {}
        os.close(self._lost_event)

    # --- within -----------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Reap workers that have ended and hand waiting jobs to free engines."""
        if self._ending:
            self._ending = [process for process in self._ending if not process.reap()]
        while self._waiting:
            job, program = self._waiting[0]
            try:
                engine = self._find_engine(program.number)
                if engine is None:
                    return
                started = self._hand_over(engine, job, program)
            except OSError as error:
                self._lost.append(_lost_result(job, f"no engine could take the program: {error}"))
                os.eventfd_write(self._lost_event, 1)
                started = True
            if started:
                self._waiting.popleft()
                program.waiting -= 1
                program.close_if_unused()

    def _hand_over(self, engine: _Engine, job: EngineJob, program: _Program) -> bool:
        """Start a job on a free engine; False if its worker has died meanwhile and was dropped.

        Raises OSError when scratch cannot grow, or when even a new worker is no use.
        """
        process = engine.process
        fresh = not process.used
        if not (
            process.send_program(program.number, program.image, program.fd)
            and process.send_job(job, program.number, program.image)
        ):
            self._drop(engine)
            if fresh:
                raise OSError("a new engine worker takes no work")
            return False
        engine.job, engine.plan = job, program.image.entries[job.entry]
        if program.unloaded:
            process.drop_program(program.number)
        return True

    def _take_lost(self) -> list[JobResult]:
        """The lost jobs' results, which are no longer announced."""
        lost, self._lost = self._lost, []
        if lost:
            os.eventfd_read(self._lost_event)
        return lost

    def _forget_waiting(self, condition: Callable[[EngineJob], bool]) -> None:
        """Take jobs out of the line."""
        kept = deque(entry for entry in self._waiting if not condition(entry[0]))
        for job, program in self._waiting:
            if condition(job):
                program.waiting -= 1
                program.close_if_unused()
        self._waiting = kept

    def _find_engine(self, number: int) -> _Engine | None:
        """A free engine, rather one that has the program; started if there may be one more; None when all are taken."""
        free = [engine for engine in self._engines if engine.free]
        if free:
            return next((engine for engine in free if engine.process.knows(number)), free[0])
        if len(self._engines) == self._workers:
            return None
        process = WorkerProcess(self._memory_fd, self._executor, self.kernels, self._threads)
        engine = _Engine(process)
        self._engines.append(engine)
        return engine

    def _finish(self, engine: _Engine, message: bytes) -> JobResult:
        """Turn a worker's answer into a result."""
        job, plan = engine.job, engine.plan
        number, wall_ns, command_index, status, text = REPLY.unpack_from(message)
        if job is None or plan is None or number != job.id:
            raise RuntimeError(f"engine worker answered job {number} while it had {job}")
        engine.job = engine.plan = None
        if status != Status.SUCCESS:
            return JobResult(job, Outcome.FAULT, Status(status), command_index, unpadded(text), wall_ns, (), ())
        engine.held = job.id
        outputs, report = engine.process.results(plan)
        return JobResult(job, Outcome.OK, Status.SUCCESS, 0, "", wall_ns, outputs, report)

    def _abandon(self, engine: _Engine) -> None:
        """Drop the job that an engine runs: free if it has just finished, else its worker is killed."""
        message = engine.process.receive()
        if message:
            engine.job = engine.plan = None
        else:
            self._drop(engine)

    def _drop(self, engine: _Engine) -> None:
        """Kill an engine's worker; it is reaped later, but at once where it may be writing device memory.

        Raises EngineStuck.
        """
        self._engines.remove(engine)
        engine.process.kill()
        self._ending.append(engine.process)
        if engine.job is not None and engine.job.states and not engine.process.wait(timeouts.REAP_WRITER_S):
            raise EngineStuck(f"engine worker {engine.process.pid} may still write device memory")


def _lost_result(job: EngineJob, message: str = "the engine died while it ran the program") -> JobResult:
    return JobResult(job, Outcome.ENGINE_LOST, Status.ENGINE_LOST, 0, message, 0, (), ())
