"""Ring arithmetic for both sides: free-running 32-bit indices over a power-of-two array of entries.

A slot is `index & (entries - 1)`; `tail - head` (mod 2^32) entries are occupied. A completion's phase is 1 on the
first lap over zeroed memory and flips on each lap. Nothing here touches a doorbell: the caller rings.
"""

from __future__ import annotations

INDEX_MASK = 0xFFFF_FFFF


def occupied(tail: int, head: int) -> int:
    """Entries between head and tail; more than the ring holds means a corrupt pointer."""
    return (tail - head) & INDEX_MASK


def advance(index: int, count: int = 1) -> int:
    """The index `count` entries further on."""
    return (index + count) & INDEX_MASK


def phase_of(index: int, entries: int) -> int:
    """Phase byte that the entry at `index` carries: 1 on the first lap, then alternating."""
    return (index // entries & 1) ^ 1


def need_event(event: int, new: int, old: int) -> bool:
    """Whether moving an index from `old` to `new` passed `event`, i.e. the other side asked to be told.

    The rule of virtio's used_event/avail_event (VIRTIO 1.2, 2.7.10) and NVMe's Doorbell Buffer Config.
    """
    return (new - event - 1) & INDEX_MASK < (new - old) & INDEX_MASK


def is_power_of_two(value: int) -> bool:
    """Whether `value` is a positive power of two."""
    return value > 0 and value & (value - 1) == 0


def contiguous(index: int, count: int, entries: int) -> tuple[slice, slice]:
    """Slots of `count` entries from `index` as two slices of the ring (the second is empty unless it wraps)."""
    first = index & (entries - 1)
    last = first + count
    if last <= entries:
        return slice(first, last), slice(0, 0)
    return slice(first, entries), slice(0, last - entries)
