"""A lane: a queue, and the device memory that a model's runs on it work in.

Runs of one lane are in order, so they share operands and workspace in device memory: the next run's inputs are copied
in after this one's outputs were copied out. Each has host memory of its own until its outputs were taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from driver_shim.errors import CommandFailed, OutOfDeviceMemory
from sdk.memory.buffers import Buffer, DeviceBuffer
from sdk.model.port import ModelOwner
from sdk.model.programs import ModelProgram
from sdk.model.runs import Command, Outputs, RunEvent, RunStep
from sdk.model.staging import Staging, StagingPool
from sdk.queue.completions import SlotOwner
from sdk.queue.queue import Queue


class Work(Protocol):
    """What one run has the device do."""

    @property
    def programs(self) -> Sequence[ModelProgram]:
        """What it runs, each named once; the last one ends it."""

    @property
    def staging_bytes(self) -> int:
        """Host memory that it needs."""

    @property
    def output_bytes(self) -> int:
        """Of the arrays that it gives."""

    def commands(
        self, staging: Staging, arena: DeviceBuffer, handles: Sequence[int]
    ) -> tuple[Sequence[Command], tuple[Buffer, ...]]:
        """Stage its arrays; the commands to submit, and the buffers that they use beside `arena`.

        Raises ValueError for buffers that do not fit.
        """

    @property
    def then(self) -> Callable[[bool], None] | None:
        """Called at its end, with whether it ended well; the queue's lock is held then."""

    def outputs(self, staging: Staging) -> Outputs:
        """What it left, once it has ended well. No view of the staging outlives this."""


class Lane:
    """One of a model's lanes. Thread-safe."""

    def __init__(self, owner: ModelOwner, queue: Queue) -> None:
        self._owner = owner
        self.queue = queue
        self.runs: set[RunEvent] = set()
        """In flight."""
        self._lock = threading.Lock()
        self._arena: DeviceBuffer | None = None
        """Operands and workspace of the largest program that ran here."""
        self.stagings = StagingPool(owner, queue)

    def reserve(self, program: ModelProgram) -> None:
        """See to it that a program's operands and workspace fit. Raises OutOfDeviceMemory, Closed."""
        size = program.layout.device_bytes
        with self._lock:
            if self._arena is not None and self._arena.nbytes >= size:
                return
            try:
                self._arena = self._owner.device_buffer(size, "uint8")
            except OutOfDeviceMemory:
                if self._arena is None:
                    raise
                for run in tuple(self.runs):
                    run._await_end()
                self._arena = None  # no run uses it any more: in its place a larger one may fit
                self._arena = self._owner.device_buffer(size, "uint8")

    def idle(self) -> bool:
        """Whether nothing of it is in flight. Never blocks."""
        self.queue._completions.reap()
        return not self.runs

    def close(self) -> None:
        """End every run in flight, as far as anybody waits for it. Its memory goes when the device is done with it."""
        completions = self.queue._completions
        error = CommandFailed(
            "the model was closed before the run ended", code="model-closed", device=completions.address
        )
        with completions.lock:
            for run in tuple(self.runs):
                run.give_up(error)
            completions._tell_waiters()

    # --- runs --------------------------------------------------------------------------------------------------

    def start(self, work: Work, *, may_wait: bool, answered: bool) -> RunEvent | None:
        """Submit one run; None if a program, or memory for it, has to be there first. Arrays may be reused on return.

        `answered`: whoever starts it is told of a failure in any case. Raises QueueFull where it `may_wait` not,
        ValueError for more commands than a queue takes.
        """
        arena, programs = self._arena, work.programs
        if arena is None or any(arena.nbytes < program.layout.device_bytes for program in programs):
            return None
        staging = self.stagings.take(work.staging_bytes, may_wait)
        convert = partial(_outputs_of, self.stagings, staging, work)
        run = RunEvent(self.queue._completions, self, programs, staging, convert, answered, work.output_bytes)
        run.then(work.then)
        staging.run = run
        try:
            handles = [handle for each in programs if (handle := self._owner.programs.begin(each, run)) is not None]
            if len(handles) < len(programs):
                run.discard()
                return None
            self.runs.add(run)
            commands, buffers = work.commands(staging, arena, handles)
            _check_fit(len(commands), self.queue.depth)
            run.hold((arena, *buffers))
            run.ends_with(commands[-1])
            owners: list[SlotOwner] = [*[RunStep(run, command) for command in commands[:-1]], run]
            self.queue._submit_group(owners, run, [command.entry for command in commands], may_wait=may_wait)
        except BaseException:
            run.discard()
            raise
        return run

    def ended(self, run: RunEvent, programs: Sequence[ModelProgram], staging: Any, failed: bool) -> None:
        """No command of it is in flight any more."""
        self.runs.discard(run)
        for program in programs:
            program.runs.discard(run)
        if failed:
            self.stagings.give(staging, run)


def _check_fit(count: int, depth: int) -> None:
    """Raise ValueError for commands that would wait for room for ever, since they go into the queue at one time."""
    if count > depth:
        raise ValueError(
            f"the run takes {count} commands; at most {depth} go into a queue: give the tokens in several calls, or"
            " name a wider shape in load(shapes=...)"
        )


def _outputs_of(pool: StagingPool, staging: Staging, work: Work) -> Outputs:
    """Arrays of what a run left in staging, which then may be used again; the buffers that it was given otherwise."""
    outputs = work.outputs(staging)
    if staging.run is not None:
        pool.give(staging, staging.run)
    return outputs
