"""The reference firmware on the emulated core: start, mailbox, log, console, sensors, faults, watchdog."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from driver_shim.protocol.firmware_slots import (
    BOOT_STATE,
    BOOT_STATE_OFFSETS,
    ERASED,
    MAX_SEQUENCE,
    RETAINED_ADDRESS,
    RETAINED_BYTES,
    BootState,
    ProvenSlot,
    Slot,
    newest_boot_state,
)
from driver_shim.protocol.mailbox import (
    BODY_BYTES,
    INFO,
    LOG_ANSWER,
    LOG_QUERY,
    LOG_RECORD,
    LOG_RECORDS_AT_ONCE,
    REQUEST,
    REQUEST_BODIES,
    SENSORS,
    SLOT_INFO,
    SLOT_QUERY,
    MailboxCommand,
    MailboxResult,
)
from driver_shim.protocol.management_registers import HARDWARE_ID
from driver_shim.protocol.registers import CoreReset, Post
from emulator.management.npu.storage import fresh_storage
from emulator.management.npu.thermal import Thermal
from tests.support.core_bench import CoreBench, core_bench, milliseconds
from tests.support.reference_firmware import firmware_elf, firmware_image, needs_compiler, noise

pytestmark = needs_compiler

_QUICK_MS = 3
"""What "at once" is for an answer."""
_WATCHDOG_MS = 4000
_TALK_S = 0.05
"""For the firmware to say what it has to: a byte takes it some 10 us."""
_BOTH = ProvenSlot.A | ProvenSlot.B


@pytest.fixture
def bench() -> Iterator[CoreBench]:
    with core_bench(fresh_storage(firmware_image())) as made:
        assert made.boot_to_ready()
        yield made


def info(bench: CoreBench) -> Any:
    result, body = bench.ask(MailboxCommand.INFO)
    assert result is MailboxResult.OK
    return INFO.parse(body)


def texts() -> bytes:
    with firmware_elf().open("rb") as file:
        return bytes(ELFFile(file).get_section_by_name(".log_strings").data())


def log(bench: CoreBench, first: int = 0) -> list[Any]:
    """All records from `first` on."""
    records: list[Any] = []
    while True:
        result, body = bench.ask(MailboxCommand.LOG_READ, LOG_QUERY.build(first=first))
        assert result is MailboxResult.OK
        head = LOG_ANSWER.parse(body[: LOG_ANSWER.size])
        assert len(body) == LOG_ANSWER.size + head.count * LOG_RECORD.size
        if not head.count:
            return records
        records += [
            LOG_RECORD.parse(body[at : at + LOG_RECORD.size])
            for at in range(LOG_ANSWER.size, len(body), LOG_RECORD.size)
        ]
        first = head.next


def text_of(record: Any) -> str:
    token = record.token
    return texts()[token:].partition(b"\0")[0].decode()


def test_says_who_it_is(bench: CoreBench) -> None:
    found = info(bench)
    assert (found.protocol, found.slot, found.on_trial, found.version) == (1, Slot.A, 0, 1)
    assert found.hardware_id == HARDWARE_ID
    assert found.build_id == bench.link["build_id"] != 0
    bench.run_for(0.001)
    assert b"reference firmware 1.0.0+0" in bench.printed


def test_pings_come_back_at_once(bench: CoreBench) -> None:
    before = milliseconds(bench)
    for size in (0, 1, 3, 4, BODY_BYTES):
        assert bench.ask(MailboxCommand.PING, noise(size)) == (MailboxResult.OK, noise(size))
    assert milliseconds(bench) - before <= 5 * _QUICK_MS


@pytest.mark.parametrize("command", list(MailboxCommand))
def test_other_lengths_are_refused(bench: CoreBench, command: MailboxCommand) -> None:
    shortest, longest = REQUEST_BODIES[command]
    for length in {shortest - 1, longest + 1, BODY_BYTES + 1, 0xFFFF}:
        if 0 <= length <= 0xFFFF and not shortest <= length <= longest:
            assert bench.ask_raw(REQUEST.build(command=command, body_bytes=length)) == (MailboxResult.BAD_LENGTH, b"")


@pytest.mark.parametrize("command", [0, 6, 0x17, 0xFFFF])
def test_unknown_commands_are_refused(bench: CoreBench, command: int) -> None:
    assert bench.ask(command) == (MailboxResult.UNKNOWN_COMMAND, b"")


def test_tells_what_is_in_the_slots(bench: CoreBench) -> None:
    result, body = bench.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=1))
    found = SLOT_INFO.parse(body)
    assert (result, found.valid, found.confirmed, found.result) == (MailboxResult.OK, 1, 1, MailboxResult.OK)
    assert found.proven == 1
    assert found.image_bytes == len(firmware_image())
    assert found.build_id == bench.link["build_id"]
    result, body = bench.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=2))
    found = SLOT_INFO.parse(body)
    assert (result, found.valid, found.image_bytes, found.proven) == (MailboxResult.OK, 0, 0, 0)
    for query in (b"\0\0\0\0", b"\3\0\0\0", b"\1\1\0\0"):
        assert bench.ask(MailboxCommand.SLOT_INFO, query) == (MailboxResult.BAD_ARGUMENT, b"")


def test_answers_before_it_resets(bench: CoreBench) -> None:
    assert bench.ask(MailboxCommand.RESET) == (MailboxResult.OK, b"")
    assert bench.run_until(lambda: bool(bench.resets))
    assert bench.ready()
    assert bench.resets == [CoreReset.FIRMWARE]
    assert info(bench).boots == 1


def test_reads_the_boot_state_as_the_sdk_does(bench: CoreBench) -> None:
    good = BootState(sequence=5, confirmed=Slot.A, trial=Slot.B, failed=Slot.B, proven=ProvenSlot.A)
    beyond = bytearray(good.build())
    beyond[BOOT_STATE.offset_of("failed_slot")] = 3
    beyond[-4:] = zlib.crc32(beyond[:-4]).to_bytes(4, "little")
    unknown = bytearray(good._replace(sequence=7).build())
    unknown[BOOT_STATE.offset_of("proven_slots")] = 0b101
    unknown[-4:] = zlib.crc32(unknown[:-4]).to_bytes(4, "little")
    copies = [
        good.build(),
        BootState(sequence=5, confirmed=Slot.B, proven=ProvenSlot.B).build(),
        BootState(sequence=6, failed=Slot.A, proven=ProvenSlot.A | ProvenSlot.B).build(),
        good._replace(sequence=MAX_SEQUENCE).build(),
        good._replace(sequence=MAX_SEQUENCE - 1).build(),
        good.build()[:-1] + b"?",
        bytes(beyond),
        bytes(unknown),
        bytes([ERASED]) * BOOT_STATE.size,
    ]
    for pair in itertools.product(copies, repeat=len(BOOT_STATE_OFFSETS)):
        for offset, copy in zip(BOOT_STATE_OFFSETS, pair, strict=True):
            bench.storage.memory[offset : offset + len(copy)] = copy
        expected, _ = newest_boot_state(list(pair))
        for slot in (Slot.A, Slot.B):
            found = SLOT_INFO.parse(bench.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=slot))[1])
            marks = [expected.confirmed is slot, expected.trial is slot, expected.failed is slot]
            marks.append(slot.proven_bit in expected.proven)
            assert [found.confirmed, found.trial, found.failed, found.proven] == marks, pair


# --- sensors ---------------------------------------------------------------------------------------------------------


def sensors(bench: CoreBench) -> Any:
    result, body = bench.ask(MailboxCommand.SENSORS)
    assert result is MailboxResult.OK
    return SENSORS.parse(body)


def test_publishes_what_the_converters_read(bench: CoreBench) -> None:
    found = sensors(bench)
    assert found.temperature_millicelsius == bench.link["temperature"] == 44_000
    assert found.voltage_millivolts == bench.link["voltage"] == 800
    assert abs(bench.link["power"] - 30_000) < 50
    before = bench.link["publications"]
    bench.run_for(10)
    assert 10 <= bench.link["publications"] - before <= 100, "2 Hz, and never more than 10"


def test_throttles_when_hot_and_lets_go_later(bench: CoreBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def throttle_at(celsius: float) -> int:
        monkeypatch.setattr(Thermal, "celsius", lambda _thermal: celsius)
        bench.run_for(1.1)
        assert sensors(bench).throttle == bench.link["throttle"]
        return bench.link["throttle"]

    assert [throttle_at(celsius) for celsius in (94, 95, 94, 91, 89, 120, 103, 99, 20)] == [0, 2, 2, 2, 0, 7, 7, 6, 0]
    monkeypatch.setattr(Thermal, "celsius", lambda _thermal: -40.0)
    bench.run_for(1.1)
    assert sensors(bench).temperature_millicelsius == (1 << 32) - 40_000


# --- log -------------------------------------------------------------------------------------------------------------


def test_log_survives_resets_and_names_its_build(bench: CoreBench) -> None:
    first = log(bench)
    assert [text_of(record) for record in first] == ["boot %u, reason %u, slot %c, trial %u"]
    assert bench.boot_to_ready(CoreReset.HOST)
    second = log(bench)
    assert second[: len(first)] == first
    assert [record.boot for record in second] == [0, 1]
    assert {record.build_id for record in second} == {bench.link["build_id"]}
    assert list(second[1].arguments) == [1, CoreReset.HOST, ord("A"), 0]


def test_log_wraps(bench: CoreBench) -> None:
    for _ in range(1100):
        bench.ask(MailboxCommand.UPDATE_BEGIN, bytes(16))
    found = info(bench)
    assert (found.log_first, found.log_next) == (1101 - 1024, 1101)
    records = log(bench)
    assert [record.sequence for record in records] == list(range(1101 - 1024, 1101))
    assert bench.boot_to_ready(CoreReset.HOST)
    assert info(bench).log_next == 1102


def test_log_is_read_from_anywhere(bench: CoreBench) -> None:
    for _ in range(9):
        bench.ask(MailboxCommand.UPDATE_BEGIN, bytes(16))
    for first, expected in ((0, 0), (7, 7), (10, None), (11, 0), (0xFFFF_FFFF, 0)):
        _, body = bench.ask(MailboxCommand.LOG_READ, LOG_QUERY.build(first=first))
        head = LOG_ANSWER.parse(body[: LOG_ANSWER.size])
        if expected is None:
            assert (head.next, head.count) == (10, 0)
        else:
            assert head.count == min(LOG_RECORDS_AT_ONCE, 10 - expected)
            assert head.next == expected + head.count


@pytest.mark.parametrize("seed", ["one", "two", "magic kept"])
def test_garbage_in_the_retained_memory_is_no_log(seed: str) -> None:
    with core_bench(fresh_storage(firmware_image())) as bench:
        garbage = bytearray(noise(RETAINED_BYTES, seed))
        if seed == "magic kept":
            assert bench.boot_to_ready()
            garbage[:32] = bench.core.machine.read_memory(RETAINED_ADDRESS, 32)
            garbage[16:20] = (500).to_bytes(4, "little")
        bench.core.machine.write_memory(RETAINED_ADDRESS, bytes(garbage))
        assert bench.boot_to_ready(CoreReset.HOST)
        assert [record.sequence for record in log(bench)] == [0]


# --- console ---------------------------------------------------------------------------------------------------------


def type_in(bench: CoreBench, text: str) -> bytes:
    """What comes back."""
    before, data = len(bench.printed), text.encode()
    while data:
        data = data[bench.core.receive(data) :]
        bench.run_for(0.001)
    bench.run_for(_TALK_S)
    return bytes(bench.printed[before:])


def test_console_echoes_and_obeys(bench: CoreBench) -> None:
    bench.run_for(_TALK_S)
    assert bench.printed.endswith(b"> ")
    assert b"sensors: latest readings" in type_in(bench, "help\r")
    assert b"slot A" in type_in(bench, "info\r")
    assert type_in(bench, "nonsense\r") == b"nonsense\r\nunknown command, try help\r\n> "
    assert b"44000 millicelsius" in type_in(bench, "sensorz\bs\r")
    assert type_in(bench, "x" * 200 + "\r").count(b"x") == 80
    type_in(bench, "reset\r")
    assert bench.resets == [CoreReset.FIRMWARE]


# --- faults and the watchdog -----------------------------------------------------------------------------------------


def test_a_fault_is_told_and_ends_in_a_watchdog_reset() -> None:
    with core_bench(fresh_storage(firmware_image("VARIANT_FAULTS=1"))) as bench:
        bench.boot()
        assert bench.run_until(lambda: bench.progress()["post_code"] == Post.FIRMWARE_FAULT)
        bench.run_for(_TALK_S)
        assert b"fault: mcause 00000002" in bench.printed
        assert b"x31" in bench.printed
        assert bench.run_until(lambda: bool(bench.resets))
        assert bench.resets == [CoreReset.WATCHDOG]
        assert milliseconds(bench) <= _WATCHDOG_MS + 100


def test_a_hang_ends_in_a_watchdog_reset() -> None:
    with core_bench(fresh_storage(firmware_image("VARIANT_HANGS=1"))) as bench:
        bench.boot()
        assert bench.run_until(lambda: bool(bench.resets))
        assert bench.resets == [CoreReset.WATCHDOG]
        assert _WATCHDOG_MS <= milliseconds(bench) <= _WATCHDOG_MS + 100


def test_a_healthy_firmware_feeds_the_watchdog(bench: CoreBench) -> None:
    bench.run_for(10 * _WATCHDOG_MS / 1000)
    assert not bench.resets


def test_without_service_the_mailbox_stays_busy() -> None:
    with core_bench(fresh_storage(firmware_image("VARIANT_NO_SERVICE=1"))) as bench:
        assert bench.boot_to_ready()
        bench.link["ring_number"] = 1
        bench.run_for(10)
        assert bench.link["answer_number"] == 0
        assert not bench.resets


# --- confirmation ----------------------------------------------------------------------------------------------------


def test_nothing_to_confirm_nor_to_roll_back_to(bench: CoreBench) -> None:
    assert bench.ask(MailboxCommand.CONFIRM) == (MailboxResult.NOT_ON_TRIAL, b"")
    assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.NO_OTHER_IMAGE, b"")


def slot_info(bench: CoreBench, slot: Slot) -> Any:
    result, body = bench.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=slot))
    assert result is MailboxResult.OK
    return SLOT_INFO.parse(body)


def install(bench: CoreBench, slot: Slot, image: bytes, state: BootState) -> None:
    """What a programmer of flash would do."""
    bench.storage.memory[slot.offset : slot.offset + len(image)] = image
    bench.core.rom.write_boot_state(state)


def test_a_trial_is_confirmed_and_then_raises_the_security_counter() -> None:
    with core_bench(fresh_storage(firmware_image())) as bench:
        trial = BootState(confirmed=Slot.A, trial=Slot.B, proven=ProvenSlot.A)
        install(bench, Slot.B, firmware_image(security_counter=5), trial)
        assert bench.boot_to_ready(CoreReset.HOST)
        assert bench.progress()["trial"] == info(bench).on_trial == 1
        assert slot_info(bench, Slot.B).proven == 0
        assert bench.storage.one_time.security_counter == 0
        assert bench.ask(MailboxCommand.CONFIRM) == (MailboxResult.OK, b"")
        assert bench.core.rom.boot_state()[1:] == BootState(confirmed=Slot.B, proven=_BOTH)[1:]
        assert slot_info(bench, Slot.B).proven == 1
        assert bench.storage.one_time.security_counter == 5
        assert info(bench).on_trial == 0
        assert bench.ask(MailboxCommand.CONFIRM) == (MailboxResult.NOT_ON_TRIAL, b"")
        assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.ROLLED_BACK, b"")


def test_a_raised_security_counter_shuts_out_an_image_that_was_looked_at_before() -> None:
    with core_bench(fresh_storage(firmware_image())) as bench:
        trial = BootState(confirmed=Slot.A, trial=Slot.B)
        install(bench, Slot.B, firmware_image(security_counter=5), trial)
        assert bench.boot_to_ready(CoreReset.HOST)
        assert slot_info(bench, Slot.A).valid == 1
        assert bench.ask(MailboxCommand.CONFIRM) == (MailboxResult.OK, b"")
        assert slot_info(bench, Slot.A).result == MailboxResult.ROLLED_BACK
        assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.ROLLED_BACK, b"")
        assert bench.core.rom.boot_state()[1:] == BootState(confirmed=Slot.B, proven=ProvenSlot.B)[1:]


@pytest.mark.parametrize("marks", [{}, {"failed": Slot.B}, {"failed": Slot.B, "proven": _BOTH}])
def test_no_rollback_to_an_image_that_was_never_confirmed(bench: CoreBench, marks: dict[str, Any]) -> None:
    """Nothing would fall back from it."""
    state = BootState(confirmed=Slot.A, proven=ProvenSlot.A)._replace(**marks)
    install(bench, Slot.B, firmware_image("VARIANT_HANGS=1"), state)
    assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.UNTRIED, b"")
    assert bench.core.rom.boot_state()[1:] == state[1:]


@pytest.mark.parametrize("lost", [False, True])
def test_a_rollback_before_the_trial_has_begun_withdraws_it(bench: CoreBench, lost: bool) -> None:
    image = b"" if lost else firmware_image("VARIANT_HANGS=1")
    install(bench, Slot.B, image, BootState(confirmed=Slot.A, trial=Slot.B, proven=ProvenSlot.A))
    assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.OK, b"")
    withdrawn = BootState(confirmed=Slot.A, proven=ProvenSlot.A)
    assert bench.core.rom.boot_state()[1:] == withdrawn[1:]
    again = MailboxResult.NO_OTHER_IMAGE if lost else MailboxResult.UNTRIED
    assert bench.ask(MailboxCommand.ROLLBACK) == (again, b""), "what was withdrawn is not rolled back to"
    bench.ask(MailboxCommand.RESET)
    assert bench.run_until(lambda: bool(bench.resets))
    assert bench.ready()
    assert (bench.progress()["slot"], bench.progress()["trial"], bench.resets) == (Slot.A, 0, [CoreReset.FIRMWARE])


def test_a_trial_that_was_rolled_back_from_is_not_rolled_back_to() -> None:
    with core_bench(fresh_storage(firmware_image())) as bench:
        trial = BootState(confirmed=Slot.A, trial=Slot.B, proven=ProvenSlot.A)
        install(bench, Slot.B, firmware_image(version="1.1.0"), trial)
        assert bench.boot_to_ready(CoreReset.HOST)
        assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.OK, b"")
        assert bench.boot_to_ready(CoreReset.HOST)
        assert bench.progress()["slot"] == Slot.A
        assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.UNTRIED, b"")


def test_a_confirmation_that_was_cut_off_is_completed_at_the_next_start() -> None:
    with core_bench(fresh_storage(firmware_image(security_counter=5))) as bench:
        assert bench.storage.one_time.security_counter == 0
        assert bench.boot_to_ready()
        assert bench.storage.one_time.security_counter == 5


@pytest.mark.parametrize("trial", [True, False])
def test_rolls_back_at_the_next_reset(trial: bool) -> None:
    with core_bench(fresh_storage(firmware_image())) as bench:
        state = BootState(confirmed=Slot.A, trial=Slot.B) if trial else BootState(confirmed=Slot.B)
        state = state._replace(proven=ProvenSlot.A)
        install(bench, Slot.B, firmware_image(version="1.1.0"), state)
        assert bench.boot_to_ready(CoreReset.HOST)
        assert bench.progress()["slot"] == Slot.B
        assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.OK, b"")
        assert bench.progress()["slot"] == Slot.B
        bench.ask(MailboxCommand.RESET)
        assert bench.run_until(lambda: bool(bench.resets))
        assert bench.ready()
        assert bench.progress()["slot"] == Slot.A
        assert not bench.progress()["trial"]


def test_does_not_roll_back_to_a_damaged_image() -> None:
    with core_bench(fresh_storage(firmware_image())) as bench:
        assert bench.boot_to_ready()
        damaged = bytearray(firmware_image(version="1.1.0"))
        damaged[0x1234] ^= 1
        install(bench, Slot.B, bytes(damaged), BootState(confirmed=Slot.A, proven=_BOTH))
        assert bench.ask(MailboxCommand.ROLLBACK) == (MailboxResult.NO_OTHER_IMAGE, b"")
