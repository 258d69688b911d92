"""Small programs and a way to run them in process, without a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.program import (
    Binding,
    Command,
    EntryPoint,
    Program,
    Storage,
    Tensor,
    TensorType,
    align_up,
    build,
    make_attributes,
)
from driver_shim.protocol.program_commands import MAX_RANK, BinaryFunction, CommandKind
from driver_shim.protocol.types import WireType, wire_type_of
from emulator.engines import executor
from emulator.engines.job import KernelRun
from emulator.model.operators import OPERATORS
from emulator.model.verify import verify

if TYPE_CHECKING:
    from sdk.compiler import CompiledProgram

Array = NDArray[Any]


def f32(*shape: int) -> TensorType:
    """A float32 tensor type."""
    return TensorType(WireType.FLOAT32, shape)


def add_twice() -> Program:
    """y = (x + c) + c, four float32 each: an input, a constant, a workspace tensor, an output."""
    kind = f32(4)
    tensors = (
        Tensor(kind, Storage.INPUT),
        Tensor(kind, Storage.CONSTANT),
        Tensor(kind, Storage.WORKSPACE, 64),
        Tensor(kind, Storage.OUTPUT),
    )
    add = make_attributes(CommandKind.BINARY, function=BinaryFunction.ADD)
    commands = (
        Command(CommandKind.BINARY, add, (0, 1), (2,)),
        Command(CommandKind.BINARY, add, (2, 1), (3,)),
    )
    return one_entry(tensors, commands, (Binding("x", 0),), (Binding("y", 3),), 128)


ADDED = np.array([1, 2, 3, 4], "<f4")
"""The constant that goes with `add_twice`."""


def one_entry(
    tensors: tuple[Tensor, ...],
    commands: tuple[Command, ...],
    inputs: tuple[Binding, ...],
    outputs: tuple[Binding, ...],
    workspace_bytes: int = 0,
) -> Program:
    """A program with one entry point."""
    return Program(tensors, (EntryPoint(commands, inputs, outputs, workspace_bytes),))


def execute(
    image: bytes,
    inputs: Sequence[Array],
    kernels: str = "golden",
    constants: Sequence[Array] = (),
    entry: int = 0,
    states: Sequence[memoryview] = (),
) -> tuple[list[Array], Sequence[KernelRun]]:
    """Verify a container and run an entry point of it over a private memory, with its constants; states are updated."""
    verified = verify(image)
    point = verified.entries[entry]
    memory = bytearray()
    addresses = []
    for array in (*constants, *inputs):
        addresses.append(len(memory))
        memory += array.tobytes().ljust(align_up(array.nbytes), b"\0")
    scratch = memoryview(bytearray(point.scratch_bytes))
    report = executor.execute(
        executor.load(memoryview(image), addresses[: len(constants)]),
        entry,
        memory=memoryview(memory).toreadonly(),
        inputs=addresses[len(constants) :],
        states=states,
        scratch=scratch,
        kernels=kernels,
    )
    outputs = []
    for binding, (offset, _) in zip(point.point.outputs, point.output_places, strict=True):
        kind = verified.image.tensors[binding.tensor].type
        outputs.append(np.frombuffer(scratch, kind.dtype.dtype, kind.elements, offset).reshape(kind.shape))
    return outputs, report


def execute_compiled(
    compiled: CompiledProgram, inputs: Sequence[Array], kernels: str = "golden"
) -> tuple[list[Array], Sequence[KernelRun]]:
    """Verify and run a compiled model with its constants."""
    return execute(compiled.image, inputs, kernels, [constant.array for constant in compiled.constants])


def run(compiled: CompiledProgram, inputs: Mapping[str, Array], kernels: str = "golden") -> dict[str, Array]:
    """Run a compiled model; outputs by name."""
    outputs, _ = execute_compiled(compiled, [inputs[info.name] for info in compiled.inputs], kernels)
    return {info.name: array for info, array in zip(compiled.outputs, outputs, strict=True)}


def golden(
    kind: CommandKind, inputs: Sequence[Array | None], shape: Sequence[int], dtype: Any, **attributes: Any
) -> Array:
    """The checked result of one command's golden kernel, which must be of this shape and type."""
    rank = len(inputs[0].shape) if inputs[0] is not None else 0
    fields = make_attributes(kind, **_implied(kind, rank, tuple(shape), np.dtype(dtype)), **attributes)
    types = [TensorType(wire_type_of(a.dtype), a.shape) if a is not None else None for a in inputs]
    output = np.empty(tuple(shape), dtype)
    OPERATORS[kind].check(fields, types, [TensorType(wire_type_of(output.dtype), output.shape)])
    with np.errstate(all="ignore"):
        OPERATORS[kind].run(fields, inputs, [output])
    return output


def golden_outputs(kind: CommandKind, inputs: Sequence[Array | None], count: int, **attributes: Any) -> list[Array]:
    """The first `count` outputs of one command's golden kernel, whose types are as it infers them."""
    fields = make_attributes(kind, **attributes)
    types = [TensorType(wire_type_of(a.dtype), a.shape) if a is not None else None for a in inputs]
    inferred = list(OPERATORS[kind].infer(fields, types))[:count]
    OPERATORS[kind].check(fields, types, inferred)
    outputs = [np.empty(tensor.shape, tensor.dtype.dtype) for tensor in inferred]
    with np.errstate(all="ignore"):
        OPERATORS[kind].run(fields, inputs, outputs)
    return outputs


def _implied(kind: CommandKind, rank: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """The attributes that say what the output looks like."""
    filled = [*shape, *[0] * (MAX_RANK - len(shape))]
    if kind in (CommandKind.COPY, CommandKind.EXPAND, CommandKind.UNPOOL):
        return {"rank": len(shape), "shape": filled}
    if kind is CommandKind.CAST:
        return {"dtype": wire_type_of(dtype)}
    if kind is CommandKind.SLICE:
        return {"extents": filled}
    if kind in (CommandKind.REDUCE, CommandKind.ARGUMENT):
        return {"keep": int(len(shape) == rank)}
    return {}


def window(**changes: Sequence[int]) -> dict[str, list[int]]:
    """Movement attributes of a convolution or pooling: stride 1, no padding, unless changed."""
    fields = {"strides": [1] * 3, "dilations": [1] * 3, "pads_begin": [0] * 3, "pads_end": [0] * 3}
    for name, values in changes.items():
        fields[name] = [*values, *fields[name][len(values) :]]
    return fields


__all__ = [
    "ADDED",
    "add_twice",
    "build",
    "execute",
    "execute_compiled",
    "f32",
    "golden",
    "golden_outputs",
    "one_entry",
    "run",
    "window",
]
