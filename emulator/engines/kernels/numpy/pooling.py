"""POOL one dimension after the other: a window's rows first, and of what they give its columns."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import PoolFunction
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array, is_float, required


def prepare_pool(request: KernelRequest) -> Kernel | None:
    """POOL as golden's, of float32, and maxima of 8-bit integers; None for others, and where places are wanted.

    Maxima of tensors in blocks, too, of which nothing but maxima is.
    """
    output, attributes = request.outputs[0], request.attributes
    narrow = output.dtype.is_float and output.dtype.size < 4
    if len(request.outputs) > 1 or narrow or attributes.function == PoolFunction.LP or not output.elements:
        return None
    if request.blocks is not None:
        return functools.partial(_maximum_in_blocks, attributes, request.blocks.size)
    if attributes.function == PoolFunction.MAX:
        return functools.partial(_maximum, attributes, output.shape[2:])
    data = request.inputs[0]
    return functools.partial(_average, attributes, _counts(attributes, data.shape if data else (), output.shape))


def _maximum(attributes: Any, extents: Sequence[int], inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    result, y = required(inputs, 0), outputs[0]
    lowest = -np.inf if is_float(y) else np.iinfo(y.dtype).min
    for axis, extent in enumerate(extents):
        result = _along(result, axis, extent, attributes, np.maximum, lowest)
    y[...] = result


def _maximum_in_blocks(attributes: Any, size: int, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """The same of images [N, C/size, H, W, size], whose last dimension has no window."""
    x, y = (image.reshape(len(image), -1, *image.shape[2:], size) for image in (required(inputs, 0), outputs[0]))
    _maximum(attributes, y.shape[2:4], [x], [y])


def _average(attributes: Any, counts: Array, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    result, y = required(inputs, 0), outputs[0]
    for axis in range(y.ndim - 2):
        result = _along(result, axis, y.shape[2 + axis], attributes, np.add, 0)
    np.divide(result, counts, out=y)


def _along(x: Array, axis: int, extent: int, attributes: Any, combine: np.ufunc, fill: float) -> Array:
    """What a window's taps along one spatial dimension of [N, C, *spatial] come to."""
    kernel, stride, dilation = attributes.kernel[axis], attributes.strides[axis], attributes.dilations[axis]
    starts = [number * dilation - attributes.pads_begin[axis] for number in range(kernel)]
    last = (extent - 1) * stride
    whole = next((start for start in starts if start >= 0 and start + last < x.shape[2 + axis]), None)
    if whole is None:  # every tap falls into the padding somewhere
        begin = attributes.pads_begin[axis]
        x = _padded(x, axis, last + (kernel - 1) * dilation + 1, begin, fill)
        starts = [start + begin for start in starts]
        whole = starts[0]
    before = (slice(None),) * (2 + axis)
    result: Array = x[(*before, slice(whole, whole + last + 1, stride))]
    if kernel > 1:
        result = result.copy()
    for start in starts:
        if start != whole:
            first = max(0, -(start // stride))
            end = min(extent, (x.shape[2 + axis] - 1 - start) // stride + 1)
            if first < end:
                under = result[(*before, slice(first, end))]
                read = slice(start + first * stride, start + (end - 1) * stride + 1, stride)
                combine(under, x[(*before, read)], out=under)
    return result


def _padded(x: Array, axis: int, reach: int, begin: int, fill: float) -> Array:
    """x with `begin` elements of padding in front along one spatial dimension, and as many behind as `reach` needs."""
    size = x.shape[2 + axis]
    whole = max(reach, begin + size)
    if not begin and whole == size:
        return x
    padded = np.full((*x.shape[: 2 + axis], whole, *x.shape[3 + axis :]), fill, x.dtype)
    padded[(*(slice(None),) * (2 + axis), slice(begin, begin + size))] = x
    return padded


def _counts(attributes: Any, shape: Sequence[int], output: Sequence[int]) -> Array:
    """[*output]: how many elements are counted under each window, a product of those along each dimension."""
    along = []
    for axis, (size, extent) in enumerate(zip(shape[2:], output[2:], strict=True)):
        begin, end = attributes.pads_begin[axis], attributes.pads_end[axis]
        first, last = (0, begin + size + end) if attributes.count_include_pad else (begin, begin + size)
        taps = np.arange(extent)[:, None] * attributes.strides[axis]
        places = taps + np.arange(attributes.kernel[axis]) * attributes.dilations[axis]
        along.append(((places >= first) & (places < last)).sum(1))
    counts: Array = functools.reduce(np.multiply.outer, along)
    return counts.astype(np.float32)
