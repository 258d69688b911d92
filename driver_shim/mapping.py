"""Memory files of the host: created sealed, mapped so that pages live exactly as long as something can see them."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref

PAGE_BYTES = mmap.PAGESIZE
HUGE_PAGE_BYTES = 2 << 20

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

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
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        raise _last_error("mmap", size)
    if _libc.madvise(address, size, mmap.MADV_DONTFORK) != 0:
        error = _last_error("madvise(MADV_DONTFORK)", size)
        _libc.munmap(address, size)
        raise error
    octets = (ctypes.c_ubyte * size).from_address(address)
    # Never at exit: views may outlive the interpreter's shutdown, and the kernel unmaps everything then.
    weakref.finalize(octets, _unmap, os.getpid(), address, size).atexit = False
    return memoryview(octets).cast("B")


def _unmap(creator: int, address: int, size: int) -> None:
    if os.getpid() == creator:
        _libc.munmap(address, size)


def _last_error(call: str, size: int) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call} of {size} bytes: {os.strerror(code)}")
