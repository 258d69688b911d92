"""Reset of the management core that tries a flashed image, and what came up then."""

from __future__ import annotations

import time
from typing import NamedTuple

from driver_shim import timeouts
from driver_shim.errors import FirmwareError, NpuError, Timeout
from driver_shim.firmware.answers import FirmwareInfo
from driver_shim.firmware.calls import Firmware
from driver_shim.firmware.core_state import read_boot_progress
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.image_layout import ImageVersion
from driver_shim.protocol.mailbox import MailboxResult

_ON_ITS_WAY = ("core-absent", "core-held")
"""What a core may show for a moment while it is being reset."""


class Activation(NamedTuple):
    """What runs after the reset."""

    slot: Slot
    version: ImageVersion
    on_trial: bool
    boot_reason: str | None
    wall_seconds: float


def reset_core(firmware: Firmware, boots_before: int) -> Activation:
    """Reset the core and wait for what comes up. Raises FirmwareError when nothing does, Timeout, DeviceLost."""
    began = time.monotonic()
    try:
        firmware.reset()
    except FirmwareError as error:
        _not_yet(error)  # the core may have been quicker than its answer; whether it was reset is seen by its count
    info = _wait(firmware, boots_before, began + timeouts.CORE_BOOT_S)
    progress = read_boot_progress(firmware.mailbox.registers)
    seconds = time.monotonic() - began
    return Activation(info.slot, info.version, info.on_trial, progress.boot_reason, seconds)


def activate(firmware: Firmware, slot: Slot, version: ImageVersion, boots_before: int) -> Activation:
    """Reset the core to try `version` in `slot`. Raises FirmwareError “fell-back” when another image came up instead.

    Raises otherwise as `reset_core`.
    """
    found = reset_core(firmware, boots_before)
    if (found.slot, found.version) != (slot, version):
        where = f"slot {found.slot.name}" if found.slot else "outside"
        raise FirmwareError(
            f"{firmware.address}: {version} did not come up: {found.version} of {where} runs again"
            f" (last reset: {found.boot_reason})",
            device=firmware.address,
            subsystem="firmware",
            cause="the trial image was reset before it was confirmed, or the boot ROM refused it",
            remedy="npuctl fw info shows the slot's state; npuctl fw log and npuctl console what it said",
            code="fell-back",
        )
    return found


def _wait(firmware: Firmware, boots_before: int, deadline: float) -> FirmwareInfo:
    registers = firmware.mailbox.registers
    while True:
        progress = read_boot_progress(registers)
        if progress.runs_image:
            try:
                info = firmware.info()
                if info.boots != boots_before:
                    return info
            except (FirmwareError, Timeout) as error:
                _not_yet(error)
        elif progress.explanation is not None and progress.explanation.code not in _ON_ITS_WAY:
            registers.check_alive()
            code, why, remedy = progress.explanation
            raise FirmwareError(
                f"{firmware.address}: nothing came up after the reset: {why}",
                device=firmware.address,
                subsystem="firmware",
                cause=code,
                remedy=remedy,
                code=code,
            )
        if time.monotonic() > deadline:
            registers.check_alive()
            raise Timeout(
                f"{firmware.address}: no firmware answered within {timeouts.CORE_BOOT_S:g} s of the reset; it stands at"
                f" {progress.stage}",
                device=firmware.address,
                subsystem="firmware",
                remedy="see npuctl console; unless it is confirmed, a reset returns to the other image",
            )
        firmware.mailbox.progress()
        time.sleep(timeouts.CORE_BOOT_POLL_S)


def _not_yet(error: NpuError) -> None:
    """An answer that did not come while the core starts is no news; a refusal is."""
    if isinstance(error, FirmwareError) and error.result not in (None, MailboxResult.CORE_RESET):
        raise error
