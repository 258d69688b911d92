"""One factor for all patience of the tests: a machine that is slow, such as an emulated one, sets it."""

from __future__ import annotations

import os

SCALE = float(os.environ.get("NPU_TEST_TIME_SCALE", "1"))


def patience(seconds: float) -> float:
    """What is enough on an idle machine, stretched to this one."""
    return seconds * SCALE
