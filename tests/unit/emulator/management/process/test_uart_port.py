"""The end of the UART's pseudo-terminal: the last output of a program that powers off reaches who reads it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from emulator import timeouts
from emulator.management.process.uart_port import TerminalPort
from tests.support.time_scale import patience

PATIENCE_S = patience(30.0)
LAST = b"the last line\n"


def end(port: TerminalPort) -> None:
    port.settle()
    port.close()


@pytest.fixture
def reader(port: TerminalPort) -> Iterator[int]:
    """The far end, opened by somebody else."""
    fd = os.open(os.ttyname(port._owned[1]), os.O_RDWR | os.O_NOCTTY)
    yield fd
    os.close(fd)


@pytest.fixture
def port() -> Iterator[TerminalPort]:
    port = TerminalPort.pty(lambda where: None)
    yield port
    port.close()


def test_what_was_written_before_the_end_can_be_read_after_it(
    port: TerminalPort, reader: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "UART_READ_S", PATIENCE_S)
    port.send(LAST)
    port.flush()
    closing = threading.Thread(target=end, args=[port])
    closing.start()
    closing.join(0.1)  # time enough for one that does not wait to hang up
    assert os.read(reader, 64) == LAST
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert os.read(reader, 64) == b""


def test_who_has_it_open_and_does_not_read_is_not_waited_for_for_ever(
    port: TerminalPort, reader: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "UART_READ_S", 0.01)
    port.send(LAST)
    port.flush()
    end(port)
    assert os.read(reader, 64) == b""


def test_where_nobody_has_it_open_nobody_is_waited_for(port: TerminalPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "UART_READ_S", 3600.0)
    port.send(LAST)
    port.flush()
    end(port)
