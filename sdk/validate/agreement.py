"""Agreement of the device's outputs with the reference: the distance, and the distance allowed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RELATIVE_TOLERANCE = {"float32": 1e-4, "float16": 2.0**-9, "bfloat16": 2.0**-6}
"""Of the largest reference value of that output; every other type must be equal."""


class Agreement(NamedTuple):
    """One output compared."""

    name: str
    largest_difference: float
    tolerance: float
    """Absolute; 0 where the values must be equal."""

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.largest_difference <= self.tolerance


def compare(name: str, found: NDArray[Any], reference: NDArray[Any]) -> Agreement:
    """Compare one output. A NaN equals a NaN only; shapes that differ are infinitely far apart."""
    relative = RELATIVE_TOLERANCE.get(found.dtype.name, 0.0)
    if found.shape != reference.shape or found.dtype != reference.dtype:
        return Agreement(name, float("inf"), 0.0)
    if not found.size:
        return Agreement(name, 0.0, 0.0)
    ours, theirs = found.astype(np.float64), reference.astype(np.float64)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(ours - theirs))
    difference[np.isnan(difference)] = np.inf
    scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0)
    return Agreement(name, float(difference.max()), float(relative * scale))
