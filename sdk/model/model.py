"""`Model`: a network on a device. Operators are checked at load, shapes are compiled when first used."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import Closed, NpuError, OutOfDeviceMemory, QueueFull
from sdk.compiler import CompiledProgram, Plan, TensorInfo, compile_model, model_signature, read_model
from sdk.compiler.compile import NeedsValues
from sdk.compiler.placement import NodePlacement, place
from sdk.compiler.program import Program
from sdk.here_only import HereOnly
from sdk.memory.buffers import Span
from sdk.model.inputs import Call, InputChecks, Planned, check_out, requested_shapes
from sdk.model.lanes import Lane
from sdk.model.port import ModelOwner
from sdk.model.program_run import Input, ProgramRun
from sdk.model.programs import CommandRun, ModelProgram
from sdk.model.runs import Outputs, RunEvent
from sdk.model.weights import Weights
from sdk.queue.events import Event

if TYPE_CHECKING:
    import asyncio

    from sdk.compiler.estimate import Estimate

Shape = tuple[int, ...]
Key = tuple[Any, ...]
"""What a program is found by: the shapes of its inputs, and the values that it was compiled for."""
DEFAULT_PROFILE = "generic"
MOST_NAMED = 4
"""Inputs that a message names."""
_log = logging.getLogger("npu")
LOOP_BYTES = 256 << 10
"""Larger arrays are copied in threads, where an event loop runs: to copy as much takes some 50 µs."""


class _Parts:
    """What a model has on the device. Outlives it in its finaliser."""

    def __init__(self, owner: ModelOwner) -> None:
        self.lock = threading.Lock()
        self.reset_count = owner.reset_count
        self.weights = Weights(owner)
        self.closed: NpuError | None = None
        """Why the model cannot be used any more."""
        self.loaded: dict[Key, ModelProgram] = {}
        self.lanes: list[Lane] = []
        self.growing = True
        """Whether more lanes may be tried: there is one for each engine, unless memory or queues forbid."""

    def take(self) -> tuple[list[ModelProgram], list[Lane]]:
        """All of it, which the caller disposes of. Emptied, not replaced: the finaliser knows this object."""
        loaded, lanes = list(self.loaded.values()), self.lanes
        self.loaded, self.lanes = {}, []
        self.weights.clear()
        return loaded, lanes

    def invalidate(self, error: NpuError) -> None:
        """The device was reset or closed, and holds nothing of the model any more."""
        if self.closed is None:
            self.closed = error
        self.take()

    def abandon_in_child(self, error: NpuError) -> None:
        """In a forked child; the lock may be held by a thread that does not exist here."""
        self.lock = threading.Lock()
        self.invalidate(error)


class Model(HereOnly):
    """A loaded network. Call it with arrays, by name or in the order of `inputs`. Thread-safe.

    An input may be a buffer of the device's or of the host's memory, which is used where it is; so is one that `out`
    names for an output. Runs may end in another order than they were started in, since a model takes as many lanes
    (queue, operands, workspace) as the device has engines.

    Locks are taken in the order model, lane, device; a reset holds the device's and therefore never takes a model's.
    """

    def __init__(self, owner: ModelOwner, source: Any) -> None:
        """Use `Device.load`."""
        self._owner = owner
        self._ahead = source._compiled if isinstance(source, Program) else None
        """A program that was compiled before there was a device."""
        self._graph = read_model(source._graph if isinstance(source, Program) else source)
        self._signature = model_signature(self._graph)
        self._by_value: frozenset[str] = frozenset()
        """Inputs on whose values shapes depend: there is a program for each of those."""
        self._last: CompiledProgram | None = None
        self._tells_of_shapes = True
        """Whether a compilation during a run is worth a warning."""
        self._inputs = InputChecks(self._signature)
        self._parts = _Parts(owner)
        self._lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()
        """In which the tasks of each loop wait for room."""
        weakref.finalize(self, _abandon, owner, self._parts).atexit = False

    def _compile_for(self, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Compile and load for input shapes that are known beforehand."""
        for key in requested_shapes(self.inputs, shapes):
            try:
                program = self._program(Call([Planned(shape) for shape in key]), expected=True)
            except NeedsValues as error:
                self._note_by_value(error)
                return  # which programs there will be only the runs tell
            self._lane(program).reserve(program)
            self._owner.make_resident(program)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape (symbolic extents by name) and dtype of every input."""
        return self._signature.inputs

    @property
    def optional_inputs(self) -> tuple[TensorInfo, ...]:
        """Inputs of which the model holds a default; a call may name them."""
        return self._signature.optional

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape and dtype of every output, in graph order."""
        return self._signature.outputs

    @property
    def report(self) -> tuple[NodePlacement, ...]:
        """Where each node runs, and why not on the device."""
        return place(self._graph).report()

    @property
    def plan(self) -> Plan | None:
        """What the program takes that was compiled last: device memory, and what lives in it when.

        Where none was, that for the shapes that the model declares, which this compiles and does not load; None where
        it leaves dimensions open.
        """
        compiled = self._latest()
        return None if compiled is None else compiled.plan

    def estimate(self, profile: str | None = None) -> Estimate | None:
        """What a run takes on a chip, this device's unless another is named, by the program that `plan` is of.

        Raises ValueError for a profile that there is not.
        """
        from sdk.compiler.estimate import estimate  # few programs ask

        compiled = self._latest()
        return None if compiled is None else estimate(compiled, profile or self._owner.profile or DEFAULT_PROFILE)

    def __call__(
        self, *arrays: Any, timeout: float | None = None, out: Mapping[str, Span] | None = None, **named: Any
    ) -> Outputs:
        """Run and wait: `model({"data": x})`, `model(x)` or `model(data=x)`; returns {output name: array}.

        `out` gives buffers for outputs, {name: buffer}, which are filled and returned in place of arrays.
        Raises TypeError or ValueError for wrong inputs, CommandFailed, Timeout, DeviceLost, Closed.
        """
        return self.submit(*arrays, out=out, **named).result(timeout)

    def submit(self, *arrays: Any, out: Mapping[str, Span] | None = None, **named: Any) -> Event[Outputs]:
        """Start a run. The input arrays may be reused when this returns, buffers when the run has ended."""
        call = self._inputs.in_order(arrays, named, self._owner)
        return self._start(call, self._checked_out(out), answered=False)

    async def run_async(self, *arrays: Any, out: Mapping[str, Span] | None = None, **named: Any) -> Outputs:
        """Run without holding up the event loop: what takes time, to compile or to copy much, is done in a thread.

        The input arrays may be reused when this returns.
        """
        call, into = self._inputs.in_order(arrays, named, self._owner), self._checked_out(out)
        run = await self._start_from_loop(call, into)
        await run._future()
        if run.output_bytes > LOOP_BYTES:
            import asyncio  # whoever awaits has it; nobody else should pay for it

            return await asyncio.to_thread(run.result, 0)
        return run.result(0)

    def command_runs(self) -> tuple[CommandRun, ...]:
        """The commands of the newest run that succeeded, with the kernels that carried them out; empty before one.

        Raises Closed, Timeout, DeviceLost.
        """
        self._check_open()
        program = self._owner.programs.newest(list(self._parts.loaded.values()))
        if program is None:
            return ()
        report = self._owner.program_report(program)
        pairs = zip(program.compiled.nodes, report, strict=False)
        return tuple(CommandRun(node, kernel, wall_ns / 1e9) for node, (kernel, wall_ns) in pairs)

    # --- starting runs -----------------------------------------------------------------------------------------

    def _start(self, call: Call, into: Mapping[str, Span], *, answered: bool) -> RunEvent:
        """Start a run, when its program is there and a lane has room."""
        while True:
            self._check_open()
            key, inputs = self._keyed(call)
            program = self._parts.loaded.get(key)
            if program is None:
                self._program(call)
                continue
            lane = self._lane(program)
            run = lane.start(ProgramRun(program, inputs, into), may_wait=True, answered=answered)
            if run is not None:
                return run
            self._owner.make_resident(program)
            try:
                lane.reserve(program)
            except OutOfDeviceMemory:
                if not self._retire(lane):
                    raise

    async def _start_from_loop(self, call: Call, into: Mapping[str, Span]) -> RunEvent:
        """Start a run; what has to wait for room stands in line, what has to be made or copied is in a thread."""
        import asyncio  # whoever awaits has it; nobody else should pay for it

        line = self._lines.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        if not line.locked():
            run = self._start_at_once(call, into)
            if isinstance(run, RunEvent):
                return run
        async with line:
            while True:
                run = self._start_at_once(call, into)
                if isinstance(run, RunEvent):
                    return run
                if run is None:
                    return await asyncio.to_thread(self._start, call, into, answered=True)
                await run[0]._future()

    def _start_at_once(self, call: Call, into: Mapping[str, Span]) -> RunEvent | tuple[RunEvent] | None:
        """Start a run if that takes no time; else a run to wait for, or None where something is to be made first."""
        parts = self._parts
        key, inputs = self._keyed(call)
        program = parts.loaded.get(key)
        if program is None or program.layout.input_bytes > LOOP_BYTES:
            return None
        lane = min(parts.lanes, key=lambda lane: len(lane.runs), default=None)
        if lane is None or (lane.runs and self._may_grow()):
            return None
        try:
            return lane.start(ProgramRun(program, inputs, into), may_wait=False, answered=True)
        except QueueFull:
            run = lane.stagings.oldest_run()
            return None if run is None or run.done() else (run,)

    def _may_grow(self) -> bool:
        return self._parts.growing and len(self._parts.lanes) < self._owner.engines

    def _lane(self, program: ModelProgram) -> Lane:
        """The lane with the fewest runs; a new one while all are in use and there are engines without one."""
        parts = self._parts
        lane = min(parts.lanes, key=lambda lane: len(lane.runs), default=None)
        if lane is not None and not (lane.runs and self._may_grow()):
            return lane
        with parts.lock:
            self._check_open()
            idle = next((lane for lane in parts.lanes if not lane.runs), None)
            if idle is not None or (parts.lanes and not self._may_grow()):
                return idle or min(parts.lanes, key=lambda lane: len(lane.runs))
            return self._add_lane(program)

    def _add_lane(self, program: ModelProgram) -> Lane:
        """One more lane; the first one's where memory does not suffice for two. Called with the lock held."""
        parts = self._parts
        new = Lane(self._owner, self._owner.take_queue())
        try:
            new.reserve(program)
        except NpuError as error:
            self._owner.give_queue(new.queue)
            if not parts.lanes or not isinstance(error, OutOfDeviceMemory):
                raise
            parts.growing = False
            _log.debug("no further lane: %s", error)
            return min(parts.lanes, key=lambda lane: len(lane.runs))
        if parts.closed is not None:  # a reset came meanwhile
            self._owner.give_queue(new.queue)
            self._check_open()
        parts.lanes.append(new)
        return new

    def _retire(self, lane: Lane) -> bool:
        """Do without a lane that has not the memory it needs; False where it is the only one."""
        parts = self._parts
        with parts.lock:
            if lane not in parts.lanes:
                return True
            if len(parts.lanes) == 1:
                return False
            parts.lanes.remove(lane)
            parts.growing = False
        self._owner.when_idle(lane.idle, partial(self._owner.give_queue, lane.queue), parts.reset_count)
        return True

    def _checked_out(self, out: Mapping[str, Span] | None) -> Mapping[str, Span]:
        if not out:
            return {}
        check_out(out, self.outputs, self._owner)
        return dict(out)

    def close(self) -> None:
        """Take the model off the device; runs in flight end with CommandFailed. Idempotent."""
        with self._parts.lock:
            closed = Closed("the model is closed", device=self._owner.address, remedy="load it again")
            if self._parts.closed is None:
                self._parts.closed = closed
            loaded, lanes = self._parts.take()
        for lane in lanes:
            lane.close()
        _unload(self._owner, loaded, lanes)

    def __repr__(self) -> str:
        return f"<Model {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}>"

    # --- programs ----------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._parts.closed is not None:
            raise self._parts.closed.again()

    def _keyed(self, call: Call) -> tuple[Key, list[Input]]:
        """(the key of the program that the call takes, its inputs)"""
        if not self._by_value and not call.optional:
            return tuple([value.shape for value in call.values]), call.values
        named = dict(zip(self._names(call), call.values, strict=True))
        inputs = [value for name, value in named.items() if name not in self._by_value]
        fixed = tuple((name, array.shape, array.tobytes()) for name, array in self._fixed(call).items())
        return (tuple([value.shape for value in inputs]), call.optional, fixed), inputs

    def _names(self, call: Call) -> list[str]:
        return [*(info.name for info in self.inputs), *call.optional]

    def _fixed(self, call: Call) -> dict[str, NDArray[Any]]:
        """The inputs that a program is compiled for by value. Raises TypeError where one is in device memory."""
        if not self._by_value:
            return {}
        named = zip(self._names(call), call.values, strict=True)
        return {name: np.asarray(value) for name, value in named if name in self._by_value}

    def _program(self, call: Call, *, expected: bool = False) -> ModelProgram:
        """The program for these inputs, compiled if there is none yet, its weights on the device."""
        with self._parts.lock:
            while True:
                self._check_open()
                key, _ = self._keyed(call)
                program = self._parts.loaded.get(key)
                if program is not None:
                    return program
                try:
                    program = self._compile(call, expected)
                except NeedsValues as error:
                    if expected or self._by_value.issuperset(error.inputs):
                        raise
                    self._note_by_value(error)
                    continue
                self._check_open()  # a reset may have come meanwhile
                self._parts.loaded[key] = program
                return program

    def _note_by_value(self, error: NeedsValues) -> None:
        level = logging.INFO if self._by_value else logging.WARNING  # one warning for a model is enough
        self._by_value |= frozenset(error.inputs)
        named = ", ".join(map(repr, sorted(self._by_value)))
        _log.log(level, "shapes depend on the values of %s: a program is compiled for each of them", named)

    def _compile(self, call: Call, expected: bool) -> ModelProgram:
        began = time.monotonic()
        parts = self._parts
        fixed = self._fixed(call)
        named = zip(self._names(call), call.values, strict=True)
        shapes = {name: value.shape for name, value in named if name not in fixed}
        compiled = self._compiled_ahead(shapes, fixed)
        if compiled is None:
            compiled = compile_model(self._graph, shapes, fixed, target=self._owner.profile)
        constants = parts.weights.place(compiled.constants)
        program = ModelProgram(compiled, constants, parts.reset_count, tuple(parts.weights.buffers))
        self._last = program.compiled
        if compiled is self._ahead:
            self._ahead = None  # with its constants, which are on the device now
        dynamic = any(not isinstance(extent, int) for info in self.inputs for extent in info.shape)
        if dynamic and not expected and not fixed and self._tells_of_shapes:
            _log.warning(
                "compiled for new input shapes %s in %.2f s; name them in load(shapes=...) to do it there",
                _listed(shapes),
                time.monotonic() - began,
            )
        return program

    def _compiled_ahead(self, shapes: Mapping[str, Shape], fixed: Mapping[str, NDArray[Any]]) -> CompiledProgram | None:
        """The program that was compiled before the model was loaded, or for its plan, where it is that for a call."""
        ahead = self._ahead
        if ahead is None or fixed or {info.name: info.shape for info in ahead.inputs} != dict(shapes):
            return None
        return ahead

    def _latest(self) -> CompiledProgram | None:
        """The program that `plan` speaks of."""
        fixed = all(isinstance(extent, int) for info in self.inputs for extent in info.shape)
        if self._last is None and self._ahead is None and fixed and not self._by_value:
            self._ahead = compile_model(self._graph, target=self._owner.profile)
        return self._last or self._ahead


def _listed(shapes: Mapping[str, Shape]) -> str:
    """Inputs with their shapes, the first of many."""
    text = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:MOST_NAMED])
    return text if len(shapes) <= MOST_NAMED else f"{text} and {len(shapes) - MOST_NAMED} more"


def _abandon(owner: ModelOwner, parts: _Parts) -> None:
    """A model was let go: it is unloaded once its last run has ended."""
    loaded, lanes = parts.take()
    if loaded or lanes:
        owner.when_idle(partial(_all_idle, lanes), partial(_unload, owner, loaded, lanes), parts.reset_count)


def _all_idle(lanes: list[Lane]) -> bool:
    return all(lane.idle() for lane in lanes)


def _unload(owner: ModelOwner, programs: list[ModelProgram], lanes: list[Lane]) -> None:
    for lane in lanes:
        owner.give_queue(lane.queue)
    for program in programs:
        owner.drop_program(program)
