"""Sums of products in floating point: MatMul, Gemm, Conv; and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import PoolFunction
from emulator.model.golden.common import (
    Array,
    activate,
    along,
    grouped_sums,
    is_float,
    operand,
    required,
    widen,
    windows,
)


def matmul(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """MatMul (opset 13), Gemm (opset 13): activation(alpha · A' B' + beta · bias).

    A' and B' are transposed in their last two dimensions on request; leading dimensions broadcast.
    """
    a, b = widen(required(inputs, 0)), widen(required(inputs, 1))
    bias = operand(inputs, 2)
    if attributes.transpose_a:
        a = a.swapaxes(-1, -2)
    if attributes.transpose_b:
        b = b.swapaxes(-1, -2)
    sums = a @ b
    if attributes.alpha != 1:
        sums *= np.float32(attributes.alpha)
    if bias is not None:
        sums += np.float32(attributes.beta) * widen(bias)
    outputs[0][...] = activate(sums, attributes)


def conv(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """Conv (opset 11): activation(conv(X, W) + B), zero padding, grouped, strided, dilated."""
    x, w = widen(required(inputs, 0)), widen(required(inputs, 1))
    bias = operand(inputs, 2)
    sums = grouped_sums(x, w, outputs[0].shape[2:], attributes)
    if bias is not None:
        sums += along(widen(bias), 1, sums.ndim)
    outputs[0][...] = activate(sums, attributes)


def pool(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """MaxPool (opset 12), AveragePool (opset 19). Padding never wins a maximum.

    An average divides by the number of elements under the window; padding that the attributes name counts when
    `count_include_pad` is set, what ceil mode adds beyond it never does.
    """
    x = widen(required(inputs, 0))
    output = outputs[0].shape[2:]
    kernel = attributes.kernel[: len(output)]
    if attributes.function == PoolFunction.MAX:
        lowest = -np.inf if is_float(x) else np.iinfo(x.dtype).min
        best = np.full(outputs[0].shape, lowest, x.dtype)
        for _, x_tap in windows(x, kernel, output, attributes, lowest):
            np.maximum(best, x_tap, out=best)
        outputs[0][...] = best
        return
    sums = np.zeros(outputs[0].shape, np.float32)
    counts = np.zeros((1, 1, *output), np.float32)
    for _, x_tap in windows(x, kernel, output, attributes, 0):
        sums += x_tap
    for _, counted in windows(_counted(x, attributes), kernel, output, _inside(attributes), 0):
        counts += counted
    outputs[0][...] = sums / counts


def _counted(x: Array, attributes: Any) -> Array:
    """Ones where a position counts: [1, 1, *spatial], the named padding included."""
    rank = x.ndim - 2
    inside = np.ones((1, 1, *x.shape[2:]), np.float32)
    margins = [(0, 0), (0, 0), *zip(attributes.pads_begin[:rank], attributes.pads_end[:rank], strict=True)]
    return np.pad(inside, margins, constant_values=1 if attributes.count_include_pad else 0)


def _inside(attributes: Any) -> Any:
    """The same window over an array that holds its padding already."""
    return type(attributes)({**attributes, "pads_begin": [0] * len(attributes.pads_begin)})
