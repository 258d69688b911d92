"""Engines that run in the caller, at once: deterministic, for unit tests of what stands above them."""

from __future__ import annotations

import time
from typing import Any

from driver_shim.protocol.commands import Status
from emulator.engines.job import EngineJob, Executor, JobResult, Outcome, ProgramFault, ProgramImage


class InlineEngines:
    """`Engines` without processes: `start` runs the job to its end, the next `poll` hands it out."""

    def __init__(self, memory: memoryview, executor: Executor, kernels: str = "auto") -> None:
        self.kernels = kernels
        self._writable = memory
        self._memory = memory.toreadonly()
        self._executor = executor
        self._programs: dict[int, tuple[ProgramImage, Any]] = {}
        self._results: list[JobResult] = []

    def load(self, handle: int, image: ProgramImage) -> None:
        """Prepare the program now. Raises ValueError when the handle is taken."""
        if handle in self._programs:
            raise ValueError(f"program handle {handle} is loaded already")
        self._programs[handle] = (image, self._executor.load(memoryview(bytes(image.data)), image.constants))

    def warm_up(self) -> None:
        """Nothing takes time."""

    def unload(self, handle: int) -> None:
        """Forget the program."""
        del self._programs[handle]

    def start(self, job: EngineJob) -> None:
        """Run the job; what its executor raises beside ProgramFault is a programming error and propagates."""
        image, program = self._programs[job.program]
        plan = image.entries[job.entry]
        scratch = memoryview(bytearray(plan.scratch_bytes))
        states = [self._writable[at : at + size] for at, size in zip(job.states, plan.states, strict=True)]
        began = time.monotonic_ns()
        try:
            report = self._executor.execute(
                program,
                job.entry,
                memory=self._memory,
                inputs=job.inputs,
                states=states,
                scratch=scratch,
                kernels=self.kernels,
            )
        except ProgramFault as fault:
            result = JobResult(
                job,
                Outcome.FAULT,
                fault.status,
                fault.command_index,
                fault.message,
                time.monotonic_ns() - began,
                (),
                (),
            )
        else:
            outputs = tuple(scratch[offset : offset + size].toreadonly() for offset, size in plan.outputs)
            result = JobResult(
                job, Outcome.OK, Status.SUCCESS, 0, "", time.monotonic_ns() - began, outputs, tuple(report)
            )
        self._results.append(result)

    def poll(self) -> list[JobResult]:
        """The jobs that `start` finished since the last call."""
        results, self._results = self._results, []
        return results

    def release(self, result: JobResult) -> None:
        """Nothing to do: every job has scratch of its own."""

    def fds(self) -> list[int]:
        """None: a result is there when `start` returns."""
        return []

    def cancel(self, job_id: int) -> None:
        """Drop the result of one job."""
        self._results = [result for result in self._results if result.job.id != job_id]

    def cancel_all(self) -> None:
        """Drop all results not yet handed out."""
        self._results = []

    def close(self) -> None:
        """Drop everything."""
        self._results = []
        self._programs = {}
