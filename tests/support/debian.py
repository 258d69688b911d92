"""Trees of Debian packages, made with mmdebstrap from the mirror that this machine's apt uses, and a cache for what is
made of them.

Of the standard library alone: it runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SUITE = "trixie"
BACKPORTS = f"{SUITE}-backports"
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "xz": "xz-utils",
    "chroot": "coreutils",
    "tar": "tar",
    "git": "git",
    "unshare": "util-linux",
}
"""Program → its Debian package, of what trees and guests are made with."""
STEP_S = 7200.0
"""Building a kernel is the longest."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_APT = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))
_SYSTEM_PATH = "/usr/sbin:/sbin"
"""Where programs lie that only root uses."""


def cache_folder() -> Path:
    """`$NPU_CACHE_DIR`, else a folder in the user's cache."""
    named = os.environ.get("NPU_CACHE_DIR")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npu-sdk"


def recipe_key(*parts: str) -> str:
    """Names something by all that it is made of."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def cached(cache: Path, name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder in `cache` of what has this name and recipe; `make` fills it, beside its place until it is whole."""
    folder = cache / f"{name}-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f"{name}.lock"):
        if not folder.is_dir():
            for older in cache.glob(f"{name}-*"):
                shutil.rmtree(older)
            print(f"making {name}: {folder}", file=sys.stderr, flush=True)
            growing = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cache))
            growing.chmod(0o755)
            try:
                make(growing)
            except BaseException:
                shutil.rmtree(growing, ignore_errors=True)
                raise
            growing.rename(folder)
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """The lock of this file, held; waits for it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_tools(*tools: str, purpose: str) -> None:
    """Raise RuntimeError, with the command that helps, unless we are root and these programs of `TOOLS` are there."""
    if os.geteuid() != 0:
        raise RuntimeError(f"only root can {purpose}")
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}"
    missing = [tool for tool in tools if not shutil.which(tool, path=path)]
    packages = [TOOLS[tool] for tool in missing]
    if "mmdebstrap" in tools and not KEYRING.is_file():
        missing.append(str(KEYRING))
        packages.append("debian-archive-keyring")
    if missing:
        raise RuntimeError(f"to {purpose} takes {', '.join(missing)}: apt-get install {' '.join(packages)}")


def bootstrap(target: Path, packages: Sequence[str], *, backports: bool = False) -> None:
    """Make a tree, or a tar file if that is what `target` is called, of these packages and what they depend on; with
    `backports` the packages come from there. Raises CalledProcessError, RuntimeError."""
    source = mirror()
    run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f'--aptopt=APT::Default-Release "{BACKPORTS if backports else SUITE}"',
        f"--keyring={KEYRING}",
        SUITE,
        target,
        f"deb {source} {SUITE} main",
        *([f"deb {source} {BACKPORTS} main"] if backports else []),
    )


@functools.cache
def mirror() -> str:
    """The Debian mirror that this machine uses. Raises RuntimeError where there is none."""
    files = [_APT[0], *sorted(_APT[1].glob("*"))] if _APT[1].is_dir() else [_APT[0]]
    for path in files:
        found = re.search(r"^(?:URIs:|deb(?: \[[^]]*])?)\s+(\S+)", path.read_text() if path.is_file() else "", re.M)
        if found:
            return found[1]
    raise RuntimeError("apt's configuration names no mirror to take Debian's packages from")


def run(*command: str | Path) -> str:
    """What a program prints; root's own programs are found, too. Raises CalledProcessError."""
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}"}
    ran = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
        timeout=STEP_S,
    )
    return ran.stdout
