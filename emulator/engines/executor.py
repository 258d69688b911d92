"""The execution of a verified program: its commands, one after the other.

Constants and inputs are read from device memory where the host can see and alter them; intermediates and outputs go
to scratch. Everything is bounded by what `verify` has checked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import Command, Storage, TensorType
from driver_shim.protocol.types import INT64_STORAGE_MAX, INT64_STORAGE_MIN, WireType
from emulator.engines.job import KernelRun, ProgramFault
from emulator.engines.kernels import table
from emulator.model.golden import KernelFault
from emulator.model.verify import VerifiedProgram, load_verified

_logger = logging.getLogger("npu.emulator.engines")

Array = NDArray[Any]


def load(image: memoryview) -> VerifiedProgram:
    """Prepare a container that `verify` has accepted. `image` must stay valid as long as the result."""
    return load_verified(image)


def execute(
    program: VerifiedProgram,
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
    chosen = table(kernels)
    tensors = _Tensors(program, memory, constants_address, inputs, scratch)
    reports = []
    # Overflow, division by zero and NaN follow IEEE 754; numpy's warnings about them are noise here.
    with np.errstate(all="ignore"):
        for index, command in enumerate(program.image.commands):
            kernel = chosen[command.kind]
            began = time.perf_counter_ns()
            try:
                operands = [tensors.read(tensor) if tensor is not None else None for tensor in command.inputs]
                results = [tensors.write(tensor) for tensor in command.outputs]
                kernel.run(command.attributes, operands, results)
                _check_storage(results)
            except KernelFault as fault:
                raise ProgramFault(fault.status, index, f"{_where(index, command)}: {fault.message}") from fault
            except Exception as error:
                _logger.exception("%s: its kernel %s raised", _where(index, command), kernel.name)
                what = f"{type(error).__name__}: {error}"
                raise ProgramFault(Status.EXECUTION_FAULT, index, f"{_where(index, command)}: {what}") from error
            reports.append(KernelRun(kernel.name, time.perf_counter_ns() - began))
    return reports


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
        self._tensors = program.image.tensors
        self._memory = memory
        self._constants = constants_address
        self._scratch = scratch
        self._arrays: dict[int, Array] = {}
        self._input_places = {b.tensor: at for b, at in zip(program.image.inputs, inputs, strict=True)}
        self._output_places = {
            b.tensor: at for b, (at, _) in zip(program.image.outputs, program.output_places, strict=True)
        }

    def read(self, tensor: int) -> Array:
        """An operand, read-only."""
        if tensor not in self._arrays:
            self._arrays[tensor] = self._external(tensor)
        array = self._arrays[tensor].view()
        array.flags.writeable = False
        return array

    def write(self, tensor: int) -> Array:
        """An output, to be filled."""
        entry = self._tensors[tensor]
        offset = entry.offset if entry.storage is Storage.WORKSPACE else self._output_places[tensor]
        self._arrays[tensor] = _array(self._scratch, offset, entry.type)
        return self._arrays[tensor]

    def _external(self, tensor: int) -> Array:
        """An input or a constant; int64 and bool are checked and normalised once, in a private copy."""
        entry = self._tensors[tensor]
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
        if array.dtype == np.int64 and not (array.min() >= INT64_STORAGE_MIN and array.max() <= INT64_STORAGE_MAX):
            raise KernelFault(Status.VALUE_OUT_OF_RANGE, "an int64 value does not fit 32 bits")
