"""The console's window: what is read of it, what was lost, what is sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from driver_shim.function.registers import Registers
from driver_shim.protocol.registers import CONSOLE_WINDOW_BYTES
from driver_shim.transport.in_process import InProcessTransport
from firmware_tools.console import Console, Output
from tests.support.scripted_core import ScriptedCore, scripted


@pytest.fixture
def core() -> ScriptedCore:
    return ScriptedCore(b"")


@pytest.fixture
def transport(core: ScriptedCore) -> Iterator[InProcessTransport]:
    with scripted(core) as opened:
        yield opened


def console(transport: InProcessTransport, *, history: bool = True) -> Console:
    return Console(transport, Registers(transport), history=history)


def pattern(count: int) -> bytes:
    """Bytes that tell their place."""
    return bytes(at * 7 % 251 for at in range(count))


@pytest.mark.parametrize("pieces", [(1, 2, 3), (7, 8, 9), (4095, 1, 4096), (4000, 200, 4096)])
def test_pieces_of_any_length_come_whole_and_in_order(
    core: ScriptedCore, transport: InProcessTransport, pieces: tuple[int, ...]
) -> None:
    reader = console(transport)
    sent = pattern(sum(pieces))
    got = b""
    for piece in pieces:
        core.console = sent[: len(core.console) + piece]
        output = reader.read()
        assert (output.offset, output.lost_bytes, output.restarted) == (len(got), 0, False)
        got += output.data
    assert got == sent
    assert reader.read() == Output(len(sent), b"", 0, False)


def test_the_history_is_what_the_window_holds(core: ScriptedCore, transport: InProcessTransport) -> None:
    core.console = pattern(5000)
    assert console(transport).read() == Output(
        5000 - CONSOLE_WINDOW_BYTES, core.console[-CONSOLE_WINDOW_BYTES:], 0, False
    )
    assert console(transport, history=False).read().data == b""


def test_what_was_overwritten_is_counted(core: ScriptedCore, transport: InProcessTransport) -> None:
    reader = console(transport)
    core.console = pattern(10_000)
    output = reader.read()
    assert output.lost_bytes == 10_000 - CONSOLE_WINDOW_BYTES
    assert output.data == core.console[-CONSOLE_WINDOW_BYTES:]


def test_bytes_that_are_overwritten_while_they_are_read_are_not_shown(
    core: ScriptedCore, transport: InProcessTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.console = pattern(4096)
    reader = console(transport)
    counts = iter([4096, 4196])
    monkeypatch.setattr(reader, "_written", lambda: next(counts))
    output = reader.read()
    assert (output.offset, output.lost_bytes) == (100, 100)
    assert output.data == core.console[100:]


def test_power_off_and_on_is_noticed(core: ScriptedCore, transport: InProcessTransport) -> None:
    core.console = b"before"
    reader = console(transport)
    reader.read()
    core.console = b"new"
    assert reader.read() == Output(0, b"new", 0, True)


def test_no_more_is_sent_than_there_is_room_for(core: ScriptedCore, transport: InProcessTransport) -> None:
    writer = console(transport)
    core.room = 3
    assert writer.send(b"hello") == 3
    assert (core.typed, core.room) == (b"hel", 0)
    assert writer.send(b"lo") == 0
