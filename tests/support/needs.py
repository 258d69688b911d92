"""What a test needs of the machine. Where it is missing the test is left out, with the command that brings it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S

ORT_PROVIDER = ROOT / "build" / "ort_provider" / "libnpu_ort_provider.so"
"""Where `make ort-provider` puts onnxruntime's provider for our devices."""
PACKAGES = {
    "gcc": "gcc libc6-dev",
    "g++": "g++",
    "lspci": "pciutils",
    "make": "make",
    "qemu-system-riscv32": "qemu-system-misc",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf",
    "unshare": "util-linux",
}
"""Program → the Debian packages that bring it."""


def missing_programs(*programs: str) -> str | None:
    """What is missing of these programs, and how to get it; None when nothing is."""
    missing = [name for name in programs if shutil.which(name) is None]
    if not missing:
        return None
    packages = dict.fromkeys(package for name in missing for package in PACKAGES[name].split())
    return f"needs {', '.join(missing)}: apt-get install {' '.join(packages)}"


def needs_program(*programs: str) -> pytest.MarkDecorator:
    """Mark of tests that run these programs, named as in `PACKAGES`."""
    reason = missing_programs(*programs)
    return pytest.mark.skipif(reason is not None, reason=reason or "")


def require_program(*programs: str) -> None:
    """Leave the running test out unless it can run these programs."""
    if reason := missing_programs(*programs):
        pytest.skip(reason)


def module_of_extra(module: str, extra: str) -> Any:
    """A module that an extra of ours brings; without it the test, or at import time its module, is left out."""
    return pytest.importorskip(module, reason=f"needs {module}: pip install 'npu-sdk[{extra}]'")


def require_all_there(missing: str | None) -> None:
    """Leave the running test out when this says what is missing, and how to get it."""
    if missing:
        pytest.skip(missing)


def _missing_ort_provider() -> str | None:
    sources = (path.stat().st_mtime for path in (ROOT / "ort_provider").glob("*"))
    if ORT_PROVIDER.exists() and ORT_PROVIDER.stat().st_mtime >= max(sources, default=0):
        return None
    return f"needs {ORT_PROVIDER.relative_to(ROOT)}, as new as its sources: make ort-provider"


needs_ort_provider = pytest.mark.skipif(_missing_ort_provider() is not None, reason=_missing_ort_provider() or "")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make test")


def require_root() -> None:
    """Leave the running test out unless we are root."""
    if os.geteuid() != 0:
        pytest.skip("needs root: sudo make test")


def require_memory(size_bytes: int) -> None:
    """Leave the running test out unless the machine has so much memory to spare."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    available = 0 if found is None else int(found[1]) << 10
    if available < size_bytes:
        pytest.skip(f"needs {size_bytes >> 20} MiB of memory, {available >> 20} are available: end other programs")


def needs_python(major: int, minor: int) -> pytest.MarkDecorator:
    """Mark of tests of what older versions of Python cannot do."""
    version = f"{major}.{minor}"
    reason = f"needs Python {version} or later: make clean test PYTHON=python{version}"
    return pytest.mark.skipif(sys.version_info < (major, minor), reason=reason)


def needs_processors(count: int) -> pytest.MarkDecorator:
    """Mark of tests that prove something only where so many threads run at once."""
    there = len(os.sched_getaffinity(0))
    return pytest.mark.skipif(there < count, reason=f"needs {count} processors; this process may use {there}: nproc")


def _can_unshare() -> bool:
    """Containers of root's often may not."""
    if os.geteuid() or shutil.which("unshare") is None:
        return False
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False, timeout=PATIENCE_S
    )
    return tried.returncode == 0


needs_namespaces = pytest.mark.skipif(
    not _can_unshare(), reason="needs root that may mount: sudo make test, in a container started with --privileged"
)
