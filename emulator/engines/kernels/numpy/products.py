"""Floating-point sums of products: MATMUL and CONV straight into their output, bias and activation in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import Activation
from emulator.engines.kernels.numpy.columns import convolve, convolve_depthwise, convolve_transposed, is_depthwise
from emulator.model.operators.arrays import Array, activate, along, is_float, optional, required, widen


def matmul(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """MATMUL as golden's, one BLAS call where the leading dimensions allow."""
    a, b, y = widen(required(inputs, 0)), widen(required(inputs, 1)), outputs[0]
    bias = optional(inputs, 2)
    if attributes.transpose_a:
        a = a.swapaxes(-1, -2)
    if attributes.transpose_b:
        b = b.swapaxes(-1, -2)
    sums = _sums_of(y)
    if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous:
        rows = math.prod(a.shape[:-1])
        np.matmul(a.reshape(rows, a.shape[-1]), b, out=sums.reshape(rows, b.shape[-1]))
    else:
        np.matmul(a, b, out=sums)
    if attributes.alpha != 1:
        sums *= np.float32(attributes.alpha)
    if bias is not None:
        sums += widen(bias) if attributes.beta == 1 else np.float32(attributes.beta) * widen(bias)
    _finish(sums, y, attributes)


def conv(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """CONV as golden's, through columns and BLAS."""
    x, w, y = widen(required(inputs, 0)), widen(required(inputs, 1)), outputs[0]
    bias, addend = optional(inputs, 2), optional(inputs, 3)
    sums = _sums_of(y)
    convolved = convolve_depthwise if is_depthwise(w.shape, attributes.group) else convolve
    convolved(x, w, sums, attributes, _multiply)
    if bias is not None:
        sums += along(widen(bias), 1, sums.ndim)
    if addend is not None:
        sums += widen(addend)
    _finish(sums, y, attributes)


def conv_transpose(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """CONV_TRANSPOSE as golden's, by one product."""
    x, w, y = widen(required(inputs, 0)), widen(required(inputs, 1)), outputs[0]
    bias = optional(inputs, 2)
    sums = _sums_of(y)
    convolve_transposed(x, w, sums, attributes)
    if bias is not None:
        sums += along(widen(bias), 1, sums.ndim)
    _finish(sums, y, attributes)


def _sums_of(y: Array) -> Array:
    """Where float32 sums go: the output itself if it holds them. Verified programs keep operands out of it."""
    return np.empty(y.shape, np.float32) if is_float(y) and y.dtype != np.float32 else y


def _multiply(weights: Array, columns: Array, sums: Array) -> None:
    np.matmul(weights, columns, out=sums)


def _finish(sums: Array, y: Array, attributes: Any) -> None:
    """Activation, then the one rounding to the output's type."""
    if attributes.activation == Activation.RELU:
        np.maximum(sums, np.float32(0), out=sums)
    elif attributes.activation == Activation.TANH:
        np.tanh(sums, out=sums)
    elif attributes.activation != Activation.NONE:
        sums = activate(sums, attributes)
    if sums is not y:
        y[...] = sums
