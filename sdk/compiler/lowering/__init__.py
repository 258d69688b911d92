"""Lowerings from ONNX operators to commands: one function per operator or family, found by name in `LOWERINGS`."""

from __future__ import annotations

from sdk.compiler.context import Lowering
from sdk.compiler.lowering import (
    activations,
    control,
    elementwise,
    indexing,
    movement,
    normalise,
    products,
    quantised,
    reductions,
    resizing,
    shapes,
)

LOWERINGS: dict[str, Lowering] = {
    **activations.LOWERINGS,
    **control.LOWERINGS,
    **elementwise.LOWERINGS,
    **indexing.LOWERINGS,
    **movement.LOWERINGS,
    **normalise.LOWERINGS,
    **products.LOWERINGS,
    **quantised.LOWERINGS,
    **reductions.LOWERINGS,
    **resizing.LOWERINGS,
    **shapes.LOWERINGS,
}
"""The operators that can be compiled."""
