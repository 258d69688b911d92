"""Resize and Upsample, in all forms they had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.program_commands import CommandKind, Coordinates, Interpolation, NearestMode
from sdk.compiler.context import Lowering, NodeContext, checked_shape
from sdk.compiler.ir import Refused, Value
from sdk.compiler.lowering.movement import filled

_MODES_ARE_NAMED_SINCE = 11
"""Resize before, and Upsample always: asymmetric coordinates."""
_SCALES_ARE_INPUT_SINCE = 9
"""Of Upsample."""
_BILINEAR = "bilinear"
"""What the first Upsample calls linear."""


class _Target(NamedTuple):
    """What a tensor becomes, by dimension."""

    extents: list[int]
    scales: list[float]


def _resize(node: NodeContext) -> Sequence[Value]:
    """Resize (opset 10, 11, 13, 18, 19)."""
    if node.since < _MODES_ARE_NAMED_SINCE:
        return [_asymmetric(node, node.constant_floats(1, "scales"))]
    x = node.value(0)
    rank = len(x.shape)
    axes = node.axes_as_given(node.attribute("axes", range(rank)), rank)
    coordinates = _member(Coordinates, node.attribute("coordinate_transformation_mode", "half_pixel"))
    crops = coordinates is Coordinates.TF_CROP_AND_RESIZE
    starts, ends = _region(node, axes, rank) if crops else ([], [])
    fields = {
        "coordinates": coordinates,
        "nearest": _member(NearestMode, node.attribute("nearest_mode", "round_prefer_floor")),
        "exclude_outside": int(bool(node.attribute("exclude_outside", 0))),
        "antialias": int(bool(node.attribute("antialias", 0))),
        "cubic": node.attribute("cubic_coeff_a", -0.75),
        "extrapolation": node.attribute("extrapolation_value", 0.0),
        "starts": filled(starts),
        "ends": filled(ends),
    }
    return [_emit(node, x, _target(node, x, axes), **fields)]


def _upsample(node: NodeContext) -> Sequence[Value]:
    """Upsample (opset 7, 9)."""
    if node.since < _SCALES_ARE_INPUT_SINCE:
        return [_asymmetric(node, [float(scale) for scale in node.attribute("scales")])]
    return [_asymmetric(node, node.constant_floats(1, "scales"))]


def _asymmetric(node: NodeContext, scales: list[float] | None) -> Value:
    """The first forms, which say nothing of places: a nearest element is the one before, that of fewer the one after.

    That is how onnxruntime reads them.
    """
    if scales is None:
        raise Refused("its scales are missing")
    x = node.value(0)
    target = _scaled(x, range(len(x.shape)), scales)
    growing = [max(scale, 1.0) for scale in target.scales]
    between = [wanted if scale > 1 else now for now, wanted, scale in zip(x.shape, *target, strict=True)]
    shrinking = [min(scale, 1.0) for scale in target.scales]
    larger = _emit(node, x, _Target(between, growing), coordinates=Coordinates.ASYMMETRIC, nearest=NearestMode.FLOOR)
    whole = _Target(target.extents, shrinking)
    return _emit(node, larger, whole, coordinates=Coordinates.ASYMMETRIC, nearest=NearestMode.CEIL)


def _emit(node: NodeContext, x: Value, target: _Target, **fields: Any) -> Value:
    """A RESIZE command; x itself where nothing changes."""
    named = node.attribute("mode", "nearest")
    mode = _member(Interpolation, "linear" if named == _BILINEAR else named)
    if mode is not Interpolation.NEAREST and not x.dtype.is_float:
        raise Refused(f"mode {named!r} of {x.dtype.text} is not supported: cast to float32 first")
    cropped = fields["coordinates"] is Coordinates.TF_CROP_AND_RESIZE
    if not cropped and target.extents == list(x.shape) and all(scale == 1 for scale in target.scales):
        return x
    fields |= {"mode": mode, "extents": filled(target.extents), "scales": filled(target.scales)}
    return node.builder.emit(CommandKind.RESIZE, [x], **fields)


def _target(node: NodeContext, x: Value, axes: Sequence[int]) -> _Target:
    """From scales, or from sizes and what is to become of the aspect ratio; an operand without elements is left out."""
    scales, sizes = (node.constant_floats(2, "scales"), node.constant_ints(3, "sizes"))
    if bool(scales) == bool(sizes):
        raise Refused("it takes either scales or sizes")
    return _scaled(x, axes, scales) if scales else _sized(node, x, axes, sizes or [])


def _scaled(x: Value, axes: Sequence[int], scales: Sequence[float]) -> _Target:
    """Extents that scales give, computed in float32 as the specification's operands are."""
    if len(scales) != len(axes) or not all(0 < scale < math.inf for scale in scales):
        raise Refused(f"scales {list(scales)} for {len(axes)} dimensions; they must be positive")
    target = _Target(list(x.shape), [1.0] * len(x.shape))
    for axis, scale in zip(axes, scales, strict=True):
        target.scales[axis] = scale
        target.extents[axis] = math.floor(np.float32(x.shape[axis]) * np.float32(scale))
    checked_shape(target.extents)
    return target


def _sized(node: NodeContext, x: Value, axes: Sequence[int], sizes: Sequence[int]) -> _Target:
    """Scales that sizes give; one scale for all dimensions where the aspect ratio is kept."""
    if len(sizes) != len(axes) or any(x.shape[axis] == 0 and size for axis, size in zip(axes, sizes, strict=False)):
        raise Refused(f"sizes {list(sizes)} for {x.type} along {list(axes)}")
    target = _Target(list(x.shape), [1.0] * len(x.shape))
    ratios = [size / max(x.shape[axis], 1) for axis, size in zip(axes, sizes, strict=True)]
    policy = node.attribute("keep_aspect_ratio_policy", "stretch")
    chosen = {"stretch": None, "not_larger": min, "not_smaller": max}
    if policy not in chosen:
        raise Refused(f"keep_aspect_ratio_policy is {policy!r}")
    keep = chosen[policy]
    for axis, size, ratio in zip(axes, sizes, ratios, strict=True):
        scale = ratio if keep is None else keep(ratios)
        # An empty dimension has no scale; any will do.
        target.scales[axis] = float(np.float32(scale or 1.0))
        target.extents[axis] = size if keep is None else math.floor(scale * x.shape[axis] + 0.5)
    checked_shape(target.extents)
    return target


def _region(node: NodeContext, axes: Sequence[int], rank: int) -> tuple[list[float], list[float]]:
    """The region of interest: starts and ends, by dimension."""
    roi = node.constant_floats(1, "roi")
    if roi is None or len(roi) != 2 * len(axes):
        raise Refused(f"its roi has {len(roi or [])} values, must have {2 * len(axes)}")
    starts, ends = [0.0] * rank, [1.0] * rank
    for i, axis in enumerate(axes):
        starts[axis], ends[axis] = roi[i], roi[len(axes) + i]
    return starts, ends


def _member(kind: Any, name: str) -> Any:
    """The member of an enumeration that an ONNX attribute names. Raises Refused."""
    found = next((member for member in kind if member.name.lower() == name), None)
    if found is None:
        raise Refused(f"{name!r} is none of {', '.join(member.name.lower() for member in kind)}")
    return found


LOWERINGS: dict[str, Lowering] = {"Resize": _resize, "Upsample": _upsample}
