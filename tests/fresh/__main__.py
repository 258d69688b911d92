"""`make test-fresh`: makes a machine that has Python, make and git of Debian and nothing else, clones HEAD there, and
types what the README says first.

The tree of packages is kept in the cache, as is what pip downloaded; all else is made anew and removed, also when the
run is interrupted. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fresh import namespace
from tests.fresh.namespace import Bind, Job
from tests.fresh.pip_sources import pip_sources
from tests.support import debian
from tests.support.debian import STEP_S, bootstrap, cached, locked, recipe_key, require_tools, run

PACKAGES = ("python3", "python3-venv", "make", "git", "ca-certificates")
"""All that is installed, with what it depends on."""
ROOT = Path(__file__).parents[2]
PROJECT = "/root/npu-sdk"
PIP_CACHE = "/root/.cache/pip"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "USER": "root"}
PASSED_ON = ("CI", "TERM", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Variables of this machine's that hold there, too; what is about pip is in its configuration."""
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts")
SHOWN_CHANGES = 5
_RECIPE = "1"
"""Changes when the tree is made in another way of the same packages."""
_TREE = "root.tar"


def main() -> int:
    """Make the machine and run the commands there; the exit status of the first that fails."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupted)
    clock = Clock()
    try:
        require_tools("mmdebstrap", "tar", "git", "unshare", purpose="make a fresh machine")
        _tell_changes(_changes())
        statuses = {}
        with machine(clock) as tree:
            for command in commands((tree / PROJECT.lstrip("/") / "README.md").read_text("utf-8")):
                with clock.phase(command):
                    statuses[command] = run_inside(tree, command)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        _say(str(error))
        return 1
    _say(clock.report())
    failed = {command: status for command, status in statuses.items() if status}
    for command, status in failed.items():
        _say(f"{command} failed with status {status}")
    return next(iter(failed.values()), 0)


class Clock:
    """How long each phase took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One of them."""
        _say(name)
        start = time.monotonic()
        yield
        self._seconds[name] = time.monotonic() - start

    def report(self) -> str:
        """All of them on a line."""
        return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self._seconds.items())


@contextlib.contextmanager
def machine(clock: Clock) -> Iterator[Path]:
    """The tree of a machine with a clone in it, which goes with the block."""
    cache = debian.cache_folder() / "fresh"
    with clock.phase("packages"):
        key = recipe_key(_RECIPE, debian.SUITE, *PACKAGES)
        packed = cached(cache, "packages", key, lambda folder: bootstrap(folder / _TREE, PACKAGES)) / _TREE
    with locked(cache / "machine.lock"):
        for left_behind in cache.glob("machine-*"):  # by a run that was killed: we hold the lock
            shutil.rmtree(left_behind)
        tree = Path(tempfile.mkdtemp(prefix="machine-", dir=cache))
        try:
            with clock.phase("machine"):
                tree.chmod(0o755)
                run("tar", "-C", tree, "-xf", packed, "--exclude=./dev/*")
                _clone(tree)
                settings = tree / "etc/pip.conf"  # an index's address may hold a password
                settings.touch(mode=0o600)
                settings.write_text(pip_sources().configuration)
            yield tree
        finally:
            shutil.rmtree(tree)


def run_inside(tree: Path, command: str) -> int:
    """Exit status of a command in the machine's clone; whatever it started ends with it."""
    cache = debian.cache_folder() / "fresh/pip"
    cache.mkdir(parents=True, exist_ok=True)
    shared = [*NETWORK_FILES, *pip_sources().paths]
    binds = [Bind(path, path) for path in shared if Path(path).exists()]
    environment = {**ENVIRONMENT, **{name: os.environ[name] for name in PASSED_ON if name in os.environ}}
    job = Job(str(tree), PROJECT, shlex.split(command), environment, [*binds, Bind(str(cache), PIP_CACHE, True)])
    return namespace.run(job)


def commands(readme: str) -> list[str]:
    """What the README has its readers type first, in its first console block. Raises RuntimeError for nothing."""
    block = re.search(r"^```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    lines = block[1].splitlines() if block else []
    found = [line[2:].partition("#")[0].strip() for line in lines if line.startswith("$ ")]
    if not found:
        raise RuntimeError("the README shows no command to try")
    return found


def _clone(tree: Path) -> None:
    """Clone HEAD, whoever owns the checkout, and however little of the history it has."""
    with tempfile.NamedTemporaryFile("w", suffix=".gitconfig") as configuration:
        configuration.write("[safe]\n\tdirectory = *\n")
        configuration.flush()
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": configuration.name}
        target = str(tree / PROJECT.lstrip("/"))
        command = ["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", target]
        subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL, timeout=STEP_S)


def _tell_changes(status: str) -> None:
    """Say what is not committed: it is not tried."""
    changed = [line[3:] for line in status.splitlines()]
    if changed:
        more = f" and {len(changed) - SHOWN_CHANGES} more" if len(changed) > SHOWN_CHANGES else ""
        _say(f"HEAD is tried WITHOUT the uncommitted changes of {', '.join(changed[:SHOWN_CHANGES])}{more}")


def _changes() -> str:
    try:
        return run("git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "status", "--porcelain")
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"what is tried is a clone of HEAD, and {ROOT} is no git checkout") from error


def _interrupted(number: int, _: object) -> None:
    sys.exit(128 + number)


def _say(text: str) -> None:
    print(f"test-fresh: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
