"""What every test shares: reproducible hypothesis runs, and a watch over what a test worker leaves behind."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.children import child_commands

pytest_plugins = ("tests.support.limits", "tests.support.overseer")

LEAK_PATIENCE_S = 30.0
"""Children that were told to end may take this long on a loaded machine."""
LEAK_POLL_S = 0.05

_common = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
# derandomised where nobody watches: a failure there must be one that anybody can repeat
settings.register_profile("ci", derandomize=True, **_common)  # type: ignore[arg-type]
settings.register_profile("local", **_common)  # type: ignore[arg-type]
settings.load_profile("ci" if os.environ.get("CI") else "local")

# A shell has what it runs in the background ignore SIGINT, and the programs that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Keep the modules and the thousands of tests out of garbage collections, of which many tests ask for some."""
    gc.collect()
    gc.freeze()


def children() -> dict[int, str]:
    """Running or zombie children of this process, PID → command line."""
    return {
        pid: command.replace(b"\0", b" ").decode("utf-8", "replace").strip() or "(zombie)"
        for pid, command in child_commands(os.getpid()).items()
    }


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """The test must leave no child process and no open file descriptor behind (it may take a moment)."""
    processes, descriptors = children(), open_descriptors()
    yield
    deadline = time.monotonic() + LEAK_PATIENCE_S
    while True:
        left = {pid: command for pid, command in children().items() if pid not in processes}
        opened = open_descriptors() - descriptors
        if not left and not opened:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(LEAK_POLL_S)
    targets = sorted(_target(descriptor) for descriptor in opened)
    pytest.fail(f"left behind: processes {left}, descriptors {targets}")


def open_descriptors() -> set[int]:
    """Numbers of the file descriptors open in this process."""
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def _target(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return "(closed)"
