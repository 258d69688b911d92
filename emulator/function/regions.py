"""The regions of a function, numbered as VFIO does, and the sizes of its BARs."""

from __future__ import annotations

import dataclasses

from driver_shim.protocol.commands import MAX_IO_QUEUES
from driver_shim.protocol.config_space import CONFIG_BYTES
from driver_shim.protocol.registers import BAR0, BAR0_BYTES, BAR2, BAR4, DOORBELL_PAGE_BYTES
from emulator.chip.device_memory import DeviceMemory

CONFIG_REGION = 7
"""VFIO's number of configuration space."""


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """One region of the function."""

    index: int
    size_bytes: int
    readable: bool
    writable: bool
    mappable: tuple[tuple[int, int], ...] = ()
    fd: int | None = None
    """File to hand out for the mappable areas."""


def bar_sizes(memory_bytes: int) -> dict[int, int]:
    """Bytes of each BAR, a power of two, for this much device memory."""
    return {
        BAR0: BAR0_BYTES,
        BAR2: _power_of_two(DOORBELL_PAGE_BYTES * (MAX_IO_QUEUES + 1)),
        BAR4: _power_of_two(memory_bytes),
    }


def regions_of(memory: DeviceMemory) -> dict[int, Region]:
    """All regions. Only the aperture can be mapped, as far as there is memory behind it."""
    sizes = bar_sizes(memory.size)
    return {
        BAR0: Region(BAR0, sizes[BAR0], True, True),
        BAR2: Region(BAR2, sizes[BAR2], True, True),
        BAR4: Region(BAR4, sizes[BAR4], True, True, ((0, memory.size),), memory.fd),
        CONFIG_REGION: Region(CONFIG_REGION, CONFIG_BYTES, True, True),
    }


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
