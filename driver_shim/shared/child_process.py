"""Child processes that run these packages: their command lines, their first steps, their ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_BOOT = (
    "import os, sys; {nice}sys.path[:] = sys.argv.pop(1).split(os.pathsep);"
    " from {module} import main; main(sys.argv[1:])"
)
_PR_SET_PDEATHSIG = 1
"""prctl(2)."""
_STANDARD_DESCRIPTORS = (0, 1, 2)


def module_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """(argument vector, environment) of `python -m MODULE`.

    It finds the same packages as this process, and nothing in the folder that the user happens to be in.
    """
    paths = [os.fspath(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    return [sys.executable, "-P", "-m", module, *arguments], environment


def main_command(module: str, *arguments: str, niceness: int = 0) -> list[str]:
    """Argument vector of a process that calls `MODULE.main(arguments)`, nicer than this one from its first step on.

    It imports what this process would, from where this process would, and needs no environment for that.
    """
    nice = f"os.nice({niceness}); " if niceness else ""
    return [sys.executable, "-c", _BOOT.format(nice=nice, module=module), os.pathsep.join(sys.path), *arguments]


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when `parent` ends; ends at once if it has ended already.

    What the kernel watches is the thread that started this process, so that one must live as long as its process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def occupy_standard_descriptors() -> None:
    """Put /dev/null where one is closed, as for services: else the next file that is opened would take its place."""
    for number in _STANDARD_DESCRIPTORS:
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one


def wait_or_kill(process: subprocess.Popen[bytes], patience_s: float, reap_s: float) -> bool:
    """Wait for a child that was told to end, then kill it; False if it has not ended even so."""
    for wait_s in (patience_s, reap_s):
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
        else:
            return True
    return False
