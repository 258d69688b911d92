"""8-bit sums of products, exact through float32 BLAS.

float32 holds every whole number up to 2²⁴, so a sum of K products is exact there as long as K times the largest
product does not exceed that. Longer sums are cut into chunks, added as int32, which wraps as the accumulator does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from emulator.engines.kernels.numpy.columns import convolve, convolve_depthwise, is_depthwise
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array, along, optional, required
from emulator.model.operators.quantised_elementwise import VALUES, combine

EXACT_LIMIT = 1 << 24
"""float32 has 24 bits of significand."""
_PAIRS = VALUES * VALUES // 4
"""Elements below which a table of all pairs costs more than it saves."""


def prepare_matmul(request: KernelRequest) -> Kernel:
    """QMATMUL as golden's."""
    packed = _packed(request, -1)

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        sums = np.empty(outputs[0].shape, np.int32)
        x = _centred(inputs, 0, 3, -1)
        w = _centred(inputs, 1, 5, -1) if packed is None else packed
        _exact_product(x, w, sums, _chunk(inputs))
        _requantise(request.attributes, sums, inputs, outputs[0], sums.ndim - 1)

    return run


def prepare_conv(request: KernelRequest) -> Kernel:
    """QCONV as golden's: padding stands for real zero, which is zero once the zero point is subtracted."""
    attributes, weights = request.attributes, request.inputs[1]
    depthwise = weights is not None and is_depthwise(weights.shape, attributes.group)
    convolved = convolve_depthwise if depthwise else convolve
    packed = _packed(request, 0)

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        sums = np.empty(outputs[0].shape, np.int32)
        x = _centred(inputs, 0, 3, 1)
        w = _centred(inputs, 1, 5, 0) if packed is None else packed
        chunk = _chunk(inputs)
        convolved(x, w, sums, attributes, lambda a, b, out: _exact_product(a, b, out, chunk))
        _requantise(attributes, sums, inputs, outputs[0], 1)

    return run


def prepare_matmul_integer(request: KernelRequest) -> Kernel:
    """MATMUL_INTEGER as golden's."""
    packed = _packed(request, -1, zero_point=3)

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        x = _centred(inputs, 0, 2, -1)
        w = _centred(inputs, 1, 3, -1) if packed is None else packed
        _exact_product(x, w, outputs[0], _chunk(inputs, 2, 3))

    return run


def prepare_conv_integer(request: KernelRequest) -> Kernel:
    """CONV_INTEGER as golden's."""
    attributes, weights = request.attributes, request.inputs[1]
    depthwise = weights is not None and is_depthwise(weights.shape, attributes.group)
    convolved = convolve_depthwise if depthwise else convolve
    packed = _packed(request, 0, zero_point=3)

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        x = _centred(inputs, 0, 2, 1)
        w = _centred(inputs, 1, 3, 0) if packed is None else packed
        chunk = _chunk(inputs, 2, 3)
        convolved(x, w, outputs[0], attributes, lambda a, b, out: _exact_product(a, b, out, chunk))

    return run


def prepare_binary(request: KernelRequest) -> Kernel | None:
    """QBINARY by a table of all pairs of its operands' values; None where the scales are not known, or few elements."""
    kinds = [tensor for tensor in request.inputs[:2] if tensor is not None]
    if any(request.constant(i) is None for i in range(2, 8)) or request.outputs[0].elements < _PAIRS:
        return None
    every = [np.arange(VALUES, dtype=np.uint8).view(kind.dtype.dtype) for kind in kinds]
    table = np.empty((VALUES, VALUES), request.outputs[0].dtype.dtype)
    with np.errstate(all="ignore"):
        combine(request.attributes, every[0][:, None], every[1], request.constants, table)
    flat = table.reshape(-1)

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        a, b = (required(inputs, i).view(np.uint8) for i in (0, 1))
        index = np.left_shift(a, 8, dtype=np.uint16) | b
        np.take(flat, index, out=outputs[0], mode="wrap")

    return run


def _packed(request: KernelRequest, axis: int, zero_point: int = 5) -> Array | None:
    """The weights without their zero point, once for all runs; None when they are no constants."""
    absent = zero_point >= len(request.inputs) or request.inputs[zero_point] is None
    if request.constant(1) is None or (request.constant(zero_point) is None and not absent):
        return None
    return _centred(request.constants, 1, zero_point, axis)


def _centred(inputs: Sequence[Array | None], values: int, zero_point: int, axis: int) -> Array:
    """integer − zero_point in float32, which holds it exactly; zero points of channels lie along `axis`."""
    centred = required(inputs, values).astype(np.float32)
    zero = optional(inputs, zero_point)
    if zero is not None and zero.any():
        centred -= along(zero, axis % centred.ndim, centred.ndim).astype(np.float32)
    return centred


def _chunk(inputs: Sequence[Array | None], x_zero: int = 3, w_zero: int = 5) -> int:
    """The number of products that float32 adds exactly, whatever the values are. Takes positions of zero points."""
    return EXACT_LIMIT // math.prod(
        _largest(required(inputs, values), optional(inputs, zero)) for values, zero in ((0, x_zero), (1, w_zero))
    )


def _largest(values: Array, zero_point: Array | None) -> int:
    """Largest magnitude of integer − zero_point (there are no zero points where there are no channels)."""
    limits = np.iinfo(values.dtype)
    if zero_point is None:
        return max(limits.max, -limits.min)
    if not zero_point.size:
        return 1
    return max(limits.max - int(zero_point.min()), int(zero_point.max()) - limits.min)


def _exact_product(a: Array, b: Array, sums: Array, chunk: int) -> None:
    """sums = a @ b for whole numbers in float32, `chunk` products at a time; `sums` is int32."""
    depth = a.shape[-1]
    np.copyto(sums, np.matmul(a[..., :chunk], b[..., :chunk, :]), casting="unsafe")
    for start in range(chunk, depth, chunk):
        part = np.matmul(a[..., start : start + chunk], b[..., start : start + chunk, :])
        sums += part.astype(np.int32)


def _requantise(attributes: Any, sums: Array, inputs: Sequence[Array | None], y: Array, axis: int) -> None:
    """The same float32 operations in the same order as golden's, in place."""
    x_scale, w_scale, y_scale = (required(inputs, position) for position in (2, 4, 6))
    bias = optional(inputs, 8)
    if bias is not None:
        sums += along(bias, axis, y.ndim)
    multiplier = (along(x_scale, axis, y.ndim) * along(w_scale, axis, y.ndim)) / y_scale.reshape(())
    zero_point = int(required(inputs, 7).reshape(()))
    limits = np.iinfo(y.dtype)
    low = zero_point if attributes.relu else limits.min
    scaled = sums.astype(np.float32)
    scaled *= multiplier
    if not np.isfinite(multiplier).all():
        np.nan_to_num(scaled, copy=False, nan=0.0)
    np.clip(scaled, low - zero_point, limits.max - zero_point, out=scaled)
    np.rint(scaled, out=scaled)
    scaled += np.float32(zero_point)
    np.copyto(y, scaled, casting="unsafe")
