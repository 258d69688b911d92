"""Where the operands of one run lie: in a lane's device memory, and in the host memory that they are staged through."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.commands import BINDING
from driver_shim.protocol.program import align_up
from sdk.compiler import CompiledProgram, TensorInfo
from sdk.memory.buffers import as_dtype


class Place(NamedTuple):
    """An operand: the same offset in device memory and in staging."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    nbytes: int


class RunLayout:
    """Inputs, then outputs, in both; behind them the workspace on the device, and the binding table in staging.

    Inputs lie together, and so do outputs, so that one copy moves them all. The tables and caches of states lie
    elsewhere, in memory of their own.
    """

    def __init__(self, program: CompiledProgram) -> None:
        staged = program.inputs[:-1] if program.caches else program.inputs
        self.inputs, self.input_bytes = _places(staged, 0)
        self.output_offset = align_up(self.input_bytes)
        self.outputs, end = _places(program.outputs, self.output_offset)
        self.output_bytes = end - self.output_offset
        self.workspace_offset = self.table_offset = align_up(end)
        self.device_bytes = self.workspace_offset + program.workspace_bytes
        self.binding_count = len(program.inputs) + len(self.outputs) + len(program.caches)
        self.table_bytes = self.binding_count * BINDING.size
        self.staging_bytes = self.table_offset + self.table_bytes


def _places(tensors: tuple[TensorInfo, ...], start: int) -> tuple[tuple[Place, ...], int]:
    """The tensors one after the other, each on a cache line, and the end of the last."""
    places, end = [], start
    for tensor in tensors:
        shape = tuple(int(extent) for extent in tensor.shape)
        dtype = as_dtype(tensor.dtype)
        offset = align_up(end)
        end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        places.append(Place(tensor.name, shape, dtype, offset, end - offset))
    return tuple(places), end
