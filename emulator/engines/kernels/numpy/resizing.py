"""RESIZE by tables that are made once: whole copies where elements repeat evenly, small dimensions as products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from driver_shim.protocol.program_commands import Interpolation
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array, required, widen
from emulator.model.operators.resizing import Table, fill_outside, tables, take, weigh

DENSE_EXTENT = 128
"""Elements of a dimension up to which a product with a matrix, most of it zeros, is faster than gathering."""
_GATHERED = 2
"""Taps up to which gathering rows is faster than any product."""

_Step = Callable[[Array], Array]


def prepare_resize(request: KernelRequest) -> Kernel | None:
    """RESIZE as golden's; None where nothing has elements."""
    data, output, attributes = request.inputs[0], request.outputs[0], request.attributes
    if data is None or not output.elements:
        return None
    changed = tables(attributes, data.shape, output.shape)
    nearest = attributes.mode == Interpolation.NEAREST
    steps = [_nearest(table, data.shape) if nearest else _weighted(table, data.shape) for table in changed]

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        result = required(inputs, 0) if nearest else widen(required(inputs, 0))
        for step, table in zip(steps, changed, strict=True):
            result = step(result)
            fill_outside(result, table, attributes.extrapolation)
        outputs[0][...] = result

    return run


def _nearest(table: Table, shape: Sequence[int]) -> _Step:
    extent, indices = shape[table.axis], table.indices[:, 0]
    repeats = len(indices) // extent
    if repeats * extent == len(indices) and np.array_equal(indices, np.repeat(np.arange(extent), repeats)):
        return lambda x: np.repeat(x, repeats, table.axis)
    return lambda x: take(x, table)


def _weighted(table: Table, shape: Sequence[int]) -> _Step:
    extent, (wanted, taps) = shape[table.axis], table.indices.shape
    last = table.axis == len(shape) - 1
    if extent > DENSE_EXTENT or (taps <= _GATHERED and not last):
        return lambda x: weigh(x, table)
    matrix = np.zeros((wanted, extent), np.float32)
    np.add.at(matrix, (np.arange(wanted)[:, None], table.indices), table.weights)
    if last:
        across = np.ascontiguousarray(matrix.T)
        return lambda x: _where_finite(np.matmul(x, across), x, table)
    return lambda x: _where_finite(_product(matrix, x, table.axis), x, table)


def _where_finite(product: Array, x: Array, table: Table) -> Array:
    """The product where it is of numbers: infinity times the zeros of a matrix would spread over the dimension."""
    return product if np.isfinite(product.sum()) else weigh(x, table)


def _product(matrix: Array, x: Array, axis: int) -> Array:
    """matrix @ x along one dimension, all that follow it taken as columns."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    result: Array = np.matmul(matrix, x.reshape(*before, x.shape[axis], -1))
    return result.reshape(*before, len(matrix), *after)
