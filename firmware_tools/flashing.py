"""Execution of a flash plan, exactly as it stands, and the truth of what came of it.

Nothing here resets the device: `activation.py` does, when it is asked to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from driver_shim import timeouts
from driver_shim.errors import DeviceLost, FirmwareError, NpuError, Timeout
from driver_shim.firmware.answers import SlotInfo, UpdateStatus
from driver_shim.firmware.calls import Firmware
from driver_shim.firmware.mailbox import refused
from driver_shim.function.dma import HostBlock, HostMemory
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.mailbox import STAGE_BYTES, MailboxResult, UpdateFlag, UpdateState
from driver_shim.protocol.slugs import slug
from firmware_tools.flash_plan import Action, FlashPlan, read_state, same_image


class Progress(NamedTuple):
    """How far it is."""

    phase: str
    """"staging", "verifying", "writing" or "reading-back"."""
    done_bytes: int
    total_bytes: int


class Outcome(NamedTuple):
    """What has become of the image."""

    slot: Slot
    written: bool
    verified: bool
    """The device read it back, and says that the slot holds this image and that it boots."""
    activated: bool
    needs_reset: bool
    kept_bytes: int
    """Bytes that the slot held already, of an earlier attempt."""


@dataclasses.dataclass
class _Seen:
    """What the host has seen of the update: a device need not remember how far one came that failed."""

    done_bytes: int = 0


class FlashInterrupted(KeyboardInterrupt):
    """Ctrl-C; the update was ended in order, and the message says where that left the device."""


Report = Callable[[Progress], None]


def execute(firmware: Firmware, plan: FlashPlan, memory: HostMemory | None, report: Report) -> Outcome:
    """Flash. `memory` is where the device reads the image from, when the plan says “by DMA”.

    Raises FirmwareError (refused by plan or device, or the device is not as it was), Timeout, DeviceLost, and
    FlashInterrupted for Ctrl-C.
    """
    _check_plan(firmware, plan)
    flags = UpdateFlag.ALLOW_NO_HARDWARE_ID if plan.allow_no_hardware_id else UpdateFlag(0)
    size = len(plan.image.data)
    begun, seen = False, _Seen()
    try:
        with _handed_over(firmware, plan, memory, report) as block:
            begun = True  # from here on the device may be at it, whether or not its answer arrives
            if block is None:
                firmware.update_begin(size, flags=flags | UpdateFlag.STAGED)
            else:
                firmware.update_begin(size, block.iova, flags)
            status = _follow(firmware, plan, report, seen)
    except KeyboardInterrupt:
        told = (
            _told(firmware, plan, _end_in_order(firmware), seen) if begun else "interrupted before anything was written"
        )
        raise FlashInterrupted(told) from None
    except DeviceLost as error:
        if begun:
            error.message += f"; slot {plan.target.name} may be incomplete: flash again, what was written is kept"
        raise
    except NpuError:
        with contextlib.suppress(NpuError):
            if begun and firmware.update_status().going_on:
                firmware.update_abort()
        raise
    return _outcome(firmware, plan, status)


def _check_plan(firmware: Firmware, plan: FlashPlan) -> None:
    if plan.action is not Action.FLASH:
        raise ValueError(f"the plan says {plan.action}: there is nothing to carry out")
    if read_state(firmware) != plan.state:
        raise FirmwareError(
            f"{firmware.address}: the device is not as it was when the plan was made",
            device=firmware.address,
            subsystem="firmware",
            remedy="plan again",
            code="plan-outdated",
        )


@contextlib.contextmanager
def _handed_over(
    firmware: Firmware, plan: FlashPlan, memory: HostMemory | None, report: Report
) -> Iterator[HostBlock | None]:
    """The image where the device can read it: in DMA memory, else (None) in the device's staging memory."""
    data = plan.image.data
    if plan.by_dma:
        if memory is None:
            raise ValueError("a plan by DMA needs memory that the device can reach")
        block = memory.allocate(len(data), zero=False)
        block.view[: len(data)] = data
        yield block
        memory.free(block)  # after an error the device may still read: then it goes with the device's mappings
        return
    for offset in range(0, len(data), STAGE_BYTES):
        report(Progress("staging", offset, len(data)))
        firmware.stage(offset, data[offset : offset + STAGE_BYTES])
    yield None


