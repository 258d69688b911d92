"""The interface of a companion, which the event loop serves beside the PCI function."""

from __future__ import annotations

import select
from typing import Protocol


class Companion(Protocol):
    """Sockets of their own in the loop of `Server`. No method waits for anybody or raises for what a peer does."""

    def attach(self, poller: select.poll) -> None:
        """Register what is to be watched here, now and whenever that changes."""

    def __contains__(self, fd: int) -> bool:
        """Whether this descriptor is one of its own."""

    def serve(self, fd: int, event: int) -> None:
        """Something happened on one of them."""

    def expire(self) -> None:
        """Do what is due. Called on every turn of the loop."""

    def next_deadline(self) -> float | None:
        """When `expire` has to be called in any case (monotonic seconds)."""

    def close(self) -> None:
        """End every connection; idempotent."""
