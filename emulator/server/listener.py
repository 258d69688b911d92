"""Socket files: made for the owner alone, shown once they answer, replaced when stale, removed at the end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from emulator import timeouts

SOCKET_MODE = 0o600
BACKLOG = 16
_HIDDEN_SUFFIX = "~"
MAX_PATH_BYTES = 107 - len(_HIDDEN_SUFFIX)
"""sockaddr_un has room for 107 bytes and a NUL; a socket is bound under a longer name than it is shown by."""


class ListenError(Exception):
    """A socket cannot be served at this path; says why and what to do."""


class Listener:
    """A listening UNIX socket at a path."""

    def __init__(self, path: Path) -> None:
        """Start listening. Raises ListenError, also when someone serves there already."""
        self.path = path
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ListenError(
                f"{path}: longer than the {MAX_PATH_BYTES} bytes of a socket address; choose a shorter path"
            )
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _locked(path.parent):
                _remove_stale(path)
                hidden = Path(f"{path}{_HIDDEN_SUFFIX}")
                _remove_stale(hidden)
                self.socket.bind(os.fspath(hidden))
                # Nobody can connect before listen(), so nobody slips in while the mode is still wider.
                os.chmod(hidden, SOCKET_MODE)
                self.socket.listen(BACKLOG)
                self._identity = _identity(hidden)
                # Whoever waits for the name, or finds it while starting another, finds it answering.
                os.rename(hidden, path)
            self.socket.setblocking(False)
        except OSError as error:
            self.socket.close()
            raise ListenError(f"{path}: cannot listen there: {error.strerror}; choose another path") from error
        except ListenError:
            self.socket.close()
            raise

    def close(self) -> None:
        """Stop listening and remove the socket file, unless another one has taken its place; idempotent."""
        self.socket.close()
        with contextlib.suppress(OSError):  # gone already, or its folder is
            if _identity(self.path) == self._identity:
                os.unlink(self.path)


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path, follow_symlinks=False)
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two starters never both find the same file stale. Raises OSError, ListenError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + timeouts.LISTEN_LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ListenError(
                        f"{folder}: another process keeps it locked; try again or choose another"
                    ) from None
                time.sleep(timeouts.LISTEN_LOCK_RETRY_S)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody serves. Raises ListenError for any other file."""
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path}: exists and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeouts.STALE_CHECK_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise ListenError(f"{path}: in use, or not ours to check ({error}); choose another path") from error
    raise ListenError(f"{path}: another process serves there; stop it or choose another path")
