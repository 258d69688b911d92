"""What can be wrong with an ELF file; apart from what reads them, which is slow to import."""

from __future__ import annotations


class ElfError(ValueError):
    """An ELF file cannot be run on this core."""


class NotAnElf(ElfError):
    """It is no ELF file at all."""


class WrongTarget(ElfError):
    """It is for another machine, or no executable."""


class TruncatedElf(ElfError):
    """Something lies behind the end of the file."""


class BadSegment(ElfError):
    """What is to be loaded does not fit the core's memories."""


class ElfTooLarge(ElfError):
    """It has more of something than is read."""
