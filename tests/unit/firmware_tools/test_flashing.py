"""Carrying a plan out against a scripted firmware: by DMA, through the mailbox, refused, changed, interrupted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from driver_shim import timeouts
from driver_shim.errors import DeviceLost, FirmwareError, Timeout
from driver_shim.firmware.calls import Firmware
from driver_shim.firmware.mailbox import Mailbox
from driver_shim.function.dma import HostMemory
from driver_shim.protocol import mailbox
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.image import parse_image
from driver_shim.protocol.mailbox import MailboxCommand, MailboxResult, UpdateState
from driver_shim.protocol.registers import CoreReset, Post
from driver_shim.transport.in_process import InProcessTransport
from firmware_tools.activation import activate, reset_core
from firmware_tools.flash_plan import FlashPlan, make_plan, read_state
from firmware_tools.flashing import FlashInterrupted, Outcome, Progress, execute
from tests.support.firmware_images import image
from tests.support.scripted_core import STEP_BYTES, ScriptedCore, scripted

OFFERED = image("1.3.0")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for hardware."""
    for name in ("UPDATE_POLL_S", "CORE_BOOT_POLL_S"):
        monkeypatch.setattr(timeouts, name, 0.0)


@pytest.fixture
def core() -> ScriptedCore:
    return ScriptedCore(image("1.2.3"))


@pytest.fixture
def transport(core: ScriptedCore) -> Iterator[InProcessTransport]:
    with scripted(core) as opened:
        yield opened


@pytest.fixture
def memory(transport: InProcessTransport) -> Iterator[HostMemory]:
    with HostMemory(transport) as opened:
        yield opened


@pytest.fixture
def firmware(transport: InProcessTransport) -> Firmware:
    return Firmware(Mailbox(transport))


def plan_for(firmware: Firmware, offered: bytes = OFFERED, *, by_dma: bool = True) -> FlashPlan:
    return make_plan(read_state(firmware), parse_image(offered), by_dma=by_dma)


def ignore(progress: Progress) -> None:
    """Nobody looks."""


def test_by_dma(firmware: Firmware, core: ScriptedCore, memory: HostMemory) -> None:
    seen: list[Progress] = []
    outcome = execute(firmware, plan_for(firmware), memory, seen.append)
    assert outcome == Outcome(Slot.B, True, True, False, True, 0)
    assert core.slots[Slot.B] == OFFERED
    assert MailboxCommand.STAGE_WRITE not in core.asked
    assert MailboxCommand.RESET not in core.asked
    assert [progress.phase for progress in seen][:2] == ["verifying", "writing"]
    assert memory.used_bytes == 0


def test_through_the_mailbox(firmware: Firmware, core: ScriptedCore) -> None:
    seen: list[Progress] = []
    outcome = execute(firmware, plan_for(firmware, by_dma=False), None, seen.append)
    assert outcome.verified
    assert core.slots[Slot.B] == OFFERED
    assert seen[0] == Progress("staging", 0, len(OFFERED))


def test_the_permission_without_hardware_ids_is_sent_along(
    firmware: Firmware, core: ScriptedCore, memory: HostMemory
) -> None:
    flags: list[int] = []

    def begin(body: bytes) -> tuple[int, bytes]:
        flags.append(mailbox.UPDATE_BEGIN.parse(body).flags)
        return MailboxResult.NO_HARDWARE_ID, b""

    core.override[MailboxCommand.UPDATE_BEGIN] = begin
    plan = make_plan(read_state(firmware), parse_image(image("2.0", hardware_ids=())), ["--allow-no-hwid"])
    with pytest.raises(FirmwareError, match="hardware"):
        execute(firmware, plan, memory, ignore)
    assert flags == [mailbox.UpdateFlag.ALLOW_NO_HARDWARE_ID]


def test_a_plan_of_yesterday_is_not_carried_out(firmware: Firmware, core: ScriptedCore, memory: HostMemory) -> None:
    plan = plan_for(firmware)
    core.boot(CoreReset.WATCHDOG)
    with pytest.raises(FirmwareError, match="not as it was") as caught:
        execute(firmware, plan, memory, ignore)
    assert caught.value.code == "plan-outdated"
    assert MailboxCommand.UPDATE_BEGIN not in core.asked


def test_a_refused_plan_is_not_carried_out(firmware: Firmware, memory: HostMemory) -> None:
    with pytest.raises(ValueError, match="nothing-to-do"):
        execute(firmware, plan_for(firmware, image("1.2.3")), memory, ignore)


@pytest.mark.parametrize(("done", "says"), [(0, "nothing was written"), (4096, "4,096 of")])
def test_a_failure_says_what_is_left_though_the_device_forgets_it(
    firmware: Firmware, core: ScriptedCore, memory: HostMemory, done: int, says: str
) -> None:
    plan = plan_for(firmware)
    core.override[MailboxCommand.UPDATE_BEGIN] = lambda _: (0, b"")
    size = len(OFFERED)
    idle = mailbox.UPDATE_STATUS.build()
    writing = mailbox.UPDATE_STATUS.build(state=int(UpdateState.WRITING), slot=2, done_bytes=done, total_bytes=size)
    failed = mailbox.UPDATE_STATUS.build(state=int(UpdateState.FAILED), result=int(MailboxResult.FLASH_FAULT), slot=2)
    answers = iter([idle, writing, failed, failed])
    core.override[MailboxCommand.UPDATE_STATUS] = lambda _: (0, next(answers))
    with pytest.raises(FirmwareError, match=says) as caught:
        execute(firmware, plan, memory, ignore)
    assert caught.value.code == "flash-fault"


