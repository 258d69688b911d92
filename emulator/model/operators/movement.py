"""Commands that move elements and compute nothing: copies, Transpose, Slice, Concat, Gather, Pad, Expand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import MAX_DIMENSION, TensorType
from driver_shim.protocol.program_commands import CommandKind, PadMode
from driver_shim.protocol.types import WireType
from emulator.model.operators.arrays import Array, KernelFault, optional, required
from emulator.model.operators.operator import Operator, Types, checked_axis, function, given, one_type
from emulator.model.operators.shapes import broadcast, need, shape_of

_PAD_MODES: dict[PadMode, Literal["reflect", "edge", "wrap"]] = {
    PadMode.REFLECT: "reflect",
    PadMode.EDGE: "edge",
    PadMode.WRAP: "wrap",
}
_FROM_ELEMENTS = frozenset({PadMode.EDGE, PadMode.WRAP})
"""Modes that repeat elements, of which there must be one."""


class Copy(Operator):
    """COPY."""

    kind = CommandKind.COPY

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, shape = given(inputs, 0), shape_of(attributes)
        result = TensorType(x.dtype, shape)
        need(x.elements == result.elements, f"{x} cannot be reshaped to {result}")
        return [result]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Identity; Reshape, Flatten, Squeeze, Unsqueeze: the same elements in row-major order."""
        outputs[0][...] = required(inputs, 0).reshape(outputs[0].shape)


class Transpose(Operator):
    """TRANSPOSE."""

    kind = CommandKind.TRANSPOSE

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        permutation = list(attributes.permutation)
        rank = len(x.shape)
        need(
            sorted(permutation[:rank]) == list(range(rank)) and not any(permutation[rank:]),
            f"{permutation} is no permutation of rank {rank}",
        )
        return [TensorType(x.dtype, tuple(x.shape[i] for i in permutation[:rank]))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Transpose (opset 13): dimension i of the output is dimension permutation[i] of the input."""
        x = required(inputs, 0)
        outputs[0][...] = x.transpose(attributes.permutation[: x.ndim])


class Slice(Operator):
    """SLICE."""

    kind = CommandKind.SLICE

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        rank = len(x.shape)
        starts, steps, extents = attributes.starts, attributes.steps, attributes.extents
        for i in range(rank):
            last = starts[i] + (extents[i] - 1) * steps[i]
            need(
                steps[i] != 0 and (not extents[i] or (0 <= starts[i] < x.shape[i] and 0 <= last < x.shape[i])),
                f"dimension {i} of {x}: {extents[i]} elements from {starts[i]} in steps of {steps[i]}",
            )
        need(not any((*starts[rank:], *steps[rank:], *extents[rank:])), "unused dimensions must be zero")
        return [TensorType(x.dtype, tuple(extents[:rank]))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Slice (opset 13), starts clamped already: output[i] = input[start + i · step] in every dimension."""
        cuts = []
        for extent, start, step in zip(outputs[0].shape, attributes.starts, attributes.steps, strict=False):
            stop = start + extent * step
            cuts.append(slice(start, stop if stop >= 0 else None, step))
        outputs[0][...] = required(inputs, 0)[tuple(cuts)]


class Concat(Operator):
    """CONCAT."""

    kind = CommandKind.CONCAT

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        dtype = one_type(inputs)
        first = given(inputs, 0)
        axis = checked_axis(attributes.axis, len(first.shape))
        shape = list(first.shape)
        shape[axis] = 0
        for part in (given(inputs, i) for i in range(len(inputs))):
            rest = [extent for i, extent in enumerate(part.shape) if i != axis]
            same = len(part.shape) == len(shape) and rest == [e for i, e in enumerate(shape) if i != axis]
            need(same, f"{part} cannot be concatenated with {first} along {axis}")
            shape[axis] += part.shape[axis]
        need(shape[axis] <= MAX_DIMENSION, f"dimension {axis} becomes {shape[axis]}")
        return [TensorType(dtype, tuple(shape))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Concat (opset 13) along `axis`."""
        np.concatenate([part for part in inputs if part is not None], axis=attributes.axis, out=outputs[0])


class Gather(Operator):
    """GATHER."""

    kind = CommandKind.GATHER

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        data, indices = given(inputs, 0), given(inputs, 1)
        need(indices.dtype in (WireType.INT32, WireType.INT64), f"indices are {indices}, must be int32 or int64")
        axis = checked_axis(attributes.axis, len(data.shape))
        return [TensorType(data.dtype, (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Gather (opset 13) along `axis`; a negative index counts from the end."""
        data, indices = required(inputs, 0), required(inputs, 1).astype(np.int64)
        extent = data.shape[attributes.axis]
        if not np.all((indices >= -extent) & (indices < extent)):
            raise KernelFault(Status.INDEX_OUT_OF_RANGE, f"a gather index lies outside [-{extent}, {extent - 1}]")
        outputs[0][...] = np.take(data, indices, axis=attributes.axis)


class Pad(Operator):
    """PAD."""

    kind = CommandKind.PAD

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, value = given(inputs, 0), optional(inputs, 1)
        mode = function(PadMode, attributes.mode)
        need(value is None or (value.dtype is x.dtype and value.elements == 1), f"the value is {value}, data {x}")
        rank = len(x.shape)
        shape = []
        for i, (extent, begin, end) in enumerate(zip(x.shape, attributes.begins, attributes.ends, strict=False)):
            need(
                mode is not PadMode.REFLECT or max(begin, end) < extent, f"dimension {i}: cannot reflect {begin}, {end}"
            )
            need(mode not in _FROM_ELEMENTS or extent > 0 or not begin + end, f"dimension {i} has no edge")
            shape.append(begin + extent + end)
        need(not any((*attributes.begins[rank:], *attributes.ends[rank:])), "unused dimensions must be zero")
        need(max(shape, default=0) <= MAX_DIMENSION, f"{x} padded to {shape}")
        return [TensorType(x.dtype, tuple(shape))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Pad (opset 19) with a constant (0 without `value`), reflected or edge elements, or those of the other end."""
        x, value = required(inputs, 0), optional(inputs, 1)
        margins = list(zip(attributes.begins[: x.ndim], attributes.ends[: x.ndim], strict=True))
        if not margins:
            outputs[0][...] = x
        elif attributes.mode == PadMode.CONSTANT:
            fill = x.dtype.type(0) if value is None else value.reshape(())[()]
            outputs[0][...] = np.pad(x, margins, constant_values=fill)
        else:
            outputs[0][...] = np.pad(x, margins, mode=_PAD_MODES[PadMode(attributes.mode)])


class Expand(Operator):
    """EXPAND."""

    kind = CommandKind.EXPAND

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, shape = given(inputs, 0), shape_of(attributes)
        need(broadcast(x.shape, shape) == shape, f"{x} does not broadcast to {list(shape)}")
        return [TensorType(x.dtype, shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Expand (opset 13): broadcast to the output's shape."""
        outputs[0][...] = required(inputs, 0)


OPERATORS: tuple[Operator, ...] = (Copy(), Transpose(), Slice(), Concat(), Gather(), Pad(), Expand())
