"""The execution of a verified program: its commands, one after the other.

Constants and inputs are read from device memory where the host can see and alter them, states are read and updated
there; intermediates and outputs go to scratch. Everything is bounded by what `verify` has checked. The first run
prepares the commands' kernels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import Command, Storage, TensorType
from driver_shim.protocol.program_commands import OPERANDS
from driver_shim.protocol.types import INT64_STORAGE_MAX, INT64_STORAGE_MIN, PACKED, WireType, unpack
from emulator.engines.job import KernelRun, ProgramFault
from emulator.engines.kernels.blocks import PlacedRequest
from emulator.engines.kernels.choice import prepare_all
from emulator.engines.kernels.provider import KernelRequest, NamedKernel
from emulator.model.operators import KernelFault
from emulator.model.verify import VerifiedEntry, VerifiedProgram, load_verified, where
from emulator.model.work import types_of

_logger = logging.getLogger("npu.emulator.engines")

Array = NDArray[Any]
_COPIED = frozenset({WireType.BOOL, WireType.INT64})
"""What the host may have written in a form that numpy must not see, or values that do not fit."""


class LoadedProgram:
    """A program and what its first runs have prepared."""

    def __init__(self, program: VerifiedProgram, constants: Sequence[int]) -> None:
        self.program = program
        self.places = dict(zip(program.image.constants, constants, strict=True))
        """Device address of every constant, by tensor."""
        self.constants: dict[int, Array] = {}
        """Those that are prepared for reading."""
        self.steps: dict[tuple[int, str], list[_Step]] = {}
        """By entry point and choice of kernels."""
        self.scratch: dict[int, _Scratch] = {}
        """By entry point: what its last run had."""


class _Scratch:
    """Arrays over the private memory of one entry point's runs, kept while they have the same."""

    def __init__(self, memory: memoryview) -> None:
        self.place = _place(memory)
        self.memory = memory
        self.writable: dict[int, Array] = {}
        self.readable: dict[int, Array] = {}
        """The same, to be read."""

    def holds(self, memory: memoryview) -> bool:
        """Whether this is still the memory of a run."""
        return _place(memory) == self.place


def _place(memory: memoryview) -> tuple[int, int]:
    """Address and size."""
    if not len(memory):
        return 0, 0
    return np.frombuffer(memory, np.uint8, 1).__array_interface__["data"][0], len(memory)


class _Step(NamedTuple):
    """One command, ready to run."""

    command: Command
    kernel: NamedKernel
    gives_nothing: bool
    """All its outputs are empty."""
    gives_int64: bool
    in_place: int | None
    """The operand that the first output is, too."""


def load(image: memoryview, constants: Sequence[int]) -> LoadedProgram:
    """Prepare a container that `verify` has accepted. `image` must stay valid as long as the result."""
    return LoadedProgram(load_verified(image), constants)


def execute(
    loaded: LoadedProgram,
    entry: int,
    *,
    memory: memoryview,
    inputs: Sequence[int],
    states: Sequence[memoryview],
    scratch: memoryview,
    kernels: str,
) -> Sequence[KernelRun]:
    """Run every command of an entry point; one report each.

    `memory` is device memory, never written; input i begins at `inputs[i]`. `states` is the writable memory of each
    state. `scratch` (at least `scratch_bytes`) receives the workspace and, at `output_places`, the outputs.
    Raises ProgramFault, ValueError for an unknown choice of kernels.
    """
    kept = loaded.scratch.get(entry)
    if kept is None or not kept.holds(scratch):
        kept = loaded.scratch[entry] = _Scratch(scratch)
    tensors = _Tensors(loaded, loaded.program.entries[entry], memory, inputs, states, kept)
    reports = []
    # Overflow, division by zero and NaN follow IEEE 754; numpy's warnings about them are noise here.
    with np.errstate(all="ignore"):
        for index, step in enumerate(_prepared(loaded, entry, tensors, kernels)):
            began = time.perf_counter_ns()
            command = step.command
            try:
                operands = [tensors.read(tensor) if tensor is not None else None for tensor in command.inputs]
                results = [tensors.write(tensor) for tensor in command.outputs]
                if step.in_place is not None:
                    operands[step.in_place] = _read_only(results[0])  # what was read of it may be a copy
                if not step.gives_nothing:
                    step.kernel.run(operands, results)
                if step.gives_int64:
                    _check_storage(results)
            except KernelFault as fault:
                raise ProgramFault(fault.status, index, f"{where(index, command)}: {fault.message}") from fault
            except Exception as error:
                _logger.exception("%s: its kernel %s raised", where(index, command), step.kernel.name)
                what = f"{type(error).__name__}: {error}"
                raise ProgramFault(Status.EXECUTION_FAULT, index, f"{where(index, command)}: {what}") from error
            reports.append(KernelRun(step.kernel.name, time.perf_counter_ns() - began))
    return reports


