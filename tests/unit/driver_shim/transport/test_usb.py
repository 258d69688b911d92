"""The debug port's host side, where the port is not what it should be: short answers are no values."""

from __future__ import annotations

import socket
import threading
from array import array
from collections.abc import Callable, Iterator

import pytest

from driver_shim.errors import ContractMismatch, DeviceLost
from driver_shim.protocol import usbip
from driver_shim.protocol.debug_port import DEBUG_PORT_VERSION, INFO, Mode, Request
from driver_shim.protocol.registers import BAR0_BYTES
from driver_shim.transport import usb, usb_ports
from emulator.usb import descriptors
from tests.support.debug_ports import BUS_ID, LOOPBACK
from tests.support.needs import module_of_extra

core = module_of_extra("usb.core", "usb")
usbip_backend = module_of_extra("driver_shim.transport.usbip_backend", "usb")

PATIENCE_S = 60.0
GOOD = {
    Request.INFO: INFO.build(version=DEBUG_PORT_VERSION, mode=Mode.RUN_TIME, emulated=1, bar0_bytes=BAR0_BYTES),
    Request.PEEK: bytes(4),
}


class Port:
    """Answers IN requests from a table, and refuses what is not in it."""

    def __init__(self, answers: dict[Request, bytes]) -> None:
        self.answers = answers

    def ctrl_transfer(self, kind: int, request: int, value: int, index: int, data: object, timeout: int) -> array[int]:
        if request not in self.answers:
            raise core.USBError("stall", 32, 32)
        return array("B", self.answers[Request(request)])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[Request, bytes]], usb.UsbTransport]]:
    def open_with(answers: dict[Request, bytes]) -> usb.UsbTransport:
        monkeypatch.setattr(usb, "open_debug_port", lambda _serial, _limit_s: Port(answers))
        monkeypatch.setattr(usb, "close_debug_port", lambda _port: None)
        return usb.UsbTransport("X")

    yield open_with


Open = Callable[[dict[Request, bytes]], usb.UsbTransport]


@pytest.mark.parametrize("size", [0, 10, INFO.size - 1])
def test_a_port_that_tells_half_of_what_it_is_speaks_something_else(opened: Open, size: int) -> None:
    with pytest.raises(ContractMismatch, match=f"INFO with {size} bytes instead of 32"):
        opened({Request.INFO: GOOD[Request.INFO][:size]})


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_part_of_a_register_is_no_value(opened: Open, size: int) -> None:
    transport = opened({**GOOD, Request.PEEK: bytes([0xAA]) * size})
    with pytest.raises(ContractMismatch, match=f"PEEK with {size} bytes instead of 4"):
        transport.read(0, 0, 4)


def test_a_refusal_whose_reason_is_cut_off(opened: Open) -> None:
    transport = opened({Request.INFO: GOOD[Request.INFO], Request.REASON: b"\1"})
    with pytest.raises(ContractMismatch, match="REASON with 1 bytes"):
        transport.read(0, 0, 4)


def _serve_short(listening: socket.socket, size: int) -> None:
    """A USB/IP server whose descriptors end after `size` bytes, for one client."""
    listening.settimeout(PATIENCE_S)
    with listening.accept()[0] as client:
        client.settimeout(PATIENCE_S)
        client.recv(usbip.OPERATION.size + usbip.IMPORT.size, socket.MSG_WAITALL)
        device = usbip.DEVICE.build(busid=BUS_ID)
        client.sendall(usbip.encode_operation(usbip.Operation.REPLY_IMPORT, payload=device))
        head = client.recv(usbip.HEADER_BYTES, socket.MSG_WAITALL)
        _, seqnum, *_ = usbip.BASIC.unpack_from(head)
        data = descriptors.device_descriptor()[:size]
        client.sendall(usbip.encode_return_submit(seqnum, 0, len(data), data))
        client.recv(1)


@pytest.mark.parametrize("size", [0, 7, 17])
def test_a_descriptor_that_is_cut_off_is_a_broken_server(size: int) -> None:
    with socket.create_server((LOOPBACK, 0)) as listening:
        server = threading.Thread(target=_serve_short, args=(listening, size))
        server.start()
        fields = usbip.DEVICE.parse(usbip.DEVICE.build(busid=BUS_ID, busnum=1, devnum=2))
        device = usbip_backend.RemoteDevice(listening.getsockname()[1], fields, PATIENCE_S)
        with pytest.raises(DeviceLost, match=f"breaks the protocol: {size} bytes"), usb_ports.usb_errors("usb:X"):
            device.device_descriptor()
        server.join(PATIENCE_S)


def test_a_port_without_our_configuration_speaks_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unconfigured:
        def get_active_configuration(self) -> None:
            raise core.USBError("Configuration not set")

        def set_configuration(self, number: int) -> None:
            raise ValueError(f"Invalid configuration {number}")

    monkeypatch.setattr(usb_ports, "find_debug_port", lambda _serial, _limit_s: Unconfigured())
    monkeypatch.setattr(usb_ports, "close_debug_port", lambda _port: None)
    with pytest.raises(ContractMismatch, match="Invalid configuration 1"):
        usb_ports.open_debug_port("X")
