"""Verification of a program, once, when it is loaded; after it, running the program is safe whatever its author meant.

Each entry point of a verified program names only tensors it has, reads only what it has written, lies within the memory
it declares, matches the operators' rules, and asks for bounded work. What depends on data is checked while it runs.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

from driver_shim.protocol.program import (
    MAX_CONTAINER_BYTES,
    Binding,
    Command,
    EntryPoint,
    Program,
    ProgramError,
    Storage,
    Tensor,
    align_up,
)
from driver_shim.protocol.program_commands import OPERANDS
from driver_shim.protocol.program_parsing import parse
from emulator.model.operators import OPERATORS, SemanticError
from emulator.model.work import row_costs, types_of


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceLimits:
    """The most that a device takes on with one program."""

    container_bytes: int = MAX_CONTAINER_BYTES
    memory_bytes: int = 1 << 42
    """Of one execution: constants, states, workspace, inputs and outputs together."""
    effort: int = 1 << 48
    """Multiply-accumulates plus bytes moved plus fixed costs, of one execution."""
    rows: int = 1 << 12
    """Rows that the device reads before an execution, to know how long it takes: of all attentions that differ."""


DEFAULT_LIMITS = DeviceLimits()


class ProgramRejected(Exception):
    """A container is malformed or its program is not one this device can run; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class VerifiedEntry:
    """An entry point that can be executed. Its scratch memory holds the workspace, then the outputs."""

    point: EntryPoint
    input_sizes: tuple[int, ...]
    """Bytes of every input, in binding order."""
    state_sizes: tuple[int, ...]
    output_places: tuple[tuple[int, int], ...]
    """(offset in scratch, bytes) of every output."""
    scratch_bytes: int
    """Private memory that one execution needs."""

    @property
    def workspace_bytes(self) -> int:
        """Device memory the host provides for intermediates."""
        return self.point.workspace_bytes

    @property
    def command_count(self) -> int:
        """Number of commands."""
        return len(self.point.commands)


@dataclasses.dataclass(frozen=True, slots=True)
class VerifiedProgram:
    """A program that can be executed."""

    image: Program
    constant_sizes: tuple[int, ...]
    """Bytes of every constant, in the order in which a load binds them."""
    entries: tuple[VerifiedEntry, ...]


def verify(image: bytes | memoryview, *, device_limits: DeviceLimits = DEFAULT_LIMITS) -> VerifiedProgram:
    """Check a container completely. Raises ProgramRejected."""
    if len(image) > device_limits.container_bytes:
        raise ProgramRejected(f"a container of {len(image)} bytes; at most {device_limits.container_bytes}")
    try:
        program = parse(image)
    except ProgramError as error:
        raise ProgramRejected(str(error)) from error
    for entry in program.entries:
        try:
            _check_commands(program.tensors, entry, device_limits)
            _check_dataflow(program.tensors, entry)
            _check_rows(program.tensors, entry, device_limits)
        except ProgramRejected as error:
            if len(program.entries) == 1:
                raise
            raise ProgramRejected(f"entry {entry.name!r}: {error}") from error
    return _placed(program, device_limits)


def load_verified(image: bytes | memoryview) -> VerifiedProgram:
    """A container that `verify` has accepted before, without checking what it means again."""
    return _placed(parse(image), DEFAULT_LIMITS)


def _check_commands(tensors: Sequence[Tensor], entry: EntryPoint, limits: DeviceLimits) -> None:
    """Raise ProgramRejected unless every command matches its operator's rules and all together cost little enough."""
    effort = 0
    for index, command in enumerate(entry.commands):
        operator = OPERATORS[command.kind]
        types = types_of(command, tensors)
        try:
            operator.check(command.attributes, *types)
        except SemanticError as error:
            raise ProgramRejected(f"{where(index, command)}: {error}") from error
        effort += operator.effort(command.attributes, *types)
    if effort > limits.effort:
        raise ProgramRejected(f"its commands cost {effort}; at most {limits.effort}")


def _check_rows(tensors: Sequence[Tensor], entry: EntryPoint, limits: DeviceLimits) -> None:
    """Raise ProgramRejected where the device would read too much before an execution."""
    rows = sum(each.cost.batch for each in row_costs(tensors, entry))
    if rows > limits.rows:
        raise ProgramRejected(f"its attentions to caches, those that differ, have {rows} rows; at most {limits.rows}")


def where(index: int, command: Command) -> str:
    """A command as messages name it."""
    return f"command {index} ({command.kind.name})"


