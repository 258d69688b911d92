"""Programs on the device: loading (verified once), executing on an engine, committing the outputs.

An engine computes into private scratch; its outputs reach device memory here and only while the job that asked for
them is still wanted, so a reset never has to wait for an engine.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from driver_shim.protocol.commands import BINDING, EXEC, MAX_BINDINGS, FaultSource, Status
from emulator.engines.job import EngineJob, Engines, JobResult, Outcome, ProgramImage
from emulator.function.jobs import (
    SLICE_BYTES,
    CommandError,
    Machine,
    device_range,
    dma_error,
    host_range,
    refuse_reserved,
)
from emulator.host_memory.address_space import DmaFault
from emulator.model import timing
from emulator.model.verify import ProgramRejected, VerifiedProgram, verify
from emulator.model.work import program_work

MAX_PROGRAMS = 64
MAX_PROGRAM_BYTES = 1 << 30
TENSOR_ALIGNMENT = 64
"""Bound buffers, constants and workspace begin on a cache line."""
GOLDEN_PREFIX = "golden."


class LoadedProgram(NamedTuple):
    """A program that passed verification."""

    handle: int
    constants: int
    """Device address of its constants."""
    constants_bytes: int
    workspace_bytes: int
    inputs: tuple[int, ...]
    """Byte size of each input."""
    outputs: tuple[int, ...]
    ticks: int
    """Modelled cost of one execution."""


class Programs:
    """The loaded programs of one function and the engine jobs that run them."""

    def __init__(self, machine: Machine, engines: Engines) -> None:
        self._machine = machine
        self._engines = engines
        self._loaded: dict[int, LoadedProgram] = {}
        self._handles = itertools.count(1)
        self._job_ids = itertools.count(1)
        self._waiting: dict[int, ExecJob] = {}
        self._generation = 0
        self._engine_free = [0] * machine.profile.engines

    @property
    def running(self) -> bool:
        """Whether engine jobs are outstanding."""
        return bool(self._waiting)

    def check_size(self, size: int) -> None:
        """Raise CommandError for a container that cannot be loaded whatever is in it."""
        if not 0 < size <= MAX_PROGRAM_BYTES:
            raise CommandError(
                Status.PROGRAM_REJECTED, f"program of {size} bytes; 1 to {MAX_PROGRAM_BYTES} are possible"
            )
        if len(self._loaded) >= MAX_PROGRAMS:
            raise CommandError(Status.PROGRAM_LIMIT, f"{MAX_PROGRAMS} programs are loaded; unload one first")

    def load(self, image: bytes, constants: int) -> int:
        """Verify a container, place its constants at device address `constants`; returns the handle."""
        try:
            program = verify(image)
        except ProgramRejected as error:
            raise CommandError(Status.PROGRAM_REJECTED, f"program rejected: {error}") from error
        _aligned(constants, "constants")
        device_range(self._machine, constants, program.constants_bytes, "program constants")
        handle = next(self._handles)
        try:
            self._engines.load(handle, _engine_image(image, program))
        except OSError as error:
            raise CommandError(Status.PROGRAM_LIMIT, f"the engines cannot take it: {error.strerror}") from error
        self._machine.memory.view[constants : constants + program.constants_bytes] = program.constants
        self._loaded[handle] = LoadedProgram(
            handle,
            constants,
            program.constants_bytes,
            program.workspace_bytes,
            program.input_sizes,
            program.output_sizes,
            timing.program_ticks(self._machine.profile, program_work(program.image)),
        )
        return handle

    def unload(self, handle: int) -> None:
        """Forget a program. Jobs of it that run end normally."""
        self.find(handle)
        del self._loaded[handle]
        self._engines.unload(handle)

    def find(self, handle: int) -> LoadedProgram:
        """The program of a handle. Raises CommandError."""
        program = self._loaded.get(handle)
        if program is None:
            raise CommandError(Status.INVALID_PROGRAM, f"no program has the handle {handle}")
        return program

    def start(self, job: ExecJob, program: LoadedProgram, inputs: tuple[int, ...]) -> int:
        """Hand a job to an engine; returns its id."""
        job_id = next(self._job_ids)
        self._waiting[job_id] = job
        self._engines.start(EngineJob(job_id, self._generation, program.handle, program.constants, inputs))
        return job_id

    def book_engine(self, cost: int, not_before: int) -> int:
        """Reserve the engine that is free first for `cost` ticks; returns the tick at which it begins."""
        engine = min(range(len(self._engine_free)), key=self._engine_free.__getitem__)
        start = max(self._engine_free[engine], not_before)
        self._engine_free[engine] = start + cost
        return start

    def collect(self) -> bool:
        """Take finished engine jobs in; True if there were any."""
        results = self._engines.poll()
        for result in results:
            job = self._waiting.pop(result.job.id, None)
            if job is None or result.job.generation != self._generation:
                self._engines.release(result)
            else:
                job.finish(result)
        return bool(results)

    def release(self, result: JobResult) -> None:
        """The outputs of a result were committed."""
        self._engines.release(result)

    def discard(self, job: ExecJob) -> None:
        """Nobody wants this job's result any more; does not wait for the engine."""
        if job.result is not None:
            self._engines.release(job.result)
        elif job.job_id is not None:
            self._waiting.pop(job.job_id, None)
            self._engines.cancel(job.job_id)

    def clear(self) -> None:
        """Unload everything and drop running jobs without waiting for them."""
        self._generation += 1
        self._waiting.clear()
        self._engine_free = [0] * len(self._engine_free)
        self._engines.cancel_all()
        for handle in self._loaded:
            self._engines.unload(handle)
        self._loaded.clear()


