"""Operators that move elements: Transpose, Slice, Split, Concat, Gather, Pad, Expand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from driver_shim.protocol.program_commands import MAX_RANK, CommandKind, PadMode
from emulator.model.operators.shapes import SemanticError, broadcast
from sdk.compiler.context import Lowering, NodeContext, checked_shape
from sdk.compiler.ir import Builder, Refused, Value

_SLICE_BOUNDS_ARE_INPUTS_SINCE = 10
_PADS_ARE_INPUT_SINCE = 11
_SPLIT_SIZES_ARE_INPUT_SINCE = 13
RANGE_LIMIT = 1 << 20
"""Elements of a Range, which is always folded."""


_Number = TypeVar("_Number", int, float)


def filled(values: Sequence[_Number], fill: _Number = 0) -> list[_Number]:
    """Per-dimension values, filled up to `MAX_RANK`."""
    return list(values) + [fill] * (MAX_RANK - len(values))


def cut(builder: Builder, x: Value, starts: Sequence[int], steps: Sequence[int], shape: Sequence[int]) -> Value:
    """x[start + i · step] in every dimension; a constant is cut here, even to nothing."""
    if len(x.shape) > MAX_RANK:
        raise Refused(f"{x.type} has rank {len(x.shape)}; at most {MAX_RANK} is possible")
    if x.constant is not None:
        array = x.constant
        for axis, (start, step, extent) in enumerate(zip(starts, steps, shape, strict=True)):
            array = np.take(array, np.arange(extent) * step + start, axis)
        return builder.constant(array)
    if tuple(shape) == x.shape and all(step == 1 for step in steps):
        return x
    return builder.emit(CommandKind.SLICE, [x], starts=filled(starts), steps=filled(steps), extents=filled(shape))


def part(builder: Builder, x: Value, axis: int, start: int, extent: int) -> Value:
    """`extent` elements along one dimension."""
    starts, shape = [0] * len(x.shape), list(x.shape)
    starts[axis], shape[axis] = start, extent
    if start + extent > x.shape[axis]:
        raise Refused(f"elements {start} to {start + extent} along dimension {axis} of {x.type}")
    return cut(builder, x, starts, [1] * len(starts), shape)


def _transpose(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    rank = len(x.shape)
    permutation = list(node.attribute("perm", range(rank - 1, -1, -1)))
    if sorted(permutation) != list(range(rank)):
        raise Refused(f"perm {permutation} is no permutation of rank {rank}")
    if permutation == list(range(rank)):
        return [x]
    return [transposed(node.builder, x, permutation)]


def _slice(node: NodeContext) -> Sequence[Value]:
    """Slice (opset 13): negative starts and ends count from the end, both are clamped to the data."""
    x = node.value(0)
    rank = len(x.shape)
    if node.since < _SLICE_BOUNDS_ARE_INPUTS_SINCE:
        starts, ends, given = (node.attribute(name) for name in ("starts", "ends", "axes"))
    else:
        starts, ends, given = (node.constant_ints(i, what) for i, what in enumerate(("starts", "ends", "axes"), 1))
    if starts is None or ends is None:
        raise Refused("its starts or ends are missing")
    axes = given or list(range(len(starts)))
    steps = node.constant_ints(4, "steps") or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise Refused("its starts, ends, axes and steps differ in length")
    begin, stride, shape = [0] * rank, [1] * rank, list(x.shape)
    for axis, start, end, step in zip(node.axes_as_given(axes, rank), starts, ends, steps, strict=True):
        if step == 0:
            raise Refused("a step is 0")
        taken = _taken(x.shape[axis], start, end, step)
        begin[axis], stride[axis], shape[axis] = taken.start, taken.step, len(taken)
        if len(taken) == 1:
            stride[axis] = 1
    return [cut(node.builder, x, begin, stride, shape)]


def _taken(extent: int, start: int, end: int, step: int) -> range:
    """What Slice takes of one dimension; unlike Python's, its start is clamped to elements when it goes backwards."""
    if not extent:
        return range(0)
    least, most = (0, extent) if step > 0 else (-1, extent - 1)
    first, last = (limit + extent if limit < 0 else limit for limit in (start, end))
    return range(min(max(first, 0), most), min(max(last, least), most), step)


