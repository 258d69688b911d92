"""The runs of a model that append to states: what a call gives is cut into chunks that programs are loaded for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from sdk.compiler import CompiledProgram, Signature, compile_model
from sdk.compiler.graph import Graph
from sdk.compiler.states import CONTEXT_LENGTH, MAY_BE_GIVEN, ROWS, StateKind, StatePair, derived_inputs
from sdk.memory.buffers import Span
from sdk.model import progress
from sdk.model.inputs import Call, InputChecks, Shape, requested_shapes
from sdk.model.keyed_programs import on_device
from sdk.model.lane_set import LaneSet
from sdk.model.parts import DeviceParts, Key
from sdk.model.port import ModelOwner
from sdk.model.programs import ModelProgram
from sdk.model.runs import RunEvent
from sdk.model.step_axes import StepAxes
from sdk.model.step_run import StepPart, StepRun
from sdk.model.step_widths import Chunk, StepWidths
from sdk.state.holding import Holding
from sdk.state.model_states import ModelStates
from sdk.state.state import State

_log = logging.getLogger("npu")


class Steps:
    """Runs with states of one model. Thread-safe."""

    def __init__(
        self,
        owner: ModelOwner,
        parts: DeviceParts,
        lanes: LaneSet,
        graph: Graph,
        pairs: Sequence[StatePair],
        idle_rows: bool,
    ) -> None:
        """`idle_rows`: whether a call may have fewer rows than the program that it takes."""
        self._owner = owner
        self._parts = parts
        self._lanes = lanes
        self._graph = graph
        self._pairs = pairs
        roles = derived_inputs(graph, pairs)
        pasts = {pair.past for pair in pairs}
        given = tuple(info for info in graph.signature.inputs if info.name not in pasts and info.name not in roles)
        may_be_given = {name for name, role in roles.items() if role in MAY_BE_GIVEN}
        optional = tuple(info for info in graph.signature.inputs if info.name in may_be_given)
        presents = {pair.present for pair in pairs}
        outputs = tuple(info for info in graph.signature.outputs if info.name not in presents)
        self.signature = Signature(given, outputs, optional)
        self._inputs = InputChecks(self.signature)
        past_infos = [info for info in graph.signature.inputs if info.name in pasts]
        self._axes = StepAxes(self.signature, past_infos, pairs)
        masks = all(pair.kind is not StateKind.REPLACE for pair in pairs)  # what is replaced would keep a mark of it
        self._widths = StepWidths(self._axes.primary.name, idle_rows=idle_rows, masks=masks)
        self.last: CompiledProgram | None = None

    # --- programs ----------------------------------------------------------------------------------------------

    def compile_for(self, states: ModelStates, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Compile and load for shapes that are known beforehand. Raises ValueError, TypeError, UnsupportedModel."""
        for key in progress.expected(requested_shapes(self.signature.inputs, shapes)):
            named = {info.name: shape for info, shape in zip(self.signature.inputs, key, strict=True)}
            rows, width = self._axes.extent(named)
            if not rows or not width:
                raise ValueError(f"shapes: a run with states takes a row and a token at least, not {rows} of {width}")
            program = self._program(states, named)
            self._lanes.prepare(program)
            self._widths.add(rows, width)
            progress.current().loaded()

    def program_for(self, states: ModelStates, rows: int, tokens: int) -> CompiledProgram:
        """The program for a step of this shape, compiled but not loaded where it is not there. Raises ValueError."""
        shapes = {info.name: self._axes.shape_for(info, rows, tokens) for info in self.signature.inputs}
        program = self._parts.loaded.get(_key(shapes))
        return program.compiled if program is not None else self._compiled(states, shapes)

    def _compiled(self, states: ModelStates, shapes: Mapping[str, Shape]) -> CompiledProgram:
        try:
            return compile_model(
                self._graph,
                shapes,
                target=self._owner.profile,
                progress=progress.current().compiling,
                pairs=self._pairs,
                states=states.memory.layout,
            )
        except UnsupportedModel as error:
            if states.context is None and any(pair.grows for pair in self._pairs):
                error.remedy = error.remedy or (
                    f"it was compiled for a context of {states.most_tokens} tokens, as many as fit in state_memory,"
                    f" since nothing says its own: name that in its metadata as {CONTEXT_LENGTH}"
                )
            raise

    def _program(self, states: ModelStates, shapes: Mapping[str, Shape], *, warn: bool = False) -> ModelProgram:
        """The program for inputs of these shapes, compiled if there is none yet, its weights on the device."""
        key = _key(shapes)
        parts = self._parts
        with parts.lock:
            parts.check_open()
            program = parts.loaded.get(key)
            if program is not None:
                return program
            began = time.monotonic()
            program = on_device(self._owner, parts, self._compiled(states, shapes))
            parts.check_open()  # a reset may have come meanwhile
            parts.loaded[key] = program
            self.last = program.compiled
        if warn:
            _log.warning(
                "compiled a step of %s in %.2f s; name its shape in load(shapes=...) to do it there",
                ", ".join(f"{name} {shape}" for name, shape in shapes.items()),
                time.monotonic() - began,
            )
        return program

    # --- runs --------------------------------------------------------------------------------------------------

    def call(self, arrays: tuple[Any, ...], named: Mapping[str, Any]) -> Call:
        """A step's arguments, checked. Raises TypeError, ValueError."""
        call = self._inputs.in_order(arrays, named, self._owner)
        if any(isinstance(value, Span) for value in call.values):
            raise TypeError("a run with states takes arrays; use np.asarray(buffer) of a host buffer")
        return call

    def start(self, states: ModelStates, call: Call, chosen: Sequence[State], *, answered: bool) -> RunEvent:
        """Start a step: row i appends to chosen[i]. All of it or nothing changes.

        Raises ValueError for states that do not go with the rows, StateFull, OutOfDeviceMemory, BufferInUse, Closed.
        """
        values = self._inputs.named(call)
        rows, tokens = self._axes.extent({name: value.shape for name, value in values.items()})
        self._check_rows(chosen, rows, tokens)
        self._holdings(states, chosen, tokens)  # what cannot be is said before anything is compiled for it
        wide = self._widths.rows_for(rows)
        values = {name: self._axes.filled(name, value, wide) for name, value in values.items()}
        chunks = self._widths.chunks(wide, tokens)
        shapes = [self._axes.shapes(values, chunk.width) for chunk in chunks]
        programs = [
            self._program(states, shape, warn=chunk.width > 1 and not self._widths.is_named(wide, chunk.width))
            for shape, chunk in zip(shapes, chunks, strict=True)
        ]
        while True:
            lane = self._lanes.take(max(programs, key=lambda program: program.layout.device_bytes))
            if not all(self._lanes.make_room(lane, program) for program in dict.fromkeys(programs)):
                continue
            with states.memory.lock:
                holdings = self._holdings(states, chosen, tokens)
                states.memory.extend(holdings, tokens, lane.queue)
                work = self._work(states, values, chunks, programs, holdings, wide - rows)
                run = lane.start(work, may_wait=True, answered=answered)
                if run is not None:
                    for holding in holdings:
                        holding.masked_tokens = sum(chunk.width - chunk.tokens for chunk in chunks)
                        holding.run = run
                    return run

    def _work(
        self,
        states: ModelStates,
        values: Mapping[str, NDArray[Any]],
        chunks: Sequence[Chunk],
        programs: Sequence[ModelProgram],
        holdings: Sequence[Holding],
        idle: int,
    ) -> StepRun:
        parts, done = [], 0
        for chunk, program in zip(chunks, programs, strict=True):
            inputs = {name: self._axes.cut(name, value, done, chunk) for name, value in values.items()}
            rows = [(holding.slot, holding.length + done, chunk.tokens) for holding in holdings]
            inputs[ROWS] = np.array(rows + [(0, 0, 0)] * idle, np.int32)
            parts.append(StepPart(program, chunk, inputs))
            done += chunk.tokens
        return StepRun(
            states.memory,
            parts,
            {
                place.name: self._axes.of_output(place.name, place.shape, chunks[0])
                for place in programs[0].layout.outputs
            },
            frozenset(pair.present for pair in self._pairs),
            idle,
            states.replaced_rows(holdings, self._axes.row_axis_of_past),
            then=partial(states.commit, holdings, done),
        )

    def _check_rows(self, chosen: Sequence[State], rows: int, tokens: int) -> None:
        """Raise ValueError unless every row has a state of its own and a token at least."""
        if len(chosen) != rows:
            raise ValueError(
                f"{len(chosen)} states for {rows} rows of input {self._axes.primary.name!r}; one for each row"
            )
        if len(set(map(id, chosen))) < len(chosen):
            raise ValueError("one state is given for two rows; fork it")
        if not tokens:
            raise ValueError(f"input {self._axes.primary.name!r} has no tokens")

    @staticmethod
    def _holdings(states: ModelStates, chosen: Sequence[State], tokens: int) -> list[Holding]:
        """What the states have, each with room for so many tokens more."""
        return [state._room_for(tokens, states.memory) for state in chosen]


def _key(shapes: Mapping[str, Shape]) -> Key:
    """What a step's program is found by."""
    return ("step", *sorted(shapes.items()))
