"""The peer on the bus: nutanix/libvfio-user's sample programs, built elsewhere (`meson setup build && ninja -C build`).

NPU_LIBVFIO_USER names the folder that holds them (`build/samples`); without it they are looked for in PATH. Only the
interop tests and the benchmarks know of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

VARIABLE = "NPU_LIBVFIO_USER"
START_S = 20.0
_POLL_S = 0.01


class PeerMissingError(LookupError):
    """A sample program is not there, or does not start; the text says which and why."""


class Served(NamedTuple):
    """A sample program that serves a device."""

    path: Path
    """Its socket."""
    process: subprocess.Popen[bytes]
    log: Path
    """What it wrote to standard error."""


def sample(name: str) -> Path:
    """A sample program. Raises PeerMissingError."""
    folder = os.environ.get(VARIABLE)
    found = shutil.which(name, path=folder)
    if found is None or (folder is None and name == "lspci"):  # PATH has another program of this name
        raise PeerMissingError(f"needs libvfio-user's {name}: build its samples, then: export {VARIABLE}=FOLDER")
    return Path(found)


@contextmanager
def serving(name: str, folder: Path, *arguments: str) -> Iterator[Served]:
    """Serve a sample's device at a socket in `folder`. Raises PeerMissingError."""
    program, path, log = sample(name), folder / f"{name}.sock", folder / f"{name}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [program, *arguments, path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors
        )
    try:
        deadline = time.monotonic() + START_S
        while not _listens(path):
            if process.poll() is not None:
                raise PeerMissingError(f"libvfio-user's {name} does not start: {log.read_text('utf-8').strip()}")
            if time.monotonic() > deadline:
                raise PeerMissingError(f"libvfio-user's {name} does not listen within {START_S:g} s")
            time.sleep(_POLL_S)
        yield Served(path, process, log)
    finally:
        process.kill()
        process.communicate()


def _listens(path: Path) -> bool:
    """Whether a socket file is listened at; a connection would take the only client's place."""
    listening = "00010000"
    lines = Path("/proc/net/unix").read_text("utf-8").splitlines()
    return any(line.endswith(f" {path}") and line.split()[3] == listening for line in lines)
