"""The common parts of golden kernels: their type, their error, widening, activations, sliding windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program_commands import Activation
from driver_shim.protocol.types import INT64_STORAGE_MAX, INT64_STORAGE_MIN

Array = NDArray[Any]
Kernel = Callable[[Any, Sequence[Array | None], Sequence[Array]], None]
"""(attributes, inputs, outputs): fills the outputs."""
_Operand = TypeVar("_Operand")


class KernelFault(Exception):
    """A command cannot be carried out with the data it was given; becomes the completion status."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def optional(inputs: Sequence[_Operand | None], position: int) -> _Operand | None:
    """An operand, or its type: None when it is absent, or left out at the end."""
    return inputs[position] if position < len(inputs) else None


def required(inputs: Sequence[Array | None], position: int) -> Array:
    """A required operand."""
    array = inputs[position]
    if array is None:
        raise ValueError(f"operand {position} is required; the command was not checked")
    return array


def is_float(array: Array) -> bool:
    """True for float32, float16 and bfloat16 arrays (bfloat16 is no `np.floating`)."""
    return array.dtype.kind not in "iub"


def widen(array: Array) -> Array:
    """float16 and bfloat16 as float32; other types as they are."""
    return array.astype(np.float32) if is_float(array) and array.dtype.itemsize < 4 else array


def activate(sums: Array, attributes: Any) -> Array:
    """The activation of MATMUL and CONV on float32 sums."""
    activation = attributes.activation
    if activation == Activation.RELU:
        return np.maximum(sums, np.float32(0))
    if activation == Activation.CLIP:
        return np.minimum(np.maximum(sums, np.float32(attributes.low)), np.float32(attributes.high))
    if activation == Activation.SIGMOID:
        return sigmoid(sums)
    if activation == Activation.TANH:
        return np.tanh(sums)
    return sums


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow for large negative x."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def windows(
    x: Array, kernel: Sequence[int], output: Sequence[int], attributes: Any, fill: float
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """The elements of `x` [N, C, *spatial] that meet each tap of a sliding window.

    Yields (tap, x_tap) with x_tap [N, C, *output]: x_tap[..., o] = padded x[..., o·stride + tap·dilation]. Padding,
    also that which ceil mode needs beyond `pads_end`, holds `fill`.
    """
    rank = len(kernel)
    strides, dilations = attributes.strides[:rank], attributes.dilations[:rank]
    margins = [(0, 0), (0, 0)]
    for i in range(rank):
        reach = (output[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
        begin = attributes.pads_begin[i]
        margins.append((begin, max(0, reach - begin - x.shape[2 + i])))
    padded = np.pad(x, margins, constant_values=fill)
    for tap in np.ndindex(*kernel):
        starts = [tap[i] * dilations[i] for i in range(rank)]
        cut: list[Any] = [slice(s, s + (o - 1) * t + 1, t) for s, o, t in zip(starts, output, strides, strict=True)]
        yield tap, padded[(slice(None), slice(None), *cut)]


def grouped_sums(x: Array, w: Array, output: Sequence[int], attributes: Any) -> Array:
    """The sums of Conv, in the type of `x` and `w`: [N, M, *output], zero padding, no bias.

    Conv (opset 11): y[n, m, o] = Σ_c Σ_tap w[m, c, tap] · x[n, group(m)·C/G + c, o·stride + tap·dilation].
    """
    group = attributes.group
    n, m, channels = x.shape[0], w.shape[0], w.shape[1]
    positions = math.prod(output)
    sums = np.zeros((n, group, m // group, positions), x.dtype)
    for tap, x_tap in windows(x, w.shape[2:], output, attributes, 0):
        cut: tuple[Any, ...] = (..., *tap)
        weights = w[cut].reshape(group, m // group, channels)
        sums += weights @ x_tap.reshape(n, group, channels, positions)
    return sums.reshape(n, m, *output)


def truncated(x: Array, dtype: np.dtype[Any]) -> Array:
    """Floats as integers: towards zero; what does not fit, at the type's limit, and NaN as 0.

    Raises KernelFault for those that do not fit int64 (storage of int32 values).
    """
    whole = np.trunc(x.astype(np.float64))
    if dtype == np.int64:
        if not np.all((whole >= INT64_STORAGE_MIN) & (whole <= INT64_STORAGE_MAX)):
            raise KernelFault(Status.VALUE_OUT_OF_RANGE, "a float cast to int64 does not fit 32 bits")
        return whole.astype(np.int64)
    limits = np.iinfo(dtype)
    fitting: Array = np.clip(np.nan_to_num(whole, nan=0), limits.min, limits.max)
    return fitting.astype(dtype)


def along(vector: Array, axis: int, rank: int) -> Array:
    """A per-channel vector shaped to broadcast along `axis`; a single value as a scalar, others as they are."""
    if vector.size == 1:
        return vector.reshape(())
    if vector.ndim > 1:
        return vector
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


def blocks(values: Array, attributes: Any, shape: Sequence[int]) -> Array:
    """Scales or zero points shaped to broadcast to data of `shape`: one, one for each position, or one a block."""
    if not attributes.block:
        return along(values, attributes.axis, len(shape))
    axis = int(attributes.axis)
    repeated: Array = np.repeat(values, int(attributes.block), axis)
    return repeated[(slice(None),) * axis + (slice(shape[axis]),)]


def exact(inputs: Sequence[Array | None], values: int, zero_point: int, axis: int) -> Array:
    """integer − zero point, as float64: whole numbers whose sums of products stay below 2⁵³ are exact there.

    `values` and `zero_point` are positions of operands; zero points of channels lie along `axis`.
    """
    centred = required(inputs, values).astype(np.float64)
    zero = optional(inputs, zero_point)
    return centred if zero is None else centred - along(zero, axis % centred.ndim, centred.ndim).astype(np.float64)


def wrapped(sums: Array) -> Array:
    """Exact sums as a 32-bit accumulator holds them."""
    return sums.astype(np.int64).astype(np.int32)
