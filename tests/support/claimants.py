"""Processes that claim a device address, without any device behind it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from driver_shim.cards.holder import device_line
from tests.support.children import start

ADDRESS = "pci:0000:7f:00.0"
PATIENCE_S = 30.0
POLL_S = 0.01

PROGRAM = """
import sys, time
from pathlib import Path
from driver_shim.cards.holder import claim

address, when_busy, timeout_s, folder = sys.argv[1:5]
try:
    ours = claim(address, when_busy, time.monotonic() + float(timeout_s), Path(folder))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(0)
except Exception as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(0)
print("held", flush=True)
sys.stdin.readline()
ours.release()
print("released", flush=True)
"""


class Claimant:
    """One such process."""

    def __init__(self, folder: Path, when_busy: str, timeout_s: float, program: str = PROGRAM) -> None:
        self.process: subprocess.Popen[str] = start(program, ADDRESS, when_busy, str(timeout_s), str(folder))

    @property
    def pid(self) -> int:
        return self.process.pid

    def says(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def let_go(self) -> None:
        """Make it release."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.says() == "released"

    def kill(self) -> None:
        """SIGKILL, reaped when this returns."""
        self.process.kill()
        self.process.wait(PATIENCE_S)


class Claimants:
    """Claimants of one folder, all ended by the end of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._all: list[Claimant] = []

    def start(self, when_busy: str = "fail", timeout_s: float = PATIENCE_S, program: str = PROGRAM) -> Claimant:
        """Start one, which may still be on its way when this returns."""
        claimant = Claimant(self.folder, when_busy, timeout_s, program)
        self._all.append(claimant)
        return claimant

    def holding(self, program: str = PROGRAM) -> Claimant:
        """One that holds the device."""
        claimant = self.start("wait", program=program)
        assert claimant.says() == "held"
        return claimant

    def waiting(self, timeout_s: float = PATIENCE_S) -> Claimant:
        """One that stands in line, behind all others."""
        claimant = self.start("wait", timeout_s)
        deadline = time.monotonic() + PATIENCE_S
        while self.line()[-1:] != [claimant.pid]:
            assert time.monotonic() < deadline, f"{claimant.pid} did not line up: {self.line()}"
            time.sleep(POLL_S)
        return claimant

    def line(self) -> list[int | None]:
        """PIDs of the live tickets, in order."""
        return [owner and owner.pid for owner in device_line(ADDRESS, self.folder).live().values()]

    def files(self) -> list[str]:
        """What lies in the folder."""
        return sorted(path.name for path in self.folder.iterdir())

    def end(self) -> None:
        """Kill them all."""
        for claimant in self._all:
            claimant.process.kill()
            claimant.process.communicate()


@contextlib.contextmanager
def claimants(folder: Path) -> Iterator[Claimants]:
    """Claimants that end with the block."""
    made = Claimants(folder)
    try:
        yield made
    finally:
        made.end()
