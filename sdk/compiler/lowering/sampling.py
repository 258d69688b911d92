"""Elements from between those of the data: GridSample, AffineGrid, regions of interest, DeformConv; and boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver_shim.protocol.program_commands import CommandKind, GridPadding, Interpolation, PoolFunction
from sdk.compiler.context import Lowering, NodeContext, checked_shape, trimmed
from sdk.compiler.ir import DataDependent, Refused, Value
from sdk.compiler.lowering.elementwise import cast
from sdk.compiler.lowering.products import conv_fields

_MODES = {
    **{mode.name.lower(): mode for mode in Interpolation},
    "bilinear": Interpolation.LINEAR,
    "bicubic": Interpolation.CUBIC,
}
"""Those of opset 20, and what the linear and the cubic one were called before."""
_PADDING = {padding.name.lower(): padding for padding in GridPadding}
_REGION_MODES = {"avg": PoolFunction.AVERAGE, "max": PoolFunction.MAX}
_HALF_PIXELS_SINCE = 16
"""RoiAlign before knew no shift by half a pixel."""


def _grid_sample(node: NodeContext) -> Sequence[Value]:
    mode, padding = node.attribute("mode", "linear"), node.attribute("padding_mode", "zeros")
    if mode not in _MODES or padding not in _PADDING:
        raise Refused(f"mode {mode!r} with padding_mode {padding!r}")
    align = int(bool(node.attribute("align_corners", 0)))
    fields: dict[str, int] = {"mode": _MODES[mode], "padding": _PADDING[padding], "align_corners": align}
    return [node.builder.emit(CommandKind.GRID_SAMPLE, [node.value(0), node.value(1)], **fields)]


def _affine_grid(node: NodeContext) -> Sequence[Value]:
    """AffineGrid: a constant grid of places [elements, rank + 1], by each image's matrix [rank, rank + 1]."""
    theta, builder = node.value(0), node.builder
    size = checked_shape(node.constant_ints(1, "size") or [])
    rank = len(size) - 2
    if rank not in (2, 3) or theta.shape != (size[0], rank, rank + 1):
        raise Refused(f"theta {theta.type} for size {list(size)}")
    along = [_centres(extent, bool(node.attribute("align_corners", 0))) for extent in size[2:]]
    grids = np.meshgrid(*along, indexing="ij")
    places = np.stack([*reversed(grids), np.ones_like(grids[0])], -1).reshape(-1, rank + 1)
    base = cast(builder, builder.constant(places), theta.dtype)
    moved = builder.emit(CommandKind.MATMUL, [base, theta], transpose_b=1, alpha=1.0)
    return [builder.reshape(moved, (size[0], *size[2:], rank))]


def _centres(extent: int, align_corners: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Centres of elements in [-1, 1], which ends at those of the outer ones, or at their edges."""
    steps = np.arange(extent, dtype=np.float32)
    if align_corners:
        return 2 * steps / np.float32(max(extent - 1, 1)) - 1
    return (2 * steps + 1) / np.float32(extent) - 1


def _roi_align(node: NodeContext) -> Sequence[Value]:
    mode, coordinates = node.attribute("mode", "avg"), "output_half_pixel"
    if node.since >= _HALF_PIXELS_SINCE:
        coordinates = node.attribute("coordinate_transformation_mode", "half_pixel")
    if mode not in _REGION_MODES or coordinates not in ("half_pixel", "output_half_pixel"):
        raise Refused(f"mode {mode!r} with coordinate_transformation_mode {coordinates!r}")
    return [
        node.builder.emit(
            CommandKind.ROI_ALIGN,
            [node.value(0), node.value(1), node.value(2)],
            function=_REGION_MODES[mode],
            half_pixel=int(coordinates == "half_pixel"),
            sampling_ratio=node.attribute("sampling_ratio", 0),
            output_height=node.attribute("output_height", 1),
            output_width=node.attribute("output_width", 1),
            spatial_scale=node.attribute("spatial_scale", 1.0),
        )
    ]


def _max_roi_pool(node: NodeContext) -> Sequence[Value]:
    height, width = node.attribute("pooled_shape")
    fields = {"output_height": height, "output_width": width, "spatial_scale": node.attribute("spatial_scale", 1.0)}
    return [node.builder.emit(CommandKind.ROI_POOL, [node.value(0), node.value(1)], **fields)]


def _deform_conv(node: NodeContext) -> Sequence[Value]:
    x, w, offset, bias, mask = (*(node.value(i) for i in range(3)), node.optional(3), node.optional(4))
    operands = trimmed([x, w, offset, bias, mask])
    fields = {**conv_fields(node, x, w), "offset_group": node.attribute("offset_group", 1)}
    return [node.builder.emit(CommandKind.DEFORM_CONV, operands, **fields)]


def _non_max_suppression(node: NodeContext) -> Sequence[Value]:
    """NonMaxSuppression: how many boxes are left depends on where they are; none where none are asked for."""
    most = node.optional(2)
    if most is None or (most.constant is not None and not most.constant.any()):
        return [node.builder.constant(np.empty((0, 3), np.int64))]
    raise DataDependent(node.value(1))


LOWERINGS: dict[str, Lowering] = {
    "GridSample": _grid_sample,
    "AffineGrid": _affine_grid,
    "RoiAlign": _roi_align,
    "MaxRoiPool": _max_roi_pool,
    "DeformConv": _deform_conv,
    "NonMaxSuppression": _non_max_suppression,
}
