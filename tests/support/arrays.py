"""Arrays for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def real(*shape: int, seed: int = 0) -> NDArray[Any]:
    """float32 numbers of a normal distribution, the same ones for a seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
