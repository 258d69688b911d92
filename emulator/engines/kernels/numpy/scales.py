"""QUANTIZE and DEQUANTIZE of float32, one scale or one along an axis: in place, without temporaries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver_shim.protocol.types import QUANTISED, WireType
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array, along, optional, required

_CHUNK = 1 << 16
"""Elements at a time, so that what one operation leaves in the cache serves the next."""


def prepare_quantize(request: KernelRequest) -> Kernel | None:
    """QUANTIZE as golden's; None by blocks, and in other types."""
    x = request.inputs[0]
    if request.attributes.block or x is None or x.dtype is not WireType.FLOAT32:
        return None
    axis = request.attributes.axis

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        x, scale, zero, y = required(inputs, 0), required(inputs, 1), required(inputs, 2), outputs[0]
        if scale.size != 1 or zero.size != 1:
            scale, zero = along(scale, axis, x.ndim), along(zero, axis, x.ndim)
            _quantize(x, scale, zero.astype(np.float32), y, np.empty(x.shape, np.float32))
            return
        flat, stored = x.reshape(-1), y.reshape(-1)
        room = np.empty(min(flat.size, _CHUNK), np.float32)
        one, shift = scale.reshape(()), zero.reshape(()).astype(np.float32)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            _quantize(part, one, shift, stored[start : start + _CHUNK], room[: part.size])

    return run


def _quantize(x: Array, scale: Array, zero: Array, y: Array, room: Array) -> None:
    limits = np.iinfo(y.dtype)
    np.divide(x, scale, out=room)
    if np.isnan(room.sum()):  # of infinities of both signs, too
        np.nan_to_num(room, copy=False, nan=0.0)
    np.rint(room, out=room)
    np.clip(room, limits.min - zero, limits.max - zero, out=room)
    np.add(room, zero, out=room)
    np.copyto(y, room, casting="unsafe")


def prepare_dequantize(request: KernelRequest) -> Kernel | None:
    """DEQUANTIZE as golden's; None by blocks, and where float32 does not hold the integers."""
    x, scale = request.inputs[:2]
    exact = x is not None and x.dtype in QUANTISED | {WireType.INT16}
    if request.attributes.block or not exact or scale is None or scale.dtype is not WireType.FLOAT32:
        return None
    axis = request.attributes.axis

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        x, zero, y = required(inputs, 0), optional(inputs, 2), outputs[0]
        if zero is not None and zero.any():
            np.subtract(x, along(zero, axis, x.ndim), out=y, dtype=np.float32, casting="unsafe")
        else:
            np.copyto(y, x)
        np.multiply(y, along(required(inputs, 1), axis, x.ndim), out=y)

    return run
