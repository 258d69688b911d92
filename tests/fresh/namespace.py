"""Runs a command in a tree of its own as if that were a machine: own mounts, processes, IPC and host name.

The network is the host's. `run` is what others call; the rest is process 1 of the namespaces, with which every mount
and process in them ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HOST_NAME = "fresh"
_ROOT = Path(__file__).parents[2]
_NAMESPACES = ("--mount", "--propagation=private", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 2, 4, 8, 32, 4096, 16384
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Bind(NamedTuple):
    """A file or folder of the host that is seen in the tree, too."""

    source: str
    target: str
    """Path in the tree; made if it is not there."""
    writable: bool = False


class Job(NamedTuple):
    """What runs in a tree."""

    tree: str
    folder: str
    command: Sequence[str]
    environment: Mapping[str, str]
    binds: Sequence[Bind] = ()


def run(job: Job) -> int:
    """The job's exit status. It takes root; whatever becomes of this process, nothing is left."""
    command = ["unshare", *_NAMESPACES, sys.executable, "-m", __name__, json.dumps(job)]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent) as running:
        try:
            return running.wait()
        except BaseException:
            running.kill()  # and with it process 1 of the namespaces, and all in them
            raise


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent has ended."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> int:
    """Run the job of the command line as process 1; its exit status."""
    tree, folder, command, environment, binds = json.loads(sys.argv[1])
    _enter(Path(tree), [Bind(*bind) for bind in binds])
    socket.sethostname(HOST_NAME)
    child = os.fork()
    if not child:
        try:
            os.chdir(folder)
            os.execvpe(command[0], command, environment)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
    # the terminal's Ctrl-C is for the command; process 1 ignores what it does not handle
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while True:  # process 1 takes over orphans, and has to collect them
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _enter(tree: Path, binds: Sequence[Bind]) -> None:
    """Make the tree the root of the file system, with what a running machine has mounted."""
    _mount(tree, tree, flags=_MS_BIND)
    _mount("proc", tree / "proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("sysfs", tree / "sys", "sysfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _make_devices(tree / "dev")
    for bind in binds:
        _bind(Path(bind.source), tree / bind.target.lstrip("/"), bind.writable)
    os.chdir(tree)
    _check(_libc.syscall(_pivot_root_number(), b".", b"."), "pivot_root")  # puts the old root upon the new one
    _check(_libc.umount2(b".", _MNT_DETACH), "umount of the host's root")
    os.chdir("/")


def _make_devices(folder: Path) -> None:
    _mount("tmpfs", folder, "tmpfs", _MS_NOSUID, "mode=755")
    for name in _DEVICES:
        _bind(Path("/dev", name), folder / name, writable=True)
    for name, target in _DEVICE_LINKS.items():
        (folder / name).symlink_to(target)
    for name, kind, options in (("pts", "devpts", "newinstance,ptmxmode=0666,mode=620"), ("shm", "tmpfs", "mode=1777")):
        (folder / name).mkdir()
        _mount(kind, folder / name, kind, _MS_NOSUID, options)


def _bind(source: Path, target: Path, writable: bool) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(source, target, flags=_MS_BIND | _MS_REC)
    if not writable:
        _mount(source, target, flags=_MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def _mount(source: Path | str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags))
    _check(_libc.mount(*arguments, options.encode() or None), f"mount of {source} at {target}")


def _pivot_root_number() -> int:
    """Number of the system call, for which the C library has no function."""
    return {"x86_64": 155, "aarch64": 41}[os.uname().machine]


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
