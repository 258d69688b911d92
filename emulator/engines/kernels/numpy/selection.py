"""TOP_K by selection where k is small, and GATHER_ELEMENTS by places in one flat array."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array, is_float, required, widen
from emulator.model.operators.indexing import from_start, ordered

_LONG = 1 << 11
"""Elements of a row below which sorting all of it is as fast."""
_FEW = 8
"""A row has at least this many times k elements where selecting pays."""


def prepare_top_k(request: KernelRequest) -> Kernel | None:
    """A kernel for long rows of which few elements are wanted."""
    x, attributes = request.inputs[0], request.attributes
    if x is None or not attributes.k:
        return None
    length = x.shape[attributes.axis]
    if length < _LONG or attributes.k * _FEW > length:
        return None
    return functools.partial(top_k, attributes)


def top_k(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """TOP_K as golden's: of each row only what is not beyond the k-th element is sorted."""
    x, axis = required(inputs, 0), attributes.axis
    rows = np.moveaxis(widen(x), axis, -1)
    indices = np.empty((*rows.shape[:-1], attributes.k), np.int64)
    for place in np.ndindex(rows.shape[:-1]):
        indices[place] = _selected(rows[place], attributes.k, largest=bool(attributes.largest))
    along = np.moveaxis(indices, -1, axis)
    outputs[0][...] = np.take_along_axis(x, along, axis)
    if len(outputs) > 1:
        outputs[1][...] = along


def _selected(row: Array, k: int, *, largest: bool) -> Array:
    """Indices of the k first elements of a row in their order."""
    last = row.size - k if largest else k - 1
    limit = np.partition(row, last)[last]
    if is_float(row) and np.isnan(row).any():  # no comparison finds it
        return ordered(row, 0, largest=largest)[:k]
    candidates = np.flatnonzero(row >= limit if largest else row <= limit)
    best: Array = candidates[ordered(row[candidates], 0, largest=largest)[:k]]
    return best


def gather_elements(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """GATHER_ELEMENTS as golden's: where each element lies in the flat data, and one take."""
    data, indices = required(inputs, 0), required(inputs, 1)
    strides = [math.prod(data.shape[i + 1 :]) for i in range(data.ndim)]
    axis = attributes.axis
    places = from_start(indices, data.shape[axis])
    places *= strides[axis]
    for i, (extent, stride) in enumerate(zip(indices.shape, strides, strict=True)):
        if i != axis:
            places += (np.arange(extent) * stride).reshape([-1 if j == i else 1 for j in range(data.ndim)])
    np.take(data.reshape(-1), places, out=outputs[0], mode="clip")