def _split(node: NodeContext) -> Sequence[Value]:
    x = node.value(0)
    rank = len(x.shape)
    axis = node.axis(node.attribute("axis", 0), rank)
    parts = node.output_count
    given = node.since >= _SPLIT_SIZES_ARE_INPUT_SINCE
    sizes = node.constant_ints(1, "sizes") if given else node.attribute("split")
    if sizes is None:
        if node.attribute("num_outputs", parts) != parts:
            raise Refused(f"num_outputs is {node.attribute('num_outputs')}, the node has {parts} outputs")
        chunk = -(-x.shape[axis] // parts)
        sizes = [min(chunk, x.shape[axis] - i * chunk) for i in range(parts)]
    if len(sizes) != parts or sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise Refused(f"split of {x.shape[axis]} into {list(sizes)} for {parts} outputs")
    results, start = [], 0
    for size in sizes:
        results.append(part(node.builder, x, axis, start, size))
        start += size
    return results


def _concat(node: NodeContext) -> Sequence[Value]:
    values = [node.value(i) for i in range(len(node.inputs))]
    rank = len(values[0].shape)
    axis = node.axis(node.attribute("axis"), rank)
    if any(len(value.shape) != rank for value in values):
        raise Refused("its inputs have different ranks")
    parts = [value for value in values if value.shape[axis] != 0] or values[:1]
    return parts if len(parts) == 1 else [node.builder.emit(CommandKind.CONCAT, parts, axis=axis)]


def _gather(node: NodeContext) -> Sequence[Value]:
    data, indices = node.value(0), node.value(1)
    axis = node.axis(node.attribute("axis", 0), len(data.shape))
    if indices.constant is not None and indices.constant.size:
        extent, low, high = data.shape[axis], int(indices.constant.min()), int(indices.constant.max())
        if low < -extent or high >= extent:
            raise Refused(f"its index {low if low < -extent else high} is out of range for a dimension of {extent}")
    return [node.builder.emit(CommandKind.GATHER, [data, indices], axis=axis)]


def _pad(node: NodeContext) -> Sequence[Value]:
    """Pad (opset 18); negative padding cuts first."""
    x, value = node.value(0), node.optional(2)
    rank = len(x.shape)
    mode = node.attribute("mode", "constant").upper()
    if mode not in PadMode.__members__:
        raise Refused(f"mode {mode.lower()!r} is not supported")
    if node.since < _PADS_ARE_INPUT_SINCE:
        pads, value = node.attribute("pads"), node.builder.scalar(node.attribute("value", 0.0), x.dtype)
    else:
        pads = node.constant_ints(1, "pads")
    given = node.constant_ints(3, "axes")
    axes = node.axes_as_given(range(rank) if given is None else given, rank)
    if pads is None or len(pads) != 2 * len(axes):
        raise Refused(f"pads {pads} for axes {axes}")
    begins, ends = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[i], pads[len(axes) + i]
    if min(*begins, *ends, 0) < 0:
        starts = [max(0, -begin) for begin in begins]
        inner = [e - s - max(0, -end) for e, s, end in zip(x.shape, starts, ends, strict=True)]
        x = cut(node.builder, x, starts, [1] * rank, checked_shape(inner))
        begins, ends = [max(0, begin) for begin in begins], [max(0, end) for end in ends]
    if not any((*begins, *ends)):
        return [x]
    operands = [x] if value is None or mode != "CONSTANT" else [x, value]
    fields = {"mode": PadMode[mode], "begins": filled(begins), "ends": filled(ends)}
    return [node.builder.emit(CommandKind.PAD, operands, **fields)]


def _center_crop_pad(node: NodeContext) -> Sequence[Value]:
    """CenterCropPad: dimensions cut and padded with zeros to a shape, evenly; an odd one out is at the end."""
    x, builder = node.value(0), node.builder
    rank = len(x.shape)
    axes = node.axes_as_given(node.attribute("axes", range(rank)), rank)
    wanted = checked_shape(node.constant_ints(1, "shape") or [])
    if len(wanted) != len(axes):
        raise Refused(f"shape {list(wanted)} for axes {axes}")
    starts, inner, begins, ends = [0] * rank, list(x.shape), [0] * rank, [0] * rank
    for axis, extent in zip(axes, wanted, strict=True):
        over = x.shape[axis] - extent
        starts[axis], inner[axis] = max(0, over) // 2, min(x.shape[axis], extent)
        begins[axis] = max(0, -over) // 2
        ends[axis] = max(0, -over) - begins[axis]
    middle = cut(builder, x, starts, [1] * rank, inner)
    if not any((*begins, *ends)):
        return [middle]
    fields = {"mode": PadMode.CONSTANT, "begins": filled(begins), "ends": filled(ends)}
    return [builder.emit(CommandKind.PAD, [middle], **fields)]


def _expand(node: NodeContext) -> Sequence[Value]:
    """Expand (opset 13): broadcast with the given shape, in both directions."""
    x = node.value(0)
    target = checked_shape(node.constant_ints(1, "shape") or [])
    try:
        shape = broadcast(x.shape, target)
    except SemanticError as error:
        raise Refused(str(error)) from None
    return [node.builder.expand(x, shape)]


def _tile(node: NodeContext) -> Sequence[Value]:
    """Tile: each dimension repeated; [a, b] becomes [1, a, 1, b], broadcast along the ones, and [ra * a, rb * b]."""
    x, builder = node.value(0), node.builder
    repeats = node.constant_ints(1, "repeats") or []
    if len(repeats) != len(x.shape) or min(repeats, default=0) < 0:
        raise Refused(f"repeats {repeats} for {x.type}; one for each dimension, none negative")
    repeated = [axis for axis, count in enumerate(repeats) if count != 1]
    apart: list[int] = []
    spread: list[int] = []
    for axis, extent in enumerate(x.shape):
        if axis in repeated:
            apart, spread = [*apart, 1], [*spread, repeats[axis]]
        apart, spread = [*apart, extent], [*spread, extent]
    shape = checked_shape([extent * count for extent, count in zip(x.shape, repeats, strict=True)])
    if not repeated:
        return [x]
    wide = builder.expand(builder.reshape(x, apart), checked_shape(spread))
    return [builder.reshape(wide, shape)]


def transposed(builder: Builder, x: Value, permutation: Sequence[int]) -> Value:
    """x with its dimensions in another order."""
    return builder.emit(CommandKind.TRANSPOSE, [x], permutation=filled(permutation))


def _depth_to_space(node: NodeContext) -> Sequence[Value]:
    """DepthToSpace: channels become squares of pixels; mode DCR takes the square's place from the outer channels."""
    x, builder, block = node.value(0), node.builder, node.attribute("blocksize")
    if len(x.shape) != 4 or block < 1 or x.shape[1] % (block * block):
        raise Refused(f"blocksize {block} for {x.type}")
    batch, channels, rows, columns = x.shape
    depth = channels // (block * block)
    if node.attribute("mode", "DCR") == "DCR":
        apart, order = (batch, block, block, depth, rows, columns), (0, 3, 4, 1, 5, 2)
    else:
        apart, order = (batch, depth, block, block, rows, columns), (0, 1, 4, 2, 5, 3)
    moved = transposed(builder, builder.reshape(x, apart), order)
    return [builder.reshape(moved, (batch, depth, rows * block, columns * block))]


def _space_to_depth(node: NodeContext) -> Sequence[Value]:
    """SpaceToDepth: squares of pixels become channels; mode CRD (opset 28) has the square's place as the inner ones."""
    x, builder, block = node.value(0), node.builder, node.attribute("blocksize")
    if len(x.shape) != 4 or block < 1 or x.shape[2] % block or x.shape[3] % block:
        raise Refused(f"blocksize {block} for {x.type}")
    batch, channels, rows, columns = x.shape
    apart = (batch, channels, rows // block, block, columns // block, block)
    order = (0, 3, 5, 1, 2, 4) if node.attribute("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    moved = transposed(builder, builder.reshape(x, apart), order)
    return [builder.reshape(moved, (batch, channels * block * block, rows // block, columns // block))]


def _trilu(node: NodeContext) -> Sequence[Value]:
    """Trilu: one triangle of each matrix, zeros elsewhere."""
    x, builder = node.value(0), node.builder
    if len(x.shape) < 2:
        raise Refused(f"{x.type} is no matrix")
    offset = (node.constant_ints(1, "k") or [0])[0]
    ones = np.ones(x.shape[-2:], bool)
    kept = builder.constant(np.triu(ones, offset) if node.attribute("upper", 1) else np.tril(ones, offset))
    return [builder.emit(CommandKind.WHERE, [kept, x, builder.scalar(0, x.dtype)])]


def _constant_of_shape(node: NodeContext) -> Sequence[Value]:
    shape = checked_shape(node.constant_ints(0, "shape") or [])
    value = node.attribute("value", np.zeros(1, np.float32))
    if value.size != 1:
        raise Refused(f"its value has {value.size} elements, not one")
    scalar = node.builder.constant(value.reshape(()))
    return [node.builder.expand(scalar, shape)]


def _range(node: NodeContext) -> Sequence[Value]:
    limits = [node.value(i) for i in range(3)]
    numbers = [node.constant_float(i, "start, limit or delta") for i in range(3)]
    start, limit, delta = (0.0 if number is None else number for number in numbers)
    if delta == 0 or not abs((limit - start) / delta) <= RANGE_LIMIT:
        raise Refused(f"from {start} to {limit} in steps of {delta}; at most {RANGE_LIMIT} elements are possible")
    return [node.builder.constant(np.arange(start, limit, delta).astype(limits[0].dtype.dtype))]


LOWERINGS: dict[str, Lowering] = {
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Gather": _gather,
    "Pad": _pad,
    "CenterCropPad": _center_crop_pad,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _trilu,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
}
