"""Updates by the reference firmware on the emulated core: every way an image can come, and every way it must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from driver_shim.protocol.firmware_slots import (
    BOOT_STATE,
    BOOT_STATE_OFFSETS,
    SECTOR_BYTES,
    SLOT_BYTES,
    BootState,
    ProvenSlot,
    Slot,
    parse_boot_state,
)
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
from driver_shim.protocol.registers import CoreReset
from emulator.management.npu.flash import ENDURANCE_CYCLES
from emulator.management.npu.storage import fresh_storage
from tests.support.core_bench import HOST_ADDRESS, CoreBench, core_bench, milliseconds
from tests.support.images import OTHER_SIGNER
from tests.support.reference_firmware import firmware_image, needs_compiler, noise, signed_image

pytestmark = needs_compiler

_TLVS_OF_A_FULL_SLOT = 0x200 + 4 + 8 + 8 + 4 + 254 * 32 + 4 + 36 + 48 + 68
"""And the header: protected ones with 254 chunk hashes, then hash, key and signature."""
_LATENCY_MS = 100
"""Erasing a sector takes 45, and the core stands still meanwhile: once before the answer, and perhaps behind it again
before the bench looks."""


@pytest.fixture
def bench() -> Iterator[CoreBench]:
    with core_bench(fresh_storage(firmware_image())) as made:
        assert made.boot_to_ready()
        yield made


def status(bench: CoreBench) -> Any:
    result, body = bench.ask(MailboxCommand.UPDATE_STATUS)
    assert result is MailboxResult.OK
    return UPDATE_STATUS.parse(body)


def begin(bench: CoreBench, size: int, flags: int = 0, address: int = HOST_ADDRESS) -> MailboxResult:
    body = UPDATE_BEGIN.build(address=address, image_bytes=size, flags=flags)
    return bench.ask(MailboxCommand.UPDATE_BEGIN, body)[0]


def stage(bench: CoreBench, image: bytes) -> None:
    for at in range(0, len(image), STAGE_BYTES):
        piece = image[at : at + STAGE_BYTES]
        result, _ = bench.ask(MailboxCommand.STAGE_WRITE, STAGE_WRITE.build(offset=at) + piece)
        assert result is MailboxResult.OK


def finish(bench: CoreBench) -> Any:
    """Ask until the update is over; progress never goes back, and answers never take long."""
    before = (0, 0)
    while True:
        asked = milliseconds(bench)
        found = status(bench)
        assert milliseconds(bench) - asked <= _LATENCY_MS
        if found.state in (UpdateState.DONE, UpdateState.FAILED):
            return found
        assert found.done_bytes <= found.total_bytes
        assert (found.state, found.done_bytes) >= before
        before = (found.state, found.done_bytes)
        bench.run_for(0.001)


def update(bench: CoreBench, image: bytes, *, staged: bool = False, flags: int = 0) -> Any:
    """The final status."""
    if staged:
        stage(bench, image)
        assert begin(bench, len(image), flags | UpdateFlag.STAGED, 0) is MailboxResult.OK
    else:
        bench.host = image
        assert begin(bench, len(image), flags) is MailboxResult.OK
    return finish(bench)


def contents(bench: CoreBench, slot: Slot, size: int) -> bytes:
    return bench.storage.flash.read(slot.offset, size)


def assert_refused(bench: CoreBench, found: Any, result: MailboxResult) -> None:
    """It failed for this reason, and flash is as it was."""
    assert (found.state, MailboxResult(found.result)) == (UpdateState.FAILED, result)
    assert contents(bench, Slot.B, SLOT_BYTES) == bytes([0xFF]) * SLOT_BYTES
    assert bench.core.rom.boot_state()[1:] == BootState(confirmed=Slot.A, proven=ProvenSlot.A)[1:]


# --- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("with_chunk_hashes", [False, True])
@pytest.mark.parametrize("algorithm", list(DigestAlgorithm))
@pytest.mark.parametrize("pure", [False, True])
def test_takes_every_kind_of_image(
    bench: CoreBench, staged: bool, with_chunk_hashes: bool, algorithm: DigestAlgorithm, pure: bool
) -> None:
    image = signed_image(noise(9000), with_chunk_hashes=with_chunk_hashes, algorithm=algorithm, pure=pure)
    found = update(bench, image, staged=staged)
    assert (found.state, found.result, found.slot) == (UpdateState.DONE, MailboxResult.OK, Slot.B)
    assert (found.done_bytes, found.total_bytes, found.kept_bytes) == (len(image), len(image), 0)
    assert contents(bench, Slot.B, len(image)) == image
    assert bench.core.rom.boot_state()[1:] == BootState(confirmed=Slot.A, trial=Slot.B, proven=ProvenSlot.A)[1:]
    result, body = bench.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=Slot.B))
    slot = SLOT_INFO.parse(body)
    assert (result, slot.valid, slot.trial, slot.image_bytes) == (MailboxResult.OK, 1, 1, len(image))


@pytest.mark.parametrize("end", [-1, 0, 1])
@pytest.mark.parametrize("with_chunk_hashes", [False, True])
def test_takes_images_that_end_near_a_sectors_end(bench: CoreBench, end: int, with_chunk_hashes: bool) -> None:
    """Both the payload and the image as a whole end just before, at and just behind one."""
    tlvs = len(signed_image(noise(8000), with_chunk_hashes=with_chunk_hashes)) - 8000 - 0x200
    for size in (2 * SECTOR_BYTES - 0x200 + end, 2 * SECTOR_BYTES - 0x200 - tlvs + end):
        image = signed_image(noise(size, str(size)), with_chunk_hashes=with_chunk_hashes)
        assert update(bench, image).state == UpdateState.DONE
        assert contents(bench, Slot.B, len(image)) == image


def test_takes_an_image_that_fills_the_slot(bench: CoreBench) -> None:
    image = signed_image(noise(SLOT_BYTES - _TLVS_OF_A_FULL_SLOT))
    assert len(image) == SLOT_BYTES
    assert update(bench, image).state == UpdateState.DONE
    assert contents(bench, Slot.B, len(image)) == image


def test_the_new_firmware_runs_and_can_be_confirmed(bench: CoreBench) -> None:
    assert update(bench, firmware_image(version="2.0.0")).state == UpdateState.DONE
    bench.ask(MailboxCommand.RESET)
    assert bench.run_until(lambda: bool(bench.resets))
    assert bench.ready()
    assert (bench.progress()["slot"], bench.progress()["trial"]) == (Slot.B, 1)
    assert begin(bench, 4096) is MailboxResult.UNCONFIRMED
    assert bench.ask(MailboxCommand.CONFIRM)[0] is MailboxResult.OK
    assert update(bench, firmware_image(version="3.0.0")).slot == Slot.A


def test_a_trial_that_hangs_falls_back(bench: CoreBench) -> None:
    assert update(bench, firmware_image("VARIANT_HANGS=1")).state == UpdateState.DONE
    bench.boot(CoreReset.HOST)
    assert bench.run_until(lambda: bool(bench.resets))
    assert bench.ready()
    assert (bench.progress()["slot"], bench.progress()["trial"]) == (Slot.A, 0)
    assert bench.core.rom.boot_state().failed is Slot.B


def test_without_hardware_ids_it_takes_a_word(bench: CoreBench) -> None:
    image = signed_image(noise(5000), hardware_ids=())
    assert_refused(bench, update(bench, image), MailboxResult.NO_HARDWARE_ID)
    assert update(bench, image, flags=UpdateFlag.ALLOW_NO_HARDWARE_ID).state == UpdateState.DONE


def test_from_outside_it_spares_the_confirmed_slot(bench: CoreBench) -> None:
    state = bench.core.rom.boot_state()
    bench.core.rom.write_boot_state(state._replace(confirmed=Slot.B))
    bench.core.record.slot = Slot.NONE
    assert update(bench, signed_image(noise(5000))).slot == Slot.A
    assert bench.core.rom.boot_state()[1:] == BootState(confirmed=Slot.B, trial=Slot.A)[1:]


# --- what is not -----------------------------------------------------------------------------------------------------


def flip(image: bytes, at: int) -> bytes:
    changed = bytearray(image)
    changed[at] ^= 1
    return bytes(changed)


_REFUSED: dict[str, tuple[Callable[[], bytes], MailboxResult]] = {
    "payload": (lambda: flip(signed_image(noise(9000)), 5000), MailboxResult.BAD_HASH),
    "version": (lambda: flip(signed_image(noise(9000)), 20), MailboxResult.BAD_HASH),
    "signature": (lambda: flip(signed_image(noise(9000)), -1), MailboxResult.BAD_SIGNATURE),
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
    "less than a header": (lambda: b"\x3d", MailboxResult.BAD_FORMAT),
    "nothing but noise": (lambda: noise(3000), MailboxResult.BAD_FORMAT),
}


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("defect", _REFUSED)
def test_refuses_before_it_erases(bench: CoreBench, defect: str, staged: bool) -> None:
    make, result = _REFUSED[defect]
    bench.storage.flash.journal = []
    assert_refused(bench, update(bench, make(), staged=staged), result)
    assert bench.storage.flash.journal == []


def test_refuses_what_was_rolled_back(bench: CoreBench) -> None:
    bench.storage.one_time.raise_security_counter(4)
    assert_refused(bench, update(bench, signed_image(noise(5000), security_counter=3)), MailboxResult.ROLLED_BACK)
    assert_refused(bench, update(bench, signed_image(noise(5000), security_counter=None)), MailboxResult.ROLLED_BACK)
    assert update(bench, signed_image(noise(5000), security_counter=4)).state == UpdateState.DONE


def test_refuses_senseless_requests(bench: CoreBench) -> None:
    assert begin(bench, 0) is MailboxResult.BAD_ARGUMENT
    assert begin(bench, 5000, 4) is MailboxResult.BAD_ARGUMENT
    assert begin(bench, 5000, UpdateFlag.STAGED) is MailboxResult.BAD_ARGUMENT
    assert begin(bench, 5000, 0, (1 << 64) - 4096) is MailboxResult.BAD_ARGUMENT
    assert begin(bench, SLOT_BYTES + 1) is MailboxResult.TOO_LARGE
    assert begin(bench, 5000, UpdateFlag.STAGED, 0) is MailboxResult.NOT_STAGED
    assert status(bench).state == UpdateState.NONE


def test_notices_a_hole_in_what_was_staged(bench: CoreBench) -> None:
    image = signed_image(noise(9000))
    stage(bench, image[:5000])
    result, _ = bench.ask(MailboxCommand.STAGE_WRITE, STAGE_WRITE.build(offset=5001) + image[5001 : 5001 + 100])
    assert result is MailboxResult.OK
    assert begin(bench, 5101, UpdateFlag.STAGED, 0) is MailboxResult.NOT_STAGED
    for offset, size in ((SLOT_BYTES - 1, 2), (SLOT_BYTES, 1), (0xFFFF_FFFF, STAGE_BYTES)):
        result, _ = bench.ask(MailboxCommand.STAGE_WRITE, STAGE_WRITE.build(offset=offset) + bytes(size))
        assert result is MailboxResult.TOO_LARGE


def test_host_memory_that_cannot_be_read(bench: CoreBench) -> None:
    image = signed_image(noise(9000))
    bench.host = image[:6000]
    assert begin(bench, len(image)) is MailboxResult.OK
    found = finish(bench)
    assert_refused(bench, found, MailboxResult.DMA_FAULT)
    assert found.detail == 0x200 + 9000
    assert update(bench, image).state == UpdateState.DONE


# --- host memory that changes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_chunk_hashes", [False, True])
def test_host_memory_that_changes_after_it_was_verified(bench: CoreBench, with_chunk_hashes: bool) -> None:
    """What is written is what was verified, or nothing is marked."""
    image = signed_image(noise(9000), with_chunk_hashes=with_chunk_hashes)
    bench.host = image
    assert begin(bench, len(image)) is MailboxResult.OK
    while status(bench).state == UpdateState.VERIFYING:
        bench.run_for(0)
    bench.host = bytes(len(image))
    found = finish(bench)
    if with_chunk_hashes:
        assert (found.state, found.result) == (UpdateState.FAILED, MailboxResult.CHANGED)
        assert bench.core.rom.boot_state().trial is Slot.NONE
    else:
        assert found.state == UpdateState.DONE
        assert contents(bench, Slot.B, len(image)) == image


def test_host_memory_whose_header_changes_between_two_looks(bench: CoreBench) -> None:
    image = signed_image(noise(9000))
    looks = iter([image, image, flip(image, 20)])

    def look(_address: int, _length: int) -> None:
        bench.host = next(looks, image)

    bench.on_dma = look
    assert begin(bench, len(image)) is MailboxResult.OK
    assert_refused(bench, finish(bench), MailboxResult.CHANGED)


# --- repeating, stopping ---------------------------------------------------------------------------------------------


def test_a_repeated_update_keeps_what_is_there(bench: CoreBench) -> None:
    image = signed_image(noise(30_000))
    assert update(bench, image).kept_bytes == 0
    bench.storage.memory[Slot.B.offset + 9000] ^= 1
    bench.storage.flash.journal = []
    found = update(bench, image)
    assert (found.state, found.kept_bytes) == (UpdateState.DONE, len(image) - SECTOR_BYTES)
    erased = [operation.offset for operation in bench.storage.flash.journal if operation.erases]
    assert [offset for offset in erased if offset >= SLOT_BYTES] == [Slot.B.offset + 2 * SECTOR_BYTES]
    assert contents(bench, Slot.B, len(image)) == image


def test_the_marks_of_a_slot_are_removed_in_one_write_before_its_first_erase(bench: CoreBench) -> None:
    rom = bench.core.rom
    rom.write_boot_state(BootState(confirmed=Slot.A, failed=Slot.B, proven=ProvenSlot.A | ProvenSlot.B, trial=Slot.B))
    bench.storage.flash.journal = []
    assert update(bench, signed_image(noise(5000))).state == UpdateState.DONE
    erased = [operation.offset for operation in bench.storage.flash.journal if operation.erases]
    written = [
        parse_boot_state(operation.after[: BOOT_STATE.size])
        for operation in bench.storage.flash.journal
        if operation.offset in BOOT_STATE_OFFSETS and not operation.erases
    ]
    assert [offset in BOOT_STATE_OFFSETS for offset in erased] == [True, False, False, True]
    forgotten = BootState(confirmed=Slot.A, proven=ProvenSlot.A)
    assert [state and state[1:] for state in written] == [forgotten[1:], forgotten._replace(trial=Slot.B)[1:]]


def test_a_slot_that_was_written_whole_but_never_marked_is_not_rolled_back_to(bench: CoreBench) -> None:
    bench.storage.flash.journal = []
    assert update(bench, firmware_image("VARIANT_HANGS=1", version="2.0.0")).state == UpdateState.DONE
    for operation in reversed(bench.storage.flash.journal[-2:]):  # as if cut off before the trial was marked
        assert operation.offset in BOOT_STATE_OFFSETS
        bench.storage.memory[operation.offset : operation.offset + len(operation.before)] = operation.before
    assert bench.boot_to_ready(CoreReset.HOST)
    assert bench.progress()["slot"] == Slot.A
    result, body = bench.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=Slot.B))
    slot = SLOT_INFO.parse(body)
    assert (result, slot.valid, slot.failed, slot.trial, slot.proven) == (MailboxResult.OK, 1, 0, 0, 0)
    assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.UNTRIED, b"")


def test_one_update_at_a_time(bench: CoreBench) -> None:
    image = signed_image(noise(30_000))
    bench.host = image
    assert begin(bench, len(image)) is MailboxResult.OK
    assert begin(bench, len(image)) is MailboxResult.BUSY
    assert bench.ask(MailboxCommand.STAGE_WRITE, STAGE_WRITE.build(offset=0) + b"x")[0] is MailboxResult.BUSY
    assert bench.ask(MailboxCommand.ROLLBACK)[0] is MailboxResult.BUSY
    assert bench.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=Slot.A))[0] is MailboxResult.OK
    assert bench.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=Slot.B))[0] is MailboxResult.BUSY
    assert finish(bench).state == UpdateState.DONE


@pytest.mark.parametrize("after_ms", [0, 3, 100, 400])
def test_an_aborted_update_can_be_repeated(bench: CoreBench, after_ms: int) -> None:
    image = signed_image(noise(30_000))
    bench.host = image
    assert begin(bench, len(image)) is MailboxResult.OK
    bench.run_for(after_ms / 1000)
    assert bench.ask(MailboxCommand.UPDATE_ABORT)[0] is MailboxResult.OK
    found = status(bench)
    assert (found.state, found.result) == (UpdateState.FAILED, MailboxResult.ABORTED)
    assert bench.core.rom.boot_state().trial is Slot.NONE
    bench.run_for(0.001)
    assert update(bench, image).state == UpdateState.DONE
    assert contents(bench, Slot.B, len(image)) == image


def test_a_worn_out_sector_ends_it(bench: CoreBench) -> None:
    image = signed_image(noise(9000))
    for _ in range(ENDURANCE_CYCLES):
        bench.storage.flash.erase(Slot.B.offset + SECTOR_BYTES)
    found = update(bench, image)
    assert (found.state, found.result) == (UpdateState.FAILED, MailboxResult.FLASH_FAULT)
    assert found.detail == SECTOR_BYTES
    assert bench.core.rom.boot_state().trial is Slot.NONE
