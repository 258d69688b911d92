"""A lane: a queue, and the memory that a model's runs on it work in.

Runs of one lane are in order, so they share operands and workspace in device memory: the next run's inputs are copied
in after this one's outputs were copied out. Each has host memory of its own until its outputs were taken.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import BufferInUse, CommandFailed, HostMemoryLimit, OutOfDeviceMemory, QueueFull
from driver_shim.protocol.commands import BINDING, COPY, EXEC, IoOpcode, Space
from sdk.memory.buffers import DEVICE_ALIGNMENT, Buffer, DeviceBuffer, HostBuffer, Span
from sdk.model.layout import Place, RunLayout
from sdk.model.port import ModelOwner
from sdk.model.programs import ModelProgram
from sdk.model.runs import Outputs, RunEvent, RunStep
from sdk.model.staging_pools import LaneStagings
from sdk.queue.queue import Entry, Queue

Input = NDArray[Any] | Span
"""What a run is given: an array, or a buffer of the device's or of the host's memory."""

MOST_STAGINGS = 32
STAGING_BUDGET_BYTES = 64 << 20
"""A lane has stagings for this many runs, or for as many as fit into so much memory, and never less than two."""

_COPY, _EXEC = int(IoOpcode.COPY), int(IoOpcode.EXEC)
_HOST, _DEVICE = int(Space.HOST), int(Space.DEVICE)


class Staging:
    """Host memory of one run, made ready for one program at a time."""

    def __init__(self, owner: ModelOwner, size: int) -> None:
        self._block = owner.host_buffer(size, "uint8")
        self.size = size
        self.run: RunEvent | None = None
        """Whose outputs are in it, or will be."""
        self.turn = 0
        """When it was taken: the lower, the earlier."""
        self._ready_for: tuple[RunLayout, int, int] | None = None
        """Layout, address of the operands and program's handle that `entries` go with."""
        self.inputs: list[NDArray[Any]] = []
        self.outputs: list[NDArray[Any]] = []
        self.entries: list[Entry] = []
        """The commands of a run whose operands are all staged."""

    @property
    def address(self) -> int:
        """Bus address of its first byte."""
        return self._block.address

    def prepare(self, layout: RunLayout, arena: int, handle: int) -> None:
        """Make arrays and commands for a program whose operands lie at this device address."""
        if self._ready_for == (layout, arena, handle):
            return
        memory, here = self._block.array, self.address
        self.inputs = [_view(memory, place) for place in layout.inputs]
        self.outputs = [_view(memory, place) for place in layout.outputs]
        self.bind(layout, arena, {})
        self.entries = [self.execute(layout, arena, handle)]
        if layout.input_bytes:
            self.entries.insert(0, (COPY.codec, _COPY, (arena, here, layout.input_bytes, _DEVICE, _HOST)))
        if layout.output_bytes:
            at = layout.output_offset
            self.entries.append((COPY.codec, _COPY, (here + at, arena + at, layout.output_bytes, _HOST, _DEVICE)))
        self._ready_for = (layout, arena, handle)

    def fill(self, values: Sequence[Input]) -> None:
        """Copy arrays in. No view of the memory outlives this."""
        for there, value in zip(self.inputs, values, strict=True):
            np.copyto(there, value)

    def outputs_of(self, layout: RunLayout, into: Mapping[str, Span]) -> Outputs:
        """Arrays of what a run left here; the buffers that it was given otherwise. No view outlives this."""
        outputs: Outputs = {}
        for place, array in zip(layout.outputs, self.outputs, strict=True):
            outputs[place.name] = into[place.name] if place.name in into else array.copy()
        return outputs

    def let_go(self) -> None:
        """Give the memory back at once, whoever still refers to this object."""
        self.inputs, self.outputs, self._ready_for = [], [], None
        with contextlib.suppress(BufferInUse):  # an error's traceback has a view: it goes with that
            self._block.free()

    def bind(self, layout: RunLayout, arena: int, instead: Mapping[int, int]) -> None:
        """Write the binding table; `instead` are addresses of operands that lie elsewhere, by their position."""
        table = BINDING.view(self._block.array, layout.table_offset, layout.binding_count)
        for at, place in enumerate((*layout.inputs, *layout.outputs)):
            table[at] = (instead.get(at, arena + place.offset), place.nbytes)
        if instead:
            self._ready_for = None

    def execute(self, layout: RunLayout, arena: int, handle: int) -> Entry:
        """The exec command."""
        table = self.address + layout.table_offset
        return EXEC.codec, _EXEC, (0, handle, layout.binding_count, table, arena + layout.workspace_offset)


