"""Plan of flashing an image: what it would do, and every reason against it, before anything is sent.

A plan is made of a picture of the device and an image. The device is the judge of what it boots; what a host can see
beforehand is looked at here in the same way, so that nothing is sent in vain.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from driver_shim.firmware.answers import SlotInfo
from driver_shim.firmware.calls import Firmware
from driver_shim.protocol.firmware_slots import SLOT_BYTES, Slot
from driver_shim.protocol.image import ImageError, ParsedImage, check_integrity
from driver_shim.protocol.image_layout import ImageVersion
from firmware_tools.bootable import unbootable
from firmware_tools.errors import ExtraMissing
from firmware_tools.verify import verify_signature

ALLOW_DOWNGRADE = "--allow-downgrade"
ALLOW_REINSTALL = "--allow-reinstall"
ALLOW_NO_HARDWARE_ID = "--allow-no-hwid"
OVERRIDES = (ALLOW_DOWNGRADE, ALLOW_REINSTALL, ALLOW_NO_HARDWARE_ID)
_HASH_BYTES = 32
"""What the device tells of an image's hash."""


@dataclass(frozen=True)
class DeviceState:
    """What a plan rests on: when any of it changes, the plan does not hold any more."""

    running: Slot
    """NONE: an image loaded from outside."""
    on_trial: bool
    version: ImageVersion
    boots: int
    security_counter: int
    hardware_id: int
    updating: bool
    slots: tuple[SlotInfo, SlotInfo]

    def slot(self, slot: Slot) -> SlotInfo:
        """What slot A or B holds."""
        return next(info for info in self.slots if info.slot == slot)

    @property
    def pending(self) -> Slot:
        """The slot whose image is tried at the next reset; NONE when none is."""
        waiting = (info.slot for info in self.slots if info.trial and info.slot != self.running)
        return next(waiting, Slot.NONE)

    @property
    def target(self) -> Slot:
        """Where an update goes: never where the running or the confirmed image lies."""
        if self.running is not Slot.NONE:
            return self.running.other
        return next((info.slot for info in self.slots if not info.confirmed), Slot.B)


def read_state(firmware: Firmware) -> DeviceState:
    """Ask the device. Raises FirmwareError, Timeout, DeviceLost, ContractMismatch."""
    info = firmware.info()
    return DeviceState(
        running=info.slot,
        on_trial=info.on_trial,
        version=info.version,
        boots=info.boots,
        security_counter=info.security_counter,
        hardware_id=info.hardware_id,
        updating=firmware.update_status().going_on,
        slots=(firmware.slot_info(Slot.A), firmware.slot_info(Slot.B)),
    )


class Verdict(enum.StrEnum):
    """What a guard says."""

    PASS = "pass"
    OVERRIDDEN = "overridden"
    LEFT_TO_DEVICE = "left-to-device"
    """It cannot be seen from here; the device looks before it writes."""
    NOTHING_TO_DO = "nothing-to-do"
    REFUSE = "refuse"


class Guard(NamedTuple):
    """One reason for which an image may not be flashed, looked at."""

    name: str
    verdict: Verdict
    finding: str
    override: str | None
    """The option that lifts it; None when nothing does."""


class Action(enum.StrEnum):
    """What a plan comes to."""

    FLASH = "flash"
    NOTHING = "nothing-to-do"
    REFUSED = "refused"


