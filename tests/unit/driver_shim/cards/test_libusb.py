"""Which libusb is used, where the system has one and where only the package does."""

from __future__ import annotations

import ctypes.util
import sys
from pathlib import Path

import pytest

from driver_shim.cards import libusb
from driver_shim.errors import UnsupportedPlatform
from tests.support.needs import module_of_extra

libusb1 = module_of_extra("usb.backend.libusb1", "usb")
package = module_of_extra("libusb_package", "usb")
BROUGHT = str(package.get_library_path())


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyusb keeps the first backend that it made."""
    monkeypatch.setattr(libusb1, "_lib", None)
    monkeypatch.setattr(libusb1, "_lib_object", None)


def system_has(monkeypatch: pytest.MonkeyPatch, library: str | None) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: library if name == "usb-1.0" else None)


def test_the_systems_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    systems = tmp_path / "libusb-1.0.so.0"
    systems.symlink_to(BROUGHT)
    system_has(monkeypatch, str(systems))
    found = libusb.find_libusb()
    assert found is not None
    assert (found.path, found.of_system) == (str(systems), True)
    assert libusb.backend().lib._name == str(systems)


def test_the_packages_stands_in_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    system_has(monkeypatch, None)
    found = libusb.find_libusb()
    assert found is not None
    assert (found.path, found.of_system) == (BROUGHT, False)
    assert found.version.startswith("1.0.")
    assert libusb.backend().lib._name == BROUGHT


def test_a_system_library_that_cannot_be_loaded_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    foreign = tmp_path / "libusb-1.0.so.0"
    foreign.write_bytes(b"another machine's")
    system_has(monkeypatch, str(foreign))
    found = libusb.find_libusb()
    assert found is not None
    assert found.path == BROUGHT


def test_a_system_library_known_by_name_is_shown_with_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    system_has(monkeypatch, "libc.so.6")
    monkeypatch.setattr(libusb, "_version", lambda library: "1.0.0")  # it is no libusb, but surely loaded by name
    found = libusb.find_libusb()
    assert found is not None
    assert Path(found.path).is_absolute()
    assert Path(found.path).name == "libc.so.6"


def test_without_either_there_is_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    system_has(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "libusb_package", None)
    assert libusb.find_libusb() is None
    with pytest.raises(UnsupportedPlatform, match="libusb is missing"):
        libusb.backend()


def test_a_libusb_that_does_not_start_is_no_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    system_has(monkeypatch, None)
    monkeypatch.setattr(libusb1, "get_backend", lambda find_library: None)
    with pytest.raises(UnsupportedPlatform, match="does not start here"):
        libusb.backend()