def _placed(program: Program, limits: DeviceLimits) -> VerifiedProgram:
    """Lay outputs out behind the workspace and check the sizes against the device."""

    def sizes(bindings: Sequence[Binding]) -> tuple[int, ...]:
        return tuple(program.tensors[binding.tensor].type.size_bytes for binding in bindings)

    constants = tuple(program.tensors[tensor].type.size_bytes for tensor in program.constants)
    entries = []
    for point in program.entries:
        places = []
        end = align_up(point.workspace_bytes)
        for size in sizes(point.outputs):
            places.append((end, size))
            end = align_up(end + size)
        entry = VerifiedEntry(point, sizes(point.inputs), sizes(point.states), tuple(places), end)
        total = end + sum(entry.input_sizes) + sum(entry.state_sizes) + sum(constants)
        if total > limits.memory_bytes:
            raise ProgramRejected(f"it needs {total} bytes of memory; at most {limits.memory_bytes}")
        entries.append(entry)
    return VerifiedProgram(program, constants, tuple(entries))


def _check_dataflow(tensors: Sequence[Tensor], entry: EntryPoint) -> None:
    """Every tensor is written once, before it is read; tensors that live at one time do not overlap.

    A state is there from the beginning, and commands that update in place may write it, any number of them.
    """
    last_read = {tensor: index for index, command in enumerate(entry.commands) for tensor in command.inputs}
    written: set[int] = set()
    live = _LiveRanges()
    for index, command in enumerate(entry.commands):
        _check_regions(tensors, index, command)
        for tensor in command.inputs:
            if tensor is not None and tensor not in written and tensors[tensor].storage in _WRITTEN_BEFORE_READ:
                raise ProgramRejected(f"{where(index, command)} reads tensor {tensor} before it is written")
        for output in command.outputs:
            _check_written(tensors, index, command, output, written)
            written.add(output)
            tensor_type = tensors[output].type
            if tensors[output].storage is Storage.WORKSPACE:
                other = live.add(tensors[output].offset, tensor_type.size_bytes, output)
                if other is not None:
                    raise ProgramRejected(f"{where(index, command)} overwrites tensor {other}, still needed")
        for tensor in {*command.inputs, *command.outputs}:
            if tensor is not None and last_read.get(tensor, index) <= index:
                live.remove(tensor)
    for binding in entry.outputs:
        if binding.tensor not in written:
            raise ProgramRejected(f"the output {binding.name!r} is never written")


def _check_regions(tensors: Sequence[Tensor], index: int, command: Command) -> None:
    """Raise ProgramRejected unless operands that must live in one region do."""
    operands = OPERANDS[command.kind]
    for positions, wanted in ((operands.states, Storage.STATE), (operands.bound, Storage.INPUT)):
        for position in positions:
            tensor = command.inputs[position]
            if tensor is None or tensors[tensor].storage is not wanted:
                name = operands.required[position]
                raise ProgramRejected(f"{where(index, command)}: {name} is tensor {tensor}, which is no {wanted.name}")
    if operands.in_place in operands.states and command.outputs[0] != command.inputs[operands.in_place]:
        raise ProgramRejected(
            f"{where(index, command)} gives tensor {command.outputs[0]}; it can only update its state"
        )


_WRITTEN_BEFORE_READ = frozenset({Storage.WORKSPACE, Storage.OUTPUT})


def _check_written(tensors: Sequence[Tensor], index: int, command: Command, output: int, written: set[int]) -> None:
    """Raise ProgramRejected unless the command may write this tensor."""
    storage = tensors[output].storage
    if storage is Storage.STATE:
        place = OPERANDS[command.kind].in_place
        alone = command.inputs.count(output) == 1 and command.outputs.count(output) == 1
        if place is None or not alone or command.outputs[0] != output or command.inputs[place] != output:
            raise ProgramRejected(f"{where(index, command)} writes the state {output} without updating it in place")
    elif storage not in _WRITTEN_BEFORE_READ:
        raise ProgramRejected(f"{where(index, command)} writes tensor {output}, which is read-only")
    elif output in written:
        raise ProgramRejected(f"{where(index, command)} writes tensor {output} a second time")


class _LiveRanges:
    """Disjoint byte ranges of the workspace tensors that are live, ordered by offset."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._tensors: list[int] = []
        self._start_of: dict[int, int] = {}

    def add(self, start: int, size: int, tensor: int) -> int | None:
        """Take a range; returns a live tensor that it overlaps instead, if any. An empty one overlaps nothing."""
        if not size:
            return None
        at = bisect.bisect_right(self._starts, start)
        if at > 0 and self._ends[at - 1] > start:
            return self._tensors[at - 1]
        if at < len(self._starts) and self._starts[at] < start + size:
            return self._tensors[at]
        self._starts.insert(at, start)
        self._ends.insert(at, start + size)
        self._tensors.insert(at, tensor)
        self._start_of[tensor] = start
        return None

    def remove(self, tensor: int) -> None:
        """Give a range back; tensors that have none (inputs, constants, outputs) are ignored."""
        start = self._start_of.pop(tensor, None)
        if start is None:
            return
        at = bisect.bisect_left(self._starts, start)
        del self._starts[at], self._ends[at], self._tensors[at]
