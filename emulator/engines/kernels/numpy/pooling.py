"""Maxima under a window, one dimension after the other: each tap of a dimension is one pass over all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver_shim.protocol.program_commands import PoolFunction
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array, is_float, required


def prepare_pool(request: KernelRequest) -> Kernel | None:
    """POOL of maxima as golden's; None for averages and norms, and where the places of maxima are asked for."""
    attributes = request.attributes
    if attributes.function != PoolFunction.MAX or len(request.outputs) > 1:
        return None

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        x, y = required(inputs, 0), outputs[0]
        last = y.ndim - 3
        for i in range(last + 1):
            window = (attributes.kernel[i], attributes.strides[i], attributes.dilations[i], attributes.pads_begin[i])
            shape = (*x.shape[: 2 + i], y.shape[2 + i], *x.shape[3 + i :])
            x = _along(x, 2 + i, window, y if i == last else np.empty(shape, x.dtype))

    return run


def _along(x: Array, axis: int, window: tuple[int, int, int, int], y: Array) -> Array:
    """Fills and returns `y`, the maxima of (kernel, stride, dilation, begin) along one axis; padding never wins."""
    kernel, stride, dilation, begin = window
    y[...] = -np.inf if is_float(x) else np.iinfo(x.dtype).min
    size, extent = x.shape[axis], y.shape[axis]
    before = (slice(None),) * axis
    for tap in range(kernel):
        offset = tap * dilation - begin
        first = max(0, -(offset // stride)) if offset < 0 else 0
        count = min(extent, (size - 1 - offset) // stride + 1) - first
        if count <= 0:
            continue
        start = first * stride + offset
        taken = x[(*before, slice(start, start + (count - 1) * stride + 1, stride))]
        part = y[(*before, slice(first, first + count))]
        np.maximum(part, taken, out=part)
    return y
