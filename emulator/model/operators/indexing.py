"""Elements found by index, by order and by position: gathers, scatters, TopK, running sums, determinants, BitCast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind, CumulateFunction, ScatterReduction
from driver_shim.protocol.types import FLOATS, INTEGERS, WireType
from emulator.model.operators.arrays import Array, KernelFault, required, widen
from emulator.model.operators.operator import Operator, Types, checked_axis, function, given, one_type
from emulator.model.operators.shapes import need

INDICES = frozenset({WireType.INT32, WireType.INT64})
SORT_PASSES = 32
"""Of TOP_K over its operand."""
SCATTER_PASSES = 8
"""Of a scatter over its updates."""

_COMBINE: dict[ScatterReduction, np.ufunc] = {
    ScatterReduction.ADD: np.add,
    ScatterReduction.MUL: np.multiply,
    ScatterReduction.MAX: np.maximum,
    ScatterReduction.MIN: np.minimum,
}


def need_indices(indices: TensorType) -> None:
    """Raise SemanticError unless the operand can hold indices."""
    need(indices.dtype in INDICES, f"indices are {indices}, must be int32 or int64")


def from_start(indices: Array, extent: int) -> Array:
    """Indices counted from 0, of which negative ones counted from the end. Raises KernelFault."""
    wide = indices.astype(np.int64)
    if not np.all((wide >= -extent) & (wide < extent)):
        raise KernelFault(Status.INDEX_OUT_OF_RANGE, f"an index lies outside [-{extent}, {extent - 1}]")
    return np.where(wide < 0, wide + extent, wide)


def _along(indices: Array, data: Array, axis: int) -> tuple[Array, ...]:
    """Where in `data` each element of `indices` points that replaces its own place along `axis`."""
    places: list[Array] = list(np.indices(indices.shape, sparse=True))
    places[axis] = from_start(indices, data.shape[axis])
    return tuple(places)


def _tuples(indices: Array, data: Array, batch_dims: int = 0) -> tuple[Array, ...]:
    """Where in `data` each row of `indices` points: its place in the batch dimensions, then what it holds."""
    rows = indices.shape[:-1]
    batch: Sequence[Array] = np.indices(rows, sparse=True)[:batch_dims]
    columns = range(indices.shape[-1])
    return (*batch, *(from_start(indices[..., i], data.shape[batch_dims + i]) for i in columns))


class GatherElements(Operator):
    """GATHER_ELEMENTS."""

    kind = CommandKind.GATHER_ELEMENTS

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        data, indices = given(inputs, 0), given(inputs, 1)
        need_indices(indices)
        _need_within(data, indices, checked_axis(attributes.axis, len(data.shape)))
        return [TensorType(data.dtype, indices.shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """GatherElements (opset 13): y[i, j, k] = x[i, index[i, j, k], k] along `axis` 1."""
        data = required(inputs, 0)
        outputs[0][...] = data[_along(required(inputs, 1), data, attributes.axis)]


def _need_within(data: TensorType, indices: TensorType, axis: int) -> None:
    fits = len(indices.shape) == len(data.shape) and all(
        i == axis or wanted <= held for i, (wanted, held) in enumerate(zip(indices.shape, data.shape, strict=True))
    )
    need(fits, f"indices {indices} reach beyond {data} in other dimensions than {axis}")


class GatherND(Operator):
    """GATHER_ND."""

    kind = CommandKind.GATHER_ND

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        data, indices, batch = given(inputs, 0), given(inputs, 1), attributes.batch_dims
        need_indices(indices)
        need(batch < min(len(data.shape), len(indices.shape)), f"{batch} batch dimensions of {data} and {indices}")
        need(data.shape[:batch] == indices.shape[:batch], f"batch dimensions of {data} and {indices} differ")
        depth = indices.shape[-1]
        need(1 <= depth <= len(data.shape) - batch, f"indices of {depth} dimensions into {data}")
        return [TensorType(data.dtype, (*indices.shape[:-1], *data.shape[batch + depth :]))]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """GatherND (opset 13): each row of indices names a place, or a slice, behind `batch_dims` dimensions."""
        data = required(inputs, 0)
        outputs[0][...] = data[_tuples(required(inputs, 1), data, attributes.batch_dims)]


class Scatter(Operator):
    """The common part of both scatters: a copy of the data with updates stored, or combined, at their places."""

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return SCATTER_PASSES

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return super().effort(attributes, inputs, outputs) + SCATTER_PASSES * 8 * given(inputs, 2).elements

    def _types(self, attributes: Any, inputs: Types) -> tuple[TensorType, TensorType, TensorType]:
        data, indices, updates = (given(inputs, i) for i in range(3))
        need_indices(indices)
        reduction = function(ScatterReduction, attributes.reduction)
        whole = frozenset(WireType) if reduction is ScatterReduction.NONE else FLOATS | INTEGERS
        one_type((data, updates), whole)
        return data, indices, updates

    def _store(self, reduction: int, data: Array, places: tuple[Array, ...], updates: Array, y: Array) -> None:
        if reduction == ScatterReduction.NONE:
            y[...] = data
            y[places] = updates
            return
        result = widen(data).copy()
        _COMBINE[ScatterReduction(reduction)].at(result, places, widen(updates))
        y[...] = result


class ScatterElements(Scatter):
    """SCATTER_ELEMENTS."""

    kind = CommandKind.SCATTER_ELEMENTS

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        data, indices, updates = self._types(attributes, inputs)
        _need_within(data, indices, checked_axis(attributes.axis, len(data.shape)))
        need(updates.shape == indices.shape, f"updates {updates} for indices {indices}")
        return [data]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """ScatterElements (opset 18): y = x, then y[i, index[i, j, k], k] combined with update[i, j, k]."""
        data = required(inputs, 0)
        places = _along(required(inputs, 1), data, attributes.axis)
        self._store(attributes.reduction, data, places, required(inputs, 2), outputs[0])


class ScatterND(Scatter):
    """SCATTER_ND."""

    kind = CommandKind.SCATTER_ND

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        data, indices, updates = self._types(attributes, inputs)
        need(len(indices.shape) >= 1, f"indices are {indices}")
        depth = indices.shape[-1]
        need(1 <= depth <= len(data.shape), f"indices of {depth} dimensions into {data}")
        wanted = (*indices.shape[:-1], *data.shape[depth:])
        need(updates.shape == wanted, f"updates {updates} for indices {indices}, must be {list(wanted)}")
        return [data]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """ScatterND (opset 18): y = x, then y[row of indices] combined with the update of that row."""
        data = required(inputs, 0)
        places = _tuples(required(inputs, 1), data)
        self._store(attributes.reduction, data, places, required(inputs, 2), outputs[0])


class TopK(Operator):
    """TOP_K."""

    kind = CommandKind.TOP_K
    flags = ("largest",)

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        one_type(inputs, FLOATS | INTEGERS)
        axis, k = checked_axis(attributes.axis, len(x.shape)), attributes.k
        need(k <= x.shape[axis], f"{k} of {x.shape[axis]} elements along {axis}")
        shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
        return [TensorType(x.dtype, shape), TensorType(WireType.INT64, shape)]

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return super().effort(attributes, inputs, outputs) + SORT_PASSES * 8 * given(inputs, 0).elements

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """TopK (opset 24): the k largest or smallest along `axis` in order, of equal ones that of lower index first.

        NaN is above every number. Outputs: values, indices.
        """
        x, axis = required(inputs, 0), attributes.axis
        order = ordered(widen(x), axis, largest=bool(attributes.largest))
        indices = order.take(range(attributes.k), axis)
        outputs[0][...] = np.take_along_axis(x, indices, axis)
        if len(outputs) > 1:
            outputs[1][...] = indices


def ordered(x: Array, axis: int, *, largest: bool) -> Array:
    """Indices that sort x along an axis, of equal elements the lower index first."""
    if not largest:
        upwards: Array = np.argsort(x, axis, kind="stable")
        return upwards
    # Sorted upwards from the end and read backwards, equal elements come in their own order.
    backwards: Array = np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    result: Array = x.shape[axis] - 1 - backwards
    return result


class Cumulate(Operator):
    """CUMULATE."""

    kind = CommandKind.CUMULATE
    flags = ("exclusive", "reverse")

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        function(CumulateFunction, attributes.function)
        x = given(inputs, 0)
        checked_axis(attributes.axis, len(x.shape))
        return [TensorType(one_type(inputs, FLOATS | INTEGERS), x.shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """CumSum (opset 14), CumProd (opset 26): sums or products of all elements up to each along `axis`.

        `exclusive` leaves out the element itself; `reverse` begins at the end. Integers wrap.
        """
        x, axis, y = widen(required(inputs, 0)), attributes.axis, outputs[0]
        if attributes.reverse:
            x, y = np.flip(x, axis), np.flip(y, axis)
        product = attributes.function == CumulateFunction.PROD
        if attributes.exclusive:
            neutral = np.full((*x.shape[:axis], 1, *x.shape[axis + 1 :]), int(product), x.dtype)
            x = np.concatenate([neutral, x.take(range(x.shape[axis] - 1), axis)], axis)
        y[...] = (np.cumprod if product else np.cumsum)(x, axis, dtype=x.dtype)


class Determinant(Operator):
    """DETERMINANT."""

    kind = CommandKind.DETERMINANT

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        need(len(x.shape) >= 2 and x.shape[-1] == x.shape[-2], f"{x} is no square matrix")
        return [TensorType(one_type(inputs, FLOATS), x.shape[:-2])]

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        x = given(inputs, 0)
        return x.elements * x.shape[-1]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Det (opset 22): of each square matrix in the last two dimensions, by elimination in float64."""
        outputs[0][...] = np.linalg.det(widen(required(inputs, 0)).astype(np.float64))


class BitCast(Operator):
    """BITCAST."""

    kind = CommandKind.BITCAST

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, target = given(inputs, 0), function(WireType, attributes.dtype)
        need(x.dtype.size == target.size, f"{x} has no elements as wide as {target.text}")
        return [TensorType(target, x.shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """BitCast (opset 26): the same bytes as another type; as bool, whether a byte is not 0."""
        x, y = required(inputs, 0), outputs[0]
        y[...] = x.view(np.uint8) != 0 if y.dtype.kind == "b" else x.view(y.dtype)


OPERATORS: tuple[Operator, ...] = (
    GatherElements(),
    GatherND(),
    ScatterElements(),
    ScatterND(),
    TopK(),
    Cumulate(),
    Determinant(),
    BitCast(),
)
