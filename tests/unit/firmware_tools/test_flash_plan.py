"""What is found against an image before anything is sent, and what lifts it."""

from __future__ import annotations

from typing import Any

import pytest

from driver_shim.firmware.answers import SlotInfo
from driver_shim.protocol.firmware_slots import SLOT_BYTES, Slot
from driver_shim.protocol.image import ParsedImage, parse_image
from driver_shim.protocol.image_layout import ImageVersion
from driver_shim.protocol.management_registers import HARDWARE_ID
from firmware_tools import flash_plan
from firmware_tools.errors import ExtraMissing
from firmware_tools.flash_plan import (
    ALLOW_DOWNGRADE,
    ALLOW_NO_HARDWARE_ID,
    ALLOW_REINSTALL,
    OVERRIDES,
    Action,
    DeviceState,
    FlashPlan,
    Verdict,
    make_plan,
)
from tests.support.firmware_images import image

RUNNING = parse_image(image("1.2.3"))
NEWER = parse_image(image("1.3.0"))


def slot(which: Slot, held: ParsedImage | None, **facts: Any) -> SlotInfo:
    """What the device says of a slot that holds this image."""
    found: dict[str, Any] = {
        "slot": which,
        "valid": held is not None,
        "confirmed": False,
        "trial": False,
        "failed": False,
        "proven": True,
        "result": 0,
        "version": held.version if held else ImageVersion(0),
        "image_bytes": len(held.data) if held else 0,
        "security_counter": 0,
        "build_id": 0,
        "hash": held.stated_digest if held else bytes(32),
    }
    return SlotInfo(**{**found, **facts})


def state(other: SlotInfo | None = None, **facts: Any) -> DeviceState:
    """Slot A runs 1.2.3, confirmed."""
    found: dict[str, Any] = {
        "running": Slot.A,
        "on_trial": False,
        "version": RUNNING.version,
        "boots": 1,
        "security_counter": 0,
        "hardware_id": HARDWARE_ID,
        "updating": False,
        "slots": (slot(Slot.A, RUNNING, confirmed=True), other or slot(Slot.B, None)),
    }
    return DeviceState(**{**found, **facts})


def damaged() -> ParsedImage:
    """An image of good form with one bit of its payload changed."""
    data = bytearray(NEWER.data)
    data[NEWER.header_size] ^= 1
    return parse_image(data)


def wrongly_signed() -> ParsedImage:
    data = bytearray(NEWER.data)
    data[-1] ^= 1
    return parse_image(data)


def decided_by(plan: FlashPlan) -> str | None:
    return plan.deciding.name if plan.deciding else None


def test_only_another_image_is_said_to_be_lost() -> None:
    assert make_plan(state(slot(Slot.B, RUNNING)), NEWER).steps[2] == "write slot B; 1.2.3 there is lost"
    assert make_plan(state(slot(Slot.B, NEWER)), NEWER).steps[2] == "write slot B"


def test_a_newer_image_is_flashed_into_the_other_slot() -> None:
    plan = make_plan(state(), NEWER)
    assert (plan.action, plan.target, plan.needs_reset) == (Action.FLASH, Slot.B, True)
    assert {guard.verdict for guard in plan.guards} == {Verdict.PASS}
    assert plan.steps[0].endswith("by DMA")
    assert make_plan(state(), NEWER, by_dma=False).steps[0].endswith("through the mailbox")


CASES: list[tuple[str, DeviceState, ParsedImage, str, str | None]] = [
    ("damaged", state(), damaged(), "integrity", None),
    ("wrong signature", state(), wrongly_signed(), "signature", None),
    ("loaded elsewhere", state(), parse_image(image("2.0", load_address=0x7FFF_FFF0)), "bootable", None),
    ("other hardware", state(), parse_image(image("2.0", hardware_ids=(7, 8))), "hardware", None),
    ("no hardware", state(), parse_image(image("2.0", hardware_ids=())), "hardware-named", ALLOW_NO_HARDWARE_ID),
    ("rolled back", state(security_counter=2), parse_image(image("2.0", security_counter=1)), "security-counter", None),
    ("runs already", state(), RUNNING, "not-installed", ALLOW_REINSTALL),
    ("in the other slot", state(slot(Slot.B, NEWER)), NEWER, "not-installed", ALLOW_REINSTALL),
    ("updating", state(updating=True), NEWER, "no-update", None),
    ("on trial", state(on_trial=True), NEWER, "confirmed", None),
    ("older", state(), parse_image(image("1.2.2+9")), "not-older", ALLOW_DOWNGRADE),
]


