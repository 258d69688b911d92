"""Mappings of the host's files: a file whole, or scattered pieces of files joined to one run of virtual addresses.

Behind an IOMMU every page of a ring may lie elsewhere in the host's memory file; joined, the ring is one array again.
A mapping lives exactly as long as something can see it. `mmap.mmap` would not do: it cannot place a piece at an
address, and holds a descriptor of its own.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import NamedTuple

MAX_PIECES = 16384
"""Pieces joined at a time. Linux allows a process 65,530 mappings (vm.max_map_count); the rings of 32 queues of the
largest size take 6,144, one a page."""

_PROT_NONE = 0
_MAP_FIXED = 0x10
"""<asm-generic/mman-common.h>; the `mmap` module lacks it."""
_MAP_NORESERVE = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


class Piece(NamedTuple):
    """`size` bytes of a file from `offset`; whole pages."""

    fd: int
    offset: int
    size: int


class JoinedMappings:
    """Joins pieces, at most MAX_PIECES of them at a time."""

    def __init__(self) -> None:
        self.pieces = 0
        """How many are joined now."""

    def join(self, pieces: Sequence[Piece], *, writable: bool) -> ctypes.Array[ctypes.c_ubyte]:
        """All pieces, one behind the other; unmapped with the last view of it.

        Raises OSError: ENOSPC for too many pieces, and what mapping them gives.
        """
        if self.pieces + len(pieces) > MAX_PIECES:
            raise OSError(
                errno.ENOSPC, f"{len(pieces)} pieces beside {self.pieces}; at most {MAX_PIECES} can be joined"
            )
        size = sum(piece.size for piece in pieces)
        start = _mmap(None, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
        try:
            at = start
            for piece in pieces:
                _mmap(at, piece.size, _protection(writable), mmap.MAP_SHARED | _MAP_FIXED, piece.fd, piece.offset)
                at += piece.size
        except BaseException:
            _libc.munmap(start, size)
            raise
        self.pieces += len(pieces)
        octets = _owned(start, size)
        weakref.finalize(octets, self._forget, len(pieces)).atexit = False
        return octets

    def _forget(self, count: int) -> None:
        self.pieces -= count


def map_file(fd: int, size: int, *, writable: bool) -> memoryview:
    """Map the first `size` bytes of a file. Raises OSError."""
    return memoryview(_owned(_mmap(None, size, _protection(writable), mmap.MAP_SHARED, fd, 0), size)).cast("B")


def _protection(writable: bool) -> int:
    return mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)


def _mmap(address: int | None, size: int, protection: int, flags: int, fd: int, offset: int) -> int:
    found: int = _libc.mmap(address, size, protection, flags, fd, offset)
    if found == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"mapping {size:#x} bytes of a file from {offset:#x}: {os.strerror(number)}")
    return found


def _owned(address: int, size: int) -> ctypes.Array[ctypes.c_ubyte]:
    """The mapping as an array, unmapped with it by the process that made it."""
    octets = (ctypes.c_ubyte * size).from_address(address)
    # Never at exit: views may outlive the interpreter's shutdown, and the kernel unmaps everything then.
    weakref.finalize(octets, _unmap, os.getpid(), address, size).atexit = False
    return octets


def _unmap(creator: int, address: int, size: int) -> None:
    if os.getpid() == creator:
        _libc.munmap(address, size)
