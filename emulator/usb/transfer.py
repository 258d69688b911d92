"""Ends of control transfers."""

from __future__ import annotations

import enum


class Ending(enum.Enum):
    """What a transfer may come to beside data."""

    STALL = "stall"
    """The request is refused."""
    LATER = "later"
    """Not ready (NAK): the same request is to be tried again."""


Answer = bytes | Ending
"""Data of an IN transfer, b"" when an OUT transfer was taken, or an `Ending`."""
