"""Operators about shapes: Reshape and relatives, Shape, Size, Constant."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sdk.compiler.context import Lowering, NodeContext, checked_shape
from sdk.compiler.ir import Refused, Value

_AXES_ARE_INPUT_SINCE = 13
_CONSTANT_FORMS = ("value", "value_float", "value_floats", "value_int", "value_ints")


def _reshape(node: NodeContext) -> Sequence[Value]:
    """Reshape (opset 14): 0 copies a dimension (unless `allowzero`), one -1 takes what is left."""
    x = node.value(0)
    target = node.constant_ints(1, "shape")
    if target is None:
        raise Refused("its shape is missing")
    shape = list(target)
    if not node.attribute("allowzero", 0):
        if any(extent == 0 and i >= len(x.shape) for i, extent in enumerate(shape)):
            raise Refused(f"{x.type} cannot be reshaped to {shape}")
        shape = [x.shape[i] if extent == 0 else extent for i, extent in enumerate(shape)]
    elements = math.prod(x.shape)
    if shape.count(-1) == 1:
        rest = math.prod(extent for extent in shape if extent != -1)
        shape[shape.index(-1)] = elements // rest if rest > 0 else 0
    if math.prod(checked_shape(shape)) != elements:
        raise Refused(f"{x.type} cannot be reshaped to {list(target)}")
    return [node.builder.reshape(x, shape)]


def _flatten(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    rank = len(x.shape)
    axis = node.attribute("axis", 1)
    if not -rank <= axis <= rank:
        raise Refused(f"axis {axis} of a tensor of rank {rank}")
    axis = axis + rank if axis < 0 else axis
    return [node.builder.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))]


def _axes(node: NodeContext) -> list[int] | None:
    if node.since >= _AXES_ARE_INPUT_SINCE:
        return node.constant_ints(1, "axes")
    axes: list[int] | None = node.attribute("axes")
    return axes


def _squeeze(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    axes = _axes(node)
    gone = [i for i, e in enumerate(x.shape) if e == 1] if axes is None else node.axes(axes, len(x.shape))
    if any(x.shape[axis] != 1 for axis in gone):
        raise Refused(f"axes {gone} of {x.type} are not all 1")
    return [node.builder.reshape(x, [extent for i, extent in enumerate(x.shape) if i not in gone])]


def _unsqueeze(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    axes = _axes(node)
    if axes is None:
        raise Refused("its axes are missing")
    rank = len(x.shape) + len(axes)
    shape = list(x.shape)
    for axis in node.axes(axes, rank):
        shape.insert(axis, 1)
    return [node.builder.reshape(x, shape)]


def _shape(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    part = x.shape[slice(node.attribute("start", 0), node.attribute("end"))]
    return [node.builder.constant(np.array(part, np.int64))]


def _size(node: NodeContext) -> Sequence[Value]:
    return [node.builder.constant(np.array(math.prod(node.value(0).shape), np.int64))]


def _constant(node: NodeContext) -> Sequence[Value]:
    for form in _CONSTANT_FORMS:
        value = node.attribute(form)
        if value is not None:
            kind = np.int64 if "int" in form else np.float32
            array = value if form == "value" else np.array(value, kind)
            return [node.builder.constant(array)]
    raise Refused("its value is a string or sparse")


LOWERINGS: dict[str, Lowering] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Shape": _shape,
    "Size": _size,
    "Constant": _constant,
}