def test_where_the_device_does_not_say_what_is_left_nothing_is_claimed(
    firmware: Firmware, core: ScriptedCore, memory: HostMemory
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done_bytes:
            core.override[MailboxCommand.SLOT_INFO] = lambda _: (MailboxResult.BUSY, b"")
            raise KeyboardInterrupt

    with pytest.raises(FlashInterrupted, match="slot B may be incomplete: npuctl fw info shows it"):
        execute(firmware, plan_for(firmware), memory, interrupt)


def test_a_device_that_is_lost_in_the_middle_is_said_to_be_left_half_written(
    firmware: Firmware, memory: HostMemory
) -> None:
    def vanish(progress: Progress) -> None:
        raise DeviceLost("it went away", device=firmware.address)

    with pytest.raises(DeviceLost) as caught:
        execute(firmware, plan_for(firmware), memory, vanish)
    assert caught.value.message == ("it went away; slot B may be incomplete: flash again, what was written is kept")


def test_a_device_that_writes_elsewhere_is_stopped(firmware: Firmware, core: ScriptedCore, memory: HostMemory) -> None:
    plan = plan_for(firmware)
    idle = mailbox.UPDATE_STATUS.build()
    wrong = mailbox.UPDATE_STATUS.build(state=int(UpdateState.WRITING), slot=1, total_bytes=1)
    answers = iter([idle, wrong, wrong])
    core.override[MailboxCommand.UPDATE_STATUS] = lambda _: (0, next(answers))
    with pytest.raises(FirmwareError, match="writes slot A, not B"):
        execute(firmware, plan, memory, ignore)
    assert core.asked[-1] is MailboxCommand.UPDATE_ABORT


def test_done_is_not_believed_unless_the_slot_agrees(
    firmware: Firmware, core: ScriptedCore, memory: HostMemory
) -> None:
    plan = plan_for(firmware)
    core.override[MailboxCommand.UPDATE_BEGIN] = lambda _: (0, b"")
    answers = iter([mailbox.UPDATE_STATUS.build(), mailbox.UPDATE_STATUS.build(state=int(UpdateState.DONE), slot=2)])
    core.override[MailboxCommand.UPDATE_STATUS] = lambda _: (0, next(answers))
    with pytest.raises(FirmwareError, match="does not hold") as caught:
        execute(firmware, plan, memory, ignore)
    assert caught.value.code == "not-verified"


def test_an_update_that_stands_still_is_given_up(
    firmware: Firmware, core: ScriptedCore, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "UPDATE_STALL_S", 0.0)
    monkeypatch.setattr(core, "_update_step", lambda: None)
    with pytest.raises(Timeout, match="stood still at verifying"):
        execute(firmware, plan_for(firmware), memory, ignore)
    assert MailboxCommand.UPDATE_ABORT in core.asked


@pytest.mark.parametrize(
    ("by_dma", "phase", "says"),
    [
        (False, "staging", "before anything was written"),
        (False, "verifying", "in order: nothing was written"),
        (True, "verifying", "in order: nothing was written"),
        (True, "half way", "in order: slot B has 4,096 of .* does not boot"),
        (True, "reading-back", "in order: slot B holds 1.3.0 whole, not marked to be tried"),
    ],
)
def test_ctrl_c_ends_the_update_in_order_and_a_second_run_completes(
    firmware: Firmware, core: ScriptedCore, memory: HostMemory, by_dma: bool, phase: str, says: str
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.phase == phase or (phase == "half way" and progress.done_bytes == STEP_BYTES):
            raise KeyboardInterrupt

    with pytest.raises(FlashInterrupted, match=says):
        execute(firmware, plan_for(firmware, by_dma=by_dma), memory, interrupt)
    assert core.update is UpdateState.FAILED or phase == "staging"
    assert execute(firmware, plan_for(firmware, by_dma=by_dma), memory, ignore).verified


# --- activation -----------------------------------------------------------------------------------------------------


def flashed(firmware: Firmware, memory: HostMemory) -> FlashPlan:
    plan = plan_for(firmware)
    execute(firmware, plan, memory, ignore)
    return plan


def test_activation_tells_what_came_up(firmware: Firmware, memory: HostMemory) -> None:
    plan = flashed(firmware, memory)
    found = activate(firmware, plan.target, plan.image.version, plan.state.boots)
    assert (found.slot, str(found.version), found.on_trial, found.boot_reason) == (Slot.B, "1.3.0", True, "firmware")


def test_falling_back_is_no_success(firmware: Firmware, core: ScriptedCore, memory: HostMemory) -> None:
    plan = flashed(firmware, memory)
    core.breaks_at_boot = True
    with pytest.raises(FirmwareError, match=r"1\.3\.0 did not come up: 1\.2\.3 of slot A runs again") as caught:
        activate(firmware, plan.target, plan.image.version, plan.state.boots)
    assert caught.value.code == "fell-back"
    assert firmware.slot_info(Slot.B).failed


def test_a_core_that_does_not_come_up_is_named(
    firmware: Firmware, core: ScriptedCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def into_recovery(reason: CoreReset = CoreReset.FIRMWARE) -> None:
        core.post = int(Post.RECOVERY)

    monkeypatch.setattr(core, "boot", into_recovery)
    with pytest.raises(FirmwareError, match="nothing came up") as caught:
        reset_core(firmware, 1)
    assert caught.value.code == "core-in-recovery"


def test_a_core_that_never_resets_is_a_time_out(
    firmware: Firmware, core: ScriptedCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "CORE_BOOT_S", 0.05)
    monkeypatch.setattr(core, "boot", lambda: None)
    with pytest.raises(Timeout, match="no firmware answered"):
        reset_core(firmware, 1)