def _follow(firmware: Firmware, plan: FlashPlan, report: Report, seen: _Seen) -> UpdateStatus:
    """Wait for the update's end. Raises FirmwareError when it fails."""
    before: tuple[UpdateState, int] | None = None
    give_up_at = 0.0
    while True:
        status = firmware.update_status()
        if status.state is UpdateState.FAILED:
            raise _failed(firmware, plan, status, seen)
        if status.state is UpdateState.DONE:
            return status
        if not status.going_on:
            raise _lost_track(firmware.address, "it does not know of any update")
        if status.slot not in (plan.target, Slot.NONE):
            raise _lost_track(firmware.address, f"it writes slot {status.slot.name}, not {plan.target.name}")
        if status.state is not UpdateState.VERIFYING:
            seen.done_bytes = max(seen.done_bytes, status.done_bytes)
        report(Progress(slug(status.state), status.done_bytes, status.total_bytes))
        now = time.monotonic()
        if (status.state, status.done_bytes) != before:
            before, give_up_at = (status.state, status.done_bytes), now + timeouts.UPDATE_STALL_S
        if now > give_up_at:
            raise Timeout(
                f"{firmware.address}: the update has stood still at {status.state.name.lower()} for"
                f" {timeouts.UPDATE_STALL_S:g} s",
                device=firmware.address,
                subsystem="firmware",
                remedy="flash again; what was written is kept",
            )
        time.sleep(timeouts.UPDATE_POLL_S)


def _failed(firmware: Firmware, plan: FlashPlan, status: UpdateStatus, seen: _Seen) -> FirmwareError:
    error = refused(firmware.address, f"image {plan.image.version}", status.result)
    error.message += f"; {_left(firmware, plan, seen)}"
    return error


def _lost_track(address: str, why: str) -> FirmwareError:
    return FirmwareError(
        f"{address}: the device does not follow the plan: {why}",
        device=address,
        subsystem="firmware",
        remedy="see npuctl fw info, and plan again",
        code="plan-outdated",
    )


def _outcome(firmware: Firmware, plan: FlashPlan, status: UpdateStatus) -> Outcome:
    held = firmware.slot_info(plan.target)
    if not same_image(held, plan.image) or not held.trial:
        raise FirmwareError(
            f"{firmware.address}: the device says that it is done, but slot {plan.target.name} does not hold"
            f" {plan.image.version}, marked for a trial boot",
            device=firmware.address,
            subsystem="firmware",
            remedy="see npuctl fw info, and flash again",
            code="not-verified",
        )
    return Outcome(
        slot=plan.target, written=True, verified=True, activated=False, needs_reset=True, kept_bytes=status.kept_bytes
    )


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def _end_in_order(firmware: Firmware) -> UpdateStatus | None:
    """Abort; a second Ctrl-C meanwhile changes nothing. None when the device does not say how it stands."""
    try:
        return _abort(firmware)
    except KeyboardInterrupt:
        return _abort(firmware)
    except NpuError:
        return None


def _abort(firmware: Firmware) -> UpdateStatus:
    deadline = time.monotonic() + timeouts.UPDATE_ABORT_S
    with contextlib.suppress(FirmwareError):  # refused where nothing is left to abort: the state says so
        firmware.update_abort()
    status = firmware.update_status()
    while status.going_on and time.monotonic() < deadline:
        time.sleep(timeouts.UPDATE_POLL_S)
        status = firmware.update_status()
    return status


def _told(firmware: Firmware, plan: FlashPlan, status: UpdateStatus | None, seen: _Seen) -> str:
    if status is None:
        return f"interrupted; slot {plan.target.name} may be incomplete: npuctl fw info shows it"
    if status.state is UpdateState.DONE:
        return (
            f"interrupted, too late: slot {plan.target.name} holds {plan.image.version}, to be tried at the next reset"
        )
    if status.state is UpdateState.FAILED and status.result == MailboxResult.ABORTED:
        return f"interrupted; the update was ended in order: {_left(firmware, plan, seen)}"
    if status.going_on:
        return "interrupted; the update goes on in the device: npuctl fw info shows it"
    return f"interrupted; {_left(firmware, plan, seen)}"


def _left(firmware: Firmware, plan: FlashPlan, seen: _Seen) -> str:
    """What the device is left with."""
    held, name = _looked_at(firmware, plan.target), plan.target.name
    if held is None:
        return f"slot {name} may be incomplete: npuctl fw info shows it"
    if seen.done_bytes == 0 and held == plan.state.slot(plan.target):
        return "nothing was written"
    if same_image(held, plan.image):
        return f"slot {name} holds {held.version} whole, not marked to be tried; the same command does that"
    size = len(plan.image.data)
    boots = f"still holds {held.version}" if held.valid else "does not boot"
    return (
        f"slot {name} has {seen.done_bytes:,} of {size:,} bytes or some more and {boots},"
        " the running image is untouched; the same command goes on from there"
    )


def _looked_at(firmware: Firmware, slot: Slot) -> SlotInfo | None:
    """What the slot holds by now; None when the device does not say, or nobody waits for it to."""
    with contextlib.suppress(NpuError, KeyboardInterrupt):
        return firmware.slot_info(slot)
    return None