@pytest.mark.parametrize(("case", "device", "offered", "guard", "option"), CASES, ids=[case[0] for case in CASES])
def test_each_guard_stands_alone_and_only_its_own_option_lifts_it(
    case: str, device: DeviceState, offered: ParsedImage, guard: str, option: str | None
) -> None:
    nothing = guard == "not-installed"
    expected = Action.NOTHING if nothing else Action.REFUSED
    plan = make_plan(device, offered)
    assert (plan.action, decided_by(plan)) == (expected, guard)
    assert plan.deciding is not None
    assert plan.deciding.override == option
    others = [other for other in OVERRIDES if other != option]
    assert decided_by(make_plan(device, offered, others)) == guard
    allowed = make_plan(device, offered, OVERRIDES)
    assert decided_by(allowed) == (None if option else guard)
    if option:
        assert allowed.action is Action.FLASH
        assert next(found for found in allowed.guards if found.name == guard).verdict is Verdict.OVERRIDDEN


def test_an_image_larger_than_a_slot_is_refused() -> None:
    big = parse_image(image("2.0", payload=bytes(SLOT_BYTES)))
    assert decided_by(make_plan(state(), big)) == "size"


def test_what_cannot_be_seen_from_here_is_left_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = make_plan(state(), parse_image(image("2.0", embed_key=False, security_counter=None)))
    left = {guard.name for guard in hashed.guards if guard.verdict is Verdict.LEFT_TO_DEVICE}
    assert (hashed.action, left) == (Action.FLASH, {"signature", "security-counter"})

    def missing(*_: bytes) -> bool:
        raise ExtraMissing("cryptography is not installed", remedy="pip install 'npu-sdk[firmware]'")

    monkeypatch.setattr(flash_plan, "verify_signature", missing)
    (found,) = [guard for guard in make_plan(state(), NEWER).guards if guard.name == "signature"]
    assert found.verdict is Verdict.LEFT_TO_DEVICE
    assert "pip install" in found.finding


@pytest.mark.parametrize(
    ("device", "offered", "says"),
    [
        (state(), RUNNING, "slot A: it runs"),
        (state(on_trial=True), RUNNING, "fw confirm keeps it"),
        (state(slot(Slot.B, NEWER, trial=True)), NEWER, "tried at the next reset"),
        (state(slot(Slot.B, NEWER, failed=True)), NEWER, "its trial failed"),
        (state(slot(Slot.B, NEWER)), NEWER, "fw rollback returns to it"),
    ],
)
def test_what_is_there_already_is_said_to_stand(device: DeviceState, offered: ParsedImage, says: str) -> None:
    plan = make_plan(device, offered)
    assert plan.deciding is not None
    assert says in plan.deciding.finding


def test_an_image_that_was_never_confirmed_nor_marked_for_a_trial_is_flashed_so_that_it_is_tried() -> None:
    """An update that was cut off behind its last byte leaves it: the same command goes on."""
    plan = make_plan(state(slot(Slot.B, NEWER, proven=False)), NEWER)
    assert plan.action is Action.FLASH
    (found,) = [guard for guard in plan.guards if guard.name == "not-installed"]
    assert "slot B holds it, but it was never confirmed" in found.finding


def test_a_slot_that_is_half_written_is_no_installed_image() -> None:
    half = slot(Slot.B, NEWER, valid=False)
    assert make_plan(state(half), NEWER).action is Action.FLASH


@pytest.mark.parametrize(
    ("device", "target", "pending"),
    [
        (state(), Slot.B, Slot.NONE),
        (state(running=Slot.B), Slot.A, Slot.NONE),
        (state(running=Slot.NONE), Slot.B, Slot.NONE),
        (state(slot(Slot.B, NEWER, confirmed=True), running=Slot.NONE), Slot.B, Slot.NONE),
        (state(slot(Slot.B, NEWER, trial=True)), Slot.B, Slot.B),
        (state(slot(Slot.B, NEWER, trial=True), running=Slot.B, on_trial=True), Slot.A, Slot.NONE),
    ],
)
def test_target_and_pending_slot(device: DeviceState, target: Slot, pending: Slot) -> None:
    assert (device.target, device.pending) == (target, pending)
