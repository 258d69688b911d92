"""MSI-X vectors as VFIO serves them: an eventfd each, masked on request, pending while they cannot be delivered.

The MSI-X table is storage: a hypervisor keeps the guest's table to itself and tells by messages what is masked, so
delivery does not depend on it (the table's format: PCI Express Base Specification 4.0, 7.7.2).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

_EVENTFD = "anon_inode:[eventfd]"
_ADDRESS_MASK = 0xFFFF_FFFC
_CONTROL_MASK = 0x0000_0001
"""Vector control has one bit: mask."""
_ENTRY_WRITABLE = b"".join(
    mask.to_bytes(4, "little") for mask in (_ADDRESS_MASK, 0xFFFF_FFFF, 0xFFFF_FFFF, _CONTROL_MASK)
)
_ENTRY_RESET = bytes(12) + _CONTROL_MASK.to_bytes(4, "little")
"""After reset every vector is masked (7.7.2.8)."""


class Interrupts:
    """The vectors of one function. It owns the eventfds that are connected to it."""

    def __init__(self, vectors: int, bus_master: Callable[[], bool], on_blocked: Callable[[int], None]) -> None:
        """`bus_master` says whether messages may be sent; `on_blocked(vector)` records one that might not."""
        self.count = vectors
        self._bus_master = bus_master
        self._on_blocked = on_blocked
        self._eventfds: list[int | None] = [None] * vectors
        self._masked = 0
        self._pending = 0
        self._writable = _ENTRY_WRITABLE * vectors
        self._table = bytearray(_ENTRY_RESET * vectors)

    def connect(self, vector: int, eventfd: int | None) -> None:
        """Signal `vector` through `eventfd` from now on, or not at all; the one before is closed.

        The descriptor is taken over also when this raises: OSError(EINVAL) for a vector that does not exist or a
        descriptor that is no eventfd. A pending vector fires at once.
        """
        if eventfd is not None:
            try:
                self._check_vector(vector)
                self._prepare(eventfd)
            except OSError:
                os.close(eventfd)
                raise
        self._check_vector(vector)
        before, self._eventfds[vector] = self._eventfds[vector], eventfd
        if before is not None:
            os.close(before)
        self._deliver_if_pending(vector)

    def mask(self, vector: int) -> None:
        """Hold `vector` back: it becomes pending when triggered. Raises OSError(EINVAL)."""
        self._check_vector(vector)
        self._masked |= 1 << vector

    def unmask(self, vector: int) -> None:
        """Let `vector` through again; it fires if it is pending. Raises OSError(EINVAL)."""
        self._check_vector(vector)
        self._masked &= ~(1 << vector)
        self._deliver_if_pending(vector)

    def trigger(self, vector: int) -> None:
        """Signal `vector`, or make it pending while it is masked, not connected, or bus mastering is off."""
        eventfd = self._eventfds[vector]
        if not self._bus_master():
            self._pending |= 1 << vector
            self._on_blocked(vector)
        elif eventfd is None or self._masked >> vector & 1:
            self._pending |= 1 << vector
        else:
            _signal(eventfd)

    def deliver_pending(self) -> None:
        """Fire what is pending and can be delivered now: to be called when bus mastering was switched on."""
        for vector in range(self.count if self._pending else 0):
            self._deliver_if_pending(vector)

    def table_read(self, offset: int, size: int) -> bytes:
        """Bytes of the MSI-X table; zeros beyond it."""
        return bytes(self._table[offset : offset + size]).ljust(size, b"\0")

    def table_write(self, offset: int, data: bytes) -> None:
        """Store into the MSI-X table; reserved bits and what lies beyond stay as they are."""
        for at, written in enumerate(data[: max(0, len(self._table) - offset)], offset):
            self._table[at] = self._table[at] & ~self._writable[at] | written & self._writable[at]

    def pba_read(self, offset: int, size: int) -> bytes:
        """Bytes of the pending bit array (one bit a vector); zeros beyond it."""
        octets = self._pending.to_bytes(-(-self.count // 8), "little")
        return octets[offset : offset + size].ljust(size, b"\0")

    def reset(self) -> None:
        """Forget what is pending and the table; eventfds and masks belong to the client and stay."""
        self._pending = 0
        self._table[:] = _ENTRY_RESET * self.count

    def disconnect_all(self) -> None:
        """Close every eventfd and forget masks and what is pending: the client is gone."""
        for vector, eventfd in enumerate(self._eventfds):
            if eventfd is not None:
                self._eventfds[vector] = None
                os.close(eventfd)
        self._masked = 0
        self._pending = 0

    def close(self) -> None:
        """Close every eventfd; idempotent."""
        self.disconnect_all()

    def _check_vector(self, vector: int) -> None:
        if not 0 <= vector < self.count:
            raise OSError(errno.EINVAL, f"vector {vector}: there are {self.count}")

    @staticmethod
    def _prepare(eventfd: int) -> None:
        """Refuse what is no eventfd; a client that fills its counter must not be able to block us."""
        kind = os.readlink(f"/proc/self/fd/{eventfd}")
        if kind != _EVENTFD:
            raise OSError(errno.EINVAL, f"an interrupt needs an eventfd, got {kind}")

    def _deliver_if_pending(self, vector: int) -> None:
        bit = 1 << vector
        eventfd = self._eventfds[vector]
        if self._pending & bit and eventfd is not None and not self._masked & bit and self._bus_master():
            self._pending &= ~bit
            _signal(eventfd)


def _signal(eventfd: int) -> None:
    os.set_blocking(eventfd, False)  # the client shares the flag, and may have cleared it to have us wait
    # A full counter is readable, so its reader wakes without this signal too.
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(eventfd, 1)
