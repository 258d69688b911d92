"""`DeviceModel`: a network of which the device runs all. Its runs are started here."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from driver_shim.errors import Closed, QueueFull
from sdk.compiler import CompiledProgram, model_signature
from sdk.compiler.compiled import StateInfo
from sdk.compiler.graph import Graph
from sdk.compiler.placement import NodePlacement, place
from sdk.memory.buffers import Span
from sdk.model.inputs import Call, ShapeKey, requested_shapes
from sdk.model.keyed_programs import KeyedPrograms
from sdk.model.lane_set import LaneSet
from sdk.model.model import Model
from sdk.model.parts import DeviceParts, abandon, unload
from sdk.model.port import ModelOwner
from sdk.model.program_run import ProgramRun
from sdk.model.programs import CommandRun
from sdk.model.progress import current, expected
from sdk.model.runs import Outputs, RunEvent
from sdk.model.stateful import Stateful, StateOptions
from sdk.state.state import State

if TYPE_CHECKING:
    import asyncio

LOOP_BYTES = 256 << 10
"""Larger arrays are copied in threads, where an event loop runs: to copy as much takes some 50 µs."""


class DeviceModel(Model):
    """A model on the device. Operators are checked at load, shapes are compiled when first used.

    Buffers are used where they are. A model takes as many lanes (queue, operands, workspace) as the device has
    engines, so that runs in flight use them all.

    Locks are taken in the order model, states, lane, device; a reset holds the device's and therefore never takes a
    model's.
    """

    _parts: DeviceParts

    def __init__(
        self,
        owner: ModelOwner,
        graph: Graph,
        ahead: CompiledProgram | None = None,
        options: StateOptions | None = None,
    ) -> None:
        """Use `Device.load`. `ahead` is a program of it that was compiled before there was a device.

        Raises UnsupportedModel.
        """
        parts = DeviceParts(owner)
        super().__init__(owner, graph, model_signature(graph), parts)
        self._programs = KeyedPrograms(owner, parts, graph, self._inputs, ahead)
        self._lanes = LaneSet(owner, parts)
        self._options = options or StateOptions()
        self._stateful = stateful = Stateful(owner, parts, self._lanes, graph, self._options)
        self._inputs.left_out = lambda: stateful.left_out  # not the model, which would then go with a cycle alone
        self._lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()
        """In which the tasks of each loop wait for room."""
        weakref.finalize(self, abandon, owner, parts).atexit = False

    @property
    def report(self) -> tuple[NodePlacement, ...]:
        """Where each node runs: on the device. After the nodes, its states, as "state": what each is, how found."""
        return (*place(self._graph).report(), *self._stateful.report)

    def command_runs(self) -> tuple[CommandRun, ...]:
        """The commands of the newest run that succeeded, with the kernels that carried them out; empty before one.

        Raises Closed, Timeout, DeviceLost.
        """
        self._parts.check_open()
        program = self._owner.programs.newest(list(self._parts.loaded.values()))
        if program is None:
            return ()
        report = self._owner.program_report(program)
        pairs = zip(program.compiled.nodes, report, strict=False)
        return tuple(CommandRun(node, kernel, wall_ns / 1e9) for node, (kernel, wall_ns) in pairs)

    def _compile_for(self, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Compile and load for input shapes that are known beforehand."""
        if self._options.any:
            _ = self._stateful.states  # what cannot be is said now
        if self._stateful.takes(shapes):
            self._stateful.compile_for(shapes)
            return
        for key in expected(requested_shapes(self.inputs, shapes)):
            if not self._make_ready(key):
                return
            current().loaded()

    def _make_ready(self, shapes: ShapeKey) -> bool:
        """Compile for these shapes, and have memory for a run; False where only runs tell which programs there are."""
        program = self._programs.make_for_shapes(shapes)
        if program is None:
            return False
        self._lanes.prepare(program)
        return True

    def _keep_quiet_about_shapes(self) -> None:
        """Do not warn of a compilation during a run: its shapes are nobody's to name beforehand."""
        self._programs.tells_of_shapes = False

    def _latest(self) -> CompiledProgram | None:
        steps = self._stateful.last_steps
        return (steps.last if steps is not None else None) or self._programs.latest()

    @property
    def states(self) -> tuple[StateInfo, ...]:
        """What it remembers from run to run in a state. Raises UnsupportedModel for what cannot be one."""
        return self._stateful.infos

    @property
    def state_memory_free_bytes(self) -> int:
        """Device memory that its states may still take. Raises TypeError for a model without states."""
        memory = self._stateful.states.memory
        with memory.lock:
            return memory.free_bytes

    def state(self, *, max_tokens: int | None = None, restore: bytes | None = None) -> State:
        """A new state; see `Model.state`."""
        return self._stateful.states.new(max_tokens, restore)

    def _step_program(self, rows: int, tokens: int) -> CompiledProgram:
        return self._stateful.program_for(rows, tokens)

    def _submit_step(
        self, chosen: Sequence[State], arrays: tuple[Any, ...], named: Mapping[str, Any], out: object
    ) -> RunEvent:
        _check_no_out(out)
        return self._stateful.start(chosen, arrays, named, answered=False)

    async def _run_step_async(
        self, chosen: Sequence[State], arrays: tuple[Any, ...], named: Mapping[str, Any], out: object
    ) -> Outputs:
        import asyncio  # whoever awaits has it; nobody else should pay for it

        _check_no_out(out)
        run = await asyncio.to_thread(self._stateful.start, chosen, arrays, named, answered=True)
        return await _awaited(run)

    def _end(self, error: Closed) -> None:
        parts = self._parts
        with parts.lock:
            parts.end(error)
            states = parts.states
            loaded, lanes = parts.take()
        for lane in lanes:
            lane.close()
        unload(self._owner, loaded, lanes)
        if states is not None:
            with states.lock:  # which nobody holds for long, now that no run of the lanes is waited for
                states.release()

    # --- starting runs -----------------------------------------------------------------------------------------

    def _submit(self, call: Call, into: Mapping[str, Span]) -> RunEvent:
        return self._start(call, into, answered=False)

    async def _run_async(self, call: Call, into: Mapping[str, Span]) -> Outputs:
        return await _awaited(await self._start_from_loop(call, into))

    def _start(self, call: Call, into: Mapping[str, Span], *, answered: bool) -> RunEvent:
        """Start a run, when its program is there and a lane has room."""
        while True:
            self._parts.check_open()
            program, inputs = self._programs.find(call)
            if program is None:
                self._programs.make(call)
                continue
            lane = self._lanes.take(program)
            run = lane.start(ProgramRun(program, inputs, into), may_wait=True, answered=answered)
            if run is not None:
                return run
            self._lanes.make_room(lane, program)

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
        program, inputs = self._programs.find(call)
        if program is None or program.layout.input_bytes > LOOP_BYTES:
            return None
        lane = self._lanes.at_once()
        if lane is None:
            return None
        try:
            return lane.start(ProgramRun(program, inputs, into), may_wait=False, answered=True)
        except QueueFull:
            run = lane.stagings.oldest_run()
            return None if run is None or run.done() else (run,)


async def _awaited(run: RunEvent) -> Outputs:
    """What a run gives; where it is large, its arrays are made in a thread."""
    await run._future()
    if run.output_bytes > LOOP_BYTES:
        import asyncio  # whoever awaits has it; nobody else should pay for it

        return await asyncio.to_thread(run.result, 0)
    return run.result(0)


def _check_no_out(out: object) -> None:
    if out:
        raise TypeError("out= does not go with states: a run with states gives arrays")
