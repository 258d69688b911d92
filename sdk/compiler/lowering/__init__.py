"""Lowerings from ONNX operators to commands: one function per operator or family, found by name in `LOWERINGS`."""

from __future__ import annotations

from sdk.compiler.context import Lowering
from sdk.compiler.lowering import (
    activations,
    attention,
    contrib,
    contrib_attention,
    contrib_quantised,
    control,
    einsum,
    elementwise,
    indexing,
    losses,
    movement,
    normalise,
    pooling,
    products,
    quantised,
    recurrent,
    reductions,
    resizing,
    sampling,
    shapes,
    spectra,
)

LOWERINGS: dict[str, Lowering] = {
    **activations.LOWERINGS,
    **attention.LOWERINGS,
    **contrib.LOWERINGS,
    **contrib_quantised.LOWERINGS,
    **contrib_attention.LOWERINGS,
    **control.LOWERINGS,
    **einsum.LOWERINGS,
    **elementwise.LOWERINGS,
    **indexing.LOWERINGS,
    **losses.LOWERINGS,
    **movement.LOWERINGS,
    **normalise.LOWERINGS,
    **pooling.LOWERINGS,
    **products.LOWERINGS,
    **quantised.LOWERINGS,
    **recurrent.LOWERINGS,
    **reductions.LOWERINGS,
    **resizing.LOWERINGS,
    **sampling.LOWERINGS,
    **shapes.LOWERINGS,
    **spectra.LOWERINGS,
}
"""The operators that can be compiled."""
