"""Operators for which the device and onnxruntime may rightly differ, and on what data: `docs/numerics.md`, as data."""

from __future__ import annotations

from collections.abc import Iterable

PAGE = "docs/numerics.md"

_CAST = "floats that do not fit an integer type become its nearest value, NaN 0"
_EXTREME = "NaN counts as the extreme"
_WHOLE_POWER = "powers of integers wrap, real ones go by way of float32"
_OF_NOTHING = "the mean of nothing is NaN; means of integers are rounded towards zero"
_WHOLE_ROOT = "of integers it is rounded towards zero once, at the end"
_TWICE = "of several updates of one element the last one stays"
_NAN_IS_ZERO = "NaN becomes the zero point"
_DILATED = "with auto_pad SAME, a dilated window has padding for all it covers"

BY_OPERATOR: dict[str, str] = {
    "Cast": _CAST,
    "CastLike": _CAST,
    "ArgMax": _EXTREME,
    "ArgMin": _EXTREME,
    "Hardmax": _EXTREME,
    "ReduceMax": _EXTREME,
    "ReduceMin": _EXTREME,
    "TopK": "NaN is above every number, and unsorted results are sorted",
    "Pow": _WHOLE_POWER,
    "ReduceMean": _OF_NOTHING,
    "ReduceL2": _WHOLE_ROOT,
    "ReduceLogSum": _WHOLE_ROOT,
    "ReduceLogSumExp": _WHOLE_ROOT,
    "Scatter": _TWICE,
    "ScatterElements": _TWICE,
    "ScatterND": _TWICE,
    "Softmax": "between two products, where a mask lets nothing through, it gives 0",
    "AveragePool": _DILATED,
    "LpPool": _DILATED,
    "MaxPool": f"NaN is the largest, and of minus infinity alone it gives that; {_DILATED}",
    "GlobalMaxPool": "NaN is the largest, and of minus infinity alone it gives that",
    "QuantizeLinear": _NAN_IS_ZERO,
    "DynamicQuantizeLinear": _NAN_IS_ZERO,
    "Sign": "of NaN it is NaN",
    "Resize": "with align_corners, a scale that gives no whole length is taken as it is",
    "BitCast": "as bool, a byte is whether it is not 0",
}
"""What the device does."""


def known(operators: Iterable[str]) -> tuple[str, ...]:
    """A line for each of a model's operators that may differ: "Cast: …"."""
    return tuple(f"{op}: {BY_OPERATOR[op]}" for op in sorted(set(operators)) if op in BY_OPERATOR)
