"""The client's side of a debug port's server."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from tests.support.needs import module_of_extra

core = module_of_extra("usb.core", "usb")


def test_the_limit_that_is_stated_is_the_whole_one_however_long_sending_took(monkeypatch: pytest.MonkeyPatch) -> None:
    from driver_shim.transport.usbip_backend import _Stream

    def slow(self: socket.socket, data: bytes, *flags: Any) -> None:
        time.sleep(0.03)
        self.send(data, *flags)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        stream = _Stream(silent.getsockname()[1], 0.05)
        monkeypatch.setattr(socket.socket, "sendall", slow)
        with pytest.raises(core.USBTimeoutError, match=r"no answer within 0\.05 s"):
            stream.exchange(b"request", 8)
