"""A device's firmware as a document's keys, and as lines within 80 columns."""

from __future__ import annotations

from typing import Any

from driver_shim.firmware.answers import FirmwareInfo, SlotInfo, UpdateStatus, result_slug
from driver_shim.firmware.core_state import BootProgress, SensorReadings
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.slugs import slug


def boot_facts(progress: BootProgress | None) -> dict[str, Any]:
    """How far the management core has come; nothing is known of a device that was not opened."""
    if progress is None:
        return dict.fromkeys(("boot_progress", "boot_reason", "firmware_slot", "firmware_on_trial"))
    return {
        "boot_progress": progress.stage,
        "boot_reason": progress.boot_reason,
        "firmware_slot": progress.slot_name if progress.runs_image else None,
        "firmware_on_trial": progress.on_trial if progress.runs_image else None,
    }


def sensor_facts(readings: SensorReadings | None) -> dict[str, Any] | None:
    """What was measured; None when nothing was, or not lately."""
    if readings is None:
        return None
    return {"clock": "device", **readings._asdict()}


def running_facts(info: FirmwareInfo) -> dict[str, Any]:
    """The running firmware."""
    return {
        "slot": slot_name(info.slot),
        "version": str(info.version),
        "build_id": f"{info.build_id:08x}",
        "on_trial": info.on_trial,
        "boots": info.boots,
        "device_uptime_seconds": info.uptime_seconds,
    }


def slot_facts(slot: SlotInfo) -> dict[str, Any]:
    """One slot; what is unknown of an empty one is None."""
    written = not slot.empty
    return {
        "slot": slot.slot.name,
        "valid": slot.valid,
        "problem": None if slot.valid or slot.empty else result_slug(slot.result),
        "confirmed": slot.confirmed,
        "trial": slot.trial,
        "failed": slot.failed,
        "proven": slot.proven,
        "version": str(slot.version) if written else None,
        "image_bytes": slot.image_bytes if written else None,
        "security_counter": slot.security_counter if written else None,
        "build_id": f"{slot.build_id:08x}" if slot.build_id else None,
        "hash": slot.hash.hex() if written else None,
    }


def update_facts(status: UpdateStatus) -> dict[str, Any]:
    """How far the last update since the core's start is."""
    return {
        "state": slug(status.state),
        "result": result_slug(status.result) if status.result else None,
        "slot": slot_name(status.slot),
        "done_bytes": status.done_bytes,
        "total_bytes": status.total_bytes,
        "kept_bytes": status.kept_bytes,
    }


def slot_state(slot: SlotInfo, running: Slot, on_trial: bool) -> str:
    """What a slot is at the moment, in few words."""
    if slot.empty:
        return "empty"
    words = []
    if slot.slot == running:
        words.append("runs, on trial" if on_trial else "runs")
    elif slot.trial:
        words.append("tried at the next reset")
    if slot.confirmed:
        words.append("confirmed" if slot.slot == running else "fall-back")
    if slot.failed:
        words.append("its trial failed")
    tried = slot.proven or slot.confirmed or slot.failed or slot.trial or (slot.slot == running and on_trial)
    if slot.valid and not tried:
        words.append("never confirmed")
    if not slot.valid:
        words.append(f"does not boot: {result_slug(slot.result)}")
    return ", ".join(words) or "could be booted"


def slot_name(slot: Slot) -> str | None:
    """ "A" or "B"; None for no slot."""
    return slot.name if slot else None
