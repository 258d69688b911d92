"""Programs that tests run as processes of their own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.waiting import comes_true

PROGRAM_TIMEOUT_S = 120.0


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
        process.wait(PROGRAM_TIMEOUT_S)
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
    return comes_true(lambda: not session_members(leader))


def ends(pid: int) -> bool:
    """Whether a process ends within the patience; one that waits for being reaped has ended."""
    return comes_true(lambda: has_ended(pid))


def child_commands(pid: int) -> dict[int, bytes]:
    """The command lines of the processes that a process started, but of those that end while we look."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (_read(task / "children") or b"").split():
            command = _read(Path("/proc", child.decode(), "cmdline"))
            if command is not None:
                found[int(child)] = command
    return found


def children_that_run(pid: int, module: str) -> list[int]:
    """Of the processes that a process started those that run this Python module."""
    return [child for child, command in child_commands(pid).items() if module.encode() in command]


def _read(path: Path) -> bytes | None:
    """A file of /proc; None when what it tells of has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return None


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process does nothing for the length of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
