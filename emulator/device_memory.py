"""Device memory: one sealed memfd, mapped once, that grows only with what is touched.

The same file backs the aperture that clients map, so it is never re-created and never changes size: zeroing punches
its pages out in place, and every mapping of it then reads zeros.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os


class DeviceMemory:
    """`size` bytes of zeroed memory behind a file descriptor."""

    def __init__(self, size: int, name: str = "npu-device-memory") -> None:
        """Create the file. `size` must be a positive multiple of the page size, else ValueError.

        Raises OSError when the system refuses (no memfd, address space or file descriptors left).
        """
        if size <= 0 or size % mmap.PAGESIZE:
            raise ValueError(f"device memory of {size} bytes; it must be a positive multiple of {mmap.PAGESIZE}")
        self.size = size
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        """The file to hand out for mapping; sealed against shrinking and growing."""
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._mapping = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._mapping)
        """All of it, writable bytes."""
        self._closed = False

    def zero(self, offset: int = 0, size: int | None = None) -> None:
        """Zero a range (everything by default) and give its whole pages back to the system.

        Mappings and views stay valid. Raises ValueError for a range outside the memory.
        """
        length = self.size - offset if size is None else size
        end = offset + length
        if offset < 0 or length < 0 or end > self.size:
            raise ValueError(f"zeroing {length} bytes at {offset:#x} of {self.size} bytes of device memory")
        first_page = min(end, -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE)
        last_page = max(first_page, end // mmap.PAGESIZE * mmap.PAGESIZE)
        self.view[offset:first_page] = bytes(first_page - offset)
        if last_page > first_page:
            self._mapping.madvise(mmap.MADV_REMOVE, first_page, last_page - first_page)
        self.view[last_page:end] = bytes(end - last_page)

    @property
    def resident_bytes(self) -> int:
        """Bytes the system holds for it: what was touched since it was last zeroed."""
        return os.fstat(self.fd).st_blocks * _STAT_BLOCK_BYTES

    def close(self) -> None:
        """Let go of file and mapping; idempotent. Pages go when the last view or mapping of them does."""
        if self._closed:
            return
        self._closed = True
        os.close(self.fd)
        with contextlib.suppress(BufferError):  # somebody still holds a slice: it keeps the mapping alive
            self.view.release()
            self._mapping.close()


_STAT_BLOCK_BYTES = 512
"""Unit of `st_blocks` (POSIX stat)."""
