"""BAR4: device memory as the host reaches it past the queues."""

from __future__ import annotations

from driver_shim.protocol.commands import FaultSource
from emulator.chip.device_memory import DeviceMemory
from emulator.chip.error_log import ErrorLog


class Aperture:
    """Device memory, then, up to the BAR's size, a hole: reads of it give ones, and both are recorded as faults."""

    def __init__(self, memory: DeviceMemory, errors: ErrorLog) -> None:
        self._memory = memory
        self._errors = errors

    def read(self, offset: int, size: int) -> bytes:
        """A load from BAR4."""
        inside = max(0, min(size, self._memory.size - offset))
        if inside < size:
            self._errors.fault(FaultSource.APERTURE, offset, f"read of {size} bytes beyond device memory")
        return bytes(self._memory.view[offset : offset + inside]) + b"\xff" * (size - inside)

    def write(self, offset: int, data: bytes) -> None:
        """A store to BAR4; one that reaches into the hole stores nothing."""
        if offset + len(data) > self._memory.size:
            self._errors.fault(FaultSource.APERTURE, offset, f"write of {len(data)} bytes beyond device memory")
        else:
            self._memory.view[offset : offset + len(data)] = data
