"""Shapes that operators give: broadcasting, products, sliding windows, reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import MAX_RANK, MAX_SPATIAL

MAX_WINDOW_TAPS = 1 << 14
"""Elements under one window of a convolution or pooling."""
MAX_PADDED_ELEMENTS = 1 << 30
"""Elements of the data of a convolution or pooling with its padding."""


class SemanticError(ValueError):
    """A command's operands or attributes do not go together; the message says which and why."""


def need(condition: bool, text: str) -> None:
    """Raise SemanticError with this text unless the condition holds."""
    if not condition:
        raise SemanticError(text)


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that multidirectional broadcasting (ONNX Broadcasting.md) gives. Raises SemanticError."""
    rank = max(map(len, shapes))
    result = []
    for extents in zip(*([1] * (rank - len(shape)) + list(shape) for shape in shapes), strict=True):
        wide = {extent for extent in extents if extent != 1}
        need(len(wide) <= 1, f"shapes {', '.join(str(list(shape)) for shape in shapes)} do not broadcast")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def matmul_shape(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """The shape of a product of two stacks of matrices. Raises SemanticError."""
    need(len(a) >= 2 and len(b) >= 2, f"matrices of shape {list(a)} and {list(b)}; rank 2 at least")
    need(a[-1] == b[-2], f"inner dimensions of {list(a)} and {list(b)} differ")
    return (*broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def window_extent(size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], *, ceil: bool) -> int:
    """Positions of a window along one dimension (ONNX Conv and MaxPool); the last begins inside the data."""
    need(stride > 0 and dilation > 0 and kernel > 0, "kernel, strides and dilations are at least 1")
    free = size + sum(pads) - (kernel - 1) * dilation - 1
    need(free >= 0, f"a window of {(kernel - 1) * dilation + 1} over {size + sum(pads)} elements")
    extent = (-(-free // stride) if ceil else free // stride) + 1
    if ceil and (extent - 1) * stride >= size + pads[0]:
        extent -= 1
    return extent


def window_shape(x: TensorType, kernel: Sequence[int], attributes: Any, *, ceil: bool = False) -> tuple[int, ...]:
    """Spatial shape of a convolution's or pooling's output. Raises SemanticError."""
    rank = len(x.shape) - 2
    need(1 <= rank <= MAX_SPATIAL, f"{rank} spatial dimensions; 1 to {MAX_SPATIAL} are possible")
    need(len(kernel) == rank, f"a kernel of rank {len(kernel)} for {rank} spatial dimensions")
    need(math.prod(kernel) <= MAX_WINDOW_TAPS, f"a window of {math.prod(kernel)} elements; at most {MAX_WINDOW_TAPS}")
    padded = math.prod(x.shape[:2])
    extents = []
    for i in range(rank):
        pads = (attributes.pads_begin[i], attributes.pads_end[i])
        extents.append(
            window_extent(x.shape[2 + i], kernel[i], attributes.strides[i], attributes.dilations[i], pads, ceil=ceil)
        )
        padded *= x.shape[2 + i] + sum(pads) + attributes.strides[i]
    need(padded <= MAX_PADDED_ELEMENTS, f"padded to {padded} elements; at most {MAX_PADDED_ELEMENTS}")
    _need_neutral(attributes, rank)
    return tuple(extents)


def _need_neutral(attributes: Any, rank: int) -> None:
    unused = range(rank, MAX_SPATIAL)
    neutral = all(
        (attributes.strides[i], attributes.dilations[i], attributes.pads_begin[i], attributes.pads_end[i])
        == (1, 1, 0, 0)
        for i in unused
    )
    need(neutral, "unused spatial dimensions must have stride 1, dilation 1, padding 0")


def conv_shape(x: TensorType, w: TensorType, attributes: Any) -> tuple[int, ...]:
    """The shape of a convolution's output. Raises SemanticError."""
    need(len(w.shape) == len(x.shape) >= 3, f"weights {w} for data {x}")
    group, outputs = attributes.group, w.shape[0]
    need(
        group > 0 and x.shape[1] == w.shape[1] * group and outputs % group == 0,
        f"weights {w} in {group} groups for data {x}",
    )
    return (x.shape[0], outputs, *window_shape(x, w.shape[2:], attributes))


def canvas_extent(size: int, kernel: int, stride: int, dilation: int, output_padding: int) -> int:
    """Elements along one dimension that the windows of a transposed convolution cover, and what is added at the end."""
    return (size - 1) * stride + (kernel - 1) * dilation + 1 + output_padding


def conv_transpose_shape(x: TensorType, w: TensorType, attributes: Any) -> tuple[int, ...]:
    """The shape of a transposed convolution's output. Raises SemanticError."""
    rank, group = len(x.shape) - 2, attributes.group
    need(len(w.shape) == len(x.shape) and 1 <= rank <= MAX_SPATIAL, f"weights {w} for data {x}")
    need(group > 0 and x.shape[1] == w.shape[0] and x.shape[1] % group == 0, f"{w} in {group} groups for data {x}")
    kernel = w.shape[2:]
    need(
        0 < math.prod(kernel) <= MAX_WINDOW_TAPS,
        f"a window of {math.prod(kernel)}; 1 to {MAX_WINDOW_TAPS} are possible",
    )
    canvas = x.shape[0] * w.shape[1] * group
    extents = []
    for i in range(rank):
        stride, dilation, added = attributes.strides[i], attributes.dilations[i], attributes.output_padding[i]
        need(stride > 0 and dilation > 0 and x.shape[2 + i] > 0, "data, strides and dilations are at least 1")
        covered = canvas_extent(x.shape[2 + i], kernel[i], stride, dilation, added)
        extents.append(covered - attributes.pads_begin[i] - attributes.pads_end[i])
        canvas *= covered
    need(min(extents) > 0, f"padding leaves an output of {extents}")
    need(canvas <= MAX_PADDED_ELEMENTS, f"{canvas} elements with padding; at most {MAX_PADDED_ELEMENTS}")
    _need_neutral(attributes, rank)
    need(not any(attributes.output_padding[rank:]), "unused spatial dimensions must have output padding 0")
    return (x.shape[0], w.shape[1] * group, *extents)


def reduced_shape(shape: Sequence[int], axes: Sequence[int], *, keep: bool) -> tuple[int, ...]:
    """`shape` after a reduction of `axes`."""
    if keep:
        return tuple(1 if i in axes else extent for i, extent in enumerate(shape))
    return tuple(extent for i, extent in enumerate(shape) if i not in axes)


def shape_of(attributes: Any) -> tuple[int, ...]:
    """The target shape among a command's attributes. Raises SemanticError."""
    rank = attributes.rank
    need(rank <= MAX_RANK and not any(attributes.shape[rank:]), f"shape {list(attributes.shape)} at rank {rank}")
    return tuple(attributes.shape[:rank])
