"""Recovery mode of the boot ROM: takes an image over the USB debug port into RAM, verifies it, then writes a slot."""

from __future__ import annotations

from collections.abc import Callable

from driver_shim.protocol.firmware_slots import (
    ERASED,
    PAGE_BYTES,
    SECTOR_BYTES,
    SLOT_BYTES,
    STAGING_ADDRESS,
    STAGING_BYTES,
    BootState,
    Slot,
)
from driver_shim.protocol.image import ImageError
from emulator.management.npu.boot_rom import BootRom, Unbootable
from emulator.management.npu.flash import Flash, FlashError

ReadMemory = Callable[[int, int], bytes]
WriteMemory = Callable[[int, bytes], None]


class RecoveryError(Exception):
    """What was asked for was not done; flash is untouched unless it says otherwise."""


class SlotDamaged(RecoveryError):
    """Flash failed while the slot was written."""


class Recovery:
    """Stages, verifies and writes one image at a time."""

    def __init__(self, rom: BootRom, flash: Flash, read_memory: ReadMemory, write_memory: WriteMemory) -> None:
        self._rom = rom
        self._flash = flash
        self._read_memory = read_memory
        self._write_memory = write_memory

    def stage(self, offset: int, data: bytes) -> None:
        """Put bytes of the image into the core's RAM. Raises RecoveryError beyond its end."""
        if offset < 0 or offset + len(data) > STAGING_BYTES:
            raise RecoveryError(f"the image is larger than a slot, {SLOT_BYTES:#x} bytes")
        self._write_memory(STAGING_ADDRESS + offset, data)

    def verify(self, size: int) -> bytes:
        """Verify what was staged; the image. Raises RecoveryError."""
        if not 0 < size <= STAGING_BYTES:
            raise RecoveryError(f"an image of {size} bytes does not fit a slot of {SLOT_BYTES:#x}")
        data = self._read_memory(STAGING_ADDRESS, size)
        try:
            self._rom.verify(data)
        except (ImageError, Unbootable) as error:
            raise RecoveryError(f"nothing was written: {error}") from error
        return data

    def install(self, slot: Slot, size: int) -> None:
        """Verify what was staged, write it to a slot, read it back, and confirm it.

        No mark leads to the slot while it is written: power may fail at any time.

        Raises RecoveryError; SlotDamaged when flash failed.
        """
        data = self.verify(size)
        try:
            state = self._forget(slot)
            self._write(slot, data)
            proven = state.proven | slot.proven_bit
            self._rom.write_boot_state(state._replace(confirmed=slot, trial=Slot.NONE, trial_boots=0, proven=proven))
        except FlashError as error:
            raise SlotDamaged(f"slot {slot.name} was not written whole: {error}") from error

    def slot_image(self, slot: Slot) -> bytes:
        """The image in a slot; empty when it holds none."""
        try:
            return self._rom.slot_image(slot)
        except ImageError:
            return b""

    def _forget(self, slot: Slot) -> BootState:
        """Remove the slot's marks from the boot state; what it is then."""
        state = self._rom.boot_state()
        forgotten = state.forgetting(slot)
        if forgotten != state:
            self._rom.write_boot_state(forgotten)
        return forgotten

    def _write(self, slot: Slot, data: bytes) -> None:
        padded = data.ljust(-(-len(data) // PAGE_BYTES) * PAGE_BYTES, bytes([ERASED]))
        for at in range(0, len(padded), PAGE_BYTES):
            if at % SECTOR_BYTES == 0:
                self._flash.erase(slot.offset + at)
            self._flash.program(slot.offset + at, padded[at : at + PAGE_BYTES])
        if self._flash.read(slot.offset, len(data)) != data:
            raise FlashError("it reads back differently")
