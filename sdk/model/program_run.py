"""A run of one program on inputs and outputs of its own: arrays, which are staged, and buffers, which are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.commands import BINDING, COPY, EXEC, IoOpcode, Space
from sdk.memory.buffers import DEVICE_ALIGNMENT, Buffer, DeviceBuffer, HostBuffer, Span
from sdk.model.layout import Place, RunLayout
from sdk.model.programs import ModelProgram
from sdk.model.runs import Command, Outputs
from sdk.model.staging import Staging
from sdk.queue.queue import Entry

Input = NDArray[Any] | Span
"""What a run is given: an array, or a buffer of the device's or of the host's memory."""

_COPY, _EXEC = int(IoOpcode.COPY), int(IoOpcode.EXEC)
_HOST, _DEVICE = int(Space.HOST), int(Space.DEVICE)


class _Prepared(NamedTuple):
    """What a staging has ready for one program whose operands lie at one place."""

    key: tuple[RunLayout, int, int]
    """Layout, address of the operands, program's handle."""
    inputs: list[NDArray[Any]]
    outputs: list[NDArray[Any]]
    commands: list[Command]
    """Those of a run whose operands are all staged."""


class ProgramRun:
    """Work: one program, once."""

    then: Callable[[bool], None] | None = None

    def __init__(self, program: ModelProgram, inputs: Sequence[Input], into: Mapping[str, Span]) -> None:
        """`into` are the application's buffers for outputs, by name."""
        self.programs = (program,)
        self._layout = program.layout
        self._inputs = inputs
        self._into = into
        self.staging_bytes = self._layout.staging_bytes
        self.output_bytes = self._layout.output_bytes
        self._outputs: list[NDArray[Any]] = []

    def commands(
        self, staging: Staging, arena: DeviceBuffer, handles: Sequence[int]
    ) -> tuple[Sequence[Command], tuple[Buffer, ...]]:
        """See `lanes.Work`."""
        (handle,) = handles
        ready = self._prepared(staging, arena.address, handle)
        self._outputs = ready.outputs
        if self._into or any(isinstance(value, Span) for value in self._inputs):
            return self._with_buffers(staging, ready, arena.address, handle)
        for there, value in zip(ready.inputs, self._inputs, strict=True):
            np.copyto(there, value)
        return ready.commands, ()

    def outputs(self, staging: Staging) -> Outputs:
        """See `lanes.Work`."""
        outputs: Outputs = {}
        for place, array in zip(self._layout.outputs, self._outputs, strict=True):
            outputs[place.name] = self._into[place.name] if place.name in self._into else array.copy()
        self._outputs = []
        return outputs

    def _prepared(self, staging: Staging, arena: int, handle: int) -> _Prepared:
        """Arrays and commands, made unless the staging has them from the last run."""
        layout, program = self._layout, self.programs[0]
        key = (layout, arena, handle)
        ready = staging.prepared
        if isinstance(ready, _Prepared) and ready.key == key:
            return ready
        memory, here = staging.memory, staging.address
        bind(memory, layout, 0, arena, {})
        commands = [Command(execute(layout, here, arena, handle), "exec", program.compiled.nodes)]
        if layout.input_bytes:
            entry = copy(arena, here, layout.input_bytes, _DEVICE, _HOST)
            commands.insert(0, Command(entry, "copy"))
        if layout.output_bytes:
            at = layout.output_offset
            commands.append(Command(copy(here + at, arena + at, layout.output_bytes, _HOST, _DEVICE), "copy"))
        inputs = [view(memory, place) for place in layout.inputs]
        ready = _Prepared(key, inputs, [view(memory, place) for place in layout.outputs], commands)
        staging.prepared = ready
        return ready

    def _with_buffers(
        self, staging: Staging, ready: _Prepared, arena: int, handle: int
    ) -> tuple[list[Command], tuple[Buffer, ...]]:
        """The commands of a run some of whose operands are the application's own buffers, and those."""
        layout, nodes = self._layout, self.programs[0].compiled.nodes
        instead: dict[int, int] = {}
        buffers: list[Buffer] = []
        before: list[Entry] = []
        after: list[Entry] = []
        for at, (place, value) in enumerate(zip(layout.inputs, self._inputs, strict=True)):
            there = arena + place.offset
            if not isinstance(value, Span):
                np.copyto(ready.inputs[at], value)
                before.append(copy(there, staging.address + place.offset, place.nbytes, _DEVICE, _HOST))
                continue
            buffers.append(value._root)
            if _bindable(value):
                instead[at] = value.address
            else:
                before.append(copy(there, value.address, place.nbytes, _DEVICE, _space(value)))
        for at, place in enumerate(layout.outputs, len(layout.inputs)):
            here, target = arena + place.offset, self._into.get(place.name)
            if target is None:
                after.append(copy(staging.address + place.offset, here, place.nbytes, _HOST, _DEVICE))
                continue
            _check_target(target, place)
            buffers.append(target._root)
            if _bindable(target):
                instead[at] = target.address
            else:
                after.append(copy(target.address, here, place.nbytes, _space(target), _DEVICE))
        if instead:
            bind(staging.memory, layout, 0, arena, instead)
            staging.prepared = None
        work = Command(execute(layout, staging.address, arena, handle), "exec", nodes)
        moves = [[Command(entry, "copy") for entry in entries] for entries in (before, after)]
        return [*moves[0], work, *moves[1]], tuple(buffers)


def bind(memory: NDArray[Any], layout: RunLayout, base: int, arena: int, instead: Mapping[int, int]) -> None:
    """Write the binding table, which lies at its place behind `base`.

    `instead` are addresses of operands that lie elsewhere than in the arena, by their position.
    """
    table = BINDING.view(memory, base + layout.table_offset, layout.binding_count)
    for at, place in enumerate((*layout.inputs, *layout.outputs)):
        table[at] = (instead.get(at, arena + place.offset), place.nbytes)


def view(memory: NDArray[Any], place: Place) -> NDArray[Any]:
    """An operand's array in staging."""
    return memory[place.offset : place.offset + place.nbytes].view(place.dtype).reshape(place.shape)


def execute(layout: RunLayout, staging: int, arena: int, handle: int) -> Entry:
    """The exec command of a program whose binding table and operands lie there."""
    table = staging + layout.table_offset
    return EXEC.codec, _EXEC, (0, handle, layout.binding_count, table, arena + layout.workspace_offset)


def copy(to: int, source: int, size: int, to_space: int, from_space: int) -> Entry:
    """A copy of so many bytes."""
    return COPY.codec, _COPY, (to, source, size, to_space, from_space)


def _check_target(target: Span, place: Place) -> None:
    if target.shape != place.shape or target.dtype != place.dtype:
        raise ValueError(
            f"out[{place.name!r}] is {target.dtype} {target.shape}; the output is {place.dtype} {place.shape}"
        )


def _bindable(span: Span) -> bool:
    """Whether a program can work on it where it is."""
    return _space(span) == _DEVICE and span.address % DEVICE_ALIGNMENT == 0


def _space(span: Span) -> int:
    return _HOST if isinstance(span._root, HostBuffer) else _DEVICE
