"""The records that a host reads by admin commands: identify data and log pages."""

from __future__ import annotations

from driver_shim.protocol.commands import (
    ACTIVITY_LOG,
    IDENTIFY_DATA,
    MAX_BINDINGS,
    MAX_IO_QUEUES,
    MAX_QUEUE_ENTRIES,
    LogPage,
)
from driver_shim.protocol.image_layout import ImageVersion
from driver_shim.protocol.program import MAX_CONTAINER_BYTES
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR, REGISTERS
from emulator.chip.chip import Chip
from emulator.function.programs import MAX_PROGRAMS


class Records:
    """The records of one chip, each encoded when it is asked for."""

    def __init__(self, chip: Chip) -> None:
        self._chip = chip

    def identify(self) -> bytes:
        """IDENTIFY_DATA of the chip as it is now."""
        chip, profile = self._chip, self._chip.profile
        return IDENTIFY_DATA.build(
            contract_major=CONTRACT_MAJOR,
            contract_minor=CONTRACT_MINOR,
            silicon_revision=REGISTERS["revision"].reset_value,
            features=REGISTERS["features"].reset_value,
            serial=chip.serial.encode(),
            profile=profile.name.encode(),
            firmware=self._firmware(),
            kernels=chip.engines.kernels.encode(),
            memory_bytes=chip.memory.size,
            tick_hertz=profile.tick_hz,
            max_queue_entries=MAX_QUEUE_ENTRIES,
            max_io_queues=MAX_IO_QUEUES,
            engines=profile.engines,
            max_programs=MAX_PROGRAMS,
            max_bindings=MAX_BINDINGS,
            emulated=1,
            max_program_bytes=MAX_CONTAINER_BYTES,
        )

    def log_page(self, page: LogPage) -> bytes:
        """A whole log page."""
        if page == LogPage.ERRORS:
            return self._chip.errors.page()
        if page == LogPage.ACTIVITY:
            return ACTIVITY_LOG.build(**self._chip.counters.as_shown())
        return self._chip.black_box

    def _firmware(self) -> bytes:
        version = REGISTERS["firmware_version"].decode(self._chip.management.read("firmware_version"))
        return str(ImageVersion(**version)).encode() if any(version.values()) else b""