class StagingPool:
    """The stagings of one lane. Members may be used without a lock, unless they say otherwise."""

    def __init__(self, owner: ModelOwner, queue: Queue) -> None:
        self._owner = owner
        self._queue = queue
        self._all = owner.stagings
        self._idle: list[Staging] = []
        self._taken: deque[Staging] = deque()
        """In use, the longest first: by a run in flight, or with outputs that nobody has taken yet."""
        self._all.add(self)

    def take(self, size: int, may_wait: bool) -> Staging:
        """Host memory for one more run, when there is some: what the oldest run left is then made an array.

        The oldest of this lane, or where it has none, of all lanes.
        Raises HostMemoryLimit where no run has any that could be waited for; QueueFull where it may not wait.
        """
        most = max(2, min(MOST_STAGINGS, STAGING_BUDGET_BYTES // max(size, 1)))
        while True:
            with self._all.lock:
                staging = self._at_once(size, most)
            if staging is not None:
                return staging
            if not may_wait:
                raise QueueFull("all staging is in use", device=self._owner.address)
            holder = self._holder()
            if holder is not None:
                holder.reclaim_oldest()

    def _at_once(self, size: int, most: int) -> Staging | None:
        staging = self._idle_one(size)
        if staging is None and len(self._taken) < most:
            staging = self._new(size)
        if staging is not None:
            staging.turn = next(self._all.turns)
            self._taken.append(staging)
        return staging

    def _idle_one(self, size: int) -> Staging | None:
        while self._idle:
            staging = self._idle.pop()
            if staging.size >= size:
                return staging
            staging.let_go()  # it was for a smaller program
        return None

    def _new(self, size: int) -> Staging | None:
        """One more, in place of idle ones of any lane if need be; None where a run has to end first."""
        while True:
            try:
                return Staging(self._owner, size)
            except HostMemoryLimit:
                if self._all.let_go_of_one():
                    continue
                if not self._all.in_use():
                    raise
                return None

    def let_go_of_one(self) -> bool:
        """Give the memory of an idle staging back; False where none is idle. Called with the lock of all held."""
        if not self._idle:
            return False
        self._idle.pop().let_go()
        return True

    def give(self, staging: Staging, run: RunEvent) -> None:
        """The run needs its staging no more. Ignored when it gave it back before."""
        if staging.run is run:
            staging.run = None
            self._idle.append(staging)  # first, so that whoever looks meanwhile finds it in one of both
            self._taken.remove(staging)

    def in_use(self) -> bool:
        """Whether there is any staging, taken or idle."""
        return bool(self._taken) or bool(self._idle)

    def oldest_turn(self) -> int | None:
        """When the run took its staging that has had it for longest, by the turns of all."""
        staging = self._oldest()
        return None if staging is None else staging.turn

    def oldest_run(self) -> RunEvent | None:
        """The run that has had its staging for longest, in this lane or where it has none, in all."""
        holder = self._holder()
        return None if holder is None else holder.own_oldest_run()

    def own_oldest_run(self) -> RunEvent | None:
        """The run of this lane that has had its staging for longest."""
        staging = self._oldest()
        return None if staging is None else staging.run

    def _holder(self) -> LaneStagings | None:
        """The lane with the run to wait for."""
        return self if self._oldest() is not None else self._all.holder()

    def _oldest(self) -> Staging | None:
        return next((each for each in tuple(self._taken) if each.run is not None), None)

    def reclaim_oldest(self) -> None:
        """Wait for the oldest run, and make arrays of what it left. Raises Timeout, DeviceLost."""
        staging = self._oldest()
        run = None if staging is None else staging.run
        if staging is None or run is None:  # given back meanwhile
            return
        run._await_end()
        run._take_value()
        # The run of a closed model has ended before the device is done with its staging.
        self._queue._completions.wait_until(lambda: staging.run is not run, None, "model run")


def _view(memory: NDArray[Any], place: Place) -> NDArray[Any]:
    return memory[place.offset : place.offset + place.nbytes].view(place.dtype).reshape(place.shape)


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

    def start(
        self,
        program: ModelProgram,
        inputs: Sequence[Input],
        into: Mapping[str, Span],
        *,
        may_wait: bool,
        answered: bool,
    ) -> RunEvent | None:
        """Submit one run; None if the program, or memory for it, has to be there first. Arrays may be reused on return.

        `answered`: whoever starts it is told of a failure in any case. Raises QueueFull where it `may_wait` not.
        """
        arena, layout = self._arena, program.layout
        if arena is None or arena.nbytes < layout.device_bytes:
            return None
        staging = self.stagings.take(layout.staging_bytes, may_wait)
        convert = partial(_outputs_of, self.stagings, staging, layout, into)
        run = RunEvent(self.queue._completions, self, program, staging, convert, answered)
        staging.run = run
        try:
            handle = self._owner.programs.begin(program, run)
            if handle is None:
                run.discard()
                return None
            self.runs.add(run)
            staging.prepare(layout, arena.address, handle)
            if into or any(isinstance(value, Span) for value in inputs):
                entries, buffers = _with_buffers(layout, staging, handle, arena.address, inputs, into)
            else:
                staging.fill(inputs)
                entries, buffers = staging.entries, ()
            run.hold((arena, *buffers))
            steps = [RunStep(run, "exec" if opcode == _EXEC else "copy") for _, opcode, _ in entries[:-1]]
            self.queue._submit_group([*steps, run], run, entries, may_wait=may_wait)
        except BaseException:
            run.discard()
            raise
        return run

    def ended(self, run: RunEvent, program: ModelProgram, staging: Staging, failed: bool) -> None:
        """No command of it is in flight any more."""
        self.runs.discard(run)
        program.runs.discard(run)
        if failed:
            self.stagings.give(staging, run)


def _with_buffers(
    layout: RunLayout,
    staging: Staging,
    handle: int,
    arena: int,
    inputs: Sequence[Input],
    into: Mapping[str, Span],
) -> tuple[list[Entry], tuple[Buffer, ...]]:
    """The commands of a run some of whose operands are the application's own buffers, and those."""
    instead: dict[int, int] = {}
    buffers: list[Buffer] = []
    before: list[Entry] = []
    after: list[Entry] = []
    for at, (place, value) in enumerate(zip(layout.inputs, inputs, strict=True)):
        there = arena + place.offset
        if not isinstance(value, Span):
            np.copyto(staging.inputs[at], value)
            before.append(_copy(there, staging.address + place.offset, place, _DEVICE, _HOST))
            continue
        buffers.append(value._root)
        if _bindable(value):
            instead[at] = value.address
        else:
            before.append(_copy(there, value.address, place, _DEVICE, _space(value)))
    for at, place in enumerate(layout.outputs, len(layout.inputs)):
        here, target = arena + place.offset, into.get(place.name)
        if target is None:
            after.append(_copy(staging.address + place.offset, here, place, _HOST, _DEVICE))
            continue
        if target.shape != place.shape or target.dtype != place.dtype:
            raise ValueError(
                f"out[{place.name!r}] is {target.dtype} {target.shape}; the output is {place.dtype} {place.shape}"
            )
        buffers.append(target._root)
        if _bindable(target):
            instead[at] = target.address
        else:
            after.append(_copy(target.address, here, place, _space(target), _DEVICE))
    staging.bind(layout, arena, instead)
    return [*before, staging.execute(layout, arena, handle), *after], tuple(buffers)


def _outputs_of(pool: StagingPool, staging: Staging, layout: RunLayout, into: Mapping[str, Span]) -> Outputs:
    """Arrays of what a run left in staging, which then may be used again; the buffers that it was given otherwise."""
    outputs = staging.outputs_of(layout, into)
    if staging.run is not None:
        pool.give(staging, staging.run)
    return outputs


def _bindable(span: Span) -> bool:
    """Whether a program can work on it where it is."""
    return _space(span) == _DEVICE and span.address % DEVICE_ALIGNMENT == 0


def _space(span: Span) -> int:
    return _HOST if isinstance(span._root, HostBuffer) else _DEVICE


def _copy(to: int, source: int, place: Place, to_space: int, from_space: int) -> Entry:
    return COPY.codec, _COPY, (to, source, place.nbytes, to_space, from_space)
