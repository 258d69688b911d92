"""Device memory: one sealed memfd, mapped once, that grows only with what is touched.

The same file backs the aperture that clients map, so it is never re-created and never changes size: zeroing punches
its pages out in place, and every mapping of it then reads zeros.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import numpy as np

PUNCH_BYTES = 128 << 20
"""How much one `zero` gives back to the system. Giving back takes 0.2 ms a MiB, overwriting about 0.02 ms, and a
reset, which zeroes everything, must end within 100 ms; so what is beyond this is overwritten and stays resident."""


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
        """Zero a range (everything by default) and give its whole pages back, up to PUNCH_BYTES.

        Costs nothing where nothing was touched. Mappings and views stay valid. Raises ValueError for a range outside
        the memory.
        """
        length = self.size - offset if size is None else size
        end = offset + length
        if offset < 0 or length < 0 or end > self.size:
            raise ValueError(f"zeroing {length} bytes at {offset:#x} of {self.size} bytes of device memory")
        first_page = min(end, -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE)
        last_page = max(first_page, end // mmap.PAGESIZE * mmap.PAGESIZE)
        self.view[offset:first_page] = bytes(first_page - offset)
        budget = PUNCH_BYTES
        for start, stop in self._touched(first_page, last_page):
            kept = min(stop, start + budget)
            budget -= kept - start
            if kept > start:
                self._mapping.madvise(mmap.MADV_REMOVE, start, kept - start)
            np.frombuffer(self.view, np.uint8, stop - kept, kept).fill(0)
        self.view[last_page:end] = bytes(end - last_page)

    def _touched(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges of whole pages within [start, end) that the system holds (lseek(2), SEEK_DATA)."""
        while start < end:
            try:
                start = os.lseek(self.fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing further on
                    return
                raise
            stop = min(end, os.lseek(self.fd, start, os.SEEK_HOLE))
            if start < stop:
                yield start, stop
            start = stop

    def close(self) -> None:
        """Let go of file and mapping; idempotent. Pages go when the last view or mapping of them does."""
        if self._closed:
            return
        self._closed = True
        os.close(self.fd)
        with contextlib.suppress(BufferError):  # somebody still holds a slice: it keeps the mapping alive
            self.view.release()
            self._mapping.close()
