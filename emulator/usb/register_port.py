"""What the debug port needs of the PCI function."""

from __future__ import annotations

from typing import Protocol


class RegisterPort(Protocol):
    """BAR0 past the bus: whether PCI decodes memory makes no difference. Never raises for what a host does."""

    def bar0_read(self, offset: int, size: int) -> bytes:
        """Read inside BAR0."""

    def bar0_write(self, offset: int, data: bytes) -> None:
        """Write inside BAR0."""
