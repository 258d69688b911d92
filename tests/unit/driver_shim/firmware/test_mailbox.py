"""The host's side of the mailbox: handshake, time-outs, withdrawal, and answers that cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_shim import timeouts
from driver_shim.errors import ContractMismatch, FirmwareError, NpuError, Timeout
from driver_shim.firmware import answers as firmware_answers
from driver_shim.firmware import core_state as management
from driver_shim.firmware.answers import BadAnswer
from driver_shim.firmware.calls import Firmware
from driver_shim.firmware.core_state import BootProgress
from driver_shim.firmware.mailbox import REFUSALS, Mailbox, refused
from driver_shim.function.registers import Registers
from driver_shim.protocol import mailbox
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.mailbox import MailboxCommand, MailboxResult, MailboxState, UpdateState
from driver_shim.protocol.registers import MAILBOX_DATA_OFFSET, Post
from driver_shim.protocol.slugs import slug
from driver_shim.transport.in_process import InProcessTransport
from tests.support.firmware_images import image
from tests.support.scripted_core import ScriptedCore, scripted

SHORT_S = 0.02


@pytest.fixture
def core() -> ScriptedCore:
    return ScriptedCore(image("1.2.3+4"))


@pytest.fixture
def transport(core: ScriptedCore) -> Iterator[InProcessTransport]:
    with scripted(core) as opened:
        yield opened


@pytest.fixture
def box(transport: InProcessTransport) -> Mailbox:
    return Mailbox(transport)


@pytest.fixture
def firmware(box: Mailbox) -> Firmware:
    return Firmware(box)


# --- the handshake --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 247, 248])
def test_a_ping_of_any_length_comes_back_and_leaves_the_mailbox_idle(
    firmware: Firmware, core: ScriptedCore, length: int
) -> None:
    firmware.ping(bytes(range(length)))
    assert core.state is MailboxState.IDLE
    assert core.withdrawn == 0


def test_a_request_on_the_wire(box: Mailbox, core: ScriptedCore) -> None:
    core.override[MailboxCommand.LOG_READ] = lambda body: (0, body)
    box._sequence = 0x01020303
    assert box.request(MailboxCommand.LOG_READ, b"\xaa\xbb\xcc\xdd") == b"\xaa\xbb\xcc\xdd"
    assert core.mailbox_window[:12] == bytes.fromhex("0500 0400 04030201 aabbccdd")


@pytest.mark.parametrize(("command", "length"), [(MailboxCommand.INFO, 1), (MailboxCommand.STAGE_WRITE, 4)])
def test_a_body_of_wrong_length_is_not_sent(
    box: Mailbox, core: ScriptedCore, command: MailboxCommand, length: int
) -> None:
    with pytest.raises(ValueError, match=r"is \d+ to \d+ bytes, got"):
        box.request(command, bytes(length))
    assert core.asked == []


def test_an_unanswered_request_is_withdrawn(box: Mailbox, core: ScriptedCore, firmware: Firmware) -> None:
    core.silent = True
    with pytest.raises(Timeout, match=r"no answer to PING within 0\.02 s; .* firmware-ready"):
        box.request(MailboxCommand.PING, limit_s=SHORT_S)
    assert (core.state, core.withdrawn) == (MailboxState.IDLE, 1)
    core.silent = False
    firmware.ping(b"again")


def test_ctrl_c_withdraws_the_request(
    box: Mailbox, core: ScriptedCore, transport: InProcessTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.silent = True

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transport, "progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        box.request(MailboxCommand.PING)
    assert (core.state, core.withdrawn) == (MailboxState.IDLE, 1)


def test_another_programs_request_is_waited_for(box: Mailbox, core: ScriptedCore) -> None:
    core.silent = True
    core.ring()
    with pytest.raises(FirmwareError, match="another program's request") as caught:
        box.request(MailboxCommand.PING, limit_s=SHORT_S)
    assert caught.value.code == "mailbox-busy"
    assert core.withdrawn == 0


def test_an_answer_that_nobody_takes_away_does_not_block_for_ever(
    firmware: Firmware, core: ScriptedCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "MAILBOX_PICK_UP_S", 0.0)
    core.state = MailboxState.DONE
    firmware.ping(b"x")


def test_an_answer_to_somebody_else_is_not_taken_for_ours(firmware: Firmware, core: ScriptedCore) -> None:
    core.head = lambda head: head[:4] + bytes(4)
    firmware.mailbox._sequence = 7
    with pytest.raises(FirmwareError, match="another program uses the mailbox") as caught:
        firmware.ping()
    assert caught.value.code == "mailbox-disturbed"


def test_an_answer_longer_than_the_window_is_refused(firmware: Firmware, core: ScriptedCore) -> None:
    core.head = lambda head: head[:2] + b"\xff\xff" + head[4:]
    with pytest.raises(FirmwareError, match="65535 bytes, the mailbox holds 248") as caught:
        firmware.ping()
    assert caught.value.code == "bad-answer"


def test_a_reset_takes_the_request_back(
    box: Mailbox, core: ScriptedCore, transport: InProcessTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.silent = True
    monkeypatch.setattr(transport, "progress", core.withdraw)
    with pytest.raises(FirmwareError) as caught:
        box.request(MailboxCommand.PING)
    assert caught.value.code == "mailbox-withdrawn"


# --- no firmware ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("post", "code", "says"),
    [
        (Post.ABSENT, "core-absent", "no management core"),
        (Post.HELD, "core-held", "core_control=0"),
        (Post.RECOVERY, "core-in-recovery", "DFU"),
        (Post.LOST, "core-lost", "npuctl reset"),
        (Post.POWERED_OFF, "core-powered-off", "core_control=2"),
    ],
)
def test_why_nobody_answers_and_what_to_do(
    firmware: Firmware, core: ScriptedCore, monkeypatch: pytest.MonkeyPatch, post: Post, code: str, says: str
) -> None:
    monkeypatch.setattr(timeouts, "LIVENESS_S", 0.0)
    core.post, core.silent = int(post), True
    with pytest.raises(FirmwareError) as caught:
        firmware.info()
    assert caught.value.code == code
    assert says in str(caught.value)


def test_every_result_has_words_and_a_code() -> None:
    for result in MailboxResult:
        if result is not MailboxResult.OK:
            error = refused("vfio-user:x", "update begin", result)
            assert error.code == slug(result)
            assert error.result == result
    assert set(REFUSALS) == set(MailboxResult) - {MailboxResult.OK}
    assert refused("vfio-user:x", "ping", 99).code == "result-99"


def test_a_refusal_carries_its_code(firmware: Firmware) -> None:
    with pytest.raises(FirmwareError, match="nothing to confirm") as caught:
        firmware.confirm()
    assert (caught.value.code, caught.value.result) == ("not-on-trial", MailboxResult.NOT_ON_TRIAL)


# --- typed answers --------------------------------------------------------------------------------------------------


def test_info_and_slots(firmware: Firmware) -> None:
    info = firmware.info()
    assert (info.slot, str(info.version), info.on_trial, info.uptime_seconds) == (Slot.A, "1.2.3+4", False, 1.5)
    held, empty = firmware.slot_info(Slot.A), firmware.slot_info(Slot.B)
    assert (held.valid, held.confirmed, held.proven, str(held.version)) == (True, True, True, "1.2.3+4")
    assert (empty.valid, empty.empty, empty.proven) == (False, True, False)


def test_readings_can_be_below_zero(firmware: Firmware) -> None:
    assert firmware.sensors().temperature_celsius == -1.0


def test_another_protocol_is_a_contract_mismatch(firmware: Firmware, core: ScriptedCore) -> None:
    core.override[MailboxCommand.INFO] = lambda _: (0, mailbox.INFO.build(protocol=2))
    with pytest.raises(ContractMismatch, match="protocol 2, this tool 1"):
        firmware.info()


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (firmware_answers.parse_info, bytes(47)),
        (firmware_answers.parse_info, mailbox.INFO.build(slot=3)),
        (firmware_answers.parse_info, mailbox.INFO.build(on_trial=2)),
        (lambda body: firmware_answers.parse_slot_info(body, Slot.A), mailbox.SLOT_INFO.build(slot=2)),
        (lambda body: firmware_answers.parse_slot_info(body, Slot.A), mailbox.SLOT_INFO.build(slot=1, valid=9)),
        (lambda body: firmware_answers.parse_slot_info(body, Slot.A), mailbox.SLOT_INFO.build(slot=1, proven=2)),
        (firmware_answers.parse_update_status, mailbox.UPDATE_STATUS.build(state=6)),
        (firmware_answers.parse_update_status, mailbox.UPDATE_STATUS.build(done_bytes=2, total_bytes=1)),
        (firmware_answers.parse_sensors, b""),
        (firmware_answers.parse_log, bytes(7)),
        (firmware_answers.parse_log, mailbox.LOG_ANSWER.build(count=1)),
        (firmware_answers.parse_log, mailbox.LOG_ANSWER.build(count=7) + bytes(7 * 40)),
    ],
)
def test_answers_that_no_firmware_gives(parse: object, body: bytes) -> None:
    assert callable(parse)
    with pytest.raises(BadAnswer):
        parse(body)


@given(body=st.binary(max_size=mailbox.BODY_BYTES))
def test_no_answer_breaks_a_parser(body: bytes) -> None:
    for parse in (
        firmware_answers.parse_info,
        firmware_answers.parse_sensors,
        firmware_answers.parse_update_status,
        firmware_answers.parse_log,
        lambda data: firmware_answers.parse_slot_info(data, Slot.B),
    ):
        try:
            parse(body)
        except BadAnswer:
            pass


@settings(max_examples=20)
@given(result=st.integers(0, 0xFFFF), body=st.binary(max_size=48))
def test_whatever_is_answered_ends_in_an_error_of_ours(result: int, body: bytes) -> None:
    core = ScriptedCore(b"")
    for command in MailboxCommand:
        core.override[command] = lambda _: (result, body)
    with scripted(core) as transport:
        firmware = Firmware(Mailbox(transport))
        for call in (firmware.info, firmware.sensors, firmware.update_status, firmware.confirm):
            try:
                call()
            except NpuError:
                pass


def test_a_log_record_on_the_wire(firmware: Firmware, core: ScriptedCore) -> None:
    record = bytes.fromhex("07000000 4d3c2b1a 8096980000000000 24000000 02 01 0300 2a000000 00000000 00000000 00000000")
    core.override[MailboxCommand.LOG_READ] = lambda _: (0, bytes.fromhex("08000000 01000000") + record)
    batch = firmware.read_log(7)
    assert batch.next == 8
    assert batch.records == (firmware_answers.LogRecord(7, 0x1A2B3C4D, 10_000_000, 0x24, 2, 1, 3, (42, 0, 0, 0)),)


def test_an_update_status_on_the_wire() -> None:
    status = firmware_answers.parse_update_status(
        bytes.fromhex("02 00 02 00 00100000 00200000 00080000 0000000000000000")
    )
    assert (status.state, status.slot, status.going_on) == (UpdateState.WRITING, Slot.B, True)
    assert (status.done_bytes, status.total_bytes, status.kept_bytes) == (0x1000, 0x2000, 0x800)


# --- registers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "stage", "runs"),
    [
        (0x00, "absent", False),
        (0x10, "boot-rom", False),
        (0x1F, "handed-over", True),
        (0x40, "firmware-ready", True),
        (0x45, "0x0045", True),
        (0xE0, "firmware-fault", True),
        (0xF0, "recovery", False),
        (0xFF, "lost", False),
    ],
)
def test_stages_of_the_boot(code: int, stage: str, runs: bool) -> None:
    progress = BootProgress(code, 4, 2, True)
    assert (progress.stage, progress.runs_image) == (stage, runs)
    assert (progress.boot_reason, progress.slot_name) == ("watchdog", "B")
    assert BootProgress(code, 0, 0, False).boot_reason is None
    assert BootProgress(code, 9, 3, False).boot_reason == "reason-9"


def test_readings_of_the_registers(transport: InProcessTransport, core: ScriptedCore) -> None:
    registers = Registers(transport)
    core.temperature_millicelsius = -1500
    readings = management.read_sensors(registers)
    assert readings == management.SensorReadings(-1.5, 12.25, 0.8, 1, 0.05)
    core.sensor_age_ms = 1001
    assert management.read_sensors(registers) is None
    assert str(management.read_firmware_version(registers)) == "1.2.3+4"
    core.post = int(Post.RECOVERY)
    assert management.read_firmware_version(registers) is None


def test_the_window_is_where_the_registers_say() -> None:
    assert MAILBOX_DATA_OFFSET == 0x500
