"""The compiler's values and operations, in execution order, built and folded as they are emitted.

A `Value` is either a constant (an array) or the output of an operation or a graph input. Emitting an operation whose
operands are all constants runs its golden kernel at once, so shape arithmetic never reaches the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.layout import FieldError
from driver_shim.protocol.program import MAX_TENSOR_BYTES, TensorType, make_attributes
from driver_shim.protocol.program_commands import ATTRIBUTES, MAX_RANK, CommandKind
from driver_shim.protocol.types import UnsupportedType, WireType, constant_type_of
from emulator.model.operators import OPERATORS, KernelFault, SemanticError
from emulator.model.timing import Work
from sdk.compiler.derived import Source, array_of

Array = NDArray[Any]

FOLD_BYTES = 1 << 20
FOLD_GROWTH = 4
"""A constant result is folded when it is small or little larger than what it is made of, as float32 weights that the
model keeps in int8, but not in 4 bits; an Expand of a scalar to a gigabyte is left to the device."""


_LOOKED_AT_FIRST = frozenset({CommandKind.DEQUANTIZE})
"""Kinds whose constants passes look at as they were; they are folded after those."""


class Refused(Exception):
    """Something a model asks for is not possible; the message says why. The caller adds node and operator."""


DATA_DEPENDENT = "the shape of its result depends on the data, which programs cannot have"


class DataDependent(Refused):
    """The shape of a result depends on elements that are not known before the model runs; `value` holds them."""

    def __init__(self, value: Value) -> None:
        super().__init__(DATA_DEPENDENT)
        self.value = value


class NoSuchType(Refused):
    """Something has an element type that the device does not have."""


class Value:
    """A tensor during compilation. Compared by identity."""

    __slots__ = ("producer", "source", "type")

    def __init__(self, tensor: TensorType, constant: Source | None = None, producer: Operation | None = None) -> None:
        self.type = tensor
        self.source = constant
        """What a constant is made of; None for another value."""
        self.producer = producer

    @property
    def constant(self) -> Array | None:
        """A constant's array, which may be made for this call; None for another value."""
        return None if self.source is None else array_of(self.source)

    @property
    def is_constant(self) -> bool:
        """Whether it is a constant."""
        return self.source is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.type.shape

    @property
    def dtype(self) -> WireType:
        """Its element type."""
        return self.type.dtype


@dataclasses.dataclass(eq=False, slots=True)
class Operation:
    """A command of the program to be."""

    kind: CommandKind
    attributes: Any
    inputs: tuple[Value | None, ...]
    nodes: tuple[str, ...]
    """Names of the model's nodes that it came from; several where they were fused."""
    outputs: tuple[Value, ...] = ()

    @property
    def work(self) -> Work:
        """What it asks of a chip."""
        types = [None if value is None else value.type for value in self.inputs]
        return OPERATORS[self.kind].work(self.attributes, types, [value.type for value in self.outputs])

    @property
    def node(self) -> str:
        """The names in one text."""
        return " + ".join(self.nodes)


def fields_of(operation: Operation) -> dict[str, Any]:
    """An operation's attributes, to emit it anew with."""
    return {name: operation.attributes[name] for name in ATTRIBUTES[operation.kind].fields}


def constant(array: Array) -> Value:
    """A constant. Raises Refused for a type the device does not have."""
    try:
        return Value(TensorType(constant_type_of(array.dtype), array.shape), constant=array)
    except UnsupportedType as error:
        raise NoSuchType(str(error)) from None


def infer(
    kind: CommandKind, inputs: Sequence[Value | None], attributes: Mapping[str, Any]
) -> tuple[Any, Sequence[TensorType]]:
    """(a command's attributes as the container has them, the types of its outputs). Raises Refused."""
    types = [value.type if value is not None else None for value in inputs]
    for tensor in types:
        if tensor is not None:
            check_tensor(tensor)
    try:
        fields = make_attributes(kind, **attributes)
        outputs = OPERATORS[kind].infer(fields, types)
        OPERATORS[kind].check_packed(types, outputs)
    except (SemanticError, FieldError) as error:
        raise Refused(str(error)) from None
    for output in outputs:
        check_tensor(output)
    return fields, outputs


