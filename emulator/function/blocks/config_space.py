"""Configuration space as the function keeps it: storage with masks, and the few bits that do something."""

from __future__ import annotations

from collections.abc import Mapping

from driver_shim.protocol.config_space import (
    COMMAND_BUS_MASTER,
    COMMAND_MEMORY,
    COMMAND_OFFSET,
    CONFIG_BYTES,
    D0,
    D3_HOT,
    DEVICE_CONTROL_INITIATE_FLR,
    EXPRESS,
    PM_POWER_STATE,
    POWER_MANAGEMENT,
    config_image,
)

_PM_CONTROL = POWER_MANAGEMENT.offset + POWER_MANAGEMENT.layout.offset_of("control")
_DEVICE_CONTROL = EXPRESS.offset + EXPRESS.layout.offset_of("device_control")


class ConfigSpace:
    """The 4 KiB of one function. Nothing that is read or written makes it raise."""

    def __init__(self, bar_sizes: Mapping[int, int], serial: int, vectors: int) -> None:
        """Power on. `bar_sizes` in bytes by number; `serial` is the 64-bit device serial number. Raises ValueError."""
        self._image = config_image(bar_sizes, serial, vectors)
        self._bytes = bytearray(self._image.reset)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; zeros outside configuration space."""
        inside = self._bytes[offset : offset + size] if 0 <= offset < CONFIG_BYTES else b""
        return bytes(inside).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> bool:
        """Write `data` at `offset`: any size and alignment; what is read-only or outside stays as it is.

        True if the host asks with it for a function level reset; whoever carries that out calls `reset`.
        """
        if not 0 <= offset < CONFIG_BYTES:
            return False
        data = data[: CONFIG_BYTES - offset]
        end = offset + len(data)
        state = self.power_state
        self._merge(offset, end, data)
        if self.power_state not in (D0, D3_HOT):
            # An unsupported power state is discarded (PCI Power Management 1.2, 3.2.4).
            self._bytes[_PM_CONTROL] = self._bytes[_PM_CONTROL] & ~PM_POWER_STATE | state
        high = _DEVICE_CONTROL + 1
        return offset <= high < end and bool(data[high - offset] & DEVICE_CONTROL_INITIATE_FLR >> 8)

    def reset(self) -> None:
        """Function level reset (PCI Express Base 4.0, 6.6.2): all back to power-on values, but for the bits it exempts.

        COMMAND and the base address registers are cleared; error reporting's sticky bits, the payload size and
        the link controls stay. Any other reset of the function does the same.
        """
        kept = int.from_bytes(self._image.kept, "little")
        now, fresh = int.from_bytes(self._bytes, "little"), int.from_bytes(self._image.reset, "little")
        self._bytes[:] = (now & kept | fresh & ~kept).to_bytes(CONFIG_BYTES, "little")

    @property
    def bus_master(self) -> bool:
        """Whether the function may start transfers and signal interrupts: COMMAND allows it, and power is on."""
        return bool(self._word(COMMAND_OFFSET) & COMMAND_BUS_MASTER) and self.power_state == D0

    @property
    def memory_enable(self) -> bool:
        """Whether COMMAND lets the BARs answer."""
        return bool(self._word(COMMAND_OFFSET) & COMMAND_MEMORY)

    @property
    def power_state(self) -> int:
        """0 for D0, 3 for D3hot."""
        return self._bytes[_PM_CONTROL] & PM_POWER_STATE

    def _merge(self, start: int, end: int, data: bytes) -> None:
        image = self._image
        for at, written in zip(range(start, end), data, strict=True):
            changed = self._bytes[at] & ~image.rw[at] | written & image.rw[at]
            self._bytes[at] = changed & ~(written & image.rw1c[at])

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._bytes[offset : offset + 2], "little")
