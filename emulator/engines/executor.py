"""The execution of a verified program: its commands, one after the other.

Constants and inputs are read from device memory where the host can see and alter them; intermediates and outputs go
to scratch. Everything is bounded by what `verify` has checked. The first run prepares the commands' kernels.
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
from driver_shim.protocol.types import INT64_STORAGE_MAX, INT64_STORAGE_MIN, WireType
from emulator.engines.job import KernelRun, ProgramFault
from emulator.engines.kernels.choice import prepare
from emulator.engines.kernels.provider import KernelRequest, NamedKernel
from emulator.model.operators import KernelFault
from emulator.model.verify import VerifiedProgram, load_verified
from emulator.model.work import types_of

_logger = logging.getLogger("npu.emulator.engines")

Array = NDArray[Any]


class LoadedProgram:
    """A program and what its first run has prepared."""

    def __init__(self, program: VerifiedProgram) -> None:
        self.program = program
        self.steps: list[_Step] = []
        self.prepared_for: tuple[int, str] | None = None
        """(constants' address, choice of kernels) that `steps` go with."""


class _Step(NamedTuple):
    """One command, ready to run."""

    command: Command
    kernel: NamedKernel
    gives_nothing: bool
    """All its outputs are empty."""
    gives_int64: bool


def load(image: memoryview) -> LoadedProgram:
    """Prepare a container that `verify` has accepted. `image` must stay valid as long as the result."""
    return LoadedProgram(load_verified(image))


def execute(
    loaded: LoadedProgram,
    *,
    memory: memoryview,
    constants_address: int,
    inputs: Sequence[int],
    scratch: memoryview,
    kernels: str,
) -> Sequence[KernelRun]:
    """Run every command; one report each. Raises ProgramFault, ValueError for an unknown choice of kernels.

    `memory` is device memory, never written; constants begin at `constants_address`, input i at `inputs[i]`.
    `scratch` (at least `scratch_bytes`) receives the workspace and, at `output_places`, the outputs.
    """
    tensors = _Tensors(loaded.program, memory, constants_address, inputs, scratch)
    reports = []
    # Overflow, division by zero and NaN follow IEEE 754; numpy's warnings about them are noise here.
    with np.errstate(all="ignore"):
        for index, step in enumerate(_prepared(loaded, tensors, constants_address, kernels)):
            began = time.perf_counter_ns()
            command = step.command
            try:
                operands = [tensors.read(tensor) if tensor is not None else None for tensor in command.inputs]
                results = [tensors.write(tensor) for tensor in command.outputs]
                if not step.gives_nothing:
                    step.kernel.run(operands, results)
                if step.gives_int64:
                    _check_storage(results)
            except KernelFault as fault:
                raise ProgramFault(fault.status, index, f"{_where(index, command)}: {fault.message}") from fault
            except Exception as error:
                _logger.exception("%s: its kernel %s raised", _where(index, command), step.kernel.name)
                what = f"{type(error).__name__}: {error}"
                raise ProgramFault(Status.EXECUTION_FAULT, index, f"{_where(index, command)}: {what}") from error
            reports.append(KernelRun(step.kernel.name, time.perf_counter_ns() - began))
    return reports


def _prepared(loaded: LoadedProgram, tensors: _Tensors, constants_address: int, kernels: str) -> list[_Step]:
    """The program's steps, made when it runs for the first time with its constants there."""
    wanted = (constants_address, kernels)
    if loaded.prepared_for != wanted:
        program = loaded.program.image
        loaded.steps = [_step(index, command, tensors, kernels) for index, command in enumerate(program.commands)]
        loaded.prepared_for = wanted
    return loaded.steps


def _step(index: int, command: Command, tensors: _Tensors, kernels: str) -> _Step:
    inputs, outputs = types_of(command, tensors.entries)
    try:
        constants = tuple(tensors.constant(tensor) for tensor in command.inputs)
    except KernelFault as fault:
        raise ProgramFault(fault.status, index, f"{_where(index, command)}: {fault.message}") from fault
    request = KernelRequest(command.kind, command.attributes, tuple(inputs), tuple(outputs), constants)
    return _Step(
        command,
        prepare(kernels, request),
        not any(output.elements for output in outputs),
        any(output.dtype is WireType.INT64 for output in outputs),
    )


def _where(index: int, command: Command) -> str:
    return f"command {index} ({command.kind.name})"


class _Tensors:
    """Arrays over the memory that the tensors of one execution occupy."""

    def __init__(
        self,
        program: VerifiedProgram,
        memory: memoryview,
        constants_address: int,
        inputs: Sequence[int],
        scratch: memoryview,
    ) -> None:
        self.entries = program.image.tensors
        self._memory = memory
        self._constants = constants_address
        self._scratch = scratch
        self._arrays: dict[int, Array] = {}
        self._input_places = {b.tensor: at for b, at in zip(program.image.inputs, inputs, strict=True)}
        self._output_places = {
            b.tensor: at for b, (at, _) in zip(program.image.outputs, program.output_places, strict=True)
        }

    def constant(self, tensor: int | None) -> Array | None:
        """The values of a constant operand; None for any other."""
        if tensor is None or self.entries[tensor].storage is not Storage.CONSTANT:
            return None
        return self.read(tensor)

    def read(self, tensor: int) -> Array:
        """An operand, read-only."""
        array = self._arrays.get(tensor)
        if array is None:
            array = self._arrays[tensor] = self._external(tensor)
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        return array

    def write(self, tensor: int) -> Array:
        """An output, to be filled."""
        entry = self.entries[tensor]
        offset = entry.offset if entry.storage is Storage.WORKSPACE else self._output_places[tensor]
        self._arrays[tensor] = _array(self._scratch, offset, entry.type)
        return self._arrays[tensor]

    def _external(self, tensor: int) -> Array:
        """An input or a constant; int64 and bool are checked and normalised once, in a private copy."""
        entry = self.entries[tensor]
        constant = entry.storage is Storage.CONSTANT
        offset = self._constants + entry.offset if constant else self._input_places[tensor]
        if entry.type.dtype is WireType.BOOL:
            # A bool array with other bytes than 0 and 1 behaves unpredictably in numpy.
            raw = _array(self._memory, offset, TensorType(WireType.UINT8, entry.type.shape))
            return np.asarray(np.not_equal(raw, 0))
        array = _array(self._memory, offset, entry.type)
        if entry.type.dtype is WireType.INT64:
            array = array.copy()
            _check_storage([array])
        return array


def _array(memory: memoryview, offset: int, tensor: TensorType) -> Array:
    return np.frombuffer(memory, tensor.dtype.dtype, tensor.elements, offset).reshape(tensor.shape)


def _check_storage(arrays: Sequence[Array]) -> None:
    """int64 is storage of int32 values: refuse others rather than wrap them."""
    for array in arrays:
        if array.dtype != np.int64 or not array.size:
            continue
        if not (array.min() >= INT64_STORAGE_MIN and array.max() <= INT64_STORAGE_MAX):
            raise KernelFault(Status.VALUE_OUT_OF_RANGE, "an int64 value does not fit 32 bits")
