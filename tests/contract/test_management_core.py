"""The management core beside a real device: who answers, what survives which reset, and what happens when it dies.

The core is a process of its own, so these tests start emulators as users do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from driver_shim.errors import FirmwareError, Timeout
from driver_shim.firmware.mailbox import Mailbox
from driver_shim.protocol.commands import FaultSource
from driver_shim.protocol.config_space import COMMAND_OFFSET
from driver_shim.protocol.mailbox import (
    UPDATE_BEGIN,
    UPDATE_STATUS,
    MailboxCommand,
    MailboxResult,
    MailboxState,
    UpdateState,
)
from driver_shim.protocol.registers import (
    BAR0,
    CONSOLE_WINDOW_BYTES,
    CONSOLE_WINDOW_OFFSET,
    NEVER_MEASURED,
    CoreReset,
    Post,
)
from tests.support.bus_client import BOTH, PATIENCE_S, BusClient
from tests.support.children import children_that_run, ends, stopped
from tests.support.rigs import Rig, process_rig

ANSWER_S = 1.0
"""Of a mailbox that nobody answers; the firmware takes milliseconds."""


class Subject:
    """An emulator with its core running the reference firmware."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.bus = BusClient(rig.transport)
        self.bus.command(BOTH)
        self.registers = self.bus.registers
        self.mailbox = Mailbox(rig.transport)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        self.bus.wait_until(condition, what)

    def await_post(self, code: Post) -> None:
        self.wait(lambda: self.registers.boot_progress.post_code == code, code.name)

    def ask(self, command: MailboxCommand, body: bytes = b"") -> bytes:
        """Have the firmware answer, however slow the machine."""
        return self.mailbox.request(command, body, limit_s=PATIENCE_S)

    def core_pid(self) -> int:
        """Of the core's process."""
        assert self.rig.pid is not None
        return children_that_run(self.rig.pid, "emulator.management.process.serve")[0]

    def console(self) -> bytes:
        """What the core has said, as far as the window reaches."""
        written = self.registers.console_written.read()
        window = b"".join(
            self.rig.transport.read(BAR0, CONSOLE_WINDOW_OFFSET + at, 8).to_bytes(8, "little")
            for at in range(0, CONSOLE_WINDOW_BYTES, 8)
        )
        return window[:written] if written <= CONSOLE_WINDOW_BYTES else window

    def hold(self) -> None:
        self.registers.core_control.write(hold=1)
        self.await_post(Post.HELD)


@pytest.fixture
def subject() -> Iterator[Subject]:
    with process_rig(core="auto") as rig:
        found = Subject(rig)
        found.await_post(Post.FIRMWARE_READY)
        yield found
        found.bus.close()


def test_it_boots_the_reference_firmware_from_slot_a(subject: Subject) -> None:
    progress = subject.registers.boot_progress.fields()
    assert progress == {"post_code": Post.FIRMWARE_READY, "boot_reason": CoreReset.POWER_ON, "slot": 1, "trial": 0}
    assert subject.registers.firmware_version.major >= 1
    assert subject.registers.firmware_build_id.read() != 0
    assert b"slot A" in subject.console()


def test_with_the_core_halted_nothing_answers_for_the_firmware(subject: Subject) -> None:
    """Mailbox, sensors, UART and log are executed instructions: nobody stands in for them."""
    assert subject.ask(MailboxCommand.PING, b"ping") == b"ping"
    subject.wait(lambda: subject.registers.sensor_age.read() < ANSWER_S * 1000, "a sensor reading")
    subject.hold()
    said = subject.registers.console_written.read()
    for command, body in (
        (MailboxCommand.PING, b"ping"),
        (MailboxCommand.INFO, b""),
        (MailboxCommand.SENSORS, b""),
        (MailboxCommand.LOG_READ, bytes(4)),
    ):
        with pytest.raises((FirmwareError, Timeout)):
            subject.mailbox.request(command, body, limit_s=ANSWER_S)
    assert subject.registers.mailbox_status.state == MailboxState.ABSENT
    assert subject.registers.console_room.read() == 0
    subject.registers.console_input.write(byte=ord("\r"))
    subject.wait(lambda: subject.registers.sensor_age.read() > 2 * ANSWER_S * 1000, "the reading to grow old")
    assert subject.registers.console_written.read() == said
    assert subject.registers.firmware_version.read() == 0


def test_a_halted_core_goes_on_where_it_was(subject: Subject) -> None:
    subject.hold()
    subject.registers.core_control.write(hold=0)
    subject.await_post(Post.FIRMWARE_READY)
    assert subject.ask(MailboxCommand.PING, b"still there") == b"still there"


