"""Power fails before, inside and after every flash operation of an update, a confirmation, a rollback and a recovery.

One recorded run gives what flash holds at each of these moments. Each is booted: the code that ships must come up with
an image that verifies, and no mark may ever name a slot that holds none. A firmware that marks too early is caught.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from driver_shim.protocol.firmware_slots import (
    BOOT_STATE,
    BOOT_STATE_OFFSETS,
    BootState,
    ProvenSlot,
    Slot,
    newest_boot_state,
)
from driver_shim.protocol.image import ImageError, check_integrity, parse_image
from driver_shim.protocol.mailbox import MailboxCommand, MailboxResult
from driver_shim.protocol.registers import CoreReset
from emulator.management.npu.boot_rom import Unbootable
from emulator.management.npu.flash import FlashOperation
from emulator.management.npu.one_time import ONE_TIME
from emulator.management.npu.storage import ONE_TIME_OFFSET, fresh_storage
from firmware_tools.build import read_program
from tests.fuzz.device import SLOW_TIMEOUT_S
from tests.support.core_bench import CoreBench, core_bench
from tests.support.reference_firmware import firmware_elf, firmware_image, needs_compiler, noise, signed_image

COUNTER_OFFSET = ONE_TIME_OFFSET + ONE_TIME.offset_of("security_counter")


class Moment(NamedTuple):
    """What storage holds when power fails."""

    when: str
    contents: bytes


class Journal(list[FlashOperation]):
    """A flash journal that also notes the security counter before each operation."""

    def __init__(self, bench: CoreBench) -> None:
        super().__init__()
        self._bench = bench
        self.counters: list[int] = []

    def append(self, operation: FlashOperation) -> None:
        self.counters.append(self._bench.storage.one_time.security_counter)
        super().append(operation)


def torn(operation: FlashOperation) -> bytes:
    """What is there when power fails half way: cells near their old value, some between, some at the new one.

    The first half of the bytes has changed; in the next eighth every other bit has, since cells do not switch
    together; the rest is as before.
    """
    before, after = operation.before, operation.after
    changed, between = len(after) // 2, len(after) // 8
    halves = zip(before[changed : changed + between], after[changed : changed + between], strict=True)
    mixed = bytes(old & 0xAA | new & 0x55 for old, new in halves)
    return after[:changed] + mixed + before[changed + between :]


def moments(before: bytes, after: bytes, journal: Journal) -> Iterator[Moment]:
    """Every state of storage from `before` to `after`."""
    contents = bytearray(before)
    last = -1
    for index, (operation, counter) in enumerate(zip(journal, journal.counters, strict=True)):
        what = f"operation {index}, {'erase' if operation.erases else 'program'} at {operation.offset:#x}"
        place = slice(operation.offset, operation.offset + len(operation.after))
        assert bytes(contents[place]) == operation.before
        contents[COUNTER_OFFSET : COUNTER_OFFSET + 4] = counter.to_bytes(4, "little")
        if counter != last:  # else it is the moment after the operation before
            yield Moment(f"before {what}", bytes(contents))
            last = counter
        contents[place] = torn(operation)
        yield Moment(f"inside {what}", bytes(contents))
        contents[place] = operation.after
        yield Moment(f"after {what}", bytes(contents))
    yield Moment("at the end", after)


def record(bench: CoreBench) -> Journal:
    journal = Journal(bench)
    bench.storage.flash.journal = journal
    return journal


def restart(bench: CoreBench) -> None:
    """An orderly reset, as the host asks for one."""
    seen = len(bench.resets)
    assert bench.ask(MailboxCommand.RESET)[0] is MailboxResult.OK
    assert bench.run_until(lambda: len(bench.resets) > seen)
    assert bench.ready()


def check_marks(bench: CoreBench) -> None:
    """Before anything runs: what the boot state names must be an image that boots."""
    flash = bench.storage.flash
    state, _ = newest_boot_state([flash.read(offset, BOOT_STATE.size) for offset in BOOT_STATE_OFFSETS])
    for slot in {state.confirmed, state.trial} - {Slot.NONE}:
        bench.core.rom.verify(bench.core.rom.slot_image(slot))
    for slot in (Slot.A, Slot.B):
        if slot.proven_bit in state.proven:  # whole, though a raised security counter may shut it out
            check_integrity(parse_image(bench.core.rom.slot_image(slot)))


def recover(bench: CoreBench, slot: Slot, image: bytes) -> None:
    """What the debug port has the boot ROM do."""
    bench.boot(CoreReset.RECOVERY)
    bench.core.recovery.stage(0, image)
    bench.core.recovery.install(slot, len(image))


def check_boots(moment: Moment) -> None:
    """The device comes up with power back, and again after that."""
    with core_bench(moment.contents) as bench:
        check_marks(bench)
        for _ in range(2):
            assert bench.boot_to_ready(), moment.when
            slot = Slot(bench.progress()["slot"])
            bench.core.rom.verify(bench.core.rom.slot_image(slot))


def failures(states: Iterator[Moment]) -> Iterator[str]:
    """The moments from which the device does not come up as it must."""
    for moment in states:
        try:
            check_boots(moment)
        except (AssertionError, ImageError, Unbootable) as error:
            yield f"{moment.when}: {error}"


OLD_VERSION, NEW_VERSION = "1.0.0", "2.0.0"


@pytest.fixture(scope="module")
def old() -> bytes:
    return firmware_image(security_counter=1, version=OLD_VERSION)


@pytest.fixture(scope="module")
def new() -> bytes:
    return firmware_image(security_counter=1, version=NEW_VERSION)


@needs_compiler
def test_an_update_survives_a_power_cut_at_every_flash_operation(old: bytes, new: bytes) -> None:
    with core_bench(fresh_storage(old)) as bench:
        assert bench.boot_to_ready()
        before, journal = bench.contents(), record(bench)
        assert bench.update(new) == (MailboxResult.OK, 0)
        restart(bench)
        assert bench.progress()["trial"] == 1
        after = bench.contents()
    assert len(journal) > len(new) // 256
    assert list(failures(moments(before, after, journal))) == []


@needs_compiler
def test_a_confirmation_survives_a_power_cut_at_every_flash_operation(old: bytes) -> None:
    raised = firmware_image(security_counter=5, version=NEW_VERSION)
    with core_bench(fresh_storage(old)) as bench:
        assert bench.boot_to_ready()
        assert bench.update(raised) == (MailboxResult.OK, 0)
        restart(bench)
        before, journal = bench.contents(), record(bench)
        assert bench.storage.one_time.security_counter == 1
        assert bench.ask(MailboxCommand.CONFIRM)[0] is MailboxResult.OK
        after = bench.contents()
        assert bench.storage.one_time.security_counter == 5
    assert journal
    assert set(journal.counters) == {1}, "the counter is burnt last"
    assert list(failures(moments(before, after, journal))) == []
    with core_bench(list(moments(before, after, journal))[-2].contents) as bench:
        assert bench.boot_to_ready()  # confirmed, but cut before the counter was burnt: made up for at the next boot
        assert bench.progress()["slot"] == Slot.B
        assert bench.storage.one_time.security_counter == 5


@needs_compiler
def test_a_rollback_survives_a_power_cut_at_every_flash_operation(old: bytes, new: bytes) -> None:
    with core_bench(fresh_storage(old)) as bench:
        assert bench.boot_to_ready()
        assert bench.update(new) == (MailboxResult.OK, 0)
        restart(bench)
        assert bench.ask(MailboxCommand.CONFIRM)[0] is MailboxResult.OK
        before, journal = bench.contents(), record(bench)
        assert bench.ask(MailboxCommand.ROLLBACK)[0] is MailboxResult.OK
        restart(bench)
        assert bench.progress()["slot"] == Slot.A
        after = bench.contents()
    assert journal
    assert list(failures(moments(before, after, journal))) == []


@pytest.mark.slow
@pytest.mark.timeout(SLOW_TIMEOUT_S)
@needs_compiler
def test_an_update_onto_a_failed_trial_survives_a_power_cut_at_every_flash_operation(old: bytes, new: bytes) -> None:
    hangs = firmware_image("VARIANT_HANGS=1", security_counter=1, version="1.5.0")
    with core_bench(fresh_storage(old)) as bench:
        assert bench.boot_to_ready()
        assert bench.update(hangs) == (MailboxResult.OK, 0)
        before, journal = bench.contents(), record(bench)
        restart(bench)  # hangs, and the watchdog brings the old one back
        assert bench.progress()["slot"] == Slot.A
        assert bench.update(new) == (MailboxResult.OK, 0)
        after = bench.contents()
    assert list(failures(moments(before, after, journal))) == []


MARKS = {
    "A": BootState(confirmed=Slot.A, proven=ProvenSlot.A | ProvenSlot.B),
    "B": BootState(confirmed=Slot.B, proven=ProvenSlot.A | ProvenSlot.B),
    "trial of B": BootState(confirmed=Slot.A, trial=Slot.B, proven=ProvenSlot.A),
    "A failed": BootState(confirmed=Slot.B, failed=Slot.A, proven=ProvenSlot.B),
    "B failed": BootState(confirmed=Slot.A, failed=Slot.B, proven=ProvenSlot.A),
}


@pytest.mark.slow
@pytest.mark.timeout(SLOW_TIMEOUT_S)
@needs_compiler
@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("slot", [Slot.A, Slot.B], ids=["in A", "in B"])
def test_a_recovery_survives_a_power_cut_at_every_flash_operation(
    old: bytes, new: bytes, slot: Slot, marks: BootState
) -> None:
    third = firmware_image(security_counter=1, version="3.0.0")
    with core_bench(fresh_storage(old)) as bench:
        bench.storage.memory[Slot.B.offset : Slot.B.offset + len(new)] = new
        bench.core.rom.write_boot_state(marks)
        before, journal = bench.contents(), record(bench)
        recover(bench, slot, third)
        after = bench.contents()
        state = bench.core.rom.boot_state()
        failed = Slot.NONE if marks.failed is slot else marks.failed
        assert state[1:] == BootState(confirmed=slot, failed=failed, proven=marks.proven | slot.proven_bit)[1:]
        assert bench.core.rom.slot_image(slot) == third
    assert {operation.offset for operation in journal[:2]} <= set(BOOT_STATE_OFFSETS), "marks go first"
    assert list(failures(moments(before, after, journal))) == []


@needs_compiler
def test_a_recovery_of_a_slot_without_marks_writes_the_boot_state_once(old: bytes, new: bytes) -> None:
    with core_bench(fresh_storage(old)) as bench:
        journal = record(bench)
        recover(bench, Slot.B, new)
        assert sum(operation.erases for operation in journal if operation.offset in BOOT_STATE_OFFSETS) == 1


@needs_compiler
def test_a_firmware_that_marks_before_it_has_read_back_is_caught(new: bytes) -> None:
    broken = firmware_image("BROKEN_TRIAL_BEFORE_READ_BACK=1", security_counter=1)
    with core_bench(fresh_storage(broken)) as bench:
        assert bench.boot_to_ready()
        before, journal = bench.contents(), record(bench)
        assert bench.update(new) == (MailboxResult.OK, 0)
        after = bench.contents()
    assert next(failures(moments(before, after, journal)), None)


@pytest.mark.slow
@pytest.mark.timeout(SLOW_TIMEOUT_S)
@needs_compiler
def test_an_update_of_64_kib_survives_a_power_cut_at_every_flash_operation(old: bytes) -> None:
    payload = read_program(firmware_elf()).payload
    large = signed_image(payload + noise(64 * 1024 - 1024 - len(payload)), security_counter=1, version="3.0.0")
    with core_bench(fresh_storage(old)) as bench:
        assert bench.boot_to_ready()
        before, journal = bench.contents(), record(bench)
        assert bench.update(large) == (MailboxResult.OK, 0)
        restart(bench)
        after = bench.contents()
    assert list(failures(moments(before, after, journal))) == []
