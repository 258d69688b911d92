"""Where running devices are published, and what a publication says.

Runtime files live in `$NPU_RUNTIME_DIR`, else /run/npu (if it can be written), else `$XDG_RUNTIME_DIR/npu`, else a
0700 folder of this user in the temporary directory. One JSON file a served emulator.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

PUBLICATION_VERSION = 1
PUBLICATION_SUFFIX = ".device.json"
SYSTEM_FOLDER = Path("/run/npu")


class Publication(TypedDict):
    """What a served emulator says of itself."""

    version: int
    address: str
    """"vfio-user:" and the absolute socket path."""
    pid: int
    start_time: int
    """Field 22 of /proc/PID/stat: tells a process from a later one of the same PID."""
    profile: str
    serial: str
    kernels: str
    since: float
    """Seconds since the epoch."""


def runtime_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder to publish in and to look in; it need not exist yet."""
    if named := environment.get("NPU_RUNTIME_DIR"):
        return Path(named)
    if os.access(SYSTEM_FOLDER, os.W_OK):
        return SYSTEM_FOLDER
    if session := environment.get("XDG_RUNTIME_DIR"):
        return Path(session) / "npu"
    return Path(tempfile.gettempdir()) / f"npu-{os.getuid()}"


def process_start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
