"""Mappings whose pages live exactly as long as something can see them: memory files of the host, and device memory.

Memory files are created sealed. What a device maps can be revoked: a device that is reset or unplugged kills whoever
touches its pages (SIGBUS), so they are swapped for ordinary ones first.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref

PAGE_BYTES = mmap.PAGESIZE
HUGE_PAGE_BYTES = 2 << 20

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FAILED = ctypes.c_void_p(-1).value


def create_memory_file(size: int, *, huge: bool = False) -> int:
    """A zeroed memory file of `size` bytes that can neither shrink nor grow; returns its descriptor.

    `huge` backs it by huge pages (`size` a multiple of `HUGE_PAGE_BYTES`). Raises OSError.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge:
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
    fd = os.memfd_create("npu-dma", flags)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_memory_file(fd: int, size: int) -> memoryview:
    """Map a memory file; it is unmapped when the last view of it dies, in the process that mapped it.

    Forked children do not inherit the pages (MADV_DONTFORK): a write after fork would otherwise copy them away from
    the device. `mmap.mmap` would not do: it holds a descriptor, and unmaps in a child what is not mapped there.
    Raises OSError.
    """
    return memoryview(_map(fd, 0, size, mmap.PROT_READ | mmap.PROT_WRITE)).cast("B")


class DeviceMapping:
    """Part of a device's file, mapped until the last view of it dies or it is revoked."""

    def __init__(self, fd: int, offset: int, size: int, *, readable: bool = True, writable: bool = True) -> None:
        """`offset` is a multiple of the page size. Raises OSError."""
        self._size = size
        octets = _map(fd, offset, size, mmap.PROT_READ * readable | mmap.PROT_WRITE * writable)
        self._octets = weakref.ref(octets)
        self._first_view: memoryview | None = memoryview(octets).cast("B")

    def take_view(self) -> memoryview:
        """The mapping, once: from then on it lives as long as this view and what is made of it."""
        view, self._first_view = self._first_view, None
        if view is None:
            raise RuntimeError("the view was taken before")
        return view

    @property
    def mapped(self) -> bool:
        """Whether anything can still see the mapping."""
        return self._octets() is not None

    def revoke(self) -> None:
        """Swap the device's pages for empty ones of our own, in one step: no access in between can fail.

        Views stay usable; what they read means nothing from now on, and what is written goes nowhere. Raises OSError.
        """
        octets = self._octets()  # held here, so that its address is not unmapped, and taken by others, meanwhile
        if octets is None:
            return
        address = ctypes.addressof(octets)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        if _libc.mmap(address, self._size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == _MAP_FAILED:
            raise _last_error("mmap(MAP_FIXED)", self._size)


def _map(fd: int, offset: int, size: int, protection: int) -> ctypes.Array[ctypes.c_ubyte]:
    address = _libc.mmap(None, size, protection, mmap.MAP_SHARED, fd, offset)
    if address == _MAP_FAILED:
        raise _last_error("mmap", size)
    if _libc.madvise(address, size, mmap.MADV_DONTFORK) != 0:
        error = _last_error("madvise(MADV_DONTFORK)", size)
        _libc.munmap(address, size)
        raise error
    octets = (ctypes.c_ubyte * size).from_address(address)
    # Never at exit: views may outlive the interpreter's shutdown, and the kernel unmaps everything then.
    weakref.finalize(octets, _unmap, os.getpid(), address, size).atexit = False
    return octets


def _unmap(creator: int, address: int, size: int) -> None:
    if os.getpid() == creator:
        _libc.munmap(address, size)


def _last_error(call: str, size: int) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call} of {size} bytes: {os.strerror(code)}")