def folded(
    kind: CommandKind, fields: Any, inputs: Sequence[Value | None], outputs: Sequence[TensorType]
) -> tuple[Array, ...] | None:
    """What a command gives for constants; None where an operand is none, or the result would be too large.

    Raises Refused when it cannot be computed.
    """
    if any(value is not None and not value.is_constant for value in inputs):
        return None
    size = sum(value.type.size_bytes for value in inputs if value is not None)
    if sum(output.size_bytes for output in outputs) > max(FOLD_BYTES, FOLD_GROWTH * size):
        return None
    arrays = [value.constant if value is not None else None for value in inputs]
    results = tuple(np.empty(output.shape, output.dtype.dtype) for output in outputs)
    if any(result.size for result in results):
        try:
            with np.errstate(all="ignore"):
                OPERATORS[kind].run(fields, arrays, results)
        except KernelFault as fault:
            raise Refused(f"its constant operands cannot be computed with: {fault.message}") from None
    return results


class Builder:
    """Collects operations in execution order."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.node = ""
        """Name of the node being lowered."""

    def constant(self, array: Array) -> Value:
        """A constant. Raises Refused for a type the device does not have."""
        return constant(array)

    def scalar(self, value: float, dtype: WireType) -> Value:
        """A constant of rank 0."""
        return self.constant(np.array(value, dtype.dtype))

    def emit(self, kind: CommandKind, inputs: Sequence[Value | None], **attributes: Any) -> Value:
        """Append a command with one output and return that, or the folded constant. Raises Refused."""
        return self.emit_all(kind, inputs, 1, **attributes)[0]

    def emit_all(
        self, kind: CommandKind, inputs: Sequence[Value | None], count: int, **attributes: Any
    ) -> tuple[Value, ...]:
        """Append a command and return the first `count` of its outputs, or the folded constants. Raises Refused."""
        fields, types = infer(kind, inputs, attributes)
        outputs = types[:count]
        constants = folded(kind, fields, inputs, outputs) if kind not in _LOOKED_AT_FIRST else None
        if constants is not None:
            return tuple(Value(output, array) for output, array in zip(outputs, constants, strict=True))
        return self._append(kind, fields, inputs, outputs)

    def _append(
        self, kind: CommandKind, fields: Any, inputs: Sequence[Value | None], outputs: Sequence[TensorType]
    ) -> tuple[Value, ...]:
        operation = Operation(kind, fields, tuple(inputs), (self.node,))
        operation.outputs = tuple(Value(output, producer=operation) for output in outputs)
        self.operations.append(operation)
        return operation.outputs

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape; costs nothing when the shape is the same."""
        if tuple(shape) == value.shape:
            return value
        if value.constant is not None:
            return self.constant(value.constant.reshape(shape))
        return self.emit(CommandKind.COPY, [value], **shape_fields(shape))

    def copy(self, value: Value) -> Value:
        """A value of its own with the same contents, never folded."""
        check_tensor(value.type)
        fields = make_attributes(CommandKind.COPY, **shape_fields(value.shape))
        return self._append(CommandKind.COPY, fields, [value], [value.type])[0]

    def expand(self, value: Value, shape: Sequence[int]) -> Value:
        """The value broadcast to a shape; costs nothing when it has that already."""
        if tuple(shape) == value.shape:
            return value
        return self.emit(CommandKind.EXPAND, [value], **shape_fields(shape))


def shape_fields(shape: Sequence[int]) -> dict[str, Any]:
    """The attributes of COPY and EXPAND for a target shape. Raises Refused for a rank that no program can hold."""
    if len(shape) > MAX_RANK:
        raise Refused(f"{list(shape)} has rank {len(shape)}; at most {MAX_RANK} is possible")
    return {"rank": len(shape), "shape": [*shape, *[0] * (MAX_RANK - len(shape))]}


def check_tensor(tensor: TensorType) -> None:
    """Raise Refused for a tensor that no program can hold."""
    if len(tensor.shape) > MAX_RANK:
        raise Refused(f"{tensor} has rank {len(tensor.shape)}; at most {MAX_RANK} is possible")
    if tensor.size_bytes > MAX_TENSOR_BYTES:
        raise Refused(f"{tensor} has {tensor.size_bytes} bytes; at most {MAX_TENSOR_BYTES} are possible")


def is_repeated(a: Value, b: Value) -> bool:
    """Whether broadcasting repeats single elements of `a` along the last dimension that has several."""
    rank = max(len(a.shape), len(b.shape))
    shapes = [[*[1] * (rank - len(value.shape)), *value.shape] for value in (a, b)]
    last = next(((x, y) for x, y in reversed(list(zip(*shapes, strict=True))) if (x, y) != (1, 1)), (1, 1))
    return last[0] == 1 and last[1] != 1
