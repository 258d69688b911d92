"""Compiled programs, and which of them the device holds: as many as it takes, the least recently used give way."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from driver_shim.errors import CommandFailed
from driver_shim.protocol.commands import Status
from sdk.compiler import CompiledProgram
from sdk.model.layout import RunLayout
from sdk.queue.events import Event

_log = logging.getLogger("npu")


class ProgramLoader(Protocol):
    """What puts programs on the device."""

    def load_program(self, image: bytes, constants: Sequence[tuple[int, int]]) -> int:
        """Load a container; returns its handle."""

    def unload_program(self, handle: int, reset_count: int) -> None:
        """Forget a program, unless a reset (they are counted) did so already."""


class ModelProgram:
    """A program of a model, whose weights are on the device. It itself is there while it has a handle."""

    def __init__(
        self, compiled: CompiledProgram, constants: Sequence[tuple[int, int]], reset_count: int, keep: Any
    ) -> None:
        self.compiled = dataclasses.replace(compiled, constants=())
        """Without the arrays, which are on the device."""
        self.layout = RunLayout(compiled)
        self.constants = constants
        """(device address, bytes) of each."""
        self.keep = keep
        """What its constants lie in."""
        self.reset_count = reset_count
        """The reset that it was made after."""
        self.handle: int | None = None
        self.runs: set[Event[Any]] = set()
        """In flight. Adding and removing need no lock of their own."""


class CommandRun(NamedTuple):
    """One command of a run, and who carried it out."""

    node: str
    """The node or nodes of the model that it came from."""
    kernel: str
    """Provider and kind: "onnxruntime.conv", "numpy.binary", "golden.gather"."""
    wall_seconds: float


class ProgramCounts(NamedTuple):
    """How many programs a device holds for this process."""

    loaded: int
    limit: int
    evicted: int
    """Programs that were taken off the device for others since it was opened; they come back when they run again."""


class ResidentPrograms:
    """The programs on one device, of all models, in the order in which they were used. Thread-safe.

    Its lock is held for book-keeping alone, never while the device is asked for something.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._resident: OrderedDict[ModelProgram, None] = OrderedDict()
        self._evicted = 0

    @property
    def counts(self) -> ProgramCounts:
        """How many there are."""
        return ProgramCounts(len(self._resident), self._limit, self._evicted)

    def begin(self, program: ModelProgram, run: Event[Any]) -> int | None:
        """Have a program stay while this run is in flight; its handle, or None if it has to be loaded first."""
        with self._lock:
            if program.handle is not None:
                program.runs.add(run)
                self._resident.move_to_end(program)
            return program.handle

    def newest(self, programs: Collection[ModelProgram]) -> ModelProgram | None:
        """Which of these was used last."""
        with self._lock:
            return next((program for program in reversed(self._resident) if program in programs), None)

    def load(self, program: ModelProgram, loader: ProgramLoader) -> Event[Any] | None:
        """Put a program on the device; idle ones go for it as far as it takes. The caller serialises.

        Returns a run to wait for, where all that the device holds are in use. Raises CommandFailed, Timeout,
        DeviceLost, Closed.
        """
        if program.handle is not None:
            return None
        while len(self._resident) >= self._limit:
            if not self._evict(loader):
                return self._oldest_run()
        while True:
            try:
                handle = loader.load_program(program.compiled.image, program.constants)
                break
            except CommandFailed as error:
                if error.status != Status.PROGRAM_LIMIT or not self._resident:
                    raise
                if not self._evict(loader):
                    return self._oldest_run()
        with self._lock:
            program.handle = handle
            self._resident[program] = None
        return None

    def drop(self, program: ModelProgram, loader: ProgramLoader) -> None:
        """Take a program off the device for good."""
        with self._lock:
            handle, program.handle = program.handle, None
            self._resident.pop(program, None)
        if handle is not None:
            loader.unload_program(handle, program.reset_count)

    def forget_all(self) -> None:
        """The device was reset, or is gone, and holds none any more."""
        with self._lock:
            for program in self._resident:
                program.handle = None
            self._resident.clear()

    def abandon_in_child(self) -> None:
        """In a forked child; the lock may be held by a thread that does not exist here."""
        self._lock = threading.Lock()
        self.forget_all()

    def _evict(self, loader: ProgramLoader) -> bool:
        """Take the least recently used program that nothing runs off the device; False if there is none."""
        with self._lock:
            idle = next((program for program in self._resident if not program.runs), None)
            if idle is None:
                return False
            handle, idle.handle = idle.handle, None
            del self._resident[idle]
            self._evicted += 1
        names = ", ".join(map(str, idle.compiled.inputs))
        _log.info("program for inputs %s left the device for another; it is loaded again when it runs", names)
        if handle is not None:
            loader.unload_program(handle, idle.reset_count)
        return True

    def _oldest_run(self) -> Event[Any] | None:
        """A run of the least recently used program, if it still runs."""
        with self._lock:
            return next((run for program in self._resident for run in tuple(program.runs)), None)
