"""A run that appends to states: one program or several, chunk after chunk, over caches that stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.commands import BINDING, Space
from driver_shim.protocol.program import align_up
from sdk.memory.buffers import Buffer, DeviceBuffer
from sdk.model.layout import Place
from sdk.model.program_run import copy, execute, view
from sdk.model.programs import ModelProgram
from sdk.model.runs import Command, Outputs
from sdk.model.staging import Staging
from sdk.model.step_axes import Axes
from sdk.model.step_widths import Chunk
from sdk.state.memory import StateMemory
from sdk.state.model_states import ReplacedRow

_HOST, _DEVICE = int(Space.HOST), int(Space.DEVICE)


class StepPart(NamedTuple):
    """One execution of a step."""

    program: ModelProgram
    chunk: Chunk
    inputs: Mapping[str, NDArray[Any]]
    """As wide as the program takes them."""


class StepRun:
    """Work: the parts of a step in order."""

    def __init__(
        self,
        memory: StateMemory,
        parts: Sequence[StepPart],
        axes: Mapping[str, Axes],
        hidden: frozenset[str],
        idle_rows: int,
        replaced: Sequence[Sequence[ReplacedRow]],
        then: Callable[[bool], None],
    ) -> None:
        """`axes`: of each output; one without tokens is what the last part alone gives.

        `hidden` are outputs that nobody is given, the last `idle_rows` rows are nobody's; `replaced` are the rows of
        each replaced state; `then` is told whether the step ended well.
        """
        self._memory = memory
        self._parts = parts
        self._axes = axes
        self._hidden = hidden
        self._idle_rows = idle_rows
        self._replaced = replaced
        self.then = then
        self._staged: NDArray[Any] = np.empty(0, np.uint8)
        """The staging's memory, until the outputs were taken."""
        self.programs = tuple(dict.fromkeys(part.program for part in parts))
        self._plan()

    def _plan(self) -> None:
        """Where in staging everything goes."""
        end = 0
        self._table_bases: list[int] = []
        """Of each program, so that its binding table lies at its place behind this."""
        for program in self.programs:
            self._table_bases.append(end - program.layout.table_offset)
            end = align_up(end + program.layout.table_bytes)
        self._input_bases: list[int] = []
        self._outputs: list[list[Place]] = []
        """What of each part is copied out, and where to."""
        self.output_bytes = 0
        for index, part in enumerate(self._parts):
            self._input_bases.append(end)
            end = align_up(end + part.program.layout.input_bytes)
            places = []
            for place in self._kept(index):
                places.append(place._replace(offset=end))
                end = align_up(end + place.nbytes)
                self.output_bytes += place.nbytes
            self._outputs.append(places)
        self.staging_bytes = end

    def _kept(self, index: int) -> list[Place]:
        """The outputs of a part that are copied out."""
        is_last = index == len(self._parts) - 1
        places = [place for place in self._parts[index].program.layout.outputs if place.name not in self._hidden]
        return [place for place in places if is_last or self._axes[place.name].token is not None]

    def commands(
        self, staging: Staging, arena: DeviceBuffer, handles: Sequence[int]
    ) -> tuple[Sequence[Command], tuple[Buffer, ...]]:
        """See `lanes.Work`."""
        memory = staging.memory
        staging.prepared = None
        for program, base in zip(self.programs, self._table_bases, strict=True):
            self._bind(memory, program, base, arena.address)
        commands: list[Command] = []
        for index, part in enumerate(self._parts):
            which = self.programs.index(part.program)
            self._stage(index, memory)
            commands += self._part(index, staging.address, arena.address, self._table_bases[which], handles[which])
        self._staged = memory
        return commands, (self._memory.tables, *(cache.buffer for cache in self._memory.caches), *self._own_buffers())

    def _own_buffers(self) -> list[DeviceBuffer]:
        rows = [row for rows in self._replaced for row in rows]
        return [row.current for row in rows] + [row.following for row in rows]

    def _bind(self, memory: NDArray[Any], program: ModelProgram, base: int, arena: int) -> None:
        layout = program.layout
        operands = [(arena + place.offset, place.nbytes) for place in (*layout.inputs, *layout.outputs)]
        tables = self._memory.tables
        if layout.binding_count > len(operands):
            operands.insert(len(layout.inputs), (tables.address, tables.nbytes))
            operands += [(cache.buffer.address, cache.buffer.nbytes) for cache in self._memory.caches]
        table = BINDING.view(memory, base + layout.table_offset, layout.binding_count)
        for at, operand in enumerate(operands):
            table[at] = operand

    def _stage(self, index: int, memory: NDArray[Any]) -> None:
        """Put the inputs of a part where its first command takes them from."""
        part, base = self._parts[index], self._input_bases[index]
        for place in part.program.layout.inputs:
            if place.name in part.inputs:
                np.copyto(view(memory, place._replace(offset=base + place.offset)), part.inputs[place.name])

    def _part(self, index: int, staging: int, device: int, table_base: int, handle: int) -> list[Command]:
        """The commands of a part: inputs and states in, the program, states and outputs out."""
        program = self._parts[index].program
        layout = program.layout
        commands: list[Command] = []
        if layout.input_bytes:
            source = staging + self._input_bases[index]
            commands.append(Command(copy(device, source, layout.input_bytes, _DEVICE, _HOST), "copy"))
        commands += self._move(program, device, index, before=True)
        work = execute(layout, staging + table_base, device, handle)
        commands.append(Command(work, "exec", program.compiled.nodes))
        commands += self._move(program, device, index, before=False)
        offsets = {place.name: place.offset for place in layout.outputs}
        for place in self._outputs[index]:
            entry = copy(staging + place.offset, device + offsets[place.name], place.nbytes, _HOST, _DEVICE)
            commands.append(Command(entry, "copy"))
        return commands

    def _move(self, program: ModelProgram, device: int, index: int, *, before: bool) -> list[Command]:
        """Copies of replaced states' rows from and to where the program has them."""
        places = {place.name: place for place in (*program.layout.inputs, *program.layout.outputs)}
        commands = []
        for rows in self._replaced:
            for number, row in enumerate(rows):
                source = row.current if index == 0 else row.following
                place = places[row.past if before else row.present]
                for at, (offset, size) in enumerate(_row_pieces(place, number, row.axis)):
                    own = (source if before else row.following).address + at * size
                    there = device + place.offset + offset
                    to, origin = (there, own) if before else (own, there)
                    commands.append(Command(copy(to, origin, size, _DEVICE, _DEVICE), "copy of a state"))
        return commands

    def outputs(self, staging: Staging) -> Outputs:
        """See `lanes.Work`."""
        memory, self._staged = self._staged, np.empty(0, np.uint8)
        gathered: dict[str, list[NDArray[Any]]] = {}
        for part, places in zip(self._parts, self._outputs, strict=True):
            for place in places:
                array = view(memory, place)
                axes = self._axes[place.name]
                if self._idle_rows and axes.row is not None:
                    array = _first(array, axes.row, array.shape[axes.row] - self._idle_rows)
                if axes.token is not None:
                    array = _first(array, axes.token, part.chunk.tokens)
                gathered.setdefault(place.name, []).append(array)
        return {name: _joined(arrays, self._axes[name].token) for name, arrays in gathered.items()}


def _joined(arrays: list[NDArray[Any]], axis: int | None) -> NDArray[Any]:
    return arrays[-1].copy() if axis is None or len(arrays) == 1 else np.concatenate(arrays, axis)


def _first(array: NDArray[Any], axis: int, count: int) -> NDArray[Any]:
    return array[(slice(None),) * axis + (slice(count),)]


def _row_pieces(place: Place, row: int, axis: int | None) -> list[tuple[int, int]]:
    """(offset, bytes) of the pieces of a tensor that are one row's; its rows lie along an axis, or it is one."""
    if axis is None:
        return [(0, place.nbytes)]
    outer, rows = int(np.prod(place.shape[:axis], dtype=np.int64)), place.shape[axis]
    size = place.nbytes // (outer * rows)
    return [((at * rows + row) * size, size) for at in range(outer)]
