"""Devices that several of this process's parts use at once, since a card has one holder: one per address.

What opens devices for its caller takes a share of one here (`inference_session`); the last share that is closed closes
the device. Shares that are let go, not closed, leave it to the device's own end. What has no end of its own
(`onnx_backend`, `torch_backend`) keeps its share until the process ends.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref

from sdk import environment
from sdk.device import Device
from sdk.errors import DeviceLost

_PRIVATE = "emulator"
"""What an emulator says of itself does not tell the options that it was opened with, so it is found by those alone."""


class _Shared:
    """An open device and how many shares of it are not closed."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.shares = 0


class Share:
    """One user's part in an open device."""

    def __init__(self, shared: _Shared) -> None:
        self._shared: _Shared | None = shared
        shared.shares += 1
        self.device = shared.device

    def close(self) -> None:
        """Give it up; the last one closes the device. Idempotent."""
        with _pool.lock:
            shared, self._shared = self._shared, None
            if shared is None:
                return
            shared.shares -= 1
            if shared.shares:
                return
            _pool.drop(shared)
        shared.device.close()


def _is_there(device: Device) -> bool:
    """Whether it is open. One that died since it was last used is noticed now, and is lost from now on."""
    function = device._function
    if not device.closed and not function.transport.alive():
        try:
            function.check_alive()
        except DeviceLost:
            pass  # which `closed` tells
    return not device.closed


class _Pool:
    """The devices with shares, by the addresses that they were asked by and that they have."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child too, where the lock may be held by a thread that is not there: it opens its own."""
        self.lock = threading.Lock()
        self._known: weakref.WeakValueDictionary[str | None, _Shared] = weakref.WeakValueDictionary()

    def find(self, address: str | None) -> _Shared | None:
        """The device of this address, if it is open; call it with the lock held."""
        shared = self._known.get(address)
        return shared if shared is not None and _is_there(shared.device) else None

    def add(self, address: str | None, shared: _Shared) -> None:
        """Know a device from now on; call it with the lock held."""
        self._known[address] = shared
        if not shared.device.address.startswith(_PRIVATE):
            self._known[shared.device.address] = shared

    def drop(self, shared: _Shared) -> None:
        """Know it no more; call it with the lock held."""
        for address in [address for address, known in self._known.items() if known is shared]:
            del self._known[address]


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.forget)


def share(address: str | None = None) -> Share:
    """A share of the device at an address as `sdk.Device` takes it, opened unless it is. Raises what that raises."""
    asked = environment.device_address() if address is None else address
    with _pool.lock:
        shared = _pool.find(asked)
        if shared is None:
            shared = _Shared(Device(address))
            _pool.add(asked, shared)
        return Share(shared)


_kept: dict[str | None, Share] = {}
"""Shares that nobody gives up before the process ends, by the address that was asked for."""


def kept_device(address: str | None = None) -> Device:
    """The device at an address, opened unless it is open, and kept until the process ends."""
    kept = _kept.get(address)
    if kept is None or kept.device.closed:
        kept = _kept[address] = share(address)
    return kept.device


@atexit.register
def _give_up() -> None:
    while _kept:
        _kept.popitem()[1].close()
