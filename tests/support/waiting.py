"""Waiting for what another process does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.support.time_scale import patience

PATIENCE_S = patience(60.0)
"""What follows soon may take this long on a loaded machine."""
POLL_S = 0.01


def comes_true(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    """Whether the condition holds within the patience."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once the condition holds."""
    assert comes_true(condition, patience_s), f"after {patience_s:g} s still not: {what}"
