"""What passes ask of values that were quantised, or will be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import QUANTISED, WireType
from emulator.model.operators.quantised_elementwise import VALUES
from sdk.compiler.ir import Operation, Value, constant, fields_of, folded, infer


class Quantised(NamedTuple):
    """What a dequantised value was before: (integer − zero_point) · scale."""

    integer: Value
    scale: Value
    zero_point: Value
    axis: int

    @property
    def is_bytes(self) -> bool:
        """Whether it is of 8 bits with one scale and zero point, both known."""
        return self.integer.dtype in QUANTISED and _is_known(self.scale) and _is_known(self.zero_point)


def before(value: Value | None) -> Quantised | None:
    """What a value was before its DEQUANTIZE; None when it is none of float32, or one by blocks."""
    made = value.producer if value is not None else None
    if made is None or made.kind is not CommandKind.DEQUANTIZE or made.attributes.block or len(made.inputs) < 3:
        return None
    integer, scale, zero = made.inputs[:3]
    if integer is None or scale is None or zero is None or scale.dtype is not WireType.FLOAT32:
        return None
    return Quantised(integer, scale, zero, made.attributes.axis)


class Target(NamedTuple):
    """What a QUANTIZE gives: 8 bits with one scale and zero point, both known."""

    scale: Value
    zero_point: Value


def target(operation: Operation) -> Target | None:
    """How an operation quantises float32; None when it is no QUANTIZE of that kind."""
    if operation.kind is not CommandKind.QUANTIZE or operation.attributes.block:
        return None
    x, scale, zero = operation.inputs[:3]
    if x is None or scale is None or zero is None or x.dtype is not WireType.FLOAT32 or zero.dtype not in QUANTISED:
        return None
    return Target(scale, zero) if _is_known(scale) and _is_known(zero) else None


def _is_known(value: Value) -> bool:
    return value.constant is not None and value.type.elements == 1


def same(was: Quantised, wanted: Target) -> bool:
    """Whether a value has the scale and zero point already that it is to get."""
    pairs = ((was.scale.constant, wanted.scale.constant), (was.zero_point.constant, wanted.zero_point.constant))
    return was.integer.dtype is wanted.zero_point.dtype and all(
        a is not None and b is not None and a.reshape(()) == b.reshape(()) for a, b in pairs
    )


def saturates(wanted: Target, low: float, high: float) -> bool:
    """Whether limiting a value to [low, high] before makes no difference: both ends are the integer's own."""
    scale, zero = wanted.scale.constant, wanted.zero_point.constant
    if scale is None or zero is None:
        return False
    limits = np.iinfo(zero.dtype)
    with np.errstate(all="ignore"):
        ends = np.rint(np.array([low, high], np.float32) / scale.reshape(())) + np.float32(zero.reshape(()))
    return bool(ends[0] <= limits.min and ends[1] >= limits.max)


def table_of(was: Quantised, functions: Sequence[Operation], quantisation: Operation) -> Value | None:
    """The 256 results of dequantising, functions of one operand, and quantising. Raises Refused."""
    every = constant(np.arange(VALUES, dtype=np.uint8).view(was.integer.dtype.dtype))
    value = _applied(CommandKind.DEQUANTIZE, [every, was.scale, was.zero_point], {"axis": 0, "block": 0})
    for operation in (*functions, quantisation):
        if value is not None:
            value = _applied(operation.kind, [value, *operation.inputs[1:]], fields_of(operation))
    return value


def _applied(kind: CommandKind, inputs: Sequence[Value | None], fields: Mapping[str, Any]) -> Value | None:
    attributes, types = infer(kind, inputs, fields)
    results = folded(kind, attributes, inputs, types)
    return None if results is None else constant(results[0])
