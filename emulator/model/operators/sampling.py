"""Elements from between those of the data, at places that are data themselves: GridSample, regions, DeformConv."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import MAX_SPATIAL, CommandKind, GridPadding, Interpolation, PoolFunction
from driver_shim.protocol.types import FLOATS, WireType
from emulator.model.operators.arrays import Array, KernelFault, along, optional, required, widen
from emulator.model.operators.operator import STEP_EFFORT, Operator, Types, function, given, one_type
from emulator.model.operators.products import need_bias
from emulator.model.operators.resizing import cubic_filter, linear_filter
from emulator.model.operators.shapes import conv_shape, need

GRID_CUBIC = -0.75
"""The parameter of GridSample's cubic filter."""
MAX_REGION = 4
"""The most that a region of interest may be larger than the data: its samples are as dense as the data."""
MAX_SAMPLES = 1 << 16
"""Along one dimension of a region."""
_TAPS = {Interpolation.NEAREST: 1, Interpolation.LINEAR: 2, Interpolation.CUBIC: 4}
_FAR = 3
"""Beyond the data by so many elements no filter meets another than the border's."""
_F = np.float32


class Tap(NamedTuple):
    """One of the elements along a dimension that samples are made of, by sample."""

    element: Array
    weight: Array
    inside: Array
    """False where there is no such element, which counts as zero."""


