"""Files that the host hands over as DMA memory: each mapped once, or read and written where it may shrink.

One descriptor is kept of each, however many ranges lie in it.

A file that shrinks under a mapping kills whoever touches it (SIGBUS), so only files sealed against shrinking (memfds
with F_SEAL_SHRINK) are mapped; all others go through `preadv`/`pwrite`, which merely come up short.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import NamedTuple

from emulator.host_memory.shared_mappings import Piece, map_file


class FileFault(Exception):
    """The host's file cannot be read or written (any more); the text says why."""


class FileIdentity(NamedTuple):
    """The identity of a file, whatever descriptor names it."""

    device: int
    inode: int


class HostFile:
    """One file of the host, shared by all ranges that lie in it."""

    def __init__(self, identity: FileIdentity) -> None:
        self.identity = identity
        self.view: memoryview | None = None
        """The whole file where it can be mapped."""
        self.ranges = 0
        """How many ranges lie in it."""
        self._fd: int | None = None
        self._writable = False
        """Whether the descriptor, and the mapping, can be written through."""

    def cover(self, fd: int, end: int, *, writable: bool) -> bool:
        """Make the first `end` bytes reachable, for writing if asked. `fd` stays the caller's.

        True when `view` changed. Raises OSError and changes nothing.
        """
        if self.view is None and not _sealed(fd):
            if self._fd is None or (writable and not self._writable):
                self._keep(os.dup(fd))
                self._writable = access_mode(fd) == os.O_RDWR
            return False
        if self.view is not None and len(self.view) >= end and (self._writable or not writable):
            return False
        size = os.fstat(fd).st_size
        can_write = access_mode(fd) == os.O_RDWR
        try:
            view = map_file(fd, size, writable=can_write)
        except PermissionError:  # sealed against writing
            if writable or not can_write:
                raise
            can_write = False
            view = map_file(fd, size, writable=False)
        self._keep(os.dup(fd))
        self.view, self._writable = view, can_write
        return True

    def piece(self, offset: int, size: int) -> Piece:
        """Part of the file, to be mapped; good while a range lies in it."""
        return Piece(self._descriptor(), offset, size)

    def load(self, offset: int, dest: memoryview) -> None:
        """Fill `dest` from `offset` of a file that is not mapped. Raises FileFault."""
        done = 0
        while done < len(dest):
            try:
                count = os.preadv(self._descriptor(), [dest[done:]], offset + done)
            except OSError as error:
                raise FileFault(f"reading the host's file failed: {error.strerror}") from error
            if count == 0:
                raise FileFault("the host's file became shorter than its mapping")
            done += count

    def store(self, offset: int, source: memoryview) -> None:
        """Write `source` at `offset` of a file that is not mapped. Raises FileFault."""
        done = 0
        try:
            # Writing beyond the end would make a shortened file longer again.
            if os.fstat(self._descriptor()).st_size < offset + len(source):
                raise FileFault("the host's file became shorter than its mapping")
            while done < len(source):
                done += os.pwrite(self._descriptor(), source[done:], offset + done)
        except OSError as error:
            raise FileFault(f"writing the host's file failed: {error.strerror}") from error

    def close(self) -> None:
        """Let the file go; a mapping of it goes with the last view."""
        self._keep(None)
        self.view = None

    def _descriptor(self) -> int:
        if self._fd is None:
            raise FileFault("the file is no longer mapped")
        return self._fd

    def _keep(self, fd: int | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd


def identify(fd: int, end: int, *, writable: bool) -> FileIdentity:
    """The identity of the file behind `fd`, if its first `end` bytes can back a mapping; raises OSError if not."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
        raise os_error(errno.EINVAL, "only regular files that are not open for appending can be mapped")
    if end > status.st_size:
        raise os_error(errno.EINVAL, f"the range ends at byte {end:#x} of a file of {status.st_size:#x}")
    mode = access_mode(fd)
    if mode == os.O_WRONLY or (writable and mode != os.O_RDWR):
        raise os_error(errno.EACCES, "the file is not open for reading, or not for writing as the mapping allows")
    return FileIdentity(status.st_dev, status.st_ino)


def os_error(number: int, message: str) -> OSError:
    """An OSError with a text of its own after the system's."""
    return OSError(number, f"{os.strerror(number)}: {message}")


def access_mode(fd: int) -> int:
    """O_RDONLY, O_WRONLY or O_RDWR."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE


def _sealed(fd: int) -> bool:
    """Whether the file can never shrink; only memfds can promise that."""
    with contextlib.suppress(OSError):
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    return False
