"""The libusb that reaches debug ports on USB: the system's where there is one, else that of the extra `[usb]`.

Finding it opens nothing and starts nothing; `backend` does. pyusb and the package are imported when they are needed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path
from typing import Any, NamedTuple

from driver_shim.errors import UnsupportedPlatform

EXTRA = "pip install 'npu-sdk[usb]'"
"""Brings pyusb and a libusb."""
PACKAGE = "libusb-package"
REMEDY = f"apt-get install libusb-1.0-0\nor: {EXTRA}"
_NAME = "usb-1.0"
_MAPS = Path("/proc/self/maps")


class Libusb(NamedTuple):
    """A library that can be loaded."""

    path: str
    version: str
    of_system: bool
    """Whether it is the system's; else the Python package's."""


class _Version(ctypes.Structure):
    """What `libusb_get_version` answers, as far as it concerns us."""

    _fields_ = (("major", ctypes.c_uint16), ("minor", ctypes.c_uint16), ("micro", ctypes.c_uint16))


def find_libusb() -> Libusb | None:
    """The library that is used here, or None where there is none."""
    for name, of_system in ((_system_library(), True), (_package_library(), False)):
        if name and (library := _loaded(name)):
            return Libusb(_path_of(name), _version(library), of_system)
    return None


def backend() -> Any:
    """pyusb's backend with the library that is used here. Raises UnsupportedPlatform."""
    from usb.backend import libusb1

    found = find_libusb()
    if found is None:
        raise UnsupportedPlatform(
            "USB cannot be used: libusb is missing", subsystem="usb", remedy=REMEDY.replace("\n", "; ")
        )
    started = libusb1.get_backend(find_library=lambda _: found.path)
    if started is None:
        raise UnsupportedPlatform(
            f"USB cannot be used: libusb {found.version} ({found.path}) does not start here",
            subsystem="usb",
            remedy="see that the kernel has USB, and in a container that it is let in: ls /dev/bus/usb",
        )
    return started


def _system_library() -> str | None:
    return ctypes.util.find_library(_NAME)


def _package_library() -> str | None:
    try:
        import libusb_package
    except ModuleNotFoundError:
        return None
    path = libusb_package.get_library_path()
    return None if path is None else str(path)


def _loaded(name: str) -> ctypes.CDLL | None:
    """None when it cannot be: it is another machine type's, say."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _version(library: ctypes.CDLL) -> str:
    ask = library.libusb_get_version
    ask.restype = ctypes.POINTER(_Version)
    found = ask().contents
    return f"{found.major}.{found.minor}.{found.micro}"


def _path_of(name: str) -> str:
    """Where a loaded library lies; a library of the system is found by its name alone."""
    if "/" in name:
        return name
    mapped = (line.split(maxsplit=5)[-1].strip() for line in _MAPS.read_text().splitlines())
    return next((path for path in mapped if Path(path).name.startswith(name)), name)
