"""LAYER_NORM in place of its output, where the dimensions normalised over are the last ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators import OPERATORS
from emulator.model.operators.arrays import Array, optional, required
from emulator.model.operators.reductions import axes_of


def layer_norm(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """LAYER_NORM as golden's; float32 over the last dimensions without a temporary of the data's size."""
    x, y = required(inputs, 0), outputs[0]
    axes = axes_of(attributes.axes)
    if x.dtype != np.float32 or not axes or axes != tuple(range(axes[0], x.ndim)) or not y.size:
        OPERATORS[CommandKind.LAYER_NORM].run(attributes, inputs, outputs)
        return
    width = math.prod(x.shape[axes[0] :])
    rows, result = x.reshape(-1, width), y.reshape(-1, width)
    if attributes.root_mean_square:
        mean = np.zeros((len(rows), 1), np.float32)
        np.copyto(result, rows)
    else:
        mean = rows.mean(1, dtype=np.float32, keepdims=True)
        np.subtract(rows, mean, out=result)
    # einsum adds a whole row in one float32 without pairing; sums of pieces keep the error of long rows small.
    squares = np.matmul(result[:, None, :], result[:, :, None])[:, :, 0]
    inverse = 1 / np.sqrt(squares / np.float32(width) + np.float32(attributes.epsilon))
    result *= inverse
    scale, bias = optional(inputs, 1), optional(inputs, 2)
    if scale is not None:
        y *= scale
    if bias is not None:
        y += bias
    for output, values in zip(outputs[1:], (mean, inverse), strict=False):
        output[...] = values.reshape(output.shape)
