"""MatMul, Gemm and convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import MAX_SPATIAL, CommandKind
from emulator.model.operators.shapes import canvas_extent
from sdk.compiler.context import Lowering, NodeContext, checked_shape
from sdk.compiler.ir import Builder, Refused, Value


def window(node: NodeContext, x: TensorType, kernel: Sequence[int]) -> dict[str, list[int]]:
    """A window's movement, as attributes: strides, dilations, pads and auto_pad of Conv and pooling nodes.

    ONNX Conv, opset 11. Raises Refused.
    """
    rank = len(x.shape) - 2
    if not 1 <= rank <= MAX_SPATIAL or len(kernel) != rank:
        raise Refused(f"{x} with a kernel of rank {len(kernel)}; 1 to {MAX_SPATIAL} spatial dimensions are possible")
    strides = _list(node, "strides", rank, 1)
    dilations = _list(node, "dilations", rank, 1)
    pads = _list(node, "pads", 2 * rank, 0)
    if any(v < 1 for v in (*strides, *dilations, *kernel)) or any(pad < 0 for pad in pads):
        raise Refused("strides, dilations and kernel are at least 1, padding at least 0")
    begins, ends = pads[:rank], pads[rank:]
    auto = node.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(rank):
            positions = -(-x.shape[2 + i] // strides[i])
            reach = (positions - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
            total = max(0, reach - x.shape[2 + i])
            small, large = total // 2, total - total // 2
            begins[i], ends[i] = (small, large) if auto == "SAME_UPPER" else (large, small)
    elif auto == "VALID":
        begins, ends = [0] * rank, [0] * rank
    elif auto != "NOTSET":
        raise Refused(f"auto_pad is {auto!r}")
    return {
        "strides": spatial(strides, 1),
        "dilations": spatial(dilations, 1),
        "pads_begin": spatial(begins, 0),
        "pads_end": spatial(ends, 0),
    }


def _list(node: NodeContext, name: str, length: int, default: int) -> list[int]:
    values = list(node.attribute(name, [default] * length))
    if len(values) != length:
        raise Refused(f"{name} has {len(values)} values, not {length}")
    return values


def spatial(values: Sequence[int], fill: int) -> list[int]:
    """Per-dimension values, filled up to `MAX_SPATIAL`."""
    return [*values, *[fill] * (MAX_SPATIAL - len(values))]


def as_matrices(builder: Builder, a: Value, b: Value) -> tuple[Value, Value, Callable[[Value], Value]]:
    """The operands of a product as stacks of matrices, and what makes its result of theirs (numpy.matmul's rule)."""
    if not a.shape or not b.shape:
        raise Refused(f"operands {a.type} and {b.type}; rank 1 at least")
    vectors = len(a.shape) == 1, len(b.shape) == 1

    def result(product: Value) -> Value:
        shape = list(product.shape)
        if vectors[1]:
            del shape[-1]
        if vectors[0]:
            del shape[-1 if vectors[1] else -2]
        return builder.reshape(product, shape)

    left = builder.reshape(a, (1, *a.shape)) if vectors[0] else a
    right = builder.reshape(b, (*b.shape, 1)) if vectors[1] else b
    return left, right, result


def _matmul(node: NodeContext) -> Sequence[Value]:
    a, b, result = as_matrices(node.builder, node.value(0), node.value(1))
    return [result(node.builder.emit(CommandKind.MATMUL, [a, b], alpha=1.0, beta=0.0))]


def _gemm(node: NodeContext) -> Sequence[Value]:
    a, b, c = node.value(0), node.value(1), node.optional(2)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise Refused(f"operands {a.type} and {b.type}; both must have rank 2")
    return [
        node.builder.emit(
            CommandKind.MATMUL,
            [a, b] if c is None else [a, b, c],
            transpose_a=int(bool(node.attribute("transA", 0))),
            transpose_b=int(bool(node.attribute("transB", 0))),
            alpha=node.attribute("alpha", 1.0),
            beta=0.0 if c is None else node.attribute("beta", 1.0),
        )
    ]


def conv_fields(node: NodeContext, x: Value, w: Value) -> dict[str, Any]:
    """Attributes of Conv and QLinearConv. Raises Refused."""
    return {"group": node.attribute("group", 1), **window(node, x.type, _kernel(node, x, w))}


def _kernel(node: NodeContext, x: Value, w: Value) -> list[int]:
    """The extents of a convolution's kernel, which its weights have. Raises Refused."""
    if len(w.shape) != len(x.shape) or len(w.shape) < 3:
        raise Refused(f"weights {w.type} for data {x.type}")
    kernel = list(node.attribute("kernel_shape", w.shape[2:]))
    if kernel != list(w.shape[2:]):
        raise Refused(f"kernel_shape {kernel} for weights {w.type}")
    return kernel


def _conv(node: NodeContext) -> Sequence[Value]:
    x, w, bias = node.value(0), node.value(1), node.optional(2)
    operands = [x, w] if bias is None else [x, w, bias]
    return [node.builder.emit(CommandKind.CONV, operands, **conv_fields(node, x, w))]


def _conv_transpose(node: NodeContext) -> Sequence[Value]:
    """ConvTranspose (opset 11); `output_shape` and `auto_pad` are turned into padding."""
    x, w, bias = node.value(0), node.value(1), node.optional(2)
    operands = [x, w] if bias is None else [x, w, bias]
    fields = {"group": node.attribute("group", 1), **_transposed_window(node, x.type, _kernel(node, x, w))}
    return [node.builder.emit(CommandKind.CONV_TRANSPOSE, operands, **fields)]


def _transposed_window(node: NodeContext, x: TensorType, kernel: Sequence[int]) -> dict[str, list[int]]:
    """A transposed window's movement, as attributes. Raises Refused."""
    rank, fields = len(kernel), window(node, x, kernel)
    added = _list(node, "output_padding", rank, 0)
    auto, wanted = node.attribute("auto_pad", "NOTSET"), node.attribute("output_shape")
    if min(added) < 0:
        raise Refused(f"output_padding {added} is negative")
    if wanted is not None and len(wanted) not in (rank, rank + 2):
        raise Refused(f"output_shape {list(wanted)} for {rank} spatial dimensions")
    begins, ends = fields["pads_begin"], fields["pads_end"]
    for i in range(rank):
        if wanted is not None:
            extent = wanted[len(wanted) - rank + i]
        elif auto.startswith("SAME"):
            extent = x.shape[2 + i] * fields["strides"][i]
        else:
            continue
        covered = canvas_extent(x.shape[2 + i], kernel[i], fields["strides"][i], fields["dilations"][i], added[i])
        total = covered - extent
        added[i] += max(0, -total)
        small, large = max(0, total) // 2, max(0, total) - max(0, total) // 2
        begins[i], ends[i] = (small, large) if auto == "SAME_UPPER" else (large, small)
    return {**fields, "output_padding": spatial(added, 0)}


def _col2im(node: NodeContext) -> Sequence[Value]:
    """Col2Im: a transposed convolution, each channel by weights that put row t of its columns at tap t."""
    x, builder = node.value(0), node.builder
    image, block = node.constant_ints(1, "image_shape"), node.constant_ints(2, "block_shape")
    if image is None or block is None or len(x.shape) != 3 or len(image) != len(block):
        raise Refused(f"{x.type} for an image {image} of blocks {block}")
    taps = math.prod(checked_shape(block))
    channels = x.shape[1] // taps if taps else 0
    if channels * taps != x.shape[1]:
        raise Refused(f"{x.type} for blocks {block}")
    whole = TensorType(x.dtype, (x.shape[0], channels, *checked_shape(image)))
    fields = window(node, whole, block)
    moves = zip(*(fields[name] for name in ("strides", "dilations", "pads_begin", "pads_end")), strict=True)
    positions, added = [], []
    for extent, size, (stride, dilation, begin, end) in zip(image, block, moves, strict=False):
        positions.append(max(0, extent + begin + end - (size - 1) * dilation - 1) // stride + 1)
        added.append(extent + begin + end - canvas_extent(positions[-1], size, stride, dilation, 0))
    if math.prod(positions) != x.shape[2] or min(added) < 0:
        raise Refused(f"{x.type} for an image {image} of blocks {block}: they have {positions} places")
    data = builder.reshape(x, (x.shape[0], x.shape[1], *positions))
    unit = np.eye(taps, dtype=x.dtype.dtype).reshape(taps, 1, *block)
    weights = builder.constant(np.tile(unit, (channels, *[1] * (len(block) + 1))))
    fields["output_padding"] = spatial(added, 0)
    return [builder.emit(CommandKind.CONV_TRANSPOSE, [data, weights], group=channels, **fields)]


LOWERINGS: dict[str, Lowering] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Col2Im": _col2im,
}
