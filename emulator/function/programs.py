"""The loaded programs of a function, and the engine jobs that run them.

A program is verified once, when it is loaded, and not on the bus's thread. An engine computes into private scratch;
its outputs reach device memory only while the job that asked for them is still wanted (`jobs/exec.py`), so a reset
never has to wait for an engine that has no states.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from driver_shim.protocol.commands import COMMAND_RUN, Status
from driver_shim.protocol.program import MAX_CONTAINER_BYTES, MAX_TENSORS
from emulator.chip.chip import Chip
from emulator.engines.job import EngineJob, EntryPlan, JobResult, KernelRun, ProgramImage
from emulator.engines.verdict import EntryFacts, ProgramFacts, Verdict
from emulator.function.command_error import CommandError, check_device_range, check_tensor_aligned

MAX_PROGRAMS = 64
"""Each costs a file descriptor here and one for every engine; drivers keep the least recently used out."""

OnResult = Callable[[JobResult], None]
OnVerdict = Callable[[Verdict], None]


class PlacedProgram(NamedTuple):
    """A program that passed verification, and whose constants have their places."""

    handle: int
    entries: tuple[EntryFacts, ...]


class Programs:
    """The loaded programs of one function and the engine jobs that run them."""

    def __init__(self, chip: Chip) -> None:
        self._memory = chip.memory
        self._profile = chip.profile
        self._engines = chip.engines
        self._verifier = chip.verifier
        self._verdicts: dict[int, OnVerdict] = {}
        """Who waits for a verification, by its number."""
        self.outstanding: dict[int, OnResult] = {}
        """Engine jobs whose result somebody wants, by id."""
        self._loaded: dict[int, PlacedProgram] = {}
        self._reports: dict[int, tuple[KernelRun, ...]] = {}
        self._handles = itertools.count(1)
        self._job_ids = itertools.count(1)
        self._generation = 0
        self._engines_free = 0
        """The tick from which on nothing is booked."""

    def check_size(self, size: int, constants: int) -> None:
        """Raise CommandError for a container, or a number of constants, that cannot be loaded whatever is in it."""
        if not 0 < size <= MAX_CONTAINER_BYTES:
            raise CommandError(
                Status.PROGRAM_REJECTED, f"program of {size} bytes; 1 to {MAX_CONTAINER_BYTES} are possible"
            )
        if constants > MAX_TENSORS:
            raise CommandError(Status.BINDING_MISMATCH, f"{constants} constants; at most {MAX_TENSORS} are possible")
        if len(self._loaded) >= MAX_PROGRAMS:
            raise CommandError(Status.PROGRAM_LIMIT, f"{MAX_PROGRAMS} programs are loaded; unload one first")

    def verify(self, image: bytes, on_verdict: OnVerdict) -> int:
        """Have a container verified; returns the verification's number. `on_verdict` is told, at once or later."""
        self._engines.warm_up()
        number = next(self._job_ids)
        try:
            self._verifier.start(number, image)
        except OSError as error:
            raise CommandError(Status.PROGRAM_LIMIT, f"nothing can verify it: {error.strerror or error}") from error
        self._verdicts[number] = on_verdict
        self._collect_verdicts()
        return number

    def forget_verdict(self, number: int) -> None:
        """Nobody waits for this verification any more."""
        if self._verdicts.pop(number, None) is not None:
            self._verifier.cancel_all()  # there is one at a time

    def load(self, image: bytes, constants: list[tuple[int, int]], facts: ProgramFacts) -> int:
        """Load a verified container whose constants lie at these (device address, size); returns the handle."""
        self._check_constants(facts.constants, constants)
        handle = next(self._handles)
        plans = (EntryPlan(e.scratch_bytes, e.outputs, e.commands, e.states) for e in facts.entries)
        try:
            self._engines.load(handle, ProgramImage(image, tuple(plans), tuple(address for address, _ in constants)))
        except OSError as error:
            raise CommandError(Status.PROGRAM_LIMIT, f"the engines cannot take it: {error.strerror}") from error
        self._loaded[handle] = PlacedProgram(handle, facts.entries)
        return handle

    def _check_constants(self, sizes: tuple[int, ...], constants: list[tuple[int, int]]) -> None:
        """Raise CommandError unless each constant has a place of its size."""
        if len(constants) != len(sizes):
            raise CommandError(
                Status.BINDING_MISMATCH, f"program: {len(constants)} constants bound; it has {len(sizes)}"
            )
        for index, (wanted, (address, size)) in enumerate(zip(sizes, constants, strict=True)):
            if size != wanted:
                raise CommandError(
                    Status.BINDING_MISMATCH, f"program: constant {index} has {size} bytes; it needs {wanted}"
                )
            check_tensor_aligned(address, f"constant {index}")
            check_device_range(self._memory, address, size, f"constant {index}")

    def unload(self, handle: int) -> None:
        """Forget a program. Jobs of it that run end normally."""
        self.find(handle)
        del self._loaded[handle]
        self._reports.pop(handle, None)
        self._engines.unload(handle)

    def note_run(self, program: PlacedProgram, report: tuple[KernelRun, ...]) -> None:
        """Keep the report of a program's newest run."""
        self._reports[program.handle] = report

    def report(self, handle: int) -> bytes:
        """A COMMAND_RUN for each command of the program's newest run. Raises CommandError."""
        self.find(handle)
        runs = self._reports.get(handle, ())
        return b"".join(COMMAND_RUN.pack(run.wall_ns, run.kernel.encode()) for run in runs)

    def find(self, handle: int) -> PlacedProgram:
        """The program of a handle. Raises CommandError."""
        program = self._loaded.get(handle)
        if program is None:
            raise CommandError(Status.INVALID_PROGRAM, f"no program has the handle {handle}")
        return program

    def start(
        self,
        program: PlacedProgram,
        entry: int,
        inputs: tuple[int, ...],
        states: tuple[int, ...],
        on_result: OnResult,
    ) -> int:
        """Hand a job to an engine; returns its id. `on_result` is told how it ended, unless it is cancelled."""
        job_id = next(self._job_ids)
        self.outstanding[job_id] = on_result
        self._engines.start(EngineJob(job_id, self._generation, program.handle, inputs, states, entry))
        return job_id

    def book_engines(self, cost: int, not_before: int) -> int:
        """Reserve the chip's engines, all of them, for `cost` ticks; returns the tick at which they begin."""
        start = max(self._engines_free, not_before)
        self._engines_free = start + cost
        return start

    @property
    def busy(self) -> bool:
        """Whether `collect` may have something to take in."""
        return bool(self.outstanding or self._verdicts)

    def _collect_verdicts(self) -> bool:
        verdicts = self._verifier.poll()
        for verdict in verdicts:
            on_verdict = self._verdicts.pop(verdict.number, None)
            if on_verdict is not None:
                on_verdict(verdict)
        return bool(verdicts)

    def collect(self) -> bool:
        """Take finished engine jobs and verifications in; True if there were any."""
        judged = self._collect_verdicts() if self._verdicts else False
        if not self.outstanding:
            return judged
        results = self._engines.poll()
        for result in results:
            on_result = self.outstanding.pop(result.job.id, None)
            if on_result is None or result.job.generation != self._generation:
                self._engines.release(result)
            else:
                on_result(result)
        return judged or bool(results)

    def release(self, result: JobResult) -> None:
        """The outputs of a result were committed, or nobody wants them any more."""
        self._engines.release(result)

    def cancel(self, job_id: int) -> None:
        """Nobody wants this job's result any more; does not wait for the engine."""
        self.outstanding.pop(job_id, None)
        self._engines.cancel(job_id)

    def clear(self) -> None:
        """Unload everything and drop running jobs without waiting for them."""
        self._generation += 1
        self.outstanding.clear()
        self._verdicts.clear()
        self._verifier.cancel_all()
        self._engines_free = 0
        self._engines.cancel_all()
        for handle in self._loaded:
            self._engines.unload(handle)
        self._loaded.clear()
        self._reports.clear()