@dataclass(frozen=True)
class FlashPlan:
    """What will be done to one device, and why it may be."""

    state: DeviceState
    image: ParsedImage
    target: Slot
    guards: tuple[Guard, ...]
    steps: tuple[str, ...]
    by_dma: bool
    allow_no_hardware_id: bool

    @property
    def needs_reset(self) -> bool:
        """Whether the image runs only after a reset of the core."""
        return self.action is Action.FLASH or self.waits_for_reset

    @property
    def waits_for_reset(self) -> bool:
        """Whether the image lies in its slot already and is tried at the next reset."""
        pending = self.state.pending
        held = self.action is Action.NOTHING and pending is not Slot.NONE
        return held and same_image(self.state.slot(pending), self.image)

    @property
    def deciding(self) -> Guard | None:
        """The first guard that stands in the way; None when the image may be flashed."""
        against = (Verdict.REFUSE, Verdict.NOTHING_TO_DO)
        return next((guard for guard in self.guards if guard.verdict in against), None)

    @property
    def action(self) -> Action:
        """What will be done."""
        if self.deciding is None:
            return Action.FLASH
        return Action.NOTHING if self.deciding.verdict is Verdict.NOTHING_TO_DO else Action.REFUSED


def make_plan(
    state: DeviceState, image: ParsedImage, overrides: Collection[str] = (), *, by_dma: bool = True
) -> FlashPlan:
    """Look at all guards. `overrides` are options of `OVERRIDES`; `by_dma` says how the image gets to the device."""
    guards = tuple(_judge(check, image, state, overrides) for check in _CHECKS)
    return FlashPlan(
        state=state,
        image=image,
        target=state.target,
        guards=guards,
        steps=_steps(state, image, by_dma),
        by_dma=by_dma,
        allow_no_hardware_id=ALLOW_NO_HARDWARE_ID in overrides,
    )


def same_image(slot: SlotInfo, image: ParsedImage) -> bool:
    """Whether a slot holds this very image."""
    return slot.valid and slot.version == image.version and slot.hash == image.stated_digest[:_HASH_BYTES]


def _steps(state: DeviceState, image: ParsedImage, by_dma: bool) -> tuple[str, ...]:
    size, target = len(image.data), state.target
    old = state.slot(target)
    lost = f"; {old.version} there is lost" if old.valid and not same_image(old, image) else ""
    return (
        f"hand {size:,} bytes to the device {'by DMA' if by_dma else 'through the mailbox'}",
        "have it verify hash, signature, hardware and security counter",
        f"write slot {target.name}{lost}",
        f"read slot {target.name} back and mark it for one trial boot",
    )


# --- the guards -----------------------------------------------------------------------------------------------------


class _Finding(NamedTuple):
    holds: bool | None
    """None: it cannot be seen from here."""
    text: str


class _Check(NamedTuple):
    name: str
    look: Callable[[ParsedImage, DeviceState], _Finding]
    override: str | None = None
    against: Verdict = Verdict.REFUSE


def _judge(check: _Check, image: ParsedImage, state: DeviceState, overrides: Collection[str]) -> Guard:
    holds, text = check.look(image, state)
    if holds is None:
        verdict = Verdict.LEFT_TO_DEVICE
    elif holds:
        verdict = Verdict.PASS
    else:
        verdict = Verdict.OVERRIDDEN if check.override in overrides else check.against
    return Guard(check.name, verdict, text, check.override)


def _integrity(image: ParsedImage, state: DeviceState) -> _Finding:
    try:
        check_integrity(image)
    except ImageError as error:
        return _Finding(False, str(error))
    return _Finding(True, f"{image.algorithm.value} {image.stated_digest.hex()[:16]}… matches")


def _signature(image: ParsedImage, state: DeviceState) -> _Finding:
    if not image.signatures:
        return _Finding(False, "the image is not signed")
    carried = [signature for signature in image.signatures if signature.public_key is not None]
    try:
        for signature in carried:
            if not verify_signature(signature.public_key or b"", signature.signature, image.signed_message):
                return _Finding(False, f"the signature of key {signature.key_hash.hex()[:16]}… is wrong")
    except ExtraMissing as error:
        return _Finding(None, f"not looked at here: {error}")
    if len(carried) < len(image.signatures):
        return _Finding(None, "the image holds only its key's hash")
    return _Finding(True, f"right; only the device knows whether key {carried[0].key_hash.hex()[:16]}… is its own")


