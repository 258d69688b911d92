"""The boot ROM: part of the silicon, and the only code of the core that is not executed as instructions.

It chooses a slot by the boot state, verifies the image in it, copies it to RAM and starts it. When no slot holds an
image that boots, it waits for one over the USB debug port (`recovery.py`).
"""

from __future__ import annotations

import logging

from driver_shim.protocol.firmware_slots import (
    BOOT_STATE,
    BOOT_STATE_OFFSETS,
    ERASED,
    PAGE_BYTES,
    SLOT_BYTES,
    BootState,
    Slot,
    newest_boot_state,
)
from driver_shim.protocol.image import (
    ImageError,
    ImageFlag,
    ParsedImage,
    TrustedKey,
    authenticate,
    measure_image,
    parse_image,
)
from driver_shim.protocol.management_registers import RAM_BASE
from driver_shim.protocol.registers import REGISTERS, CoreReset, Post
from driver_shim.shared.ed25519 import ed25519_verify
from emulator.management.npu.boot_record import BootRecord
from emulator.management.npu.flash import Flash, FlashError
from emulator.management.npu.one_time import OneTimeValues

_logger = logging.getLogger("npu.emulator.management")

_CHECKING = {Slot.A: Post.CHECKING_A, Slot.B: Post.CHECKING_B}


class Unbootable(Exception):
    """An image is not started; says why."""


class BootRom:
    """One chip's boot ROM."""

    def __init__(self, flash: Flash, one_time: OneTimeValues, record: BootRecord) -> None:
        self._flash = flash
        self._one_time = one_time
        self._record = record

    def boot(self, reason: CoreReset) -> ParsedImage | None:
        """The image to start; None for recovery mode. Trials are begun and ended in the boot state."""
        record = self._record
        record.begin(reason)
        if reason is CoreReset.RECOVERY:
            return None
        state = self._settle_trial(self.boot_state())
        if state.trial is not Slot.NONE:
            image = self._begin_trial(state)
            if image is not None:
                return image
        first = state.confirmed if state.confirmed is not Slot.NONE else Slot.A
        for slot in (first, first.other):
            image = self._bootable(slot)
            if image is not None:
                self._record.chose(slot, trial=False, version=_version_word(image))
                return image
        return None

    def verify(self, data: bytes) -> ParsedImage:
        """Whether an image may run on this chip. Raises ImageError, Unbootable."""
        image = parse_image(data)
        if image.flags != ImageFlag.RAM_LOAD:
            raise Unbootable(
                f"its flags are {image.flags:#x}; an image to be copied to RAM has {ImageFlag.RAM_LOAD:#x}"
            )
        authenticate(image, [TrustedKey(self._one_time.key_hash)], ed25519_verify)
        start, end = image.load_address, image.load_address + len(image.loaded_region)
        if start < RAM_BASE or end > RAM_BASE + SLOT_BYTES:
            raise Unbootable(f"it would be loaded to {start:#x}..{end:#x}, outside {RAM_BASE:#x}..+{SLOT_BYTES:#x}")
        if image.hardware_ids and self._one_time.hardware_id not in image.hardware_ids:
            raise Unbootable(f"it is not made for hardware {self._one_time.hardware_id:#x}")
        counter = image.security_counter or 0
        if counter < self._one_time.security_counter:
            raise Unbootable(f"its security counter {counter} is below the chip's {self._one_time.security_counter}")
        return image

    def slot_image(self, slot: Slot) -> bytes:
        """The bytes of the image that a slot begins with. Raises ImageError when it begins with none."""
        contents = self._flash.read(slot.offset, SLOT_BYTES)
        return contents[: measure_image(contents)]

    def boot_state(self) -> BootState:
        """What counts of the two copies."""
        return newest_boot_state(self._copies())[0]

    def write_boot_state(self, state: BootState) -> None:
        """Replace the older copy. Raises FlashError, and then the newer one is still there."""
        newest, index = newest_boot_state(self._copies())
        offset = BOOT_STATE_OFFSETS[1 - index if index is not None else 0]
        page = state._replace(sequence=newest.sequence + 1).build().ljust(PAGE_BYTES, bytes([ERASED]))
        self._flash.erase(offset)
        self._flash.program(offset, page)

    def _copies(self) -> list[bytes]:
        return [self._flash.read(offset, BOOT_STATE.size) for offset in BOOT_STATE_OFFSETS]

    def _settle_trial(self, state: BootState) -> BootState:
        """End a trial that was begun before this reset: it was not confirmed."""
        if state.trial is Slot.NONE or not state.trial_boots:
            return state
        self._record.reason = CoreReset.FALL_BACK
        _logger.warning("slot %s was not confirmed: falling back", state.trial.name)
        return self._end_trial(state)

    def _end_trial(self, state: BootState) -> BootState:
        ended = state._replace(trial=Slot.NONE, trial_boots=0, failed=state.trial)
        try:
            self.write_boot_state(ended)
        except FlashError as error:
            _logger.error("the boot state cannot be written: %s", error)
        return ended

    def _begin_trial(self, state: BootState) -> ParsedImage | None:
        """Start the slot on trial, once; None when it cannot be."""
        slot = state.trial
        image = self._bootable(slot)
        if image is None:
            self._end_trial(state)
            return None
        try:
            self.write_boot_state(state._replace(trial_boots=1))
        except FlashError as error:  # unmarked, a trial that hangs would be started again and again
            _logger.error("no trial, since the boot state cannot be written: %s", error)
            return None
        self._record.chose(slot, trial=True, version=_version_word(image))
        return image

    def _bootable(self, slot: Slot) -> ParsedImage | None:
        self._record.set_post_code(_CHECKING[slot])
        try:
            return self.verify(self.slot_image(slot))
        except (ImageError, Unbootable) as error:
            _logger.warning("slot %s does not boot: %s", slot.name, error)
            return None


def _version_word(image: ParsedImage) -> int:
    return REGISTERS["firmware_version"].encode(**image.version._asdict())
