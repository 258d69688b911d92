"""Hosts of the debug port that do what no host may: each is dropped for it, and the next one is served."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver_shim.protocol import usbip
from driver_shim.protocol.debug_port import INFO, Request
from driver_shim.protocol.usb import Setup, StandardRequest
from driver_shim.transport.vfio_user import VfioUserTransport
from emulator.server import usbip as server
from emulator.server.listener import ListenError
from tests.support.debug_port_bench import VENDOR_IN
from tests.support.debug_ports import DEVICE_ID, PATIENCE_S, RawHost, Served, served, wait_for

GET_INFO = Setup(VENDOR_IN, Request.INFO, 0, 0, INFO.size)
CONFIGURE = Setup(0x00, StandardRequest.SET_CONFIGURATION, 1, 0, 0)
DEVICE_DESCRIPTOR = Setup(0x80, StandardRequest.GET_DESCRIPTOR, 0x0100, 0, 18)
SEED = 20260131
GARBAGE_ROUNDS = 40


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("run"), "--core", "none") as emulator:
        yield emulator


@contextlib.contextmanager
def host(emulator: Served) -> Iterator[RawHost]:
    """A host that has the device; those before it may be letting go still."""

    def imported() -> RawHost | None:
        raw = RawHost(emulator.port)
        if raw.import_device() == usbip.OperationStatus.OK:
            return raw
        raw.socket.close()
        return None

    with wait_for(imported) as raw:
        yield raw


def works(emulator: Served) -> None:
    """The device serves a host from beginning to end."""
    with host(emulator) as raw:
        raw.submit(CONFIGURE)
        assert raw.returned(inward=False)[2] == 0
        raw.submit(GET_INFO)
        command, _, status, data = raw.returned()
        assert (command, status, len(data)) == (usbip.Command.RETURN_SUBMIT, 0, INFO.size)


def test_a_list_may_be_asked_for_again_and_again(shared: Served) -> None:
    with RawHost(shared.port) as raw:
        for _ in range(3):
            raw.send(usbip.encode_operation(usbip.Operation.REQUEST_DEVICES))
            assert raw.receive(usbip.OPERATION.size) == bytes.fromhex("0111 0005 00000000")
            assert raw.receive(4) == bytes.fromhex("00000001")
            device = usbip.DEVICE.parse(raw.receive(usbip.DEVICE.size))
            assert (device.busid.rstrip(b"\0"), device.busnum << 16 | device.devnum) == (b"1-1", DEVICE_ID)
            assert raw.receive(device.bNumInterfaces * 4) == bytes.fromhex("ff000000 fe010100")


def test_imports_that_are_refused_leave_the_connection_usable(shared: Served) -> None:
    with RawHost(shared.port) as raw:
        assert raw.import_device(b"9-9") == usbip.OperationStatus.NO_DEVICE
        with host(shared):
            assert raw.import_device() == usbip.OperationStatus.BUSY
        assert wait_for(lambda: raw.import_device() == usbip.OperationStatus.OK)


@pytest.mark.parametrize(
    "message",
    [
        bytes.fromhex("0106 8005 00000000"),
        bytes.fromhex("0111 8007 00000000"),
        b"GET / HTTP/1.1\r\n\r\n",
        usbip.encode_submit(usbip.Submit(1, DEVICE_ID, 1, 0, 18, DEVICE_DESCRIPTOR.build(), b"")),
    ],
    ids=["another version", "unknown", "another protocol", "a transfer before an import"],
)
def test_newcomers_that_make_no_sense_are_dropped(shared: Served, message: bytes) -> None:
    with RawHost(shared.port) as raw:
        raw.send(message)
        assert raw.hung_up()
    works(shared)


@pytest.mark.parametrize(
    "changes",
    [{"devid": 1}, {"length": usbip.MAX_TRANSFER_BYTES + 1}, {"length": 0x7FFF_FFFF}, {"direction": 7}],
    ids=str,
)
def test_transfers_that_make_no_sense_end_the_connection(shared: Served, changes: dict[str, Any]) -> None:
    with host(shared) as raw:
        raw.submit(DEVICE_DESCRIPTOR, **changes)
        assert raw.hung_up()
    works(shared)


@pytest.mark.parametrize(
    ("setup", "changes"),
    [
        (DEVICE_DESCRIPTOR, {"endpoint": 1}),
        (DEVICE_DESCRIPTOR, {"length": 17}),
        (DEVICE_DESCRIPTOR, {"direction": usbip.Direction.OUT, "data": bytes(18)}),
        (Setup(0xFF, 0xFF, 0xFFFF, 0xFFFF, 0), {}),
    ],
    ids=["another endpoint", "lengths that differ", "the wrong way", "a setup packet of ones"],
)
def test_transfers_that_the_device_has_no_answer_to_are_stalled(
    shared: Served, setup: Setup, changes: dict[str, Any]
) -> None:
    with host(shared) as raw:
        number = raw.submit(setup, **changes)
        assert raw.returned() == (usbip.Command.RETURN_SUBMIT, number, -errno.EPIPE, b"")
        raw.submit(DEVICE_DESCRIPTOR)
        assert raw.returned()[2] == 0


def test_a_transfer_that_has_ended_cannot_be_taken_back(shared: Served) -> None:
    with host(shared) as raw:
        number = raw.submit(DEVICE_DESCRIPTOR)
        unlink = raw.unlink(number)
        assert raw.returned()[:3] == (usbip.Command.RETURN_SUBMIT, number, 0)
        assert raw.returned() == (usbip.Command.RETURN_UNLINK, unlink, 0, b"")


def test_hosts_that_vanish_in_the_middle_of_anything(shared: Served) -> None:
    stream = usbip.encode_operation(usbip.Operation.REQUEST_IMPORT, payload=usbip.IMPORT.build(busid=b"1-1"))
    stream += usbip.encode_submit(usbip.Submit(1, DEVICE_ID, 0, 0, 4, Setup(0x41, 2, 0xA0, 0, 4).build(), b"abcd"))
    for cut in itertools.chain(range(0, len(stream), 5), (len(stream),)):
        with RawHost(shared.port) as raw:
            raw.send(stream[:cut])
    works(shared)


def test_a_host_that_reads_nothing_disturbs_nobody(shared: Served) -> None:
    """It asks for more than the sockets hold; PCI is served meanwhile, and it is dropped in the end."""
    with host(shared) as raw:
        raw.socket.settimeout(PATIENCE_S)
        read = usbip.encode_submit(usbip.Submit(1, DEVICE_ID, 1, 0, 255, Setup(0x80, 6, 0x0200, 0, 255).build(), b""))
        with contextlib.suppress(ConnectionError):
            for _ in range(4000):
                raw.send(read * 16)
        client = VfioUserTransport.connect(shared.socket)
        assert client.config_read(0, 2)
        client.close()
    works(shared)


def test_more_newcomers_than_there_is_room_for(shared: Served) -> None:
    with contextlib.ExitStack() as hosts:
        raws = [hosts.enter_context(RawHost(shared.port)) for _ in range(server.MAX_NEWCOMERS + 4)]
        for raw in raws[server.MAX_NEWCOMERS :]:
            assert raw.hung_up()
    works(shared)


def test_a_newcomer_that_asks_too_much_at_once_is_dropped(shared: Served) -> None:
    with RawHost(shared.port) as raw:
        raw.send(usbip.encode_operation(usbip.Operation.REQUEST_DEVICES) * 500)
        assert raw.hung_up()
    works(shared)


def test_garbage(shared: Served) -> None:
    numbers = random.Random(SEED)
    for _ in range(GARBAGE_ROUNDS):
        with RawHost(shared.port) as raw, contextlib.suppress(ConnectionError):
            if numbers.random() < 0.5:
                raw.import_device()
            raw.send(numbers.randbytes(numbers.randrange(1, 400)))
    works(shared)


def test_nothing_is_left_open(shared: Served) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{shared.process.pid}/fd"))

    works(shared)
    before = wait_for(descriptors)
    for _ in range(20):
        works(shared)
    wait_for(lambda: descriptors() <= before)


def test_a_port_in_use_is_named_before_anything_is_built(shared: Served, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=str(shared.port)):
        server.listen(shared.port)
    with pytest.raises(ListenError, match="70000"):
        server.listen(70000)


def test_the_server_listens_on_this_machine_alone(shared: Served) -> None:
    with server.listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
