"""ROI_ALIGN and DEFORM_CONV with the channels last: what is gathered, and what is multiplied, then lies together."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import CommandKind, Interpolation, PoolFunction
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators import OPERATORS
from emulator.model.operators.arrays import Array, optional, required, widen
from emulator.model.operators.sampling import Bins, averaging, region_bins, scaled_regions, taps_at, window_places

TILE_ELEMENTS = 262144
"""Samples at a time, so that they stay in the cache between gathering, weighing and adding."""
_F = np.float32


def prepare_roi_align(request: KernelRequest) -> Kernel | None:
    """ROI_ALIGN as golden's; None for maxima, and where something is empty."""
    x, *_ = request.inputs
    if request.attributes.function != PoolFunction.AVERAGE or x is None or not x.elements * request.outputs[0].elements:
        return None
    return functools.partial(_roi_align, request.attributes)


def _roi_align(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    x = widen(required(inputs, 0))
    if not _is_finite(x):
        _golden(CommandKind.ROI_ALIGN, attributes, inputs, outputs)
        return
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    batch, scaled = scaled_regions(attributes, inputs)
    for image, (left, top, right, bottom), y in zip(batch, scaled, outputs[0], strict=True):
        rows = region_bins(attributes, top, bottom, attributes.output_height, x.shape[2])
        columns = region_bins(attributes, left, right, attributes.output_width, x.shape[3])
        (down, row_share), (across, column_share) = _shares(rows), _shares(columns)
        part = last[image, down, across]
        height, width, channels = part.shape
        averaged = (row_share @ part.reshape(height, width * channels)).reshape(-1, width, channels)
        y[...] = np.matmul(column_share, averaged).transpose(2, 0, 1)


def _shares(bins: Bins) -> tuple[slice, Array]:
    """The elements that a region meets along a dimension, and what share of each a bin's average has."""
    low, high = bins.indices
    met = slice(int(low.min()), int(high.max()) + 1) if low.size else slice(0, 1)
    return met, averaging(bins)[:, met]


def prepare_deform_conv(request: KernelRequest) -> Kernel | None:
    """DEFORM_CONV as golden's; None where something is empty."""
    tensors = (*request.inputs, request.outputs[0])
    if any(tensor is not None and not tensor.elements for tensor in tensors):
        return None
    return functools.partial(_deform_conv, request.attributes)


def _deform_conv(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    x, w, offset = (widen(required(inputs, i)) for i in range(3))
    if not _is_finite(x):
        _golden(CommandKind.DEFORM_CONV, attributes, inputs, outputs)
        return
    bias, mask = optional(inputs, 3), optional(inputs, 4)
    y, taps, groups = outputs[0], math.prod(w.shape[2:]), attributes.offset_group
    places = math.prod(y.shape[2:])
    offsets = offset.reshape(len(x), groups, taps, 2, places)
    masks = None if mask is None else widen(mask).reshape(len(x), groups, taps, places)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(len(x), -1, groups, x.shape[1] // groups)
    weights = _by_tap(w, attributes.group)
    bases = [window_places(at, y.shape[2:], attributes) for at in np.ndindex(*w.shape[2:])]
    tile = max(1, TILE_ELEMENTS // x.shape[1])
    for image, first in itertools.product(range(len(x)), range(0, places, tile)):
        part = slice(first, min(first + tile, places))
        columns = np.empty((part.stop - part.start, taps, groups, last.shape[-1]), np.float32)
        for (tap, base), group in itertools.product(enumerate(bases), range(groups)):
            moved = [along[part] + o[part] for along, o in zip(base, offsets[image, group, tap], strict=True)]
            scale = None if masks is None else masks[image, group, tap, part]
            _sample(last[image, :, group], moved, x.shape[2:], scale, columns[:, tap, group])
        sums = _products(columns, weights)
        if bias is not None:
            sums += widen(bias)
        y.reshape(len(x), y.shape[1], places)[image, :, part] = sums.T


def _by_tap(w: Array, group: int) -> Array:
    """Weights [M, C/group, …] as [group, taps · C/group, M/group]."""
    split = w.reshape(group, len(w) // group, w.shape[1], -1)
    return np.ascontiguousarray(split.transpose(0, 3, 2, 1)).reshape(group, -1, len(w) // group)


def _products(columns: Array, weights: Array) -> Array:
    """[places, M] of samples [places, taps, …channels]."""
    places, taps = columns.shape[:2]
    split = columns.reshape(places, taps, len(weights), -1).transpose(2, 0, 1, 3)
    parts = [part.reshape(places, -1) @ weight for part, weight in zip(split, weights, strict=True)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)


def _sample(data: Array, places: Sequence[Array], extents: Sequence[int], scale: Array | None, into: Array) -> None:
    """Samples [places, C] of [H · W, C], those beyond its borders of zeros, each times its scale."""
    rows, columns = (
        taps_at(along, extent, Interpolation.LINEAR) for along, extent in zip(places, extents, strict=True)
    )
    part = np.empty(into.shape, np.float32)
    for number, (down, across) in enumerate(itertools.product(rows, columns)):
        weight = down.weight * across.weight
        weight = np.where(down.inside & across.inside, weight, _F(0) * weight)  # of no number it is none
        if scale is not None:
            weight = weight * scale
        np.take(data, down.element * extents[1] + across.element, 0, out=part, mode="clip")  # all are inside
        if number:
            part *= weight[:, None]
            into += part
        else:
            np.multiply(part, weight[:, None], out=into)


def _is_finite(x: Array) -> bool:
    """Whether all are numbers; False for some whose sum is none, too."""
    return bool(np.isfinite(x.sum()))


def _golden(kind: CommandKind, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    OPERATORS[kind].run(attributes, inputs, outputs)
