"""The chip's counters: what it has done since power-on, or since its state folder was made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

LAST_COUNT = (1 << 64) - 1
"""Counters are 64 bits on the bus; there they stop."""


@dataclasses.dataclass(slots=True)
class Counters:
    """The fields are those of ACTIVITY_LOG, the layout of the log page."""

    commands: int = 0
    failed_commands: int = 0
    nop_commands: int = 0
    copy_commands: int = 0
    fill_commands: int = 0
    exec_commands: int = 0
    barrier_commands: int = 0
    admin_commands: int = 0
    bytes_copied: int = 0
    bytes_filled: int = 0
    program_commands: int = 0
    doorbells: int = 0
    interrupts: int = 0
    resets: int = 0
    busy_ticks: int = 0
    fast_program_commands: int = 0

    @classmethod
    def restored(cls, kept: Mapping[str, int]) -> Counters:
        """Counters that go on from what was kept; names that there are no more are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in kept.items() if name in known})

    def as_shown(self) -> dict[str, int]:
        """Every counter as it fits the bus, by name."""
        return {name: min(value, LAST_COUNT) for name, value in dataclasses.asdict(self).items()}
