"""Verification of a program, once, when it is loaded; after it, running the program is safe whatever its author meant.

A verified program names only tensors it has, reads only what it has written, lies within the memory it declares,
matches the operators' rules, and asks for bounded work. What depends on data is checked while it runs.
"""

from __future__ import annotations

import bisect
import dataclasses

from driver_shim.protocol.program import (
    MAX_CONTAINER_BYTES,
    Program,
    ProgramError,
    Storage,
    align_up,
)
from driver_shim.protocol.program_parsing import parse
from emulator.model.operators import OPERATORS, SemanticError
from emulator.model.work import types_of


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceLimits:
    """The most that a device takes on with one program."""

    container_bytes: int = MAX_CONTAINER_BYTES
    memory_bytes: int = 1 << 32
    """Of one program: constants, workspace, inputs and outputs together."""
    effort: int = 1 << 40
    """Multiply-accumulates plus bytes moved plus fixed costs, of one execution."""


DEFAULT_LIMITS = DeviceLimits()


class ProgramRejected(Exception):
    """A container is malformed or its program is not one this device can run; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class VerifiedProgram:
    """A program that can be executed. Its scratch memory holds the workspace, then the outputs."""

    image: Program
    scratch_bytes: int
    """Private memory that one execution needs."""
    output_places: tuple[tuple[int, int], ...]
    """(offset in scratch, bytes) of every output."""

    @property
    def constants(self) -> memoryview | bytes:
        """The bytes that the device places at the constants' address."""
        return self.image.constants

    @property
    def constants_bytes(self) -> int:
        """Size of the constants."""
        return len(self.image.constants)

    @property
    def workspace_bytes(self) -> int:
        """Device memory the host provides for intermediates."""
        return self.image.workspace_bytes

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """Bytes of every input, in binding order."""
        return tuple(self.image.tensors[binding.tensor].type.size_bytes for binding in self.image.inputs)

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Bytes of every output, in binding order."""
        return tuple(size for _, size in self.output_places)

    @property
    def command_count(self) -> int:
        """Number of commands."""
        return len(self.image.commands)


def verify(image: bytes | memoryview, *, device_limits: DeviceLimits = DEFAULT_LIMITS) -> VerifiedProgram:
    """Check a container completely. Raises ProgramRejected."""
    if len(image) > device_limits.container_bytes:
        raise ProgramRejected(f"a container of {len(image)} bytes; at most {device_limits.container_bytes}")
    try:
        program = parse(image)
    except ProgramError as error:
        raise ProgramRejected(str(error)) from error
    effort = 0
    for index, command in enumerate(program.commands):
        operator = OPERATORS[command.kind]
        types = types_of(command, program.tensors)
        try:
            operator.check(command.attributes, *types)
        except SemanticError as error:
            raise ProgramRejected(f"command {index} ({command.kind.name}): {error}") from error
        effort += operator.effort(command.attributes, *types)
    if effort > device_limits.effort:
        raise ProgramRejected(f"its commands cost {effort}; at most {device_limits.effort}")
    _check_dataflow(program)
    return _placed(program, device_limits)


def load_verified(image: bytes | memoryview) -> VerifiedProgram:
    """A container that `verify` has accepted before, without checking what it means again."""
    return _placed(parse(image), DEFAULT_LIMITS)


def _placed(program: Program, limits: DeviceLimits) -> VerifiedProgram:
    """Lay the outputs out behind the workspace and check the sizes against the device."""
    places = []
    end = align_up(program.workspace_bytes)
    for binding in program.outputs:
        size = program.tensors[binding.tensor].type.size_bytes
        places.append((end, size))
        end = align_up(end + size)
    inputs = sum(program.tensors[binding.tensor].type.size_bytes for binding in program.inputs)
    total = end + inputs + len(program.constants)
    if total > limits.memory_bytes:
        raise ProgramRejected(f"it needs {total} bytes of memory; at most {limits.memory_bytes}")
    return VerifiedProgram(program, end, tuple(places))


def _check_dataflow(program: Program) -> None:
    """Every tensor is written once, before it is read; tensors that live at one time do not overlap."""
    last_read = _last_reads(program)
    written: set[int] = set()
    live = _LiveRanges()
    for index, command in enumerate(program.commands):
        for tensor in command.inputs:
            if tensor is None or program.tensors[tensor].storage in (Storage.CONSTANT, Storage.INPUT):
                continue
            if tensor not in written:
                raise ProgramRejected(
                    f"command {index} ({command.kind.name}) reads tensor {tensor} before it is written"
                )
        for output in command.outputs:
            entry = program.tensors[output]
            where = f"command {index} ({command.kind.name})"
            if entry.storage in (Storage.CONSTANT, Storage.INPUT):
                raise ProgramRejected(f"{where} writes tensor {output}, which is read-only")
            if output in written:
                raise ProgramRejected(f"{where} writes tensor {output} a second time")
            written.add(output)
            if entry.storage is Storage.WORKSPACE:
                other = live.add(entry.offset, entry.type.size_bytes, output)
                if other is not None:
                    raise ProgramRejected(f"{where} overwrites tensor {other}, still needed")
        for tensor in {*command.inputs, *command.outputs} - {None}:
            if tensor is not None and last_read.get(tensor, index) <= index:
                live.remove(tensor)
    for binding in program.outputs:
        if binding.tensor not in written:
            raise ProgramRejected(f"the output {binding.name!r} is never written")


def _last_reads(program: Program) -> dict[int, int]:
    """The last command that reads each tensor."""
    last: dict[int, int] = {}
    for index, command in enumerate(program.commands):
        for tensor in command.inputs:
            if tensor is not None:
                last[tensor] = index
    return last


class _LiveRanges:
    """Disjoint byte ranges of the workspace tensors that are live, ordered by offset."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._tensors: list[int] = []
        self._start_of: dict[int, int] = {}

    def add(self, start: int, size: int, tensor: int) -> int | None:
        """Take a range; returns a live tensor that it overlaps instead, if any. Nothing overlaps an empty one."""
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