def taps_at(
    places: Array, extent: int, mode: Interpolation, beyond: Callable[[Array], Array] | None = None
) -> list[Tap]:
    """The elements around each place along a dimension.

    `beyond` says which element stands for one outside of the data; without it those count as zero.
    """
    if mode is Interpolation.NEAREST:
        return [_tap(np.rint(places), np.ones_like(places), extent, beyond)]
    first, count = np.floor(places), _TAPS[mode]
    taps = []
    for step in range(1 - count // 2, count // 2 + 1):
        distance = np.abs(_F(step) - (places - first))
        weight = linear_filter(distance) if mode is Interpolation.LINEAR else cubic_filter(distance, GRID_CUBIC)
        taps.append(_tap(first + _F(step), weight, extent, beyond))
    return taps


def _tap(at: Array, weight: Array, extent: int, beyond: Callable[[Array], Array] | None) -> Tap:
    at = at if beyond is None else beyond(at)
    # Compared and clipped as floats: infinities and NaN have no integer.
    index = np.clip(np.nan_to_num(at, nan=0.0), 0, extent - 1).astype(np.int64)
    return Tap(index, weight, (at >= 0) & (at <= extent - 1))


def blend(data: Array, taps: Sequence[Sequence[Tap]]) -> Array:
    """Samples [C, P] of `data` [C, *spatial], by the taps along each spatial dimension."""
    channels, *spatial = data.shape
    flat = data.reshape(channels, math.prod(spatial))
    result = np.zeros((channels, len(taps[0][0].element)), np.float32)
    for combination in itertools.product(*taps):
        index = np.ravel_multi_index([tap.element for tap in combination], spatial)
        inside = np.logical_and.reduce([tap.inside for tap in combination])
        weight = np.multiply.reduce([tap.weight for tap in combination])
        result += np.where(inside, flat[:, index], _F(0)) * weight
    return result


class GridSample(Operator):
    """GRID_SAMPLE."""

    kind = CommandKind.GRID_SAMPLE
    flags = ("align_corners",)

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, grid = given(inputs, 0), given(inputs, 1)
        function(Interpolation, attributes.mode)
        function(GridPadding, attributes.padding)
        need(x.dtype in FLOATS and grid.dtype in FLOATS, f"{x} by {grid}: both must be floats")
        rank = len(x.shape) - 2
        need(1 <= rank <= MAX_SPATIAL and min(x.shape[2:]) > 0, f"data {x}: 1 to {MAX_SPATIAL} spatial dimensions")
        fits = len(grid.shape) == rank + 2 and grid.shape[0] == x.shape[0] and grid.shape[-1] == rank
        need(fits, f"grid {grid} for data {x}")
        return [TensorType(x.dtype, (*x.shape[:2], *grid.shape[1:-1]))]

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return outputs[0].elements * self._combinations(attributes, inputs)

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return given(inputs, 0).shape[0] * self._combinations(attributes, inputs)

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        # A sample is gathered, masked, weighed and added.
        return super().effort(attributes, inputs, outputs) + 16 * self.macs(attributes, inputs, outputs)

    def _combinations(self, attributes: Any, inputs: Types) -> int:
        count: int = _TAPS[Interpolation(attributes.mode)] ** (len(given(inputs, 0).shape) - 2)
        return count

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """GridSample (opset 20): X at the places that the grid holds, in [-1, 1], the last dimension first.

        With `border`, what stands for elements outside of the data is the border's elements, as in PyTorch and
        onnxruntime, not what is found at the border: that makes a difference to the cubic filter.
        """
        x, grid = widen(required(inputs, 0)), widen(required(inputs, 1))
        mode, spatial = Interpolation(attributes.mode), x.shape[2:]
        for image in range(x.shape[0]):
            taps = []
            for axis, extent in enumerate(spatial):
                places = _unnormalised(grid[image, ..., len(spatial) - 1 - axis].ravel(), extent, attributes)
                if mode is Interpolation.NEAREST:
                    places = np.rint(places)
                taps.append(taps_at(_returned(places, extent, attributes), extent, mode, _beyond(extent, attributes)))
            outputs[0][image] = blend(x[image], taps).reshape(outputs[0].shape[1:])


def _unnormalised(places: Array, extent: int, attributes: Any) -> Array:
    """Places from [-1, 1], which is from the first element's centre to the last one's, or from edge to edge."""
    if attributes.align_corners:
        return (places + 1) / 2 * _F(extent - 1)
    return ((places + 1) * _F(extent) - 1) / 2


def _returned(places: Array, extent: int, attributes: Any) -> Array:
    """Places far beyond the borders brought back, where padding says so."""
    low, high = _borders(extent, attributes)
    if attributes.padding == GridPadding.BORDER:
        return np.clip(places, -_FAR, extent - 1 + _FAR)
    if attributes.padding == GridPadding.REFLECTION:
        return np.where((places < low) | (places > high), _reflected(places, low, high), places)
    return places


def _beyond(extent: int, attributes: Any) -> Callable[[Array], Array] | None:
    """Which element stands for one beyond the data."""
    low, high = _borders(extent, attributes)
    if attributes.padding == GridPadding.BORDER:
        return lambda at: np.clip(at, 0, extent - 1)
    if attributes.padding == GridPadding.REFLECTION:
        return lambda at: np.where((at < low) | (at > high), np.trunc(_reflected(at, low, high)), at)
    return None


def _borders(extent: int, attributes: Any) -> tuple[float, float]:
    return (0.0, extent - 1.0) if attributes.align_corners else (-0.5, extent - 0.5)


def _reflected(places: Array, low: float, high: float) -> Array:
    """Places folded into [low, high]."""
    if low == high:
        return np.full_like(places, low)
    span = _F(high - low)
    folded = np.mod(places - _F(low), 2 * span)
    result: Array = _F(low) + np.where(folded <= span, folded, 2 * span - folded)
    return result


class _Regions(Operator):
    """What regions of interest have in common: x, regions, and how large each one's output is."""

    def _result(self, attributes: Any, x: TensorType, regions: TensorType, columns: int) -> Sequence[TensorType]:
        need(x.dtype in FLOATS and regions.dtype is x.dtype, f"{x} with regions {regions}: both must be floats")
        need(len(x.shape) == 4 and min(x.shape[2:]) > 0, f"data {x} is no image")
        need(len(regions.shape) == 2 and regions.shape[1] == columns, f"regions {regions}, must have {columns} columns")
        need(attributes.output_height > 0 and attributes.output_width > 0, "the output of a region is empty")
        need(math.isfinite(attributes.spatial_scale), f"the scale is {attributes.spatial_scale}")
        size = (attributes.output_height, attributes.output_width)
        return [TensorType(x.dtype, (regions.shape[0], x.shape[1], *size))]


class RoiAlign(_Regions):
    """ROI_ALIGN."""

    kind = CommandKind.ROI_ALIGN
    flags = ("half_pixel",)

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        x, regions, batch = (given(inputs, i) for i in range(3))
        named = function(PoolFunction, attributes.function)
        need(named in (PoolFunction.MAX, PoolFunction.AVERAGE), f"{named.name} is no mode of regions")
        need(batch.dtype is WireType.INT64 and batch.shape == regions.shape[:1], f"batch_indices {batch} for {regions}")
        result = self._result(attributes, x, regions, 4)
        height, width = self._samples(attributes, x)
        need(max(height, width) <= MAX_SAMPLES, f"{height} by {width} samples of a region; at most {MAX_SAMPLES} each")
        return result

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        x = given(inputs, 0)
        height, width = self._samples(attributes, x)
        samples = x.shape[1] * (height * width + outputs[0].shape[2] * x.shape[2] * (x.shape[3] + outputs[0].shape[3]))
        per_region = 16 * samples + 4 * (height * x.shape[2] + width * x.shape[3])
        return outputs[0].shape[0] * (per_region + STEP_EFFORT) + STEP_EFFORT

    def _samples(self, attributes: Any, x: TensorType) -> tuple[int, int]:
        """The most samples along each dimension of a region."""
        outputs = (attributes.output_height, attributes.output_width)
        most = [
            attributes.sampling_ratio or MAX_REGION * extent // output + 1
            for extent, output in zip(x.shape[2:], outputs, strict=True)
        ]
        return outputs[0] * most[0], outputs[1] * most[1]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """RoiAlign (opset 16): averages or maxima of samples in each bin of a region.

        Without `sampling_ratio` there are as many samples as elements. A maximum is one of the four parts that samples
        are made of, as the specification's reference has it.
        """
        x = widen(required(inputs, 0))
        batch, scaled = scaled_regions(attributes, inputs)
        pool = _average if attributes.function == PoolFunction.AVERAGE else _maximum
        for i, (left, top, right, bottom) in enumerate(scaled):
            rows = region_bins(attributes, top, bottom, attributes.output_height, x.shape[2])
            columns = region_bins(attributes, left, right, attributes.output_width, x.shape[3])
            outputs[0][i] = pool(x[batch[i]], rows, columns)


class Bins(NamedTuple):
    """The samples of a region along one dimension: element `low` with its weight, and `low` + 1 with its own."""

    extent: int
    indices: tuple[Array, Array]
    """Each [bins, samples]."""
    weights: tuple[Array, Array]


def scaled_regions(attributes: Any, inputs: Sequence[Array | None]) -> tuple[Array, Array]:
    """The image of every region of ROI_ALIGN, and the region [left, top, right, bottom] in elements of it."""
    batch = checked_batch(required(inputs, 2), len(required(inputs, 0)))
    regions = widen(required(inputs, 1)).astype(np.float32)
    return batch, regions * _F(attributes.spatial_scale) - _F(0.5 if attributes.half_pixel else 0)


def checked_batch(indices: Array, images: int) -> Array:
    """Indices of images. Raises KernelFault for one that there is not."""
    if not np.all((indices >= 0) & (indices < images)):
        raise KernelFault(Status.INDEX_OUT_OF_RANGE, f"a region is of an image outside of [0, {images - 1}]")
    return indices.astype(np.int64)


def region_bins(attributes: Any, start: np.float32, end: np.float32, bins: int, extent: int) -> Bins:
    length = end - start if attributes.half_pixel else max(end - start, _F(1))
    if not abs(length) <= MAX_REGION * extent:  # nor NaN
        raise KernelFault(Status.VALUE_OUT_OF_RANGE, f"a region is {length} long, with data of {extent}")
    size = _F(length) / _F(bins)
    samples = attributes.sampling_ratio or max(0, math.ceil(size))
    steps = (np.arange(samples, dtype=np.float32) + _F(0.5)) * size / _F(max(samples, 1))
    places = start + np.arange(bins, dtype=np.float32)[:, None] * size + steps
    inside = (places >= -1) & (places <= extent)
    clipped = np.clip(places, 0, extent - 1)
    low = np.floor(clipped).astype(np.int64)
    upper = (clipped - low).astype(np.float32)
    weights = (np.where(inside, 1 - upper, _F(0)), np.where(inside, upper, _F(0)))
    return Bins(extent, (low, np.minimum(low + 1, extent - 1)), weights)


def _average(data: Array, rows: Bins, columns: Bins) -> Array:
    """[C, rows, columns]: bilinear samples are products along rows and along columns, so their averages are, too."""
    return averaging(rows) @ data @ averaging(columns).T


def averaging(bins: Bins) -> Array:
    """[bins, extent]: what share of each element a bin's average has."""
    matrix = np.zeros((len(bins.indices[0]), bins.extent), np.float32)
    samples = max(bins.indices[0].shape[1], 1)
    for index, weight in zip(bins.indices, bins.weights, strict=True):
        np.add.at(matrix, (np.arange(len(matrix))[:, None], index), weight / _F(samples))
    return matrix


def _maximum(data: Array, rows: Bins, columns: Bins) -> Array:
    """[C, rows, columns]; 0 where a region has no samples."""
    shape = (len(data), *rows.indices[0].shape, *columns.indices[0].shape)
    if 0 in shape:
        return np.zeros((len(data), len(rows.indices[0]), len(columns.indices[0])), np.float32)
    best = np.full(shape, -np.inf, np.float32)
    for (y, y_weight), (x, x_weight) in itertools.product(zip(*rows[1:], strict=True), zip(*columns[1:], strict=True)):
        parts = data[:, y[:, :, None, None], x] * (y_weight[:, :, None, None] * x_weight)
        np.maximum(best, parts, out=best)
    result: Array = best.max((2, 4))
    return result


class RoiPool(_Regions):
    """ROI_POOL."""

    kind = CommandKind.ROI_POOL

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        return self._result(attributes, given(inputs, 0), given(inputs, 1), 5)

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        # Bins overlap by an element at most, in each dimension.
        x, bins = given(inputs, 0), math.prod(outputs[0].shape[2:])
        per_region = 16 * x.elements // max(x.shape[0], 1) + bins * (STEP_EFFORT + 16 * x.shape[1] * sum(x.shape[2:]))
        return outputs[0].shape[0] * per_region + STEP_EFFORT

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """MaxRoiPool: the largest element in each bin of a region with whole bounds; 0 where there is none."""
        x, regions = required(inputs, 0), widen(required(inputs, 1))
        batch = checked_batch(regions[:, 0], len(x))
        bounds = regions[:, 1:] * _F(attributes.spatial_scale)
        if not np.all(np.abs(bounds) <= MAX_REGION * max(x.shape[2:])):
            raise KernelFault(Status.VALUE_OUT_OF_RANGE, "a region is far outside of the data")
        whole = np.copysign(np.floor(np.abs(bounds) + _F(0.5)), bounds).astype(np.int64)
        for i, (left, top, right, bottom) in enumerate(whole):
            rows = _cells(top, bottom, attributes.output_height, x.shape[2])
            columns = _cells(left, right, attributes.output_width, x.shape[3])
            for (row, (y, y_end)), (column, (at, end)) in itertools.product(enumerate(rows), enumerate(columns)):
                cell = x[batch[i], :, y:y_end, at:end]
                outputs[0][i, :, row, column] = cell.max((1, 2)) if cell.size else 0


def _cells(start: int, end: int, bins: int, extent: int) -> list[tuple[int, int]]:
    """(first, end) of every bin's elements."""
    size = _F(max(end - start + 1, 1)) / _F(bins)
    edges = [(math.floor(i * size) + start, math.ceil((i + 1) * size) + start) for i in range(bins)]
    return [(min(max(int(first), 0), extent), min(max(int(last), 0), extent)) for first, last in edges]


class DeformConv(Operator):
    """DEFORM_CONV."""

    kind = CommandKind.DEFORM_CONV

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        dtype = one_type(inputs, FLOATS)
        x, w, offset, mask = given(inputs, 0), given(inputs, 1), given(inputs, 2), optional(inputs, 4)
        need(len(x.shape) == 4 and min(x.shape[2:]) > 0, f"data {x} is no image")
        shape = conv_shape(x, w, attributes)
        need_bias(optional(inputs, 3), shape[1])
        groups, taps = attributes.offset_group, math.prod(w.shape[2:])
        need(groups > 0 and x.shape[1] % groups == 0, f"{groups} groups of offsets for data {x}")
        wanted = (shape[0], groups * taps * 2, *shape[2:])
        need(offset.shape == wanted, f"offset {offset}, must be {list(wanted)}")
        wanted = (shape[0], groups * taps, *shape[2:])
        need(mask is None or mask.shape == wanted, f"mask {mask}, must be {list(wanted)}")
        return [TensorType(dtype, shape)]

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return outputs[0].elements * math.prod(given(inputs, 1).shape[1:]) + 4 * self._samples(inputs, outputs)

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        x, w = given(inputs, 0), given(inputs, 1)
        groups: int = attributes.offset_group
        return 4 * x.shape[0] * math.prod(w.shape[2:]) * groups

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return super().effort(attributes, inputs, outputs) + 64 * self._samples(inputs, outputs)

    def _samples(self, inputs: Types, outputs: Sequence[TensorType]) -> int:
        x, w = given(inputs, 0), given(inputs, 1)
        return x.shape[0] * x.shape[1] * math.prod(w.shape[2:]) * math.prod(outputs[0].shape[2:])

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """DeformConv (opset 19): Conv, each element of which is taken from an offset of its own, and weighed by `mask`.

        Between elements it interpolates linearly; outside of the data there are zeros.
        """
        x, w, offset = (widen(required(inputs, i)) for i in range(3))
        bias, mask = optional(inputs, 3), optional(inputs, 4)
        kernel, output = w.shape[2:], outputs[0].shape[2:]
        groups, taps, places = attributes.offset_group, math.prod(kernel), math.prod(output)
        offsets = offset.reshape(len(x), groups, taps, 2, places)
        masks = None if mask is None else widen(mask).reshape(len(x), groups, taps, 1, places)
        grouped = w.reshape(attributes.group, len(w) // attributes.group, w.shape[1], taps)
        sums = np.zeros(outputs[0].shape, np.float32)
        for image, (tap, at) in itertools.product(range(len(x)), enumerate(np.ndindex(*kernel))):
            base = window_places(at, output, attributes)
            parts = []
            for group, data in enumerate(np.split(x[image], groups)):
                moved = [b + o for b, o in zip(base, offsets[image, group, tap], strict=True)]
                around = [taps_at(p, e, Interpolation.LINEAR) for p, e in zip(moved, x.shape[2:], strict=True)]
                part = blend(data, around)
                parts.append(part if masks is None else part * masks[image, group, tap])
            sampled = np.concatenate(parts).reshape(attributes.group, w.shape[1], places)
            sums[image] += (grouped[..., tap] @ sampled).reshape(sums.shape[1:])
        if bias is not None:
            sums += along(widen(bias), 1, 4)
        outputs[0][...] = sums


def window_places(tap: Sequence[int], output: Sequence[int], attributes: Any) -> list[Array]:
    """Rows and columns [P] float32 that one tap of a window meets."""
    along_each = [
        np.arange(extent, dtype=np.float32) * _F(attributes.strides[i])
        + _F(tap[i] * attributes.dilations[i] - attributes.pads_begin[i])
        for i, extent in enumerate(output)
    ]
    return [grid.ravel() for grid in np.meshgrid(*along_each, indexing="ij")]


OPERATORS: tuple[Operator, ...] = (GridSample(), RoiAlign(), RoiPool(), DeformConv())
