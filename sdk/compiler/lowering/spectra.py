"""Fourier transforms as products with constant matrices, and the windows and mel bins that go with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Refused, Value
from sdk.compiler.lowering.elementwise import binary
from sdk.compiler.lowering.movement import RANGE_LIMIT, transposed
from sdk.compiler.lowering.products import spatial

_MOST_TERMS = 1 << 24
"""Numbers in a transform's matrix, which grows with the square of its length."""
_AXIS_IS_INPUT_SINCE = 20
_REAL, _COMPLEX = 1, 2
_MEL, _MEL_HERTZ = 2595, 700
"""mel(f) = 2595 · log10(1 + f / 700)."""

_WINDOWS = {
    "HannWindow": (0.5, -0.5, 0.0),
    "HammingWindow": (25 / 46, 25 / 46 - 1, 0.0),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}
"""a, b and c of a + b · cos(2πn / N) + c · cos(4πn / N)."""


def _dft(node: NodeContext) -> Sequence[Value]:
    """DFT: one product with the transform's matrix; a length other than the signal's cuts or pads it there."""
    x, builder = node.value(0), node.builder
    rank = len(x.shape)
    if rank < 2 or x.shape[-1] not in (_REAL, _COMPLEX):
        raise Refused(f"the signal {x.type}; its last dimension is 1 (real) or 2 (complex)")
    axis = node.axis(_axis(node), rank)
    if axis == rank - 1:
        raise Refused(f"axis {axis} is that of real and imaginary parts")
    inverse, onesided = bool(node.attribute("inverse", 0)), bool(node.attribute("onesided", 0))
    given = node.constant_ints(1, "dft_length")
    usual = 2 * (x.shape[axis] - 1) if inverse and onesided else x.shape[axis]
    length = given[0] if given else usual
    matrix = _matrix(x.shape[axis], length, x.shape[-1], inverse=inverse, onesided=onesided)
    others = [i for i in range(rank - 1) if i != axis]
    order = [*others, axis, rank - 1]
    extents = [x.shape[i] for i in others]
    rows = builder.reshape(transposed(builder, x, order), (math.prod(extents), matrix.shape[0] * matrix.shape[1]))
    weights = matrix.reshape(rows.shape[1], -1).astype(x.dtype.dtype)
    product = builder.emit(CommandKind.MATMUL, [rows, builder.constant(weights)], alpha=1.0, beta=0.0)
    result = builder.reshape(product, (*extents, *matrix.shape[2:]))
    return [transposed(builder, result, [order.index(i) for i in range(rank)])]


def _axis(node: NodeContext) -> int:
    if node.since < _AXIS_IS_INPUT_SINCE:
        return int(node.attribute("axis", 1))
    given = node.constant_ints(2, "axis")
    return given[0] if given else -2


def _matrix(extent: int, length: int, parts: int, *, inverse: bool, onesided: bool) -> NDArray[np.float64]:
    """[places of the signal, its parts, places of the result, its parts] of a transform of `length`.

    Places of the signal beyond the length count nothing. Raises Refused.
    """
    if length < 1 or extent * parts * length * 2 > _MOST_TERMS:
        raise Refused(f"a transform of {length} over {extent} elements; its matrix may have {_MOST_TERMS} numbers")
    if onesided and parts != (_COMPLEX if inverse else _REAL):
        raise Refused("onesided takes a real signal forwards and a complex one backwards")
    half = length // 2 + 1
    results = half if onesided and not inverse else length
    used = half if onesided and inverse else length
    counted = np.arange(extent) < used
    angles = 2 * math.pi / length * (np.outer(np.arange(extent), np.arange(results)) % length)
    cos, sin = (np.where(counted[:, None], function(angles), 0) for function in (np.cos, np.sin))
    if inverse:
        cos, sin = cos / length, -sin / length
    if onesided and inverse:
        # The places that are left out mirror those between the first and the middle.
        twice = np.where((np.arange(extent) == 0) | (2 * np.arange(extent) == length), 1, 2)[:, None]
        return np.stack([cos * twice, sin * twice], 1)[..., None]
    of_real = np.stack([cos, -sin], -1)
    of_imaginary = np.stack([sin, cos], -1)
    return np.stack([of_real, of_imaginary][:parts], 1)


