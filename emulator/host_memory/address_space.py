"""The device's view of host memory: what the host mapped for DMA, by bus address (IOVA).

A range is backed in one of three ways, chosen by what the host handed over:

* a file sealed against shrinking: mapped, once a file, however many ranges lie in it;
* any other file: read and written through its descriptor (see `host_files.py`);
* no file: the host is asked by message, through `remote`.

Nothing here trusts the host: what is not mapped, or not for that direction, is a `DmaFault`.
"""

from __future__ import annotations

import bisect
import errno
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from emulator.host_memory.host_files import FileFault, FileIdentity, HostFile, identify, os_error
from emulator.host_memory.shared_mappings import JoinedMappings, Piece

IOVA_LIMIT = 1 << 64
"""One past the last bus address; a range may end exactly here."""
PAGE_BYTES = 4096
"""Mappings are made of these pages, as on a bus behind an IOMMU."""
MAX_RANGES = 65535
"""Ranges that may be mapped at a time (vfio-user `max_dma_maps`)."""


class DmaFault(Exception):
    """The device may not, or could not, reach host memory."""

    def __init__(self, iova: int, size: int, reason: str) -> None:
        super().__init__(f"DMA of {size} bytes at bus address {iova:#x}: {reason}")
        self.iova = iova
        self.size = size
        self.reason = reason


class RemoteMemory(Protocol):
    """Host memory that is reached by asking the host."""

    def read(self, iova: int, size: int) -> bytes:
        """`size` bytes at `iova`. Raises DmaFault when the host refuses or does not answer in time."""

    def write(self, iova: int, data: memoryview) -> None:
        """Write `data` at `iova`. Raises DmaFault likewise."""

    def abort(self) -> None:
        """Fail the transfer under way, if there is one, with DmaFault."""


