"""Convolution as matrix products: each window of the input becomes a column, a block of output rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from emulator.model.operators.arrays import Array
from emulator.model.operators.products import inside, reach
from emulator.model.operators.shapes import canvas_extent

COLUMN_BYTES = 8 << 20
"""Size of one block of columns: large enough to keep BLAS busy, small enough for the last-level cache."""

DEPTHWISE_BYTES = 4 << 20
"""The same for depthwise convolutions, whose columns are read once."""

NARROWING = 2
"""Times fewer output channels than input channels from which on a convolution is taken tap by tap."""

Multiply = Callable[[Array, Array, Array], None]
"""(weights [G, M/G, K], columns [G, K, P], sums [G, M/G, P]): sums = weights @ columns."""


def convolve(x: Array, w: Array, sums: Array, attributes: Any, multiply: Multiply) -> None:
    """Fill `sums` [N, M, *output] (dense) with the sums of Conv (opset 11), zero padding, no bias.

    `x` [N, C, *spatial] and `w` [M, C/G, *kernel] are of the type `multiply` takes.
    """
    kernel, output = w.shape[2:], sums.shape[2:]
    group, rank = attributes.group, len(kernel)
    strides, dilations = attributes.strides[:rank], attributes.dilations[:rank]
    x = _padded(x, kernel, output, attributes)
    images, channels = x.shape[:2]
    depth = w.shape[1] * math.prod(kernel)
    weights = w.reshape(group, w.shape[0] // group, depth)
    positions = sums.reshape(images, group, w.shape[0] // group, math.prod(output))
    if math.prod(kernel) == 1 and x.shape[2:] == output:
        for image in range(images):
            multiply(weights, x[image].reshape(group, depth, math.prod(output)), positions[image])
        return
    if NARROWING * weights.shape[1] <= w.shape[1] and math.prod(kernel) > 1 and set(strides) == {1}:
        _convolve_by_taps(x, w, sums, attributes, multiply)
        return
    steps = x.strides[2:]
    windows = as_strided(
        x,
        (images, channels, *kernel, *output),
        (
            *x.strides[:2],
            *(step * dilation for step, dilation in zip(steps, dilations, strict=True)),
            *(step * stride for step, stride in zip(steps, strides, strict=True)),
        ),
        writeable=False,
    )
    row_positions = math.prod(output[1:])
    row_bytes = channels * math.prod(kernel) * row_positions * x.itemsize
    rows = min(output[0], max(1, COLUMN_BYTES // max(1, row_bytes)))
    block = np.empty((channels, *kernel, rows, *output[1:]), x.dtype)
    row_axis = (slice(None),) * (1 + rank)
    for image in range(images):
        for first in range(0, output[0], rows):
            last = min(first + rows, output[0])
            columns = (
                block if last - first == rows else np.empty((channels, *kernel, last - first, *output[1:]), x.dtype)
            )
            np.copyto(columns, windows[image][(*row_axis, slice(first, last))])
            multiply(
                weights,
                columns.reshape(group, depth, (last - first) * row_positions),
                positions[image][..., first * row_positions : last * row_positions],
            )


def _convolve_by_taps(x: Array, w: Array, sums: Array, attributes: Any, multiply: Multiply) -> None:
    """`convolve` with stride 1 to few channels, of `x` with its padding: a product for each tap, laid over one another.

    The products of all taps are one, with more rows than the columns' would have; BLAS is slow on few. A block of rows
    is taken at a time, with those that the window reaches over. Runs are as in `convolve_depthwise`.
    """
    kernel, output, group = w.shape[2:], sums.shape[2:], attributes.group
    taps, per_group = math.prod(kernel), w.shape[0] // group
    steps = [math.prod(x.shape[3 + axis :]) for axis in range(len(kernel))]
    width = sum((extent - 1) * step for extent, step in zip(output[1:], steps[1:], strict=True)) + 1
    over = x.shape[2] - output[0]
    offsets = [
        sum(i * d * s for i, d, s in zip(tap, attributes.dilations, steps, strict=False)) for tap in np.ndindex(*kernel)
    ]
    by_tap = w.reshape(group, per_group, w.shape[1], taps).transpose(0, 3, 1, 2)
    weights = np.ascontiguousarray(by_tap).reshape(group, taps * per_group, w.shape[1])
    row_bytes = group * taps * per_group * steps[0] * sums.itemsize
    rows = min(output[0], max(over, COLUMN_BYTES // max(1, row_bytes), 1))
    for image in range(x.shape[0]):
        flat = x[image].reshape(group, w.shape[1], -1)
        for first in range(0, output[0], rows):
            count = min(rows, output[0] - first)
            data = flat[..., first * steps[0] : (first + count + over) * steps[0]]
            parts = np.empty((group, taps * per_group, data.shape[-1]), sums.dtype)
            multiply(weights, data, parts)
            parts = parts.reshape(group, taps, per_group, -1)
            run = (count - 1) * steps[0] + width
            total = parts[:, 0, :, offsets[0] : offsets[0] + run]
            for tap in range(1, taps):
                total += parts[:, tap, :, offsets[tap] : offsets[tap] + run]
            sizes = (group, per_group, count, *output[1:])
            strides = (*total.strides[:2], *(step * total.itemsize for step in steps))
            place = sums[image].reshape(group, per_group, *output)[:, :, first : first + count]
            place[...] = as_strided(total, sizes, strides, writeable=False)


def convolve_depthwise(x: Array, w: Array, sums: Array, attributes: Any, multiply: Multiply) -> None:
    """`convolve` where every group has one input channel, a block of channels at a time.

    Rows are short, so the elements that a tap meets are taken from all rows of a channel as one run, with what lies
    between the rows; that is left out in the end.
    """
    kernel, output = w.shape[2:], sums.shape[2:]
    taps, strides = math.prod(kernel), attributes.strides[: len(kernel)]
    x = _padded(x, kernel, output, attributes)
    images, channels = x.shape[:2]
    per_channel = w.shape[0] // channels
    offsets = [[tap * d for tap in range(k)] for k, d in zip(kernel, attributes.dilations, strict=False)]
    extents = [o + reach[-1] // s for o, reach, s in zip(output, offsets, strides, strict=True)]
    steps = [math.prod(extents[axis + 1 :]) for axis in range(len(kernel))]
    run = sum((extent - 1) * step for extent, step in zip(output, steps, strict=True)) + 1
    block = min(channels, max(1, DEPTHWISE_BYTES // (taps * run * x.itemsize)))
    columns = np.empty((block, taps, run), x.dtype)
    totals = np.empty((block, per_channel, run), sums.dtype)
    weights = w.reshape(channels, per_channel, taps)
    grouped = sums.reshape(images, channels, per_channel, *output)
    strided = (*totals.strides[:2], *(step * totals.itemsize for step in steps))
    for image in range(images):
        for first in range(0, channels, block):
            part = slice(first, min(first + block, channels))
            phases, count = _Phases(x[image, part], strides, extents), part.stop - first
            for number, tap in enumerate(np.ndindex(*kernel)):
                offset = [reach[i] for reach, i in zip(offsets, tap, strict=True)]
                columns[:count, number] = phases.at(offset, steps, run)
            multiply(weights[part], columns[:count], totals[:count])
            grouped[image, part] = as_strided(totals, (count, per_channel, *output), strided, writeable=False)


class _Phases:
    """Data [C, *spatial], taken apart by where its elements lie between the steps of a stride."""

    def __init__(self, x: Array, strides: Sequence[int], extents: Sequence[int]) -> None:
        self._x = x
        self._strides = strides
        self._extents = extents
        self._runs: dict[tuple[int, ...], Array] = {}

    def at(self, offset: Sequence[int], steps: Sequence[int], run: int) -> Array:
        """The elements [C, run] at an offset from each window's beginning, one row of windows after the other."""
        phase = tuple(o % s for o, s in zip(offset, self._strides, strict=True))
        if phase not in self._runs:
            self._runs[phase] = self._take(phase)
        start = sum(o // s * step for o, s, step in zip(offset, self._strides, steps, strict=True))
        return self._runs[phase][:, start : start + run]

    def _take(self, phase: Sequence[int]) -> Array:
        """[C, elements]: all elements of a phase, filled up or cut to one size."""
        cuts = [slice(p, p + (e - 1) * s + 1, s) for p, s, e in zip(phase, self._strides, self._extents, strict=True)]
        taken = self._x[(slice(None), *cuts)]
        if taken.shape[1:] == tuple(self._extents):
            return np.ascontiguousarray(taken).reshape(len(taken), -1)
        whole = np.zeros((len(taken), *self._extents), taken.dtype)
        whole[(slice(None), *map(slice, taken.shape[1:]))] = taken
        return whole.reshape(len(taken), -1)


def convolve_transposed(x: Array, w: Array, sums: Array, attributes: Any) -> None:
    """Fill `sums` [N, M, *output] (dense) with the sums of ConvTranspose (opset 11), no bias.

    One product gives what every tap makes of every element; taps are then laid over one another.
    """
    kernel, spatial, group = w.shape[2:], x.shape[2:], attributes.group
    images, channels, per_group = x.shape[0], w.shape[0] // group, w.shape[1]
    taps, positions = math.prod(kernel), math.prod(spatial)
    weights = w.reshape(group, channels, per_group * taps).swapaxes(1, 2)
    data = np.ascontiguousarray(x).reshape(images, group, channels, positions)
    extents = [
        canvas_extent(*sizes)
        for sizes in zip(
            spatial, kernel, attributes.strides, attributes.dilations, attributes.output_padding, strict=False
        )
    ]
    whole = tuple(extents) == sums.shape[2:]
    apart = whole and tuple(s * k for s, k in zip(spatial, kernel, strict=True)) == sums.shape[2:]
    for image in range(images):
        parts = np.matmul(weights, data[image]).reshape(group * per_group, *kernel, *spatial)
        if apart:
            _interleave(parts, sums[image], kernel)
            continue
        canvas = sums[image] if whole else np.empty((group * per_group, *extents), np.float32)
        canvas[...] = 0
        for tap in np.ndindex(*kernel):
            canvas[reach(tap, spatial, attributes)[1:]] += parts[(slice(None), *tap)]
        if not whole:
            sums[image] = canvas[inside(sums.shape[2:], attributes)]


def _interleave(parts: Array, sums: Array, kernel: Sequence[int]) -> None:
    """[M, *kernel, *spatial] as [M, *(spatial · kernel)], where taps do not overlap: upsampling by strides."""
    rank = len(kernel)
    spatial = parts.shape[1 + rank :]
    pairs = [axis for i in range(rank) for axis in (1 + rank + i, 1 + i)]
    apart = sums.reshape(len(parts), *(size for pair in zip(spatial, kernel, strict=True) for size in pair))
    apart[...] = parts.transpose(0, *pairs)


def is_depthwise(weights: Sequence[int], group: int) -> bool:
    """Whether `convolve_depthwise` applies to weights of this shape."""
    return group > 1 and weights[1] == 1


def _padded(x: Array, kernel: Sequence[int], output: Sequence[int], attributes: Any) -> Array:
    """`x` with its zero padding; as it is when there is none. Dense, so that rows can be taken as matrices."""
    rank = len(kernel)
    margins = [(0, 0), (0, 0)]
    for i in range(rank):
        reach = (output[i] - 1) * attributes.strides[i] + (kernel[i] - 1) * attributes.dilations[i] + 1
        begin = attributes.pads_begin[i]
        margins.append((begin, max(0, reach - begin - x.shape[2 + i])))
    if not any(before or after for before, after in margins):
        return np.ascontiguousarray(x)
    shape = [extent + before + after for extent, (before, after) in zip(x.shape, margins, strict=True)]
    padded = np.zeros(shape, x.dtype)
    inside = tuple(slice(before, before + extent) for extent, (before, _) in zip(x.shape, margins, strict=True))
    padded[inside] = x
    return padded
