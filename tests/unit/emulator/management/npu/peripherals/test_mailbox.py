"""The two ends of the mailbox over the shared memory, at the moments where they could take each other's words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from driver_shim.protocol.mailbox import MailboxResult
from driver_shim.protocol.management_registers import MAILBOX
from emulator.management.link import Link, make_link_file
from emulator.management.npu.peripherals.mailbox import Mailbox

DATA = MAILBOX.registers["data_0"].offset
PENDING = MAILBOX.registers["request"].offset
ANSWER = MAILBOX.registers["answer"].offset
DONE = 1 << 31


class Wires:
    """A machine of which the mailbox sees its interrupt line only."""

    level = False

    def set_interrupt(self, source: int, level: bool) -> None:
        assert source == MAILBOX.interrupt
        self.level = level


class TornLink(Link):
    """Whose host withdraws its request and begins to write the next one while the core copies."""

    torn = False

    def __getattribute__(self, name: str) -> Any:
        if name == "request" and self.torn:
            self.torn = False
            self["withdraw_number"] = self["withdraw_number"] + 1
            super().__getattribute__("request")[:4] = b"next"
        return super().__getattribute__(name)


@pytest.fixture
def link() -> Iterator[TornLink]:
    fd = make_link_file()
    opened = TornLink(fd)
    os.close(fd)
    yield opened
    opened.close()


def ring(link: Link, text: bytes) -> None:
    link.request[: len(text)] = text
    link["ring_number"] = link["ring_number"] + 1


def test_a_request_is_taken_once_and_answered_by_its_number(link: TornLink) -> None:
    wires = Wires()
    mailbox = Mailbox(wires, MAILBOX.interrupt, link)  # type: ignore[arg-type]
    ring(link, b"ping")
    assert mailbox.look()
    assert not mailbox.look()
    assert (wires.level, mailbox.read(PENDING, 4)) == (True, 1)
    assert mailbox.read(DATA, 4).to_bytes(4, "little") == b"ping"
    mailbox.write(DATA, 4, int.from_bytes(b"pong", "little"))
    assert bytes(link.answer[:4]) == bytes(4), "the host sees nothing before it is done"
    mailbox.write(ANSWER, 4, DONE | MailboxResult.OK)
    assert (wires.level, link["answer_number"], bytes(link.answer[:4])) == (False, 1, b"pong")


def test_a_request_withdrawn_while_it_is_copied_is_dropped_and_the_next_one_taken_whole(link: TornLink) -> None:
    wires = Wires()
    mailbox = Mailbox(wires, MAILBOX.interrupt, link)  # type: ignore[arg-type]
    ring(link, b"gone")
    link.torn = True
    assert not mailbox.look()
    assert (wires.level, mailbox.read(PENDING, 4)) == (False, 0)
    ring(link, b"next")
    assert mailbox.look()
    assert mailbox.read(DATA, 4).to_bytes(4, "little") == b"next"


def test_a_reset_answers_what_was_being_dealt_with(link: TornLink) -> None:
    mailbox = Mailbox(Wires(), MAILBOX.interrupt, link)  # type: ignore[arg-type]
    ring(link, b"ping")
    assert mailbox.look()
    mailbox.reset()
    assert (link["answer_number"], link["answer_result"]) == (1, MailboxResult.CORE_RESET)
