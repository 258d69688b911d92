"""Resize: every dimension on its own, by a table of what each output element is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.program import MAX_DIMENSION, TensorType
from driver_shim.protocol.program_commands import CommandKind, Coordinates, Interpolation, NearestMode
from driver_shim.protocol.types import FLOATS
from emulator.model.operators.arrays import Array, required, widen
from emulator.model.operators.operator import STEP_EFFORT, Operator, Types, function, given, one_type
from emulator.model.operators.shapes import MAX_WINDOW_TAPS, need

MAX_TABLE_ENTRIES = 1 << 26
"""Of one dimension: its elements times what each is made of."""
_WIDEST = {Interpolation.NEAREST: 0, Interpolation.LINEAR: 1, Interpolation.CUBIC: 2}
"""How far an element's influence reaches, in elements of the data."""
_F = np.float32


class Table(NamedTuple):
    """What the elements along one dimension of the output are made of."""

    axis: int
    indices: Array
    """[extent, taps] elements of the data."""
    weights: Array
    """[extent, taps] float32; they add up to 1."""
    outside: Array | None
    """[extent] whose place lies outside of the data, where those have a value of their own."""


class Resize(Operator):
    """RESIZE."""

    kind = CommandKind.RESIZE
    flags = ("exclude_outside", "antialias")

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x = given(inputs, 0)
        mode = function(Interpolation, attributes.mode)
        coordinates = function(Coordinates, attributes.coordinates)
        function(NearestMode, attributes.nearest)
        one_type(inputs, None if mode is Interpolation.NEAREST else FLOATS)
        need(mode is not Interpolation.NEAREST or not attributes.antialias, "antialias goes with linear and cubic")
        rank = len(x.shape)
        extents = tuple(attributes.extents[:rank])
        places = [*attributes.starts, *attributes.ends] if coordinates is Coordinates.TF_CROP_AND_RESIZE else []
        numbers = (*attributes.scales[:rank], *places, attributes.cubic, attributes.extrapolation)
        need(all(map(math.isfinite, numbers)), "scales and other numbers must be finite")
        for i, (extent, wanted, scale) in enumerate(zip(x.shape, extents, attributes.scales, strict=False)):
            need(scale > 0, f"the scale of dimension {i} is {scale}")
            need(wanted <= MAX_DIMENSION and (extent > 0 or not wanted), f"dimension {i} of {x} cannot become {wanted}")
            taps = _taps(attributes, scale)
            need(
                taps <= MAX_WINDOW_TAPS and taps * wanted <= MAX_TABLE_ENTRIES,
                f"dimension {i}: {wanted} elements of {taps} each",
            )
        unused = [v[i] for v in (attributes.extents, attributes.scales) for i in range(rank, len(v))]
        need(not any(unused), "unused dimensions must be zero")
        return [TensorType(x.dtype, extents)]

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return 0 if attributes.mode == Interpolation.NEAREST else outputs[0].elements * self._taps(attributes, inputs)

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return self._taps(attributes, inputs)

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        largest = max(outputs[0].elements, given(inputs, 0).elements)
        return self._taps(attributes, inputs) * (STEP_EFFORT + 4 * largest)

    def _taps(self, attributes: Any, inputs: Types) -> int:
        """Elements that an output element is made of, one dimension after the other."""
        shape = given(inputs, 0).shape
        resized = [i for i, extent in enumerate(shape) if attributes.extents[i] != extent or attributes.scales[i] != 1]
        return sum(_taps(attributes, attributes.scales[i]) for i in resized) or 1

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Resize (opset 19), with the scales that are given, also where sizes were asked for.

        Places are computed in float32. A nearest element is copied; others are weighted sums in float32, over elements
        that repeat beyond the edges of the data, or over those inside alone with `exclude_outside`.
        """
        x = required(inputs, 0)
        resample = take if attributes.mode == Interpolation.NEAREST else weigh
        result = x if attributes.mode == Interpolation.NEAREST else widen(x)
        for table in tables(attributes, x.shape, outputs[0].shape):
            result = resample(result, table)
            fill_outside(result, table, attributes.extrapolation)
        outputs[0][...] = result


def take(x: Array, table: Table) -> Array:
    """The nearest elements along one dimension."""
    return np.take(x, table.indices[:, 0], table.axis)


def weigh(x: Array, table: Table) -> Array:
    """Weighted sums along one dimension, tap by tap."""
    column = [-1 if i == table.axis else 1 for i in range(x.ndim)]
    result = np.take(x, table.indices[:, 0], table.axis) * table.weights[:, 0].reshape(column)
    for tap in range(1, table.indices.shape[1]):
        part = np.take(x, table.indices[:, tap], table.axis)
        part *= table.weights[:, tap].reshape(column)
        result += part
    return result


def fill_outside(result: Array, table: Table, value: float) -> None:
    """The value of its own for all whose place lies outside of the data."""
    if table.outside is not None:
        result[(slice(None),) * table.axis + (table.outside,)] = value


def tables(attributes: Any, shape: Sequence[int], extents: Sequence[int]) -> list[Table]:
    """The dimensions that change, those that shrink first; no intermediate is larger than data and output."""
    made = []
    for axis, (extent, wanted) in enumerate(zip(shape, extents, strict=True)):
        places = _places(attributes, axis, extent, wanted)
        same = wanted == extent and attributes.scales[axis] == 1 and np.array_equal(places, np.arange(extent))
        if not same:
            made.append((wanted / max(extent, 1), _table(attributes, axis, extent, places)))
    return [table for _, table in sorted(made, key=lambda pair: pair[0])]


def _taps(attributes: Any, scale: float) -> int:
    """Elements that one is made of, along a dimension with this scale."""
    if attributes.mode == Interpolation.NEAREST:
        return 1
    reach = _WIDEST[Interpolation(attributes.mode)]
    if not attributes.antialias or scale >= 1:
        return 2 * reach
    return 2 * math.ceil(reach / scale)


def _table(attributes: Any, axis: int, extent: int, places: Array) -> Table:
    crops = attributes.coordinates == Coordinates.TF_CROP_AND_RESIZE
    outside = (places < 0) | (places > extent - 1) if crops else np.zeros(places.shape, bool)
    if attributes.mode == Interpolation.NEAREST:
        indices = _NEAREST[NearestMode(attributes.nearest)](places).astype(np.int64)[:, None]
        weights: Array = np.ones(indices.shape, _F)
    else:
        indices, weights = _weighted(attributes, places, attributes.scales[axis])
        if attributes.exclude_outside:
            weights = np.where((indices < 0) | (indices >= extent), _F(0), weights)
        sums: Array = weights.sum(1, keepdims=True)
        weights = weights / np.where(sums == 0, _F(1), sums)
    return Table(axis, np.clip(indices, 0, extent - 1), weights, outside if outside.any() else None)


def _places(attributes: Any, axis: int, extent: int, wanted: int) -> Array:
    """x_original of ONNX for each x_resized, in float32."""
    x, scale = np.arange(wanted, dtype=_F), _F(attributes.scales[axis])
    length = _length(attributes.scales[axis], extent)
    coordinates = Coordinates(attributes.coordinates)
    if coordinates is Coordinates.ASYMMETRIC:
        return x / scale
    if coordinates is Coordinates.ALIGN_CORNERS:
        return x * _F(extent - 1) / _F(length - 1) if length != 1 else 0 * x
    if coordinates is Coordinates.TF_HALF_PIXEL_FOR_NN:
        return (x + _F(0.5)) / scale
    if coordinates is Coordinates.TF_CROP_AND_RESIZE:
        start, end = _F(attributes.starts[axis]), _F(attributes.ends[axis])
        if length == 1:
            return 0 * x + _F(0.5) * (start + end) * _F(extent - 1)
        return start * _F(extent - 1) + x * (end - start) * _F(extent - 1) / _F(length - 1)
    if coordinates is Coordinates.PYTORCH_HALF_PIXEL and wanted <= 1:
        return 0 * x
    symmetric = coordinates is Coordinates.HALF_PIXEL_SYMMETRIC
    offset = extent / 2 * (1 - wanted / length) if symmetric else 0.0
    return _F(offset) + (x + _F(0.5)) / scale - _F(0.5)


def _length(scale: float, extent: int) -> float:
    """length_resized = scale · extent, which is no whole number for some scales; a scale is as precise as float32."""
    length = scale * extent
    whole = round(length)
    return whole if abs(length - whole) <= length * 2**-23 else length


_NEAREST: dict[NearestMode, Callable[[Array], Array]] = {
    NearestMode.ROUND_PREFER_FLOOR: lambda places: np.ceil(places - _F(0.5)),
    NearestMode.ROUND_PREFER_CEIL: lambda places: np.floor(places + _F(0.5)),
    NearestMode.FLOOR: np.floor,
    NearestMode.CEIL: np.ceil,
}


def _weighted(attributes: Any, places: Array, scale: float) -> tuple[Array, Array]:
    """Indices and weights [extent, taps] around each place; a filter widened by 1 / scale where it shall not alias."""
    taps = _taps(attributes, scale)
    first = np.floor(places)
    steps = np.arange(1 - taps // 2, taps // 2 + 1, dtype=_F)
    distances = np.abs(steps - (places - first)[:, None])
    if attributes.antialias:
        distances = distances * _F(min(scale, 1.0))
    linear = attributes.mode == Interpolation.LINEAR
    filtered = linear_filter(distances) if linear else cubic_filter(distances, attributes.cubic)
    return first.astype(np.int64)[:, None] + steps.astype(np.int64), filtered


def linear_filter(distances: Array) -> Array:
    """Weights of elements at these distances, which fall to nothing at 1."""
    return np.maximum(_F(1) - distances, _F(0))


def cubic_filter(distances: Array, a: float) -> Array:
    """Keys, Cubic Convolution Interpolation for Digital Image Processing (1981), with parameter `a`."""
    d = distances
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, _F(0)))


OPERATORS: tuple[Operator, ...] = (Resize(),)
