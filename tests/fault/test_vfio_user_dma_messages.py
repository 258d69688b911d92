"""Memory without a file, behind a real emulator process: the device asks by message, and answers may be anything.

What waits, and what is served meanwhile, is tried finer in test_vfio_user_server.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from driver_shim.protocol import commands as c
from driver_shim.protocol import vfio_user as vu
from driver_shim.protocol.commands import Status
from driver_shim.transport.vfio_user import VfioUserTransport
from tests.support.bus_client import BusClient, RawQueue
from tests.support.bus_server import RawClient
from tests.support.wire import PATIENCE_S, emulator_process

REMOTE_IOVA = 0x2_0000_0000
MAP_REMOTE = bytes.fromhex("20000000 03000000 0000000000000000 0000000002000000 0020000000000000")
"""DMA_MAP of two pages there, readable and writable, without a file."""
ADDRESS_AND_COUNT = bytes.fromhex("0001000002000000 0800000000000000")
"""Eight bytes at REMOTE_IOVA + 0x100."""
READ_IDENTITY = bytes.fromhex("7777 0900 20000000 00000000 00000000  0000000000000000 00000000 04000000")
IDENTITY = bytes.fromhex("0000000000000000 00000000 04000000 314e5055")


class Bench(NamedTuple):
    bus: BusClient
    queue: RawQueue
    raw: RawClient

    def ask(self, entry: bytes) -> bytes:
        """Submit a copy that needs the remote memory; the two bytes of the id that the device's question bears."""
        self.queue.put(entry)
        self.queue.ring()
        question = self.raw.receive()
        assert question is not None and question.wants_reply
        assert question.payload[:16] == ADDRESS_AND_COUNT
        return question.id.to_bytes(2, "little")

    def serves_on(self) -> None:
        self.raw.send_bytes(READ_IDENTITY)
        answer = self.raw.receive()
        assert answer is not None and (answer.id, answer.payload) == (0x7777, IDENTITY)


@contextlib.contextmanager
def bench_in(folder: Path, *, unhurried: bool) -> Iterator[Bench]:
    with emulator_process(folder, "--core", "none", unhurried=unhurried) as emulator:
        transport = VfioUserTransport.connect(emulator.path, PATIENCE_S)
        channel = transport._channel
        bus = BusClient(transport).enable()
        queue = bus.queue()
        channel.request(vu.Command.DMA_MAP, MAP_REMOTE)
        # From here on the test itself says and hears what goes over the client's socket.
        yield Bench(bus, queue, RawClient(channel._socket))
        channel._socket.setblocking(True)
        channel.request(vu.Command.DMA_UNMAP, vu.DMA_UNMAP.pack(24, 0, REMOTE_IOVA, 0x2000))
        bus.close()
        transport.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """The device waits for answers as long as it takes, for a test that was starved."""
    with bench_in(tmp_path, unhurried=True) as made:
        yield made


def reply(message_id: bytes, command: str, payload: bytes, flags: str = "01", error: str = "00") -> bytes:
    size = (16 + len(payload)).to_bytes(4, "little")
    return message_id + bytes.fromhex(command) + size + bytes.fromhex(f"{flags}000000 {error}000000") + payload


def test_an_answer_is_found_among_answers_to_nothing_and_requests(bench: Bench) -> None:
    target, copied = bench.bus.allocate(8)
    question = bench.ask(c.COPY.build(opcode=1, destination=target, source=REMOTE_IOVA + 0x100, size=8))
    other = bytes([question[0] ^ 0x55, question[1]])
    good = reply(question, "0b00", ADDRESS_AND_COUNT + b"the data")
    bench.raw.send_bytes(reply(other, "0b00", ADDRESS_AND_COUNT + b"unwanted"))
    bench.raw.send_bytes(reply(question, "0c00", ADDRESS_AND_COUNT))
    bench.serves_on()
    assert not bench.queue.ready()
    bench.raw.send_bytes(good)
    assert bench.queue.take()[0].status == Status.SUCCESS
    assert bytes(copied[:8]) == b"the data"
    bench.raw.send_bytes(good)  # once more: nobody waits for it
    bench.serves_on()


def test_the_device_writes_by_message(bench: Bench) -> None:
    source, data = bench.bus.allocate(8)
    data[:8] = b"outgoing"
    bench.queue.put(c.COPY.build(opcode=1, destination=REMOTE_IOVA + 0x100, source=source, size=8))
    bench.queue.ring()
    message = bench.raw.receive()
    assert message is not None and (message.command, message.payload) == (12, ADDRESS_AND_COUNT + b"outgoing")
    bench.raw.send_bytes(reply(message.id.to_bytes(2, "little"), "0c00", ADDRESS_AND_COUNT))
    assert bench.queue.take()[0].status == Status.SUCCESS


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "an error": lambda question: reply(question, "0b00", b"", flags="21", error="0e"),
    "no payload": lambda question: reply(question, "0b00", b""),
    "too little": lambda question: reply(question, "0b00", ADDRESS_AND_COUNT + b"the dat"),
    "too much": lambda question: reply(question, "0b00", ADDRESS_AND_COUNT + b"the data!"),
    "another address": lambda question: reply(question, "0b00", bytes(8) + ADDRESS_AND_COUNT[8:] + b"the data"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_costs_the_command_alone(bench: Bench, kind: str) -> None:
    target, copied = bench.bus.allocate(8)
    question = bench.ask(c.COPY.build(opcode=1, destination=target, source=REMOTE_IOVA + 0x100, size=8))
    bench.raw.send_bytes(WRONG[kind](question))
    assert bench.queue.take()[0].status == Status.DMA_FAULT
    assert bytes(copied[:8]) == bytes(8)
    bench.serves_on()
    assert bench.queue.run(c.NOP.build(command_id=9))[0].status == Status.SUCCESS


def test_a_client_that_leaves_a_question_open_costs_the_device_nothing(tmp_path: Path) -> None:
    with bench_in(tmp_path, unhurried=False) as bench:
        bench.ask(c.COPY.build(opcode=1, destination=bench.bus.allocate(8)[0], source=REMOTE_IOVA + 0x100, size=8))
        assert bench.queue.take()[0].status == Status.DMA_FAULT
        bench.serves_on()