def _prepared(loaded: LoadedProgram, entry: int, tensors: _Tensors, kernels: str) -> list[_Step]:
    """The steps of an entry point, made when it runs for the first time with its constants there."""
    steps = loaded.steps.get((entry, kernels))
    if steps is None:
        commands = loaded.program.entries[entry].point.commands
        placed = [_placed(index, command, tensors) for index, command in enumerate(commands)]
        private = {index for index, entry in enumerate(tensors.entries) if entry.storage is Storage.WORKSPACE}
        chosen = prepare_all(kernels, placed, private)
        steps = [_step(*each) for each in zip(commands, placed, chosen, strict=True)]
        loaded.steps[entry, kernels] = steps
    return steps


def _placed(index: int, command: Command, tensors: _Tensors) -> PlacedRequest:
    inputs, outputs = types_of(command, tensors.entries)
    try:
        constants = tuple(tensors.constant(tensor) for tensor in command.inputs)
    except KernelFault as fault:
        raise ProgramFault(fault.status, index, f"{where(index, command)}: {fault.message}") from fault
    request = KernelRequest(command.kind, command.attributes, tuple(inputs), tuple(outputs), constants)
    return PlacedRequest(request, tuple(command.inputs), tuple(command.outputs))


def _step(command: Command, placed: PlacedRequest, kernel: NamedKernel) -> _Step:
    outputs = placed.request.outputs
    return _Step(
        command,
        kernel,
        not any(output.elements for output in outputs),
        any(output.dtype is WireType.INT64 for output in outputs),
        OPERANDS[command.kind].in_place if command.outputs[0] in command.inputs else None,
    )


class _Tensors:
    """Arrays over the memory that the tensors of one execution occupy."""

    def __init__(
        self,
        loaded: LoadedProgram,
        entry: VerifiedEntry,
        memory: memoryview,
        inputs: Sequence[int],
        states: Sequence[memoryview],
        scratch: _Scratch,
    ) -> None:
        self.entries = loaded.program.image.tensors
        self._memory = memory
        self._loaded = loaded
        self._scratch = scratch
        self._read: dict[int, Array] = {}
        """Inputs and states of this run."""
        point = entry.point
        self._input_places = {b.tensor: at for b, at in zip(point.inputs, inputs, strict=True)}
        self._output_places = {b.tensor: at for b, (at, _) in zip(point.outputs, entry.output_places, strict=True)}
        self._states = {b.tensor: memory for b, memory in zip(point.states, states, strict=True)}

    def constant(self, tensor: int | None) -> Array | None:
        """The values of a constant operand, kept for all runs; None for any other."""
        place = None if tensor is None else self._loaded.places.get(tensor)
        if tensor is None or place is None:
            return None
        constants = self._loaded.constants
        if tensor not in constants:
            constants[tensor] = _read_only(self._external(tensor, self._memory, place))
        return constants[tensor]

    def read(self, tensor: int) -> Array:
        """An operand, read-only."""
        for known in (self._loaded.constants, self._scratch.readable, self._read):
            array = known.get(tensor)
            if array is not None:
                return array
        if tensor not in self._states:
            array = self._read[tensor] = _read_only(self._external(tensor, self._memory, self._input_places[tensor]))
            return array
        array = _read_only(self._external(tensor, self._states[tensor], 0))
        if self.entries[tensor].type.dtype not in _COPIED:  # what is copied is read anew: commands update it
            self._read[tensor] = array
        return array

    def write(self, tensor: int) -> Array:
        """An output, to be filled."""
        entry = self.entries[tensor]
        if entry.storage is Storage.STATE:
            return _array(self._states[tensor], 0, entry.type)
        array = self._scratch.writable.get(tensor)
        if array is None:
            offset = entry.offset if entry.storage is Storage.WORKSPACE else self._output_places[tensor]
            array = self._scratch.writable[tensor] = _array(self._scratch.memory, offset, entry.type)
            self._scratch.readable[tensor] = _read_only(array)
        return array

    def _external(self, tensor: int, memory: memoryview, offset: int) -> Array:
        """What the host may have written; int64 and bool are checked and normalised, in a private copy."""
        kind = self.entries[tensor].type
        if kind.dtype is WireType.BOOL:
            # A bool array with other bytes than 0 and 1 behaves unpredictably in numpy.
            return np.asarray(np.not_equal(_array(memory, offset, TensorType(WireType.UINT8, kind.shape)), 0))
        array = _array(memory, offset, kind)
        if kind.dtype is WireType.INT64:
            array = array.copy()
            _check_storage([array])
        return array


def _read_only(array: Array) -> Array:
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def _array(memory: memoryview, offset: int, tensor: TensorType) -> Array:
    if not tensor.elements:
        return np.empty(tensor.shape, tensor.dtype.dtype)
    if tensor.dtype in PACKED:
        return unpack(np.frombuffer(memory, np.uint8, tensor.size_bytes, offset), tensor.dtype, tensor.shape)
    return np.frombuffer(memory, tensor.dtype.dtype, tensor.elements, offset).reshape(tensor.shape)


def _check_storage(arrays: Sequence[Array]) -> None:
    """int64 is storage of int32 values: refuse others rather than wrap them."""
    for array in arrays:
        if array.dtype != np.int64 or not array.size:
            continue
        if not (array.min() >= INT64_STORAGE_MIN and array.max() <= INT64_STORAGE_MAX):
            raise KernelFault(Status.VALUE_OUT_OF_RANGE, "an int64 value does not fit 32 bits")
