"""Lowerings from ONNX operators to commands: one function per operator or family, found by name in `LOWERINGS`."""

from __future__ import annotations

from sdk.compiler.context import Lowering
from sdk.compiler.lowering import (
    activations,
    attention,
    contrib,
    contrib_after_sum,
    contrib_attention,
    contrib_group_attention,
    contrib_packed,
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

_FAMILIES = (
    activations,
    attention,
    contrib,
    contrib_packed,
    contrib_quantised,
    contrib_after_sum,
    contrib_attention,
    contrib_group_attention,
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
LOWERINGS: dict[str, Lowering] = {name: lower for family in _FAMILIES for name, lower in family.LOWERINGS.items()}
"""The operators that can be compiled."""

if len(LOWERINGS) < sum(len(family.LOWERINGS) for family in _FAMILIES):
    raise ImportError("an operator is in the tables of two families")
