"""Sub-allocation of an abstract address range: DMA arenas in host memory, device memory, bus addresses.

A two-level segregated fit (M. Masmano et al., "TLSF: a new dynamic memory allocator for real-time systems", 2004): free
holes are kept in bins by size, 16 bins for each power of two, with a bitmap of the bins that hold any. Allocating and
freeing touch a few bins whatever the number of holes; a hole at most 1/16 larger than a better one is taken.
Neighbouring holes are joined on each free. Not thread-safe: the owner has the lock.
"""

from __future__ import annotations

from collections.abc import Iterator

_SUB_BITS = 4
_SUB_BINS = 1 << _SUB_BITS
"""Bins for each power of two."""


class OutOfSpace(Exception):
    """No hole is large enough. `requested`, `free` and `largest` are in bytes."""

    def __init__(self, requested: int, free: int, largest: int) -> None:
        super().__init__(f"no room for {requested} bytes: {free} bytes are free, the largest hole has {largest}")
        self.requested = requested
        self.free = free
        self.largest = largest


class RangeAllocator:
    """Allocates addresses in [`start`, `start` + `size`) in multiples of `granule` bytes.

    A zero-size allocation takes one granule, so that every live allocation has an address of its own.
    Raises ValueError for a granule that is no power of two, or a start that is not a multiple of it.
    """

    def __init__(self, start: int, size: int, granule: int = 64) -> None:
        if granule < 1 or granule & (granule - 1):
            raise ValueError(f"granule {granule} is not a power of two")
        if start < 0 or start % granule or size < granule:
            raise ValueError(f"range of {size:#x} bytes at {start:#x} does not hold granules of {granule}")
        self.start = start
        self.size = size - size % granule
        self.granule = granule
        self._taken: dict[int, int] = {}
        self._forget_holes()
        self._add_hole(self.start, self.size)

    def _forget_holes(self) -> None:
        self.free_bytes = self.size
        self._holes: dict[int, int] = {}
        """Size of the hole at each address."""
        self._hole_ends: dict[int, int] = {}
        """Start of the hole that ends at each address."""
        self._bins: dict[int, dict[int, None]] = {}
        """Addresses of the holes in each bin, oldest first."""
        self._filled = 0
        """Bit n is set while bin n has a hole."""
        self._changing = False
        """Set while the holes change: still set at the next call, Ctrl-C cut the last one short."""

    def _mend(self) -> None:
        """Work the holes out anew from what is taken, after a call that was cut short."""
        self._forget_holes()
        self._changing = True
        at = self.start
        for address, size in sorted(self._taken.items()):
            if address > at:
                self._add_hole(at, address - at)
            self.free_bytes -= size
            at = address + size
        if at < self.start + self.size:
            self._add_hole(at, self.start + self.size - at)
        self._changing = False

    @property
    def allocations(self) -> int:
        """How many allocations are live."""
        return len(self._taken)

    @property
    def largest_hole(self) -> int:
        """Bytes in the largest hole; 0 when full."""
        if not self._filled:
            return 0
        return max(self._holes[address] for address in self._bins[self._filled.bit_length() - 1])

    def allocate(self, size: int, alignment: int = 1) -> int:
        """Take `size` bytes at a multiple of `alignment` (a power of two) and return the address.

        Raises OutOfSpace when no hole fits, ValueError for a negative size or a bad alignment.
        """
        if size < 0:
            raise ValueError(f"size {size} is negative")
        if alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"alignment {alignment} is not a power of two")
        alignment = max(alignment, self.granule)
        taken = max(_round_up(size, self.granule), self.granule)
        if self._changing:
            self._mend()
        hole = self._find(taken, alignment)
        if hole is None:
            raise OutOfSpace(taken, self.free_bytes, self.largest_hole)
        self._changing = True
        hole_size = self._remove_hole(hole)
        address = _round_up(hole, alignment)
        if address > hole:
            self._add_hole(hole, address - hole)
        if (tail := hole + hole_size - address - taken) > 0:
            self._add_hole(address + taken, tail)
        self._taken[address] = taken
        self.free_bytes -= taken
        self._changing = False
        return address

    def free(self, address: int) -> None:
        """Give the allocation at `address` back. Raises ValueError where none begins (also when freed twice)."""
        if self._changing:
            self._mend()
        size = self._taken.get(address)
        if size is None:
            raise ValueError(f"no allocation begins at {address:#x} (freed twice?)")
        self._changing = True
        del self._taken[address]
        self.free_bytes += size
        end = address + size
        if end in self._holes:
            end += self._remove_hole(end)
        before = self._hole_ends.get(address)
        if before is not None:
            self._remove_hole(before)
            address = before
        self._add_hole(address, end - address)
        self._changing = False

    def _find(self, size: int, alignment: int) -> int | None:
        """Address of a hole that holds `size` bytes at this alignment."""
        # A hole of this size fits wherever it begins, and so does every hole of a higher bin than its own.
        certain = size + alignment - self.granule
        at = self._bin_of(certain)
        candidate = next(iter(self._bins.get(at, ())), None)
        if candidate is not None and self._fits(candidate, size, alignment):
            return candidate
        if roomy := self._filled >> at + 1:
            return next(iter(self._bins[at + 1 + _lowest_bit(roomy)]))
        # Nearly full: what is left are holes that fit only if they happen to begin well.
        for number in range(self._bin_of(size), at + 1):
            for hole in self._bins.get(number, ()):
                if self._fits(hole, size, alignment):
                    return hole
        return None

    def _fits(self, hole: int, size: int, alignment: int) -> bool:
        return _round_up(hole, alignment) + size <= hole + self._holes[hole]

    def _bin_of(self, size: int) -> int:
        """The bin of holes of this size: exact below 16 granules, then 16 bins for each power of two."""
        granules = size // self.granule
        shift = max(granules.bit_length() - 1 - _SUB_BITS, 0)
        return shift * _SUB_BINS + (granules >> shift)

    def _add_hole(self, address: int, size: int) -> None:
        self._holes[address] = size
        self._hole_ends[address + size] = address
        number = self._bin_of(size)
        self._bins.setdefault(number, {})[address] = None
        self._filled |= 1 << number

    def _remove_hole(self, address: int) -> int:
        size = self._holes.pop(address)
        del self._hole_ends[address + size]
        number = self._bin_of(size)
        holes = self._bins[number]
        del holes[address]
        if not holes:
            del self._bins[number]
            self._filled &= ~(1 << number)
        return size

    def holes(self) -> Iterator[tuple[int, int]]:
        """(address, size) of every hole, in no particular order."""
        return iter(self._holes.items())


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _lowest_bit(value: int) -> int:
    return (value & -value).bit_length() - 1
