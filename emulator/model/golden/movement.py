"""Commands that move elements and compute nothing: copies, Transpose, Slice, Concat, Gather, Pad, Expand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program_commands import PadMode
from emulator.model.golden.common import Array, KernelFault, operand, required


def copy(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """Identity; Reshape, Flatten, Squeeze, Unsqueeze: the same elements in row-major order."""
    outputs[0][...] = required(inputs, 0).reshape(outputs[0].shape)


def transpose(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """Transpose (opset 13): dimension i of the output is dimension permutation[i] of the input."""
    x = required(inputs, 0)
    outputs[0][...] = x.transpose(attributes.permutation[: x.ndim])


def slice_(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """Slice (opset 13), starts clamped already: output[i] = input[start + i · step] in every dimension."""
    cuts = []
    for extent, start, step in zip(outputs[0].shape, attributes.starts, attributes.steps, strict=False):
        stop = start + extent * step
        cuts.append(slice(start, stop if stop >= 0 else None, step))
    outputs[0][...] = required(inputs, 0)[tuple(cuts)]


def concat(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """Concat (opset 13) along `axis`."""
    np.concatenate([part for part in inputs if part is not None], axis=attributes.axis, out=outputs[0])


def gather(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """Gather (opset 13) along `axis`; a negative index counts from the end."""
    data, indices = required(inputs, 0), required(inputs, 1).astype(np.int64)
    extent = data.shape[attributes.axis]
    if not np.all((indices >= -extent) & (indices < extent)):
        raise KernelFault(Status.INDEX_OUT_OF_RANGE, f"a gather index lies outside [-{extent}, {extent - 1}]")
    outputs[0][...] = np.take(data, indices, axis=attributes.axis)


def pad(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """Pad (opset 18) with a constant (0 without `value`), reflected or edge elements."""
    x, value = required(inputs, 0), operand(inputs, 1)
    margins = [
        (begin, wanted - begin - extent)
        for begin, wanted, extent in zip(attributes.begins, outputs[0].shape, x.shape, strict=False)
    ]
    if attributes.mode == PadMode.CONSTANT:
        fill = x.dtype.type(0) if value is None else value.reshape(())[()]
        outputs[0][...] = np.pad(x, margins, constant_values=fill)
    else:
        outputs[0][...] = np.pad(x, margins, mode="reflect" if attributes.mode == PadMode.REFLECT else "edge")


def expand(attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
    """Expand (opset 13): broadcast to the output's shape."""
    outputs[0][...] = required(inputs, 0)