class ExecJob:
    """exec: run a loaded program on bound device buffers."""

    def __init__(self, machine: Machine, programs: Programs, entry: bytes) -> None:
        refuse_reserved(EXEC, entry)
        *_, handle, count, bindings, workspace = EXEC.codec.unpack(entry)
        self._machine = machine
        self._programs = programs
        self._program = programs.find(handle)
        addresses = self._bound_addresses(bindings, count)
        inputs = len(self._program.inputs)
        self._inputs, self._outputs = addresses[:inputs], addresses[inputs:]
        _aligned(workspace, "workspace")
        device_range(machine, workspace, self._program.workspace_bytes, "workspace")
        self.cost = timing.throttled(self._program.ticks, machine.throttle())
        self.runnable = True
        self.result: JobResult | None = None
        self.job_id: int | None = None
        self._committed = 0
        self._commit_offset = 0

    def advance(self) -> int | None:
        """Start the engine, or commit the next slice of its outputs."""
        if self.job_id is None:
            self._start()
            return None
        if self.result is None:
            return None
        return self._commit(self.result)

    def finish(self, result: JobResult) -> None:
        """The engine has ended this job; the next slices commit its outputs."""
        self.result = result
        self.runnable = True

    def _start(self) -> None:
        self.runnable = False
        self.job_id = self._programs.start(self, self._program, self._inputs)

    def _commit(self, result: JobResult) -> int | None:
        if result.outcome is not Outcome.OK:
            self._programs.release(result)
            lost = result.outcome is Outcome.ENGINE_LOST
            raise CommandError(
                result.status,
                result.message,
                source=FaultSource.ENGINE if lost else FaultSource.COMMAND,
                command_index=result.command_index,
            )
        budget = SLICE_BYTES
        memory = self._machine.memory.view
        while self._committed < len(result.outputs) and budget > 0:
            output = result.outputs[self._committed]
            size = min(budget, len(output) - self._commit_offset)
            to = self._outputs[self._committed] + self._commit_offset
            memory[to : to + size] = output[self._commit_offset : self._commit_offset + size]
            self._commit_offset += size
            budget -= size
            if self._commit_offset == len(output):
                self._committed += 1
                self._commit_offset = 0
        if self._committed < len(result.outputs):
            return None
        activity = self._machine.activity
        activity.program_commands += len(result.report)
        activity.fast_program_commands += sum(not run.kernel.startswith(GOLDEN_PREFIX) for run in result.report)
        self._programs.release(result)
        return 0

    def _bound_addresses(self, bindings: int, count: int) -> tuple[int, ...]:
        """Device addresses of inputs and outputs, each checked against what the program declares."""
        sizes = self._program.inputs + self._program.outputs
        if count != len(sizes) or count > MAX_BINDINGS:
            raise CommandError(
                Status.BINDING_MISMATCH, f"exec: {count} buffers bound; program {self._program.handle} has {len(sizes)}"
            )
        host_range(self._machine, bindings, count * BINDING.size, write=False, what="binding table")
        try:
            table = bytes(self._machine.address_space.read(bindings, count * BINDING.size))
        except DmaFault as fault:
            raise dma_error(fault, "binding table") from fault
        addresses = []
        for index, wanted in enumerate(sizes):
            address, size = BINDING.codec.unpack_from(table, index * BINDING.size)
            if size != wanted:
                raise CommandError(
                    Status.BINDING_MISMATCH, f"exec: buffer {index} has {size} bytes; the program needs {wanted}"
                )
            _aligned(address, f"buffer {index}")
            device_range(self._machine, address, size, f"buffer {index}")
            addresses.append(address)
        return tuple(addresses)


def _aligned(address: int, what: str) -> None:
    if address % TENSOR_ALIGNMENT:
        raise CommandError(
            Status.MISALIGNED,
            f"{what}: device address {address:#x} is no multiple of {TENSOR_ALIGNMENT}",
            address=address,
        )


def _engine_image(image: bytes, program: VerifiedProgram) -> ProgramImage:
    return ProgramImage(image, program.scratch_bytes, program.output_places, program.command_count)
