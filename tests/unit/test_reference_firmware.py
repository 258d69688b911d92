"""The reference firmware on the emulated core: start, mailbox, log, console, sensors, faults, watchdog."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from driver_shim.protocol.firmware_slots import RETAINED_ADDRESS, RETAINED_BYTES, BootState, Slot
from driver_shim.protocol.mailbox import (
    BODY_BYTES,
    INFO,
    LOG_ANSWER,
    LOG_QUERY,
    LOG_RECORD,
    LOG_RECORDS_AT_ONCE,
    REQUEST_BODIES,
    SENSORS,
    SLOT_INFO,
    SLOT_QUERY,
    MailboxCommand,
    MailboxResult,
)
from driver_shim.protocol.management_registers import HARDWARE_ID
from driver_shim.protocol.registers import CoreReset, Post
from tests.support.core_rig import CoreRig
from tests.support.reference_firmware import firmware_elf, firmware_image, needs_compiler, noise

pytestmark = needs_compiler

_QUICK_MS = 3
"""What "at once" is for an answer."""
_WATCHDOG_MS = 4000


@pytest.fixture
def rig() -> Iterator[CoreRig]:
    with CoreRig(firmware_image()) as made:
        made.run_until_ready()
        yield made


def info(rig: CoreRig) -> Any:
    result, body = rig.ask(MailboxCommand.INFO)
    assert result is MailboxResult.OK
    return INFO.parse(body)


def texts() -> bytes:
    with firmware_elf().open("rb") as file:
        return bytes(ELFFile(file).get_section_by_name(".log_strings").data())


def log(rig: CoreRig, first: int = 0) -> list[Any]:
    """All records from `first` on."""
    records: list[Any] = []
    while True:
        result, body = rig.ask(MailboxCommand.LOG_READ, LOG_QUERY.build(first=first))
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


def test_says_who_it_is(rig: CoreRig) -> None:
    found = info(rig)
    assert (found.protocol, found.slot, found.on_trial, found.version) == (1, Slot.A, 0, 1)
    assert found.hardware_id == HARDWARE_ID
    assert found.build_id == rig.link["build_id"] != 0
    rig.run_for(1)
    assert b"reference firmware 1.0.0+0" in rig.output


def test_pings_come_back_at_once(rig: CoreRig) -> None:
    before = rig.milliseconds
    for size in (0, 1, 3, 4, BODY_BYTES):
        assert rig.ask(MailboxCommand.PING, noise(size)) == (MailboxResult.OK, noise(size))
    assert rig.milliseconds - before <= 5 * _QUICK_MS


@pytest.mark.parametrize("command", list(MailboxCommand))
def test_other_lengths_are_refused(rig: CoreRig, command: MailboxCommand) -> None:
    shortest, longest = REQUEST_BODIES[command]
    for length in {shortest - 1, longest + 1, BODY_BYTES + 1, 0xFFFF}:
        if 0 <= length <= 0xFFFF and not shortest <= length <= longest:
            assert rig.ask(command, length=length) == (MailboxResult.BAD_LENGTH, b"")


@pytest.mark.parametrize("command", [0, 6, 0x17, 0xFFFF])
def test_unknown_commands_are_refused(rig: CoreRig, command: int) -> None:
    assert rig.ask(command) == (MailboxResult.UNKNOWN_COMMAND, b"")


def test_tells_what_is_in_the_slots(rig: CoreRig) -> None:
    result, body = rig.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=1))
    found = SLOT_INFO.parse(body)
    assert (result, found.valid, found.confirmed, found.result) == (MailboxResult.OK, 1, 1, MailboxResult.OK)
    assert found.image_bytes == len(firmware_image())
    assert found.build_id == rig.link["build_id"]
    result, body = rig.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=2))
    found = SLOT_INFO.parse(body)
    assert (result, found.valid, found.image_bytes) == (MailboxResult.OK, 0, 0)
    for query in (b"\0\0\0\0", b"\3\0\0\0", b"\1\1\0\0"):
        assert rig.ask(MailboxCommand.SLOT_INFO, query) == (MailboxResult.BAD_ARGUMENT, b"")


def test_answers_before_it_resets(rig: CoreRig) -> None:
    assert rig.ask(MailboxCommand.RESET) == (MailboxResult.OK, b"")
    rig.run_until(lambda: bool(rig.resets))
    rig.run_until_ready()
    assert rig.resets == [CoreReset.FIRMWARE]
    assert info(rig).boots == 1


# --- sensors ---------------------------------------------------------------------------------------------------------


def sensors(rig: CoreRig) -> Any:
    result, body = rig.ask(MailboxCommand.SENSORS)
    assert result is MailboxResult.OK
    return SENSORS.parse(body)


def test_publishes_what_the_converters_read(rig: CoreRig) -> None:
    found = sensors(rig)
    assert found.temperature_millicelsius == rig.link["temperature"] == 44_000
    assert found.voltage_millivolts == rig.link["voltage"] == 800
    assert abs(rig.link["power"] - 30_000) < 50
    before = rig.link["publications"]
    rig.run_for(10_000)
    assert 10 <= rig.link["publications"] - before <= 100, "2 Hz, and never more than 10"


def test_throttles_when_hot_and_lets_go_later(rig: CoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def throttle_at(celsius: float) -> int:
        monkeypatch.setattr(rig.thermal, "celsius", lambda: celsius)
        rig.run_for(1100)
        assert sensors(rig).throttle == rig.link["throttle"]
        return rig.link["throttle"]

    assert [throttle_at(celsius) for celsius in (94, 95, 94, 91, 89, 120, 103, 99, 20)] == [0, 2, 2, 2, 0, 7, 7, 6, 0]
    monkeypatch.setattr(rig.thermal, "celsius", lambda: -40.0)
    rig.run_for(1100)
    assert sensors(rig).temperature_millicelsius == (1 << 32) - 40_000


# --- log -------------------------------------------------------------------------------------------------------------


def test_log_survives_resets_and_names_its_build(rig: CoreRig) -> None:
    first = log(rig)
    assert [text_of(record) for record in first] == ["boot %u, reason %u, slot %u, trial %u"]
    rig.reboot()
    rig.run_until_ready()
    second = log(rig)
    assert second[: len(first)] == first
    assert [record.boot for record in second] == [0, 1]
    assert {record.build_id for record in second} == {rig.link["build_id"]}
    assert list(second[1].arguments) == [1, CoreReset.HOST, Slot.A, 0]


def test_log_wraps(rig: CoreRig) -> None:
    for _ in range(1100):
        rig.ask(MailboxCommand.UPDATE_BEGIN, bytes(16))
    found = info(rig)
    assert (found.log_first, found.log_next) == (1101 - 1024, 1101)
    records = log(rig)
    assert [record.sequence for record in records] == list(range(1101 - 1024, 1101))
    rig.reboot()
    rig.run_until_ready()
    assert info(rig).log_next == 1102


def test_log_is_read_from_anywhere(rig: CoreRig) -> None:
    for _ in range(9):
        rig.ask(MailboxCommand.UPDATE_BEGIN, bytes(16))
    for first, expected in ((0, 0), (7, 7), (10, None), (11, 0), (0xFFFF_FFFF, 0)):
        _, body = rig.ask(MailboxCommand.LOG_READ, LOG_QUERY.build(first=first))
        head = LOG_ANSWER.parse(body[: LOG_ANSWER.size])
        if expected is None:
            assert (head.next, head.count) == (10, 0)
        else:
            assert head.count == min(LOG_RECORDS_AT_ONCE, 10 - expected)
            assert head.next == expected + head.count


@pytest.mark.parametrize("seed", ["one", "two", "magic kept"])
def test_garbage_in_the_retained_memory_is_no_log(seed: str) -> None:
    with CoreRig(firmware_image()) as rig:
        garbage = bytearray(noise(RETAINED_BYTES, seed))
        if seed == "magic kept":
            rig.run_until_ready()
            garbage[:32] = rig.chip.machine.read_memory(RETAINED_ADDRESS, 32)
            garbage[16:20] = (500).to_bytes(4, "little")
        rig.chip.machine.write_memory(RETAINED_ADDRESS, bytes(garbage))
        rig.reboot()
        rig.run_until_ready()
        assert [record.sequence for record in log(rig)] == [0]


# --- console ---------------------------------------------------------------------------------------------------------


def test_console_echoes_and_obeys(rig: CoreRig) -> None:
    rig.run_for(1)
    assert rig.output.endswith(b"> ")
    assert b"sensors: latest readings" in rig.type("help\r")
    assert b"slot A" in rig.type("info\r")
    assert rig.type("nonsense\r") == b"nonsense\r\nunknown command, try help\r\n> "
    assert b"44000 millicelsius" in rig.type("sensorz\bs\r")
    assert rig.type("x" * 200 + "\r").count(b"x") == 80
    rig.type("reset\r")
    assert rig.resets == [CoreReset.FIRMWARE]


# --- faults and the watchdog -----------------------------------------------------------------------------------------


def test_a_fault_is_told_and_ends_in_a_watchdog_reset() -> None:
    with CoreRig(firmware_image("VARIANT_FAULTS=1")) as rig:
        rig.run_until(lambda: rig.progress("post_code") == Post.FIRMWARE_FAULT)
        rig.run_for(1)
        assert b"fault: mcause 00000002" in rig.output
        assert b"x31" in rig.output
        rig.run_until(lambda: bool(rig.resets))
        assert rig.resets == [CoreReset.WATCHDOG]
        assert rig.milliseconds <= _WATCHDOG_MS + 100


def test_a_hang_ends_in_a_watchdog_reset() -> None:
    with CoreRig(firmware_image("VARIANT_HANGS=1")) as rig:
        rig.run_until(lambda: bool(rig.resets))
        assert rig.resets == [CoreReset.WATCHDOG]
        assert _WATCHDOG_MS <= rig.milliseconds <= _WATCHDOG_MS + 100


def test_a_healthy_firmware_feeds_the_watchdog(rig: CoreRig) -> None:
    rig.run_for(10 * _WATCHDOG_MS)
    assert not rig.resets


def test_without_service_the_mailbox_stays_busy() -> None:
    with CoreRig(firmware_image("VARIANT_NO_SERVICE=1")) as rig:
        rig.run_until_ready()
        rig.ring(MailboxCommand.PING)
        rig.run_for(10_000)
        assert not rig.answered()
        assert not rig.resets


# --- confirmation ----------------------------------------------------------------------------------------------------


def test_nothing_to_confirm_nor_to_roll_back_to(rig: CoreRig) -> None:
    assert rig.ask(MailboxCommand.CONFIRM) == (MailboxResult.NOT_ON_TRIAL, b"")
    assert rig.ask(MailboxCommand.ROLLBACK) == (MailboxResult.NO_OTHER_IMAGE, b"")


def install(rig: CoreRig, slot: Slot, image: bytes, state: BootState) -> None:
    """What a programmer of flash would do."""
    rig.storage.memory[slot.offset : slot.offset + len(image)] = image
    rig.chip.rom.write_boot_state(state)


def test_a_trial_is_confirmed_and_then_raises_the_security_counter() -> None:
    with CoreRig(firmware_image()) as rig:
        install(rig, Slot.B, firmware_image(security_counter=5), BootState(confirmed=Slot.A, trial=Slot.B))
        rig.reboot()
        rig.run_until_ready()
        assert rig.progress("trial") == info(rig).on_trial == 1
        assert rig.storage.one_time.security_counter == 0
        assert rig.ask(MailboxCommand.CONFIRM) == (MailboxResult.OK, b"")
        assert rig.chip.rom.boot_state()[1:] == BootState(confirmed=Slot.B)[1:]
        assert rig.storage.one_time.security_counter == 5
        assert info(rig).on_trial == 0
        assert rig.ask(MailboxCommand.CONFIRM) == (MailboxResult.NOT_ON_TRIAL, b"")
        assert rig.ask(MailboxCommand.ROLLBACK) == (MailboxResult.ROLLED_BACK, b"")


def test_a_confirmation_that_was_cut_off_is_completed_at_the_next_start() -> None:
    with CoreRig(firmware_image(security_counter=5)) as rig:
        assert rig.storage.one_time.security_counter == 0
        rig.run_until_ready()
        assert rig.storage.one_time.security_counter == 5


@pytest.mark.parametrize("trial", [True, False])
def test_rolls_back_at_the_next_reset(trial: bool) -> None:
    with CoreRig(firmware_image()) as rig:
        state = BootState(confirmed=Slot.A, trial=Slot.B) if trial else BootState(confirmed=Slot.B)
        install(rig, Slot.B, firmware_image(version="1.1.0"), state)
        rig.reboot()
        rig.run_until_ready()
        assert rig.progress("slot") == Slot.B
        assert rig.ask(MailboxCommand.ROLLBACK) == (MailboxResult.OK, b"")
        assert rig.progress("slot") == Slot.B
        rig.ask(MailboxCommand.RESET)
        rig.run_until(lambda: bool(rig.resets))
        rig.run_until_ready()
        assert rig.progress("slot") == Slot.A
        assert not rig.progress("trial")


def test_does_not_roll_back_to_a_damaged_image() -> None:
    with CoreRig(firmware_image()) as rig:
        rig.run_until_ready()
        damaged = bytearray(firmware_image(version="1.1.0"))
        damaged[0x1234] ^= 1
        install(rig, Slot.B, bytes(damaged), BootState(confirmed=Slot.A))
        assert rig.ask(MailboxCommand.ROLLBACK) == (MailboxResult.NO_OTHER_IMAGE, b"")
