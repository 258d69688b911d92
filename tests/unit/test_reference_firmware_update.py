"""Updates by the reference firmware on the emulated core: every way an image can come, and every way it must not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from driver_shim.protocol.firmware_slots import SECTOR_BYTES, SLOT_BYTES, BootState, Slot
from driver_shim.protocol.image import DigestAlgorithm
from driver_shim.protocol.mailbox import (
    SLOT_INFO,
    SLOT_QUERY,
    STAGE_BYTES,
    STAGE_WRITE,
    UPDATE_BEGIN,
    UPDATE_STATUS,
    MailboxCommand,
    MailboxResult,
    UpdateFlag,
    UpdateState,
)
from emulator.management.flash import FlashOperation
from tests.support.core_rig import CoreRig
from tests.support.images import OTHER_SIGNER
from tests.support.reference_firmware import firmware_image, needs_compiler, noise, signed_image

pytestmark = needs_compiler

_ADDRESS = 0x12_3456_7000
_LATENCY_MS = 50
"""Erasing a sector takes 45, and the core stands still meanwhile."""


@pytest.fixture
def rig() -> Iterator[CoreRig]:
    with CoreRig(firmware_image()) as made:
        made.run_until_ready()
        yield made


def status(rig: CoreRig) -> Any:
    result, body = rig.ask(MailboxCommand.UPDATE_STATUS)
    assert result is MailboxResult.OK
    return UPDATE_STATUS.parse(body)


def begin(rig: CoreRig, size: int, flags: int = 0, address: int = _ADDRESS) -> MailboxResult:
    body = UPDATE_BEGIN.build(address=address, image_bytes=size, flags=flags)
    return rig.ask(MailboxCommand.UPDATE_BEGIN, body)[0]


def stage(rig: CoreRig, image: bytes) -> None:
    for at in range(0, len(image), STAGE_BYTES):
        piece = image[at : at + STAGE_BYTES]
        result, _ = rig.ask(MailboxCommand.STAGE_WRITE, STAGE_WRITE.build(offset=at) + piece)
        assert result is MailboxResult.OK


def finish(rig: CoreRig) -> Any:
    """Ask until the update is over; progress never goes back, and answers never take long."""
    before = (0, 0)
    while True:
        asked = rig.milliseconds
        found = status(rig)
        assert rig.milliseconds - asked <= _LATENCY_MS
        if found.state in (UpdateState.DONE, UpdateState.FAILED):
            return found
        assert found.done_bytes <= found.total_bytes
        assert (found.state, found.done_bytes) >= before
        before = (found.state, found.done_bytes)
        rig.run_for(1)


def update(rig: CoreRig, image: bytes, *, staged: bool = False, flags: int = 0) -> Any:
    """The final status."""
    if staged:
        stage(rig, image)
        assert begin(rig, len(image), flags | UpdateFlag.STAGED, 0) is MailboxResult.OK
    else:
        rig.memory[_ADDRESS] = image
        assert begin(rig, len(image), flags) is MailboxResult.OK
    return finish(rig)


def contents(rig: CoreRig, slot: Slot, size: int) -> bytes:
    return rig.storage.flash.read(slot.offset, size)


def assert_refused(rig: CoreRig, found: Any, result: MailboxResult) -> None:
    """It failed for this reason, and flash is as it was."""
    assert (found.state, MailboxResult(found.result)) == (UpdateState.FAILED, result)
    assert contents(rig, Slot.B, SLOT_BYTES) == bytes([0xFF]) * SLOT_BYTES
    assert rig.chip.rom.boot_state()[1:] == BootState(confirmed=Slot.A)[1:]


# --- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("with_chunk_hashes", [False, True])
@pytest.mark.parametrize("algorithm", list(DigestAlgorithm))
@pytest.mark.parametrize("pure", [False, True])
def test_takes_every_kind_of_image(
    rig: CoreRig, staged: bool, with_chunk_hashes: bool, algorithm: DigestAlgorithm, pure: bool
) -> None:
    image = signed_image(noise(9000), with_chunk_hashes=with_chunk_hashes, algorithm=algorithm, pure=pure)
    found = update(rig, image, staged=staged)
    assert (found.state, found.result, found.slot) == (UpdateState.DONE, MailboxResult.OK, Slot.B)
    assert (found.done_bytes, found.total_bytes, found.kept_bytes) == (len(image), len(image), 0)
    assert contents(rig, Slot.B, len(image)) == image
    assert rig.chip.rom.boot_state()[1:] == BootState(confirmed=Slot.A, trial=Slot.B)[1:]
    result, body = rig.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=Slot.B))
    slot = SLOT_INFO.parse(body)
    assert (result, slot.valid, slot.trial, slot.image_bytes) == (MailboxResult.OK, 1, 1, len(image))


@pytest.mark.parametrize("end", [-1, 0, 1])
@pytest.mark.parametrize("with_chunk_hashes", [False, True])
def test_takes_images_that_end_near_a_sectors_end(rig: CoreRig, end: int, with_chunk_hashes: bool) -> None:
    """Both the payload and the image as a whole end just before, at and just behind one."""
    tlvs = len(signed_image(noise(8000), with_chunk_hashes=with_chunk_hashes)) - 8000 - 0x200
    for size in (2 * SECTOR_BYTES - 0x200 + end, 2 * SECTOR_BYTES - 0x200 - tlvs + end):
        image = signed_image(noise(size, str(size)), with_chunk_hashes=with_chunk_hashes)
        assert update(rig, image).state == UpdateState.DONE
        assert contents(rig, Slot.B, len(image)) == image


def test_takes_an_image_that_fills_the_slot(rig: CoreRig) -> None:
    room = SLOT_BYTES - len(signed_image(noise(SLOT_BYTES - 0x4000))) + SLOT_BYTES - 0x4000
    image = signed_image(noise(room))
    assert len(image) == SLOT_BYTES
    assert update(rig, image).state == UpdateState.DONE
    assert contents(rig, Slot.B, len(image)) == image


def test_the_new_firmware_runs_and_can_be_confirmed(rig: CoreRig) -> None:
    assert update(rig, firmware_image(version="2.0.0")).state == UpdateState.DONE
    rig.ask(MailboxCommand.RESET)
    rig.run_until(lambda: bool(rig.resets))
    rig.run_until_ready()
    assert (rig.progress("slot"), rig.progress("trial")) == (Slot.B, 1)
    assert begin(rig, 4096) is MailboxResult.UNCONFIRMED
    assert rig.ask(MailboxCommand.CONFIRM)[0] is MailboxResult.OK
    assert update(rig, firmware_image(version="3.0.0")).slot == Slot.A


def test_a_trial_that_hangs_falls_back(rig: CoreRig) -> None:
    assert update(rig, firmware_image("VARIANT_HANGS=1")).state == UpdateState.DONE
    rig.reboot()
    rig.run_until(lambda: bool(rig.resets))
    rig.run_until_ready()
    assert (rig.progress("slot"), rig.progress("trial")) == (Slot.A, 0)
    assert rig.chip.rom.boot_state().failed is Slot.B


def test_without_hardware_ids_it_takes_a_word(rig: CoreRig) -> None:
    image = signed_image(noise(5000), hardware_ids=())
    assert_refused(rig, update(rig, image), MailboxResult.NO_HARDWARE_ID)
    assert update(rig, image, flags=UpdateFlag.ALLOW_NO_HARDWARE_ID).state == UpdateState.DONE


def test_from_outside_it_spares_the_confirmed_slot(rig: CoreRig) -> None:
    state = rig.chip.rom.boot_state()
    rig.chip.rom.write_boot_state(state._replace(confirmed=Slot.B))
    rig.chip.record.slot = Slot.NONE
    assert update(rig, signed_image(noise(5000))).slot == Slot.A
    assert rig.chip.rom.boot_state()[1:] == BootState(confirmed=Slot.B, trial=Slot.A)[1:]


# --- what is not -----------------------------------------------------------------------------------------------------


def flip(image: bytes, at: int) -> bytes:
    return image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :]


_REFUSED: dict[str, tuple[Callable[[], bytes], MailboxResult]] = {
    "payload": (lambda: flip(signed_image(noise(9000)), 5000), MailboxResult.BAD_HASH),
    "version": (lambda: flip(signed_image(noise(9000)), 20), MailboxResult.BAD_HASH),
    "signature": (
        lambda: flip(signed_image(noise(9000)), -1 % len(signed_image(noise(9000)))),
        MailboxResult.BAD_SIGNATURE,
    ),
    "magic": (lambda: flip(signed_image(noise(9000)), 0), MailboxResult.BAD_FORMAT),
    "flags": (lambda: flip(signed_image(noise(9000)), 16), MailboxResult.BAD_FORMAT),
    "reserved": (lambda: flip(signed_image(noise(9000)), 28), MailboxResult.BAD_FORMAT),
    "key": (lambda: signed_image(noise(9000), signer=OTHER_SIGNER), MailboxResult.UNKNOWN_KEY),
    "key's hash": (lambda: signed_image(noise(9000), embed_key=False), MailboxResult.UNKNOWN_KEY),
    "hardware": (lambda: signed_image(noise(9000), hardware_ids=(1, 2)), MailboxResult.WRONG_HARDWARE),
    "load address": (lambda: signed_image(noise(9000), load_address=0x8020_0000), MailboxResult.BAD_FORMAT),
    "end of RAM": (lambda: signed_image(noise(9000), load_address=0x800F_F000), MailboxResult.BAD_FORMAT),
    "trailer": (lambda: signed_image(noise(9000)) + b"\0", MailboxResult.BAD_FORMAT),
    "end": (lambda: signed_image(noise(9000))[:-1], MailboxResult.BAD_FORMAT),
    "one byte": (lambda: b"\x3d", MailboxResult.BAD_FORMAT),
    "nothing but noise": (lambda: noise(3000), MailboxResult.BAD_FORMAT),
}


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("defect", _REFUSED)
def test_refuses_before_it_erases(rig: CoreRig, defect: str, staged: bool) -> None:
    make, result = _REFUSED[defect]
    rig.storage.flash.journal = []
    assert_refused(rig, update(rig, make(), staged=staged), result)
    assert rig.storage.flash.journal == []


def test_refuses_what_was_rolled_back(rig: CoreRig) -> None:
    rig.storage.one_time.raise_security_counter(4)
    assert_refused(rig, update(rig, signed_image(noise(5000), security_counter=3)), MailboxResult.ROLLED_BACK)
    assert_refused(rig, update(rig, signed_image(noise(5000), security_counter=None)), MailboxResult.ROLLED_BACK)
    assert update(rig, signed_image(noise(5000), security_counter=4)).state == UpdateState.DONE


def test_refuses_senseless_requests(rig: CoreRig) -> None:
    assert begin(rig, 0) is MailboxResult.BAD_ARGUMENT
    assert begin(rig, 5000, 4) is MailboxResult.BAD_ARGUMENT
    assert begin(rig, 5000, UpdateFlag.STAGED) is MailboxResult.BAD_ARGUMENT
    assert begin(rig, 5000, 0, (1 << 64) - 4096) is MailboxResult.BAD_ARGUMENT
    assert begin(rig, SLOT_BYTES + 1) is MailboxResult.TOO_LARGE
    assert begin(rig, 5000, UpdateFlag.STAGED, 0) is MailboxResult.NOT_STAGED
    assert status(rig).state == UpdateState.NONE


def test_notices_a_hole_in_what_was_staged(rig: CoreRig) -> None:
    image = signed_image(noise(9000))
    stage(rig, image[:5000])
    result, _ = rig.ask(MailboxCommand.STAGE_WRITE, STAGE_WRITE.build(offset=5001) + image[5001 : 5001 + 100])
    assert result is MailboxResult.OK
    assert begin(rig, 5101, UpdateFlag.STAGED, 0) is MailboxResult.NOT_STAGED
    for offset, size in ((SLOT_BYTES - 1, 2), (SLOT_BYTES, 1), (0xFFFF_FFFF, STAGE_BYTES)):
        result, _ = rig.ask(MailboxCommand.STAGE_WRITE, STAGE_WRITE.build(offset=offset) + bytes(size))
        assert result is MailboxResult.TOO_LARGE


def test_host_memory_that_cannot_be_read(rig: CoreRig) -> None:
    image = signed_image(noise(9000))
    rig.memory[_ADDRESS] = image[:6000]
    assert begin(rig, len(image)) is MailboxResult.OK
    found = finish(rig)
    assert_refused(rig, found, MailboxResult.DMA_FAULT)
    assert found.detail == 0x200 + 9000
    assert update(rig, image).state == UpdateState.DONE


# --- host memory that changes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_chunk_hashes", [False, True])
def test_host_memory_that_changes_after_it_was_verified(rig: CoreRig, with_chunk_hashes: bool) -> None:
    """What is written is what was verified, or nothing is marked."""
    image = signed_image(noise(9000), with_chunk_hashes=with_chunk_hashes)
    rig.memory[_ADDRESS] = lambda _offset: bytes(len(image)) if status_of_link(rig) >= UpdateState.WRITING else image
    writing = False

    def status_of_link(_rig: CoreRig) -> UpdateState:
        return UpdateState.WRITING if writing else UpdateState.VERIFYING

    assert begin(rig, len(image)) is MailboxResult.OK
    while status(rig).state == UpdateState.VERIFYING:
        rig.step()
    writing = True
    found = finish(rig)
    if with_chunk_hashes:
        assert (found.state, found.result) == (UpdateState.FAILED, MailboxResult.CHANGED)
        assert rig.chip.rom.boot_state().trial is Slot.NONE
    else:
        assert found.state == UpdateState.DONE
        assert contents(rig, Slot.B, len(image)) == image


def test_host_memory_whose_header_changes_between_two_looks(rig: CoreRig) -> None:
    image = signed_image(noise(9000))
    looks = iter([image, image, flip(image, 20)])
    rig.memory[_ADDRESS] = lambda _offset: next(looks, image)
    assert begin(rig, len(image)) is MailboxResult.OK
    assert_refused(rig, finish(rig), MailboxResult.CHANGED)


# --- repeating, stopping ---------------------------------------------------------------------------------------------


def test_a_repeated_update_keeps_what_is_there(rig: CoreRig) -> None:
    image = signed_image(noise(30_000))
    assert update(rig, image).kept_bytes == 0
    rig.storage.memory[Slot.B.offset + 9000] ^= 1
    rig.storage.flash.journal = []
    found = update(rig, image)
    assert (found.state, found.kept_bytes) == (UpdateState.DONE, len(image) - SECTOR_BYTES)
    erased = [operation.offset for operation in rig.storage.flash.journal if operation.erases]
    assert [offset for offset in erased if offset >= SLOT_BYTES] == [Slot.B.offset + 2 * SECTOR_BYTES]
    assert contents(rig, Slot.B, len(image)) == image


def test_one_update_at_a_time(rig: CoreRig) -> None:
    image = signed_image(noise(30_000))
    rig.memory[_ADDRESS] = image
    assert begin(rig, len(image)) is MailboxResult.OK
    assert begin(rig, len(image)) is MailboxResult.BUSY
    assert rig.ask(MailboxCommand.STAGE_WRITE, STAGE_WRITE.build(offset=0) + b"x")[0] is MailboxResult.BUSY
    assert rig.ask(MailboxCommand.ROLLBACK)[0] is MailboxResult.BUSY
    assert rig.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=Slot.A))[0] is MailboxResult.OK
    assert rig.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=Slot.B))[0] is MailboxResult.BUSY
    assert finish(rig).state == UpdateState.DONE


@pytest.mark.parametrize("after_ms", [0, 3, 100, 400])
def test_an_aborted_update_can_be_repeated(rig: CoreRig, after_ms: int) -> None:
    image = signed_image(noise(30_000))
    rig.memory[_ADDRESS] = image
    assert begin(rig, len(image)) is MailboxResult.OK
    rig.run_for(after_ms)
    assert rig.ask(MailboxCommand.UPDATE_ABORT)[0] is MailboxResult.OK
    found = status(rig)
    assert (found.state, found.result) == (UpdateState.FAILED, MailboxResult.ABORTED)
    assert rig.chip.rom.boot_state().trial is Slot.NONE
    rig.run_for(1)
    assert update(rig, image).state == UpdateState.DONE
    assert contents(rig, Slot.B, len(image)) == image


def test_a_worn_out_sector_ends_it(rig: CoreRig) -> None:
    from emulator.management.flash import ENDURANCE_CYCLES

    image = signed_image(noise(9000))
    rig.storage._wear[(Slot.B.offset + SECTOR_BYTES) // SECTOR_BYTES] = ENDURANCE_CYCLES
    found = update(rig, image)
    assert (found.state, found.result) == (UpdateState.FAILED, MailboxResult.FLASH_FAULT)
    assert found.detail == SECTOR_BYTES
    assert rig.chip.rom.boot_state().trial is Slot.NONE


# --- power cuts ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Recording:
    """Flash before an update, and each operation of it."""

    before: bytes
    operations: list[FlashOperation]

    def cuts(self) -> Iterator[bytes]:
        """Flash as it is when power fails before, inside or after each operation."""
        flash = bytearray(self.before)
        for operation in self.operations:
            yield bytes(flash)
            for result in (operation.torn(), operation.after):
                flash[operation.offset : operation.offset + len(result)] = result
                yield bytes(flash)


def record_update(firmware: bytes, old: bytes, new: bytes) -> Recording:
    """An update of slot B, whose old image was on trial and failed."""
    with CoreRig(firmware) as rig:
        rig.storage.memory[Slot.B.offset : Slot.B.offset + len(old)] = old
        rig.chip.rom.write_boot_state(BootState(confirmed=Slot.A, failed=Slot.B))
        rig.run_until_ready()
        before = bytes(rig.storage.memory)
        rig.storage.flash.journal = []
        assert update(rig, new).state == UpdateState.DONE
        return Recording(before, rig.storage.flash.journal)


def boots_badly(flash: bytes, firmware: bytes, old: bytes, new: bytes) -> str | None:
    """What is wrong with what the boot ROM would do with this flash; None when all is well."""
    with CoreRig(firmware) as rig:
        rig.storage.memory[:] = flash
        state = rig.chip.rom.boot_state()
        if state.confirmed is not Slot.A:
            return f"confirmed is {state.confirmed.name}"
        if state.trial is Slot.B and flash[Slot.B.offset : Slot.B.offset + len(new)] != new:
            return "a slot is on trial that does not hold the new image"
        if state.failed is Slot.B and flash[Slot.B.offset : Slot.B.offset + len(old)] != old:
            return "a slot is said to have failed that no longer holds what failed"
        rig.reboot()
        expected = Slot.B if state.trial is Slot.B else Slot.A
        if not rig.running or rig.progress("slot") != expected:
            return f"slot {rig.progress('slot')} was booted"
        return None


def cut_everywhere(*defines: str) -> list[str]:
    firmware, old, new = firmware_image(*defines), signed_image(noise(9000, "old")), signed_image(noise(9000, "new"))
    found = (boots_badly(flash, firmware, old, new) for flash in record_update(firmware, old, new).cuts())
    return [wrong for wrong in found if wrong]


def test_power_may_fail_at_any_moment() -> None:
    assert cut_everywhere() == []


def test_the_power_cuts_find_a_trial_that_begins_too_early() -> None:
    assert cut_everywhere("BROKEN_TRIAL_BEFORE_READ_BACK=1")