def test_a_reset_by_the_host_boots_anew_and_touches_nothing_else(subject: Subject) -> None:
    subject.bus.enable()
    subject.registers.scratch.write(value=0x1234)
    said = subject.registers.console_written.read()
    subject.registers.core_control.write(reset=1)
    subject.wait(lambda: subject.registers.boot_progress.boot_reason == CoreReset.HOST, "the reset")
    subject.await_post(Post.FIRMWARE_READY)
    subject.wait(lambda: subject.registers.console_written.read() > said, "a banner")
    assert subject.registers.scratch.value == 0x1234
    assert subject.registers.status.ready == 1


def test_a_request_that_the_core_is_reset_over_is_answered_so(subject: Subject) -> None:
    """RESET answers first, so the answer of a request rung just before it is the reset's."""
    subject.ask(MailboxCommand.RESET)
    subject.wait(lambda: subject.registers.boot_progress.boot_reason == CoreReset.FIRMWARE, "the reset")
    subject.await_post(Post.FIRMWARE_READY)
    assert subject.ask(MailboxCommand.PING) == b""


def test_ringing_a_busy_mailbox_is_a_fault_and_changes_nothing(subject: Subject) -> None:
    with stopped(subject.core_pid()):  # nobody takes the request
        subject.registers.mailbox_control.write(ring=1)
        assert subject.registers.mailbox_status.state == MailboxState.BUSY
        faults = subject.registers.fault_count.read()
        subject.registers.mailbox_control.write(ring=1)
        assert subject.registers.fault_count.read() == faults + 1
        assert subject.registers.fault_status.register == 1
        subject.registers.mailbox_control.write(withdraw=1)
        assert subject.registers.mailbox_status.state == MailboxState.IDLE
    assert subject.ask(MailboxCommand.PING, b"again") == b"again"


def test_a_stopped_core_keeps_no_register_waiting(subject: Subject) -> None:
    subject.bus.enable()
    with stopped(subject.core_pid()):
        with pytest.raises(Timeout):
            subject.mailbox.request(MailboxCommand.INFO, limit_s=ANSWER_S)
        assert subject.registers.status.ready == 1


def test_a_core_that_dies_is_shown_as_lost_and_comes_back_with_a_device_reset(subject: Subject) -> None:
    subject.bus.enable()
    os.kill(subject.core_pid(), signal.SIGKILL)
    subject.await_post(Post.LOST)
    assert subject.registers.status.ready == 1, "queues do not depend on the core"
    assert subject.registers.mailbox_status.state == MailboxState.ABSENT
    with pytest.raises(FirmwareError, match="broke down"):
        subject.mailbox.request(MailboxCommand.PING, limit_s=ANSWER_S)
    subject.rig.transport.reset()
    subject.bus.command(BOTH)
    subject.await_post(Post.FIRMWARE_READY)
    assert subject.ask(MailboxCommand.PING, b"back") == b"back"


def test_the_core_ends_with_its_emulator() -> None:
    with process_rig(core="auto") as rig:
        subject = Subject(rig)
        pid = subject.core_pid()
        assert rig.pid is not None
        os.kill(rig.pid, signal.SIGKILL)
        assert ends(pid)


def test_sensor_readings_come_and_stay_fresh(subject: Subject) -> None:
    subject.wait(lambda: subject.registers.sensor_age.read() != NEVER_MEASURED, "a first reading")
    celsius = subject.registers.sensor_temperature.read() / 1000
    assert 20 < celsius < 100
    assert subject.registers.sensor_power.read() > 0
    assert subject.registers.sensor_voltage.read() > 0


def test_mailbox_dma_without_bus_mastering_is_refused_not_hung(subject: Subject) -> None:
    subject.rig.transport.config_write(COMMAND_OFFSET, (BOTH & ~4).to_bytes(2, "little"))
    body = UPDATE_BEGIN.build(address=0x1000, image_bytes=4096)
    subject.ask(MailboxCommand.UPDATE_BEGIN, body)

    def state() -> int:
        return int(UPDATE_STATUS.parse(subject.ask(MailboxCommand.UPDATE_STATUS)).state)

    subject.wait(lambda: state() == UpdateState.FAILED, "the update's end")
    found = UPDATE_STATUS.parse(subject.ask(MailboxCommand.UPDATE_STATUS))
    assert found.result == MailboxResult.DMA_FAULT


def test_a_fault_of_a_stranger_is_recorded_once(subject: Subject) -> None:
    """Writes to registers that only firmware changes are plain register faults, not the core's business."""
    subject.bus.enable()
    subject.rig.transport.write(BAR0, subject.registers.boot_progress.declaration.offset, 0xFFFF_FFFF, 4)
    assert subject.bus.newest_error().source == FaultSource.REGISTER
    assert subject.registers.boot_progress.post_code == Post.FIRMWARE_READY
