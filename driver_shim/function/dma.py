"""Host memory that the device can reach: arenas of sealed memory files, mapped for DMA and sub-allocated.

The first arena is small, later ones grow geometrically; a request as large as the next arena gets one of its own. Empty
arenas are unmapped and given back, but for the small first one. Bus addresses come from the transport's ranges.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import weakref
from collections import deque
from types import TracebackType

import numpy as np

from driver_shim.errors import BufferInUse, Closed, HostMemoryLimit, NpuError
from driver_shim.function.allocator import OutOfSpace, RangeAllocator
from driver_shim.transport.base import Transport
from driver_shim.transport.mapping import HUGE_PAGE_BYTES, PAGE_BYTES, create_memory_file, map_memory_file

FIRST_ARENA_BYTES = 2 << 20
LARGEST_STEP_BYTES = 64 << 20
_LARGEST_FILE_BYTES = (1 << 63) - HUGE_PAGE_BYTES
DEFAULT_ALIGNMENT = 64
"""A cache line: no two allocations share one."""

_SCARCE = {
    errno.ENOMEM: "free some buffers, or raise the memory limit of this process or container",
    errno.ENOSPC: "free some buffers, or raise the memory limit of this process or container",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (sysctl fs.file-max)",
    errno.EFBIG: "ask for less: no file can be as large",
}
"""What to do when the operating system refuses memory, by error number."""

log = logging.getLogger("npu")


class HostBlock:
    """One allocation: `view` is its memory (writable bytes), `iova` its bus address, `size` the bytes asked for.

    Views and numpy arrays over `view` keep the pages alive, even beyond `HostMemory.close`.
    """

    __slots__ = ("_claims", "_memory", "_offset", "iova", "size", "view")

    def __init__(self, arena: _Arena, offset: int, size: int) -> None:
        memory = arena.memory[offset : offset + size]
        self._memory = weakref.ref(memory)
        """Every view and array over `view` holds this slice, so it tells whether there are any."""
        self.view: memoryview = memory.data
        self.iova = arena.iova + offset
        self.size = size
        self._offset = offset
        self._claims = [arena]
        """The arena while the block is live. Whoever pops it frees the block: `list.pop` is atomic."""

    def _let_go(self) -> bool:
        """Release `view`; False (and `view` stays usable) while something else looks at the memory."""
        with contextlib.suppress(BufferError):
            self.view.release()
        memory = self._memory()
        if memory is None:
            return True
        self.view = memory.data
        return False

    def __repr__(self) -> str:
        return f"<HostBlock of {self.size} bytes at iova {self.iova:#x}>"


class _Arena:
    """One memory file, mapped on both sides."""

    def __init__(self, view: memoryview, iova: int) -> None:
        self.memory = np.frombuffer(view, dtype=np.uint8)
        self.iova = iova
        self.size = view.nbytes
        self.space = RangeAllocator(0, self.size, DEFAULT_ALIGNMENT)
        self.touched = 0
        """Bytes from here on have never been handed out, so they are still zero."""


class HostMemory:
    """The DMA memory of one open device.

    Thread-safe; `free` and `abandon` never wait for the lock, so finalisers may call them wherever they run.
    After `close`, and in a forked child, `allocate` and `free` raise `Closed` and nothing changes.
    """

    def __init__(self, transport: Transport, limit_bytes: int | None = None) -> None:
        """`limit_bytes` bounds the arenas together (None: only the machine does)."""
        self._transport = transport
        self._limit = limit_bytes
        self._creator = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._arenas: list[_Arena] = []
        self._step = FIRST_ARENA_BYTES
        self._freed: deque[tuple[_Arena, int]] = deque()
        """Blocks whose space is yet to be given back; filled without the lock."""
        self._abandoned: deque[HostBlock] = deque()
        self._bus = [
            RangeAllocator(start, last + 1 - start, PAGE_BYTES)
            for first, last in transport.iova_ranges()
            # Bus address 0 stays unused, so that a forgotten address never reaches memory.
            if (start := max(-(-first // PAGE_BYTES), 1) * PAGE_BYTES) + PAGE_BYTES <= last + 1
        ]

    def __enter__(self) -> HostMemory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def mapped_bytes(self) -> int:
        """Bytes of all arenas."""
        return sum(arena.size for arena in tuple(self._arenas))

    @property
    def used_bytes(self) -> int:
        """Bytes of live allocations, rounded up to whole cache lines."""
        return sum(arena.size - arena.space.free_bytes for arena in tuple(self._arenas))

    def allocate(self, size: int, alignment: int = DEFAULT_ALIGNMENT, zero: bool = True) -> HostBlock:
        """`size` bytes at a bus address that is a multiple of `alignment` (a power of two up to the page size).

        The memory is zeroed, unless `zero` is false: then its contents are unspecified.
        Raises HostMemoryLimit, Closed, DeviceLost, and ValueError for a bad size or alignment.
        """
        if size < 0 or alignment < 1 or alignment > PAGE_BYTES or alignment & (alignment - 1):
            raise ValueError(
                f"cannot allocate {size} bytes aligned to {alignment}: the size must not be negative, "
                f"the alignment a power of two up to {PAGE_BYTES}"
            )
        # Without this check a child would wait for a lock that its parent's other thread held at the fork.
        self._check_open()
        with self._lock:
            self._check_open()
            self._collect()
            arena, offset = self._take(size, alignment)
            block = HostBlock(arena, offset, size)
            dirty = min(arena.touched - offset, size)
            arena.touched = max(arena.touched, offset + size)
        if zero and dirty > 0:
            arena.memory[offset : offset + dirty] = 0
        return block

    def free(self, block: HostBlock) -> None:
        """Give a block back. The device must be done with it.

        Raises BufferInUse while an array lies over `block.view`, ValueError when it was freed before, and Closed.
        """
        self._check_open()
        self._release(block)
        self._collect_if_idle()

    def abandon(self, block: HostBlock) -> None:
        """Note that a block may be given back once no array lies over it; the next `allocate` or `free` does it.

        For finalisers, which run anywhere, also within a transport's lock: never raises, never waits, asks nothing of
        the device.
        """
        if not self._closed and os.getpid() == self._creator:
            self._abandoned.append(block)

    def close(self) -> None:
        """Take every DMA mapping back at once; idempotent. Not for finalisers: it waits for the lock.

        Pages live until the last view of them dies.

        In a forked child this does nothing: the mappings are the parent's.
        """
        if os.getpid() != self._creator:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            arenas, self._arenas = self._arenas, []
            self._freed.clear()
            self._abandoned.clear()
            for arena in arenas:
                self._unmap(arena)

    def _check_open(self) -> None:
        if os.getpid() != self._creator:
            raise Closed("host memory of the parent process", remedy="open the device again in this process")
        if self._closed:
            raise Closed("host memory of a closed device")

    def _release(self, block: HostBlock) -> None:
        """Claim the block and queue its space. Raises BufferInUse, ValueError."""
        try:
            arena = block._claims.pop()
        except IndexError:
            raise ValueError(f"{block!r} was freed before") from None
        if not block._let_go():
            block._claims.append(arena)
            raise BufferInUse(f"{block!r} cannot be freed: a view or array lies over it", remedy="delete the array")
        self._freed.append((arena, block._offset))

    def _collect_if_idle(self) -> None:
        """Give queued blocks back now, unless someone is at it; then the next call does."""
        taken: list[bool] = []
        try:
            # A Ctrl-C is raised after a call, and between taking the lock and giving it back would keep it for ever:
            # so one call both takes it and notes that, and `finally` calls nothing before `release`.
            taken.extend(map(self._lock.acquire, (False,)))
            if taken[0]:
                self._collect()
        finally:
            if taken and taken[0]:
                self._lock.release()

    def _collect(self) -> None:
        """With the lock: return queued blocks to their arenas, and empty arenas to the system."""
        for _ in range(len(self._abandoned)):
            block = self._abandoned.popleft()
            try:
                self._release(block)
            except BufferInUse:
                self._abandoned.append(block)
            except ValueError:
                log.debug("%r was freed and abandoned", block)
        while self._freed:
            arena, offset = self._freed.popleft()
            arena.space.free(offset)
            if arena.space.allocations == 0 and not self._is_base(arena):
                self._arenas.remove(arena)
                self._unmap(arena)

    def _is_base(self, arena: _Arena) -> bool:
        """The small first arena is kept, so that a single short-lived block does not map and unmap each time."""
        return arena is self._arenas[0] and arena.size <= FIRST_ARENA_BYTES

    def _take(self, size: int, alignment: int) -> tuple[_Arena, int]:
        """With the lock: space in an arena, a new one if need be."""
        for arena in self._arenas:
            try:
                return arena, arena.space.allocate(size, alignment)
            except OutOfSpace:
                continue
        arena = self._grow(size)
        return arena, arena.space.allocate(size, alignment)

    def _grow(self, size: int) -> _Arena:
        if size > _LARGEST_FILE_BYTES:
            raise HostMemoryLimit(f"{size} bytes of host memory: no process can have as much", remedy="ask for less")
        least = max(-(-size // PAGE_BYTES), 1) * PAGE_BYTES
        wanted = self._step
        if least >= self._step:
            wanted = -(-size // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        room = wanted if self._limit is None else self._limit - self.mapped_bytes
        if wanted > room:
            wanted = least
        if wanted > room:
            raise HostMemoryLimit(
                f"{size} bytes of host memory exceed the limit of {self._limit} bytes: "
                f"{self.mapped_bytes} are mapped, {self.used_bytes} in use",
                remedy="free some buffers, or raise NPU_HOST_MEMORY",
            )
        arena = self._map(wanted)
        if wanted == self._step:
            self._step = min(2 * self._step, LARGEST_STEP_BYTES)
        self._arenas.append(arena)
        return arena

    def _map(self, size: int) -> _Arena:
        """A new arena that the device can reach. Nothing is left behind when a step fails."""
        fd, view = self._open_file(size)
        try:
            bus, iova = self._take_bus_addresses(size)
            try:
                self._transport.dma_map(fd, 0, iova, size)
            except (NpuError, ValueError):
                bus.free(iova)
                raise
            except BaseException:  # Ctrl-C: the device may have mapped it
                with contextlib.suppress(NpuError, OSError, ValueError):
                    self._transport.dma_unmap(iova, size)
                bus.free(iova)
                raise
        finally:
            os.close(fd)
        return _Arena(view, iova)

    def _open_file(self, size: int) -> tuple[int, memoryview]:
        if size >= HUGE_PAGE_BYTES and size % HUGE_PAGE_BYTES == 0:
            try:
                return _create(size, huge=True)
            except OSError as error:
                log.debug("no huge pages for an arena of %d bytes: %s", size, error)
        try:
            return _create(size, huge=False)
        except OSError as error:
            if error.errno not in _SCARCE:
                raise
            limit = "none" if self._limit is None else f"{self._limit} bytes"
            raise HostMemoryLimit(
                f"the system refuses {size} bytes of host memory: {error.strerror} "
                f"(limit {limit}, {self.mapped_bytes} bytes are mapped)",
                remedy=_SCARCE[error.errno],
            ) from error

    def _take_bus_addresses(self, size: int) -> tuple[RangeAllocator, int]:
        alignment = HUGE_PAGE_BYTES if size >= HUGE_PAGE_BYTES else PAGE_BYTES
        for wanted in (alignment, PAGE_BYTES):
            for bus in self._bus:
                try:
                    return bus, bus.allocate(size, wanted)
                except OutOfSpace:
                    continue
        free = sum(bus.free_bytes for bus in self._bus)
        raise HostMemoryLimit(
            f"no room for {size} bytes in the device's bus address ranges ({free} bytes are free, in pieces)",
            remedy="free some buffers",
        )

    def _unmap(self, arena: _Arena) -> None:
        try:
            self._transport.dma_unmap(arena.iova, arena.size)
        except (NpuError, OSError) as error:
            # The device is gone, and its mappings with it.
            log.debug("unmapping iova %#x: %s", arena.iova, error)
        for bus in self._bus:
            if bus.start <= arena.iova < bus.start + bus.size:
                bus.free(arena.iova)


def _create(size: int, *, huge: bool) -> tuple[int, memoryview]:
    fd = create_memory_file(size, huge=huge)
    try:
        return fd, map_memory_file(fd, size)
    except BaseException:
        os.close(fd)
        raise