def _stft(node: NodeContext) -> Sequence[Value]:
    """STFT: a convolution with the transform's matrix, its terms weighed by the window."""
    x, builder, window = node.value(0), node.builder, node.optional(2)
    if len(x.shape) != 3 or x.shape[2] not in (_REAL, _COMPLEX):
        raise Refused(f"the signal {x.type}; it is [batch, length, 1 (real) or 2 (complex)]")
    batch, extent, parts = x.shape
    steps, lengths = node.constant_ints(1, "frame_step"), node.constant_ints(3, "frame_length")
    usual = extent if window is None else math.prod(window.shape)
    length = lengths[0] if lengths else usual
    if not steps or steps[0] < 1 or not 1 <= length <= extent or (window is not None and window.shape != (length,)):
        raise Refused(f"frames of {length} every {steps} with the window {window and window.type} over {x.type}")
    matrix = _matrix(length, length, parts, inverse=False, onesided=bool(node.attribute("onesided", 1)))
    kernels = matrix.transpose(2, 3, 1, 0).reshape(-1, parts, length)
    weights = builder.constant(np.ascontiguousarray(kernels).astype(x.dtype.dtype))
    if window is not None:
        weights = binary(builder, BinaryFunction.MUL, weights, window)
    frames = builder.emit(
        CommandKind.CONV,
        [transposed(builder, x, (0, 2, 1)), weights],
        group=1,
        strides=spatial(steps[:1], 1),
        dilations=spatial([1], 1),
        pads_begin=spatial([0], 0),
        pads_end=spatial([0], 0),
    )
    turned = transposed(builder, frames, (0, 2, 1))
    return [builder.reshape(turned, (batch, turned.shape[1], matrix.shape[2], 2))]


def _window(op: str) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        """A window of a size that is known; periodic ones are the first of a symmetric one that is longer by one."""
        sizes = node.constant_ints(0, "size")
        dtype = node.wire_type(node.attribute("output_datatype", WireType.FLOAT32))
        if not sizes or not 0 <= sizes[0] <= RANGE_LIMIT:
            raise Refused(f"a window of {sizes}; at most {RANGE_LIMIT} elements")
        period = sizes[0] if node.attribute("periodic", 1) else sizes[0] - 1
        angles = 2 * math.pi * np.arange(sizes[0]) / max(1, period)
        a, b, c = _WINDOWS[op]
        values = a + b * np.cos(angles) + c * np.cos(2 * angles)
        return [node.builder.constant(values.astype(dtype.dtype))]

    return lower


def _mel_weight_matrix(node: NodeContext) -> Sequence[Value]:
    """MelWeightMatrix: a triangle over the spectrum for each bin, its corners evenly apart in mel; all of it known."""
    bins, length, rate = (node.constant_ints(i, what) for i, what in enumerate(("bins", "length", "rate")))
    low, high = node.constant_float(3, "lower edge"), node.constant_float(4, "upper edge")
    dtype = node.wire_type(node.attribute("output_datatype", WireType.FLOAT32))
    if not bins or not length or not rate or low is None or high is None or min(*bins, *length, *rate) < 1:
        raise Refused(f"{bins} bins of a transform of {length} at {rate} samples a second")
    places = length[0] // 2 + 1
    if places * bins[0] > _MOST_TERMS:
        raise Refused(f"{bins[0]} bins of {places} places; the matrix may have {_MOST_TERMS} numbers")
    corners = np.arange(bins[0] + 2)
    mel = _to_mel(low) + corners * (_to_mel(high) - _to_mel(low)) / len(corners)
    hertz = _MEL_HERTZ * (10 ** (mel / _MEL) - 1)
    at = ((length[0] + 1) * hertz // rate[0]).astype(np.int64)
    left, middle, right = at[:-2], at[1:-1], at[2:]
    place = np.arange(places)[:, None]
    rising = np.where(middle == left, 1.0, (place - left) / np.maximum(1, middle - left))
    falling = (right - place) / np.maximum(1, right - middle)
    weights = np.where((left <= place) & (place <= middle), rising, 0)
    weights += np.where((middle < place) & (place < right), falling, 0)
    return [node.builder.constant(weights.astype(dtype.dtype))]


def _to_mel(hertz: float) -> float:
    return _MEL * math.log10(1 + hertz / _MEL_HERTZ)


LOWERINGS: dict[str, Lowering] = {
    "DFT": _dft,
    "STFT": _stft,
    "MelWeightMatrix": _mel_weight_matrix,
    **{op: _window(op) for op in _WINDOWS},
}
