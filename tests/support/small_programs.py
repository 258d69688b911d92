"""Programs of one command, each of which can be made to fail in one way by the data it is given."""

from __future__ import annotations

from driver_shim.protocol.program import (
    Binding,
    Command,
    Storage,
    Tensor,
    TensorType,
    build,
    make_attributes,
)
from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from driver_shim.protocol.types import WireType
from tests.support.programs import one_entry

ELEMENTS = 4


def _one_command(kind: CommandKind, inputs: tuple[TensorType, ...], output: TensorType, **attributes: int) -> bytes:
    tensors = (*(Tensor(each, Storage.INPUT) for each in inputs), Tensor(output, Storage.OUTPUT))
    last = len(inputs)
    command = Command(kind, make_attributes(kind, **attributes), tuple(range(last)), (last,))
    names = tuple(Binding(f"input{at}", at) for at in range(last))
    return build(one_entry(tensors, (command,), names, (Binding("output", last),)))


def _vector(kind: WireType) -> TensorType:
    return TensorType(kind, (ELEMENTS,))


def gather() -> bytes:
    """output = table[indices]: four int32 each; an index beyond the table is an error."""
    vector = _vector(WireType.INT32)
    return _one_command(CommandKind.GATHER, (vector, vector), vector, axis=0)


def divide() -> bytes:
    """output = a / b: four int32 each; dividing by zero is an error."""
    vector = _vector(WireType.INT32)
    return _one_command(CommandKind.BINARY, (vector, vector), vector, function=BinaryFunction.DIV)


def narrow() -> bytes:
    """output = a as int32: four int64 whose values must fit 32 bits."""
    return _one_command(CommandKind.CAST, (_vector(WireType.INT64),), _vector(WireType.INT32), dtype=WireType.INT32)
