"""Tests that fork."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.children import ends

FORKS_WITH_THREADS = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")
"""A worker of pytest-xdist has a thread, and so has whoever has a device open, who may fork."""


def exit_status(child: int) -> int:
    """How a forked child ends: its exit status, or minus the signal that ended it. One that goes on is killed."""
    if not ends(child):
        os.kill(child, signal.SIGKILL)
    assert ends(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, os.WNOHANG)[1])
