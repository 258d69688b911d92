"""Finding debug ports, and what our errors make of what USB says."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from driver_shim.cards import libusb
from driver_shim.cards.discovery import find_served
from driver_shim.errors import (
    DeviceBusy,
    DeviceLost,
    DeviceNotFound,
    NpuError,
    PermissionDenied,
    Timeout,
    UnsupportedPlatform,
)
from driver_shim.shared.runtime_folder import PUBLICATION_SUFFIX, process_start_time
from driver_shim.transport import usb_ports
from tests.support.needs import module_of_extra

core = module_of_extra("usb.core", "usb")
util = module_of_extra("usb.util", "usb")


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def put_on_usb(monkeypatch: pytest.MonkeyPatch, ports: Sequence[SimpleNamespace]) -> None:
    monkeypatch.setattr(libusb, "backend", lambda: None)
    monkeypatch.setattr(core, "find", lambda **_: iter(ports))


def publish(folder: Path, **more: object) -> None:
    record = {
        "version": 1,
        "address": "vfio-user:/nowhere",
        "pid": os.getpid(),
        "start_time": process_start_time(os.getpid()),
        "profile": "generic",
        "serial": "EMU1",
        "kernels": "auto",
        "since": 0.0,
        **more,
    }
    (folder / f"x{PUBLICATION_SUFFIX}").write_text(json.dumps(record), "utf-8")


@pytest.mark.parametrize(("more", "port"), [({}, None), ({"usbip_port": None}, None), ({"usbip_port": 7}, 7)])
def test_publications_with_and_without_a_debug_port_are_read(
    runtime_folder: Path, more: dict[str, object], port: int | None
) -> None:
    publish(runtime_folder, **more)
    assert [found["usbip_port"] for found in find_served()] == [port]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (core.USBError("no", errno=errno.EACCES), PermissionDenied),
        (core.USBError("no", errno=errno.EBUSY), DeviceBusy),
        (core.USBError("no", errno=errno.ENODEV), DeviceLost),
        (core.USBError("no", errno=errno.EPROTO), DeviceLost),
        (core.USBError("no", errno=errno.ECONNREFUSED), DeviceNotFound),
        (core.USBTimeoutError("no", errno=errno.ETIMEDOUT), Timeout),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else os.strerror(value.errno),
)
def test_what_usb_says_becomes_an_error_of_ours(raised: OSError, expected: type[NpuError]) -> None:
    with pytest.raises(expected) as found, usb_ports.usb_errors("usb:X"):
        raise raised
    assert found.value.device == "usb:X"


def test_a_refused_request_is_left_to_who_can_say_why() -> None:
    with pytest.raises(core.USBError), usb_ports.usb_errors("usb:X"):
        raise core.USBError("stall", errno=errno.EPIPE)


def test_without_pyusb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usb.core", None)
    monkeypatch.setitem(sys.modules, "usb", None)
    with pytest.raises(UnsupportedPlatform, match=r"npu-sdk\[usb\]"):
        usb_ports.find_debug_port("X")


def test_without_libusb_what_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libusb, "find_libusb", lambda: None)
    with pytest.raises(UnsupportedPlatform, match=r"libusb is missing.*apt-get install libusb-1\.0-0.*npu-sdk\[usb\]"):
        usb_ports.find_debug_port("X")


def test_among_several_ports_the_serial_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [SimpleNamespace(bus=1, address=2, iSerialNumber=serial) for serial in ("A", "B")]
    monkeypatch.setattr(util, "get_langids", lambda port: (0x0409,))
    monkeypatch.setattr(util, "get_string", lambda port, number, language: number)
    put_on_usb(monkeypatch, ports)
    assert usb_ports.find_debug_port("B") is ports[1]
    with pytest.raises(DeviceNotFound, match="there are: A, B"):
        usb_ports.find_debug_port("C")


def test_a_port_that_may_not_be_read_is_told_from_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [core.USBError("gone", errno=errno.ENODEV), core.USBError("locked", errno=errno.EACCES)]
    ports = [SimpleNamespace(bus=1, address=index, iSerialNumber=3) for index in range(len(wrong))]

    def languages(port: SimpleNamespace) -> tuple[int, ...]:
        raise wrong[port.address]

    monkeypatch.setattr(util, "get_langids", languages)
    put_on_usb(monkeypatch, ports)
    with pytest.raises(PermissionDenied, match="group npu"):
        usb_ports.find_debug_port("X")
    put_on_usb(monkeypatch, ports[:1])
    with pytest.raises(DeviceNotFound):
        usb_ports.find_debug_port("X")


def test_a_server_that_is_gone_is_a_device_that_is_not_there(runtime_folder: Path) -> None:
    publish(runtime_folder, usbip_port=1)
    with pytest.raises(DeviceNotFound):
        usb_ports.find_debug_port("EMU1")
