"""Programs that tests run as processes of their own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM_TIMEOUT_S = 120.0
END_PATIENCE_S = 20.0
"""A process that follows another into its end may take this long on a loaded machine."""
POLL_S = 0.02


def environment() -> dict[str, str]:
    """This process's environment without our variables, with the packages importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NPU_")}
    paths = (str(ROOT), kept.get("PYTHONPATH", ""))
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start Python source text as a program with pipes on its standard streams."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def run(program: str, *arguments: str) -> str:
    """Run Python source text to its end; what it printed. Fails unless it exits with 0."""
    process = start(program, *arguments)
    try:
        output, errors = process.communicate(timeout=PROGRAM_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise AssertionError(f"exit status {process.returncode}\n{output}\n{errors}")
    return output


def has_ended(pid: int) -> bool:
    """Whether a process is gone, with all of its threads, or waits to be reaped by whoever is its parent now."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)


def session_members(leader: int) -> list[int]:
    """Processes of the session that process `leader` began: an emulator and its engines."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            members.append(int(folder.name))
    return members


def session_ends(leader: int) -> bool:
    """Whether all of the session ends within the patience: its members see the leader's end each in its own time."""
    deadline = time.monotonic() + END_PATIENCE_S
    while session_members(leader):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
