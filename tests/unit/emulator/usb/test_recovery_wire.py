"""The recovery port behind a wire: one request at a time, nothing waits, and a core that goes away is an answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.mailbox import MailboxResult
from emulator.management.process.recovery_channel import RECOVERY_ANSWER, RECOVERY_REQUEST, Outcome, RecoveryRequest
from emulator.usb.recovery_port import SlotUnreadable
from emulator.usb.recovery_wire import RecoveryWire


class Core:
    """The other end of the wire."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.wire = RecoveryWire(lambda: self.ours)

    def asked(self) -> tuple[int, int, int, int, bytes]:
        message = self.theirs.recv(8192)
        return (*RECOVERY_REQUEST.unpack_from(message), message[RECOVERY_REQUEST.size :])

    def answer(self, kind: RecoveryRequest, outcome: Outcome = Outcome.DONE, size: int = 0, data: bytes = b"") -> None:
        self.theirs.send(RECOVERY_ANSWER.build(kind=kind, outcome=outcome, size=size) + data)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def core() -> Iterator[Core]:
    made = Core()
    yield made
    made.close()


def result(core: Core) -> MailboxResult | None:
    outcome = core.wire.poll()
    return None if outcome is None else outcome.result


def test_staging_goes_on_until_it_is_answered(core: Core) -> None:
    assert result(core) is MailboxResult.OK
    core.wire.stage(4096, b"data")
    assert result(core) is None
    assert core.asked() == (RecoveryRequest.STAGE, 0, 4096, 4, b"data")
    core.answer(RecoveryRequest.STAGE)
    assert result(core) is MailboxResult.OK
    assert result(core) is MailboxResult.OK


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [(Outcome.REFUSED, MailboxResult.BAD_FORMAT), (Outcome.DAMAGED, MailboxResult.FLASH_FAULT)],
)
def test_a_refusal_comes_with_the_boot_roms_words(core: Core, outcome: Outcome, expected: MailboxResult) -> None:
    core.wire.install(Slot.B, 77)
    assert core.asked() == (RecoveryRequest.INSTALL, 2, 0, 77, b"")
    core.answer(RecoveryRequest.INSTALL, outcome, 8, b"nothing!")
    found = core.wire.poll()
    assert found is not None
    assert (found.result, found.text) == (expected, "nothing!")


def test_lengths_and_bytes_of_a_slot_are_asked_for_once(core: Core) -> None:
    assert core.wire.slot_length(Slot.A) is None
    assert core.wire.slot_length(Slot.A) is None
    assert core.asked() == (RecoveryRequest.MEASURE, 1, 0, 0, b"")
    core.answer(RecoveryRequest.MEASURE, size=5000)
    assert core.wire.slot_length(Slot.A) == 5000
    assert core.wire.read_slot(Slot.A, 4096, 904) is None
    assert core.asked() == (RecoveryRequest.READ, 1, 4096, 904, b"")
    core.answer(RecoveryRequest.READ, size=904, data=bytes(904))
    assert core.wire.read_slot(Slot.A, 4096, 904) == bytes(904)
    with pytest.raises(BlockingIOError):
        core.asked()


def test_a_core_that_runs_answers_nothing(core: Core) -> None:
    core.wire.install(Slot.A, 1)
    core.answer(RecoveryRequest.INSTALL, Outcome.NOT_IN_RECOVERY)
    assert result(core) is MailboxResult.ABORTED
    assert core.wire.slot_length(Slot.A) is None
    core.answer(RecoveryRequest.MEASURE, Outcome.NOT_IN_RECOVERY)
    with pytest.raises(SlotUnreadable, match="not in recovery"):
        core.wire.slot_length(Slot.A)


def test_what_was_read_once_is_read_anew(core: Core) -> None:
    """The core may have run in between, and the slot hold something else."""
    for size in (0, 5000):
        assert core.wire.slot_length(Slot.A) is None
        core.answer(RecoveryRequest.MEASURE, size=size)
        assert core.wire.slot_length(Slot.A) == size


@pytest.mark.parametrize("how", ["gone before", "gone meanwhile", "replaced", "garbage"])
def test_a_core_that_goes_away_is_an_answer(core: Core, how: str) -> None:
    ours: list[socket.socket | None] = [core.ours]
    wire = RecoveryWire(lambda: ours[0])
    if how == "gone before":
        ours[0] = None
    wire.stage(0, b"x")
    if how == "gone meanwhile":
        core.theirs.close()
    elif how == "replaced":
        ours[0] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    elif how == "garbage":
        core.theirs.send(b"?")
    outcome = wire.poll()
    assert outcome is not None and outcome.result is MailboxResult.ABORTED
    if how == "replaced" and ours[0] is not None:
        ours[0].close()
