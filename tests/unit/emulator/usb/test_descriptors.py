"""What the debug port looks like on the bus, against bytes written down by hand from the specifications."""

from __future__ import annotations

import pytest

from driver_shim.protocol.debug_port import Mode
from driver_shim.protocol.dfu import Request
from driver_shim.protocol.registers import Post
from driver_shim.protocol.usb import DescriptorType, StandardRequest, string_descriptor
from emulator.usb import descriptors
from emulator.usb.transfer import Ending
from tests.support.debug_port_bench import CLASS_IN, SERIAL, Bench

DEVICE = bytes.fromhex("12 01 0002 00 00 00 40 c4b7 514e 0001 01 02 03 01")
QUALIFIER = bytes.fromhex("0a 06 0002 00 00 00 40 01 00")
REGISTERS = bytes.fromhex("09 04 00 00 00 ff 00 00 04")
RUN_TIME = bytes.fromhex("09 02 2400 02 01 00 c0 00") + REGISTERS + bytes.fromhex(
    "09 04 01 00 00 fe 01 01 05"
    "09 21 0f 8813 0010 1001"
)  # fmt: skip
RECOVERY = bytes.fromhex("09 02 2d00 02 01 00 c0 00") + REGISTERS + bytes.fromhex(
    "09 04 01 00 00 fe 01 02 06"
    "09 04 01 01 00 fe 01 02 07"
    "09 21 07 8813 0010 1001"
)  # fmt: skip
GET = (0x80, StandardRequest.GET_DESCRIPTOR)


def test_the_descriptors_are_these_bytes() -> None:
    assert descriptors.device_descriptor() == DEVICE
    assert descriptors.device_qualifier() == QUALIFIER
    assert descriptors.configuration(Mode.RUN_TIME) == RUN_TIME
    assert descriptors.configuration(Mode.RECOVERY) == RECOVERY


def test_a_string_is_utf_16_and_is_shortened_to_what_a_descriptor_holds() -> None:
    assert string_descriptor("Aé") == bytes.fromhex("06 03 4100 e900")
    assert len(string_descriptor("x" * 300)) == 254


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (0x0100, DEVICE),
        (0x0200, RUN_TIME),
        (0x0600, QUALIFIER),
        (0x0700, bytes([RUN_TIME[0], DescriptorType.OTHER_SPEED_CONFIGURATION]) + RUN_TIME[2:]),
        (0x0300, bytes.fromhex("04 03 0904")),
        (0x0303, string_descriptor(SERIAL)),
        (0x0304, string_descriptor("registers")),
        (0x0308, Ending.STALL),  # no download has failed
        (0x0309, Ending.STALL),
        (0x0201, Ending.STALL),
        (0x0A00, Ending.STALL),  # debug descriptor
        (0x0F00, Ending.STALL),  # BOS, which USB 2.0 devices have not
        (0x2200, Ending.STALL),
    ],
)
def test_get_descriptor(value: int, answer: bytes | Ending) -> None:
    assert Bench().ask(*GET, value, 0x0409, 255) == answer


@pytest.mark.parametrize(
    ("kind", "request_", "value", "index", "answer"),
    [
        (0x80, StandardRequest.GET_STATUS, 0, 0, b"\1\0"),
        (0x81, StandardRequest.GET_STATUS, 0, 0, b"\0\0"),
        (0x81, StandardRequest.GET_STATUS, 0, 1, b"\0\0"),
        (0x81, StandardRequest.GET_STATUS, 0, 2, Ending.STALL),
        (0x82, StandardRequest.GET_STATUS, 0, 0x80, b"\0\0"),
        (0x82, StandardRequest.GET_STATUS, 0, 0x81, Ending.STALL),
        (0x02, StandardRequest.CLEAR_FEATURE, 0, 0, b""),
        (0x00, StandardRequest.SET_FEATURE, 1, 0, Ending.STALL),  # remote wake-up
        (0x00, StandardRequest.SET_ADDRESS, 7, 0, b""),
        (0x80, StandardRequest.GET_CONFIGURATION, 0, 0, b"\1"),
        (0x00, StandardRequest.SET_CONFIGURATION, 2, 0, Ending.STALL),
        (0x81, StandardRequest.GET_INTERFACE, 0, 1, b"\0"),
        (0x81, StandardRequest.GET_INTERFACE, 0, 2, Ending.STALL),
        (0x01, StandardRequest.SET_INTERFACE, 0, 0, b""),
        (0x01, StandardRequest.SET_INTERFACE, 1, 1, Ending.STALL),  # the other slot, which there is in recovery only
        (0x00, StandardRequest.SET_DESCRIPTOR, 0x0100, 0, Ending.STALL),
        (0x80, 12, 0, 0, Ending.STALL),
        (0x01, StandardRequest.GET_STATUS, 0, 0, Ending.STALL),  # the wrong way
    ],
)
def test_standard_requests(kind: int, request_: int, value: int, index: int, answer: bytes | Ending) -> None:
    assert Bench().ask(kind, request_, value, index, 2 if kind & 0x80 else b"") == answer


def test_slots_are_alternate_settings_and_a_new_configuration_begins_with_the_first() -> None:
    bench = Bench(Post.RECOVERY)
    assert bench.ask(*GET, 0x0200, 0, 255) == RECOVERY
    assert bench.ask(0x01, StandardRequest.SET_INTERFACE, 1, 1) == b""
    assert bench.ask(0x81, StandardRequest.GET_INTERFACE, 0, 1, 1) == b"\1"
    assert bench.ask(0x01, StandardRequest.SET_INTERFACE, 2, 1) is Ending.STALL
    bench.configure()
    assert bench.ask(0x81, StandardRequest.GET_INTERFACE, 0, 1, 1) == b"\0"


def test_an_unconfigured_device_has_no_interfaces() -> None:
    bench = Bench(Post.RECOVERY)
    assert bench.ask(0x00, StandardRequest.SET_CONFIGURATION, 0) == b""
    assert bench.ask(CLASS_IN, Request.GETSTATE, 0, 1, 1) is Ending.STALL
    assert bench.ask(0x81, StandardRequest.GET_INTERFACE, 0, 1, 1) is Ending.STALL