class _Range:
    """Bus addresses `first` to `end` (exclusive) and what lies behind them."""

    __slots__ = ("end", "file", "first", "offset", "readable", "view", "viewed", "writable")

    def __init__(
        self, first: int, end: int, file: HostFile | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        self.first = first
        self.end = end
        self.file = file
        self.offset = offset
        self.readable = readable
        self.writable = writable
        self.view: memoryview | None = None
        self.viewed = False
        """Whether `AddressSpace.view` handed part of it out."""
        self.resolve()

    def resolve(self) -> None:
        """Take the part of the file's mapping that is ours, where there is one."""
        whole = self.file.view if self.file is not None else None
        self.view = None if whole is None else whole[self.offset : self.offset + self.end - self.first]


class AddressSpace:
    """Everything the host has mapped. Single-threaded, like the function that owns it."""

    def __init__(self) -> None:
        self.generation = 0
        """Changes when memory that was viewed is unmapped: holders of views resolve them again when it does.

        Mapping changes no view, since ranges never overlap; nor does unmapping what nobody looked at. So a host that
        maps its memory page by page costs the holders nothing."""
        self.remote: RemoteMemory | None = None
        """How to ask the host for ranges without a file; the server sets it while a client is connected."""
        self._starts: list[int] = []
        self._ranges: list[_Range] = []
        self._files: dict[FileIdentity, HostFile] = {}
        self._mappings = JoinedMappings()
        self._joined: weakref.WeakValueDictionary[tuple[int, int, bool], Any] = weakref.WeakValueDictionary()
        """Scattered memory that somebody views, by address, size and direction."""

    def __len__(self) -> int:
        """Number of ranges mapped."""
        return len(self._ranges)

    def map(self, iova: int, size: int, *, fd: int | None, offset: int, readable: bool, writable: bool) -> None:
        """Let the device reach `size` bytes at `iova`: those of `fd` from `offset`, or, without one, by message.

        The descriptor stays the caller's. Raises OSError and changes nothing: EINVAL (empty, not of whole pages, beyond
        2**64 or beyond the file, or no regular file), EEXIST (overlaps a mapping), EACCES (the file does not
        allow it), ENOSPC (too many ranges), ENOMEM.
        """
        end = iova + size
        if min(iova, offset) < 0 or size <= 0 or end > IOVA_LIMIT or (iova | size | offset) % PAGE_BYTES:
            raise os_error(errno.EINVAL, f"a range of {size:#x} bytes at {iova:#x}, file offset {offset:#x}")
        if len(self._ranges) >= MAX_RANGES:
            raise os_error(errno.ENOSPC, f"{MAX_RANGES} ranges are mapped; unmap some")
        at = bisect.bisect_left(self._starts, iova)
        if (at and self._ranges[at - 1].end > iova) or (at < len(self._ranges) and self._starts[at] < end):
            raise os_error(errno.EEXIST, f"a range of {size:#x} bytes at {iova:#x} overlaps a mapped one")
        file = None if fd is None else self._file(fd, offset + size, writable=writable)
        self._starts.insert(at, iova)
        self._ranges.insert(at, _Range(iova, end, file, offset, readable=readable, writable=writable))
        if file is not None:
            file.ranges += 1

    def unmap(self, iova: int, size: int) -> None:
        """Take back every mapping that lies within these `size` bytes, as the kernel's VFIO does.

        A hypervisor with an IOMMU of its own maps page by page and takes all back at once. Raises OSError and changes
        nothing: ENOENT when nothing is mapped there, EINVAL when a mapping lies there in part.
        """
        first, last = bisect.bisect_left(self._starts, iova), bisect.bisect_left(self._starts, iova + size)
        before = self._ranges[first - 1].end if first else 0
        if before > iova or (last > first and self._ranges[last - 1].end > iova + size):
            raise os_error(errno.EINVAL, f"{size:#x} bytes at {iova:#x} are part of a mapped range")
        if first >= last:
            raise os_error(errno.ENOENT, f"nothing is mapped in {size:#x} bytes at {iova:#x}")
        gone = self._ranges[first:last]
        del self._starts[first:last], self._ranges[first:last]
        if any(entry.viewed for entry in gone):
            self.generation += 1
            for key in [key for key in self._joined if key[0] < iova + size and iova < key[0] + key[1]]:
                self._joined.pop(key, None)
        for entry in gone:
            self._release(entry)

    def unmap_all(self) -> None:
        """Forget every mapping."""
        self._starts.clear()
        while self._ranges:
            self._release(self._ranges.pop())
        self._joined.clear()
        self.generation += 1

    def check(self, iova: int, size: int, *, write: bool) -> None:
        """Raise DmaFault unless all of `size` bytes at `iova` are mapped for this direction."""
        for _ in self._across(iova, size, write=write):
            pass

    def view(self, iova: int, size: int, *, write: bool) -> memoryview:
        """Host memory itself, valid until `generation` changes; it may span ranges, wherever they lie in their files.

        Raises DmaFault where it is not mapped, not in files sealed against shrinking, or too scattered.
        """
        entry = self._at(iova, write, iova, size)
        if iova + size > entry.end:
            part = self._view_across(iova, size, write)
        else:
            start = entry.offset + iova - entry.first
            part = _whole_file(entry, iova, size)[start : start + size]
            entry.viewed = True
        return part if write else part.toreadonly()

    def snapshot(self, iova: int, size: int) -> bytes:
        """A copy of what could be viewed; takes no mapping, however scattered it is. Raises DmaFault like `view`."""
        for entry in list(self._across(iova, size, write=False)):
            _whole_file(entry, iova, size)
        return bytes(self.read(iova, size))

    def read(self, iova: int, size: int) -> bytearray:
        """A copy of `size` bytes at `iova`. Raises DmaFault."""
        self.check(iova, size, write=False)  # before memory is taken for a size that the host chose
        data = bytearray(size)
        self.copy_from(iova, memoryview(data))
        return data

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `iova`. Raises DmaFault; unmapped bytes are found before the first one is stored."""
        self.copy_to(iova, memoryview(data))

    def copy_from(self, iova: int, dest: memoryview) -> None:
        """Fill `dest` (C-contiguous) from `iova`. Raises DmaFault."""
        self._move(iova, dest, write=False)

    def copy_to(self, iova: int, source: memoryview) -> None:
        """Store `source` (C-contiguous) at `iova`. Raises DmaFault."""
        self._move(iova, source, write=True)

    def abort_transfers(self) -> None:
        """A reset: a transfer that waits for the host's answer fails at once with DmaFault."""
        if self.remote is not None:
            self.remote.abort()

    def _view_across(self, iova: int, size: int, write: bool) -> memoryview:
        """A view of several ranges: part of a file's mapping where they follow each other in it, else joined pieces."""
        key = (iova, size, write)
        lead = iova % PAGE_BYTES
        octets = self._joined.get(key)
        if octets is None:
            ranges = list(self._across(iova, size, write=write))
            wholes = [_whole_file(entry, iova, size) for entry in ranges]
            pieces = _pieces(ranges, iova - lead, -(-(iova + size) // PAGE_BYTES) * PAGE_BYTES)
            if len(pieces) == 1:
                start = pieces[0].offset + lead
                octets = wholes[0][start - lead : start + size]
            else:
                try:
                    octets = self._mappings.join(pieces, writable=write)
                except OSError as error:
                    raise DmaFault(iova, size, f"its pages cannot be joined: {error.strerror}") from error
                self._joined[key] = octets
            for entry in ranges:
                entry.viewed = True
        return memoryview(octets).cast("B")[lead : lead + size]

    def _across(self, iova: int, size: int, *, write: bool) -> Iterator[_Range]:
        """The ranges that hold `size` bytes at `iova`, in order. Raises DmaFault when it comes to a hole."""
        at = iova
        while at < iova + size:
            entry = self._at(at, write, iova, size)
            yield entry
            at = entry.end

    def _move(self, iova: int, data: memoryview, *, write: bool) -> None:
        if data.format != "B" or data.ndim != 1:
            data = data.cast("B")
        size = len(data)
        if not size:
            return
        entry = self._at(iova, write, iova, size)
        if iova + size > entry.end:
            self.check(iova, size, write=write)
        elif entry.view is not None:  # nearly always
            start = iova - entry.first
            if write:
                entry.view[start : start + size] = data
            else:
                data[:] = entry.view[start : start + size]
            return
        done = 0
        while True:
            at = iova + done
            part = data[done : done + entry.end - at]
            try:
                (self._store if write else self._load)(entry, at, part)
            except FileFault as fault:
                raise DmaFault(iova, size, str(fault)) from fault
            done += len(part)
            if done == size:
                return
            # Looked up anew: while it was asked for one range, the host may have changed the others.
            entry = self._at(iova + done, write, iova, size)

    def _load(self, entry: _Range, iova: int, dest: memoryview) -> None:
        start = iova - entry.first
        if entry.view is not None:
            dest[:] = entry.view[start : start + len(dest)]
        elif entry.file is not None:
            entry.file.load(entry.offset + start, dest)
        else:
            dest[:] = self._ask(iova, len(dest)).read(iova, len(dest))

    def _store(self, entry: _Range, iova: int, source: memoryview) -> None:
        start = iova - entry.first
        if entry.view is not None:
            entry.view[start : start + len(source)] = source
        elif entry.file is not None:
            entry.file.store(entry.offset + start, source)
        else:
            self._ask(iova, len(source)).write(iova, source)

    def _ask(self, iova: int, size: int) -> RemoteMemory:
        if self.remote is None:
            raise DmaFault(iova, size, "mapped without a file, and there is no host to ask")
        return self.remote

    def _at(self, at: int, write: bool, iova: int, size: int) -> _Range:
        """The range that holds `at`, for an access of `size` bytes at `iova`."""
        index = bisect.bisect_right(self._starts, at) - 1
        if index < 0 or at >= self._ranges[index].end:
            raise DmaFault(iova, size, f"nothing is mapped at {at:#x}")
        entry = self._ranges[index]
        if not (entry.writable if write else entry.readable):
            raise DmaFault(iova, size, f"{at:#x} is not mapped for {'writing' if write else 'reading'}")
        return entry

    def _file(self, fd: int, end: int, *, writable: bool) -> HostFile:
        """The file behind `fd`, reachable up to `end`. Raises OSError."""
        identity = identify(fd, end, writable=writable)
        file = self._files.get(identity) or HostFile(identity)
        if file.cover(fd, end, writable=writable):
            for entry in self._ranges:
                if entry.file is file:
                    entry.resolve()
        self._files[identity] = file
        return file

    def _release(self, entry: _Range) -> None:
        file = entry.file
        if file is None:
            return
        file.ranges -= 1
        if not file.ranges:
            del self._files[file.identity]
            file.close()


def _whole_file(entry: _Range, iova: int, size: int) -> memoryview:
    """All of the mapped file that a range lies in. Raises DmaFault, for an access of `size` bytes at `iova`."""
    if entry.file is None or entry.file.view is None:
        raise DmaFault(iova, size, "not in a file that is sealed against shrinking, so it cannot be shared")
    return entry.file.view


def _pieces(ranges: Sequence[_Range], first: int, end: int) -> list[Piece]:
    """The pieces of files behind bus addresses `first` to `end`; what is consecutive in a file is one piece."""
    pieces: list[Piece] = []
    for entry in ranges:
        if entry.file is None:
            raise ValueError("a range without a file has no pieces")
        start, stop = max(entry.first, first), min(entry.end, end)
        piece = entry.file.piece(entry.offset + start - entry.first, stop - start)
        last = pieces[-1] if pieces else None
        if last is not None and last.fd == piece.fd and last.offset + last.size == piece.offset:
            pieces[-1] = last._replace(size=last.size + piece.size)
        else:
            pieces.append(piece)
    return pieces
