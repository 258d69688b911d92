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


def convolve_depthwise(x: Array, w: Array, sums: Array, attributes: Any) -> None:
    """`convolve` where every group has one input channel: tap by tap, since the matrices would be single rows.

    Computes in the type of `sums`; integers wrap.
    """
    kernel, output = w.shape[2:], sums.shape[2:]
    rank = len(kernel)
    x = _padded(x, kernel, output, attributes)
    images, channels = x.shape[:2]
    per_channel = sums.reshape(images, channels, w.shape[0] // channels, *output)
    product = np.empty(per_channel.shape, sums.dtype)
    per_channel[...] = 0
    for tap in np.ndindex(*kernel):
        cut = [slice(None), slice(None), None]
        for axis in range(rank):
            start, stride = tap[axis] * attributes.dilations[axis], attributes.strides[axis]
            cut.append(slice(start, start + (output[axis] - 1) * stride + 1, stride))
        taps = w[(slice(None), 0, *tap)].reshape(channels, w.shape[0] // channels, *(1,) * rank)
        np.multiply(x[tuple(cut)], taps, out=product, dtype=sums.dtype)
        per_channel += product


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
