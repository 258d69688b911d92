"""What a test process does, for another to read even when the first has died."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ENTRY_BYTES = 1024


@dataclass(frozen=True)
class LogBook:
    """One process's entry, in a file that is overwritten, and the stacks that it wrote when it had to end."""

    path: Path
    stacks: Path

    @classmethod
    def of(cls, folder: Path, worker: str) -> LogBook:
        """A worker's, in a folder of log books."""
        return cls(folder / f"{worker}.log", folder / f"{worker}.stacks")

    def write(self, what: str, deadline: float) -> None:
        """Say what this process does, and until when of the monotonic clock it may."""
        os.pwrite(self._descriptor, f"{deadline} {what}".encode()[:ENTRY_BYTES].ljust(ENTRY_BYTES), 0)

    def read(self) -> tuple[str, float]:
        """What the process did last, and its deadline."""
        deadline, _, what = self.path.read_bytes().decode("utf-8", "replace").strip().partition(" ")
        return what, float(deadline)

    def read_stacks(self) -> str:
        """Every thread's stack when the process ended for want of time; empty if it did not."""
        try:
            return self.stacks.read_text("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""

    @cached_property
    def _descriptor(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
