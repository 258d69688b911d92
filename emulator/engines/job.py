"""The interface of engines, whoever runs them: programs, jobs, results."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from driver_shim.protocol.commands import Status
from emulator.model.verify import VerifiedProgram

GOLDEN_PREFIX = "golden."
"""With this begins the name of a golden kernel."""


class KernelRun(NamedTuple):
    """The report of one command of a program: who ran it, and for how long."""

    kernel: str
    """Name of the kernel that ran it: "golden.softmax", "numpy.conv"."""
    wall_ns: int


class ProgramFault(Exception):
    """A command of a program cannot be carried out with the data it was given.

    Raised by an executor; becomes the completion status of the exec and an error-log entry.
    """

    def __init__(self, status: Status, command_index: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.command_index = command_index
        """Position of the command within the program."""
        self.message = message


class Executor(Protocol):
    """A module that runs programs; `emulator.engines.executor` is the one there is beside those of tests."""

    def load(self, image: memoryview, constants: Sequence[int]) -> Any:
        """Prepare a verified container; the result is handed to `execute`. `image` stays valid while it is loaded.

        `constants` are the device addresses of its constants, in the order of its tensor table.
        """

    def execute(
        self,
        program: Any,
        entry: int,
        *,
        memory: memoryview,
        inputs: Sequence[int],
        states: Sequence[memoryview],
        scratch: memoryview,
        kernels: str,
    ) -> Sequence[KernelRun]:
        """Run every command of an entry point; one report each. Raises ProgramFault.

        `memory` is device memory and read-only, input i begins at `inputs[i]`; `states` is the writable memory of each
        state. Intermediates and outputs go to `scratch`, where the program's memory plan says.
        """


class EntryPlan(NamedTuple):
    """An entry point of a verified program as engines need it."""

    scratch_bytes: int
    """Private memory one execution needs, outputs included."""
    outputs: tuple[tuple[int, int], ...]
    """(offset, bytes) of each output within scratch."""
    commands: int
    """Number of commands, hence of reports."""
    states: tuple[int, ...] = ()
    """Bytes of each state."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProgramImage:
    """A verified program as engines need it."""

    data: bytes | memoryview
    """The container."""
    entries: tuple[EntryPlan, ...]
    constants: tuple[int, ...] = ()
    """Device address of each constant."""

    @classmethod
    def of(
        cls, container: bytes | memoryview, program: VerifiedProgram, constants: tuple[int, ...] = ()
    ) -> ProgramImage:
        """A container that was verified, with the addresses of its constants."""
        entries = (
            EntryPlan(entry.scratch_bytes, entry.output_places, entry.command_count, entry.state_sizes)
            for entry in program.entries
        )
        return cls(container, tuple(entries), constants)


@dataclasses.dataclass(frozen=True, slots=True)
class EngineJob:
    """One execution of a loaded program."""

    id: int
    """Unique among the jobs outstanding."""
    generation: int
    """The controller's reset generation; handed back for comparison."""
    program: int
    """Handle the program was loaded under."""
    inputs: tuple[int, ...]
    """Device address of each input."""
    states: tuple[int, ...] = ()
    """Device address of each state."""
    entry: int = 0
    """Which of its entry points."""


class Outcome(enum.Enum):
    """The way in which a job ended."""

    OK = "ok"
    FAULT = "fault"
    """The program met data that a command cannot work on; see `status`, `command_index`, `message`."""
    ENGINE_LOST = "engine-lost"
    """The engine died; nothing of its results is used."""


@dataclasses.dataclass(frozen=True, slots=True)
class JobResult:
    """A finished job. Its outputs lie in the engine's private memory until `Engines.release`."""

    job: EngineJob
    outcome: Outcome
    status: Status
    """SUCCESS, the fault's status, or ENGINE_LOST."""
    command_index: int
    """The command at fault; 0 otherwise."""
    message: str
    """What happened, in one sentence; empty when all went well."""
    wall_ns: int
    """Time the engine worked on it; 0 when it was lost."""
    outputs: tuple[memoryview, ...]
    """Read-only contents of each output, to be copied into device memory; empty unless OK."""
    report: tuple[KernelRun, ...]
    """One entry for each command; empty unless OK."""


class Engines(Protocol):
    """The engines of a chip. Owned by one thread; no call blocks."""

    kernels: str
    """The choice of kernels, one of `emulator.model.choices.KERNELS`."""

    def load(self, handle: int, image: ProgramImage) -> None:
        """Make a verified program known under `handle`. Raises ValueError when the handle is taken."""

    def warm_up(self) -> None:
        """A program will be loaded soon: start what takes time to start."""

    def unload(self, handle: int) -> None:
        """Forget a program; jobs of it that run are not disturbed. Raises KeyError when there is none."""

    def start(self, job: EngineJob) -> None:
        """Run a job, or queue it until an engine is free. Raises KeyError when its program is not loaded."""

    def poll(self) -> list[JobResult]:
        """Jobs that finished since the last call. Each must be given to `release` once its outputs are copied."""

    def release(self, result: JobResult) -> None:
        """The outputs of a result are no longer needed: its engine may take another job."""

    def fds(self) -> list[int]:
        """File descriptors that become readable when `poll` has something to say."""

    def cancel(self, job_id: int) -> None:
        """Drop one job without waiting for it: it yields no result. Unknown and finished ids are ignored."""

    def cancel_all(self) -> None:
        """Drop every job without waiting: none yields a result, results not yet released are void."""

    def close(self) -> None:
        """Drop everything and leave nothing behind; idempotent."""