def _bootable(image: ParsedImage, state: DeviceState) -> _Finding:
    reason = unbootable(image)
    return _Finding(reason is None, reason or f"it is loaded to {image.load_address:#010x}, as devices want it")


def _size(image: ParsedImage, state: DeviceState) -> _Finding:
    size = len(image.data)
    return _Finding(size <= SLOT_BYTES, f"{size:,} bytes; a slot has {SLOT_BYTES:,}")


def _hardware(image: ParsedImage, state: DeviceState) -> _Finding:
    if not image.hardware_ids:
        return _Finding(True, "not named")
    named = ", ".join(f"{hardware:#010x}" for hardware in image.hardware_ids)
    return _Finding(state.hardware_id in image.hardware_ids, f"made for {named}; this is {state.hardware_id:#010x}")


def _hardware_named(image: ParsedImage, state: DeviceState) -> _Finding:
    if image.hardware_ids:
        return _Finding(True, "the image says which hardware it is for")
    return _Finding(False, "the image does not say which hardware it is for")


def _security_counter(image: ParsedImage, state: DeviceState) -> _Finding:
    if image.security_counter is None:
        return _Finding(None, f"the image has no counter; the device's is {state.security_counter}")
    text = f"the image's counter is {image.security_counter}, the device's {state.security_counter}"
    return _Finding(image.security_counter >= state.security_counter, text)


def _installed(image: ParsedImage, state: DeviceState) -> _Finding:
    for slot in sorted(state.slots, key=lambda info: info.slot != state.running):
        if same_image(slot, image):
            if _awaits_nothing(slot, state):
                return _Finding(True, f"slot {slot.slot.name} holds it, but it was never confirmed: it is to be tried")
            return _Finding(False, f"this very image is in slot {slot.slot.name}: {_standing(slot, state)}")
    return _Finding(True, "this image is in neither slot")


def _awaits_nothing(slot: SlotInfo, state: DeviceState) -> bool:
    """Whether an image is only there: an update was cut off before it marked it, or its trial was withdrawn."""
    stands = slot.slot in (state.running, state.pending) or slot.confirmed or slot.proven
    return not stands and not slot.failed


def _standing(slot: SlotInfo, state: DeviceState) -> str:
    if slot.slot == state.running:
        return "it runs, on trial: npuctl fw confirm keeps it" if state.on_trial else "it runs"
    if slot.slot == state.pending:
        return "it is tried at the next reset"
    if slot.failed:
        return "its trial failed"
    return "npuctl fw rollback returns to it"


def _no_update(image: ParsedImage, state: DeviceState) -> _Finding:
    return _Finding(not state.updating, "an update is going on" if state.updating else "no update is going on")


def _confirmed(image: ParsedImage, state: DeviceState) -> _Finding:
    if state.on_trial:
        return _Finding(
            False,
            f"{state.version} runs on trial and slot {state.target.name} is its only fall-back:"
            " first npuctl fw confirm, or rollback",
        )
    return _Finding(True, "the running image is not on trial")


def _not_older(image: ParsedImage, state: DeviceState) -> _Finding:
    text = f"{image.version} is offered, {state.version} runs"
    return _Finding(image.version >= state.version, text)


_CHECKS = (
    _Check("integrity", _integrity),
    _Check("signature", _signature),
    _Check("size", _size),
    _Check("bootable", _bootable),
    _Check("hardware", _hardware),
    _Check("hardware-named", _hardware_named, ALLOW_NO_HARDWARE_ID),
    _Check("security-counter", _security_counter),
    _Check("not-installed", _installed, ALLOW_REINSTALL, Verdict.NOTHING_TO_DO),
    _Check("no-update", _no_update),
    _Check("confirmed", _confirmed),
    _Check("not-older", _not_older, ALLOW_DOWNGRADE),
)
"""In this order: the first that is against it decides."""
