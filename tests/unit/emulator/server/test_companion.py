"""The debug port's server in a loop that the test turns: transfers that wait, are taken back, or lose their device."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Iterator

import pytest

from driver_shim.protocol import usbip
from driver_shim.protocol.dfu import Request
from driver_shim.protocol.registers import Post
from driver_shim.protocol.usb import Setup
from emulator.server.usbip import UsbipServer, listen
from tests.support.debug_port_bench import CLASS_IN, CLASS_OUT, GOOD, Bench
from tests.support.debug_ports import RawHost

FOR_EVER = 1 << 60
TURN_MS = 20
MANY = 10
"""Turns in which whatever would come has come."""
PATIENCE_S = 30.0
GET_STATUS = Setup(CLASS_IN, Request.GETSTATUS, 0, 1, 6)
BLOCK = Setup(CLASS_OUT, Request.DNLOAD, 0, 1, len(GOOD))


class Loop:
    """A server over a bench, and one host that has imported the device."""

    def __init__(self, post: Post, busy: int) -> None:
        self.bench = Bench(post, busy)
        self.poller = select.poll()
        listening = listen(0)
        self.server = UsbipServer(listening, self.bench.port)
        self.server.attach(self.poller)
        self.host = RawHost(listening.getsockname()[1])
        self.host.send(usbip.encode_operation(usbip.Operation.REQUEST_IMPORT, payload=usbip.IMPORT.build(busid=b"1-1")))
        self.hear()
        assert len(self.host.receive(usbip.OPERATION.size + usbip.DEVICE.size)) == 320
        self.bench.configure()

    def turn(self, times: int) -> None:
        """As the event loop does: sockets, then what is due."""
        for _ in range(times):
            deadline = self.server.next_deadline()
            wait_ms = TURN_MS if deadline is None else max(0, min(TURN_MS, 1000 * (deadline - time.monotonic())))
            for fd, event in self.poller.poll(wait_ms):
                assert fd in self.server
                self.server.serve(fd, event)
            self.server.expire()

    def hear(self) -> None:
        """Turn until something has come for the host."""
        deadline = time.monotonic() + PATIENCE_S
        while self.silent():
            assert time.monotonic() < deadline, "nothing came"
            self.turn(1)

    def silent(self) -> bool:
        """Whether nothing has come for the host."""
        return not select.select([self.host.socket], [], [], 0)[0]

    def close(self) -> None:
        self.server.close()
        self.host.socket.close()


@pytest.fixture
def waiting() -> Iterator[Loop]:
    """A download that waits for a core which never gets done."""
    loop = Loop(Post.RECOVERY, FOR_EVER)
    loop.host.submit(BLOCK, GOOD)
    loop.host.submit(Setup(CLASS_OUT, Request.ABORT, 0, 1, 0))
    for _ in range(2):
        loop.hear()
        assert loop.host.returned(inward=False)[2] == 0
    yield loop
    loop.close()


def test_a_transfer_that_waits_can_be_taken_back(waiting: Loop) -> None:
    number = waiting.host.submit(BLOCK, GOOD)
    waiting.turn(MANY)
    assert waiting.silent()
    unlink = waiting.host.unlink(number)
    waiting.hear()
    assert waiting.host.returned() == (usbip.Command.RETURN_UNLINK, unlink, -errno.ECONNRESET, b"")
    waiting.host.submit(GET_STATUS)
    waiting.hear()
    assert waiting.host.returned()[3] == bytes([0, 0, 0, 0, 2, 0])


def test_transfers_end_in_their_order_once_the_first_is_ready(waiting: Loop) -> None:
    first = waiting.host.submit(BLOCK, GOOD)
    second = waiting.host.submit(GET_STATUS)
    waiting.turn(MANY)
    assert waiting.silent()
    waiting.bench.recovery.finish()
    waiting.hear()
    assert waiting.host.returned(inward=False)[:3] == (usbip.Command.RETURN_SUBMIT, first, 0)
    waiting.hear()
    assert waiting.host.returned()[:3] == (usbip.Command.RETURN_SUBMIT, second, 0)


def test_more_transfers_than_may_wait_end_the_connection(waiting: Loop) -> None:
    for _ in range(100):
        waiting.host.submit(BLOCK, GOOD)
    waiting.hear()
    assert waiting.host.hung_up()


def test_a_change_of_mode_ends_the_connection() -> None:
    loop = Loop(Post.FIRMWARE_READY, 0)
    try:
        loop.bench.chip.show(Post.RECOVERY)
        loop.hear()
        assert loop.host.hung_up()
        assert loop.server.next_deadline() is None
    finally:
        loop.close()


def test_an_idle_server_needs_no_timer() -> None:
    listening = listen(0)
    server = UsbipServer(listening, Bench().port)
    server.attach(select.poll())
    assert server.next_deadline() is None
    server.close()
    server.close()
