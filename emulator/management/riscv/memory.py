"""The memories of the management core: bytes at addresses, found fast."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PAGE_BYTES = 0x1000
"""The grain at which the core's bus is divided."""

ADDRESS_LIMIT = 1 << 32


@dataclass(frozen=True)
class Memory:
    """One memory. Its bytes are a caller's buffer, so several processes may share them."""

    name: str
    base: int
    writable: bool
    """By the core; the host may store into every memory."""
    buffer: memoryview

    @property
    def size(self) -> int:
        """In bytes."""
        return self.buffer.nbytes

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.base + self.buffer.nbytes


NO_MEMORY = Memory("none", 0, False, memoryview(b""))


def zeroed_buffer(size_bytes: int) -> memoryview:
    """Fresh memory whose pages cost nothing before they are touched."""
    return memoryview(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Memories:
    """All memories of a core."""

    def __init__(self, memories: Iterable[Memory]) -> None:
        """A `Board` has checked that they do not overlap."""
        self._memories = tuple(memories)

    def __iter__(self) -> Iterator[Memory]:
        return iter(self._memories)

    def find(self, address: int, size: int) -> Memory | None:
        """The memory that holds all of these bytes."""
        for memory in self._memories:
            if memory.base <= address and address + size <= memory.end:
                return memory
        return None

    def holding(self, address: int, size: int) -> Memory:
        """The memory that holds all of these bytes. Raises ValueError when there is none."""
        memory = self.find(address, size) if size >= 0 else None
        if memory is None:
            places = ", ".join(f"{m.name} {m.base:#x}..{m.end:#x}" for m in self._memories) or "none"
            raise ValueError(f"{size} bytes at {address:#x} lie in no memory of the core; memories: {places}")
        return memory

    def read(self, address: int, size: int) -> bytes:
        """Bytes of one memory. Raises ValueError outside."""
        memory = self.holding(address, size)
        offset = address - memory.base
        return memory.buffer[offset : offset + size].tobytes()
