"""`npuctl fw recover` that Ctrl-C cuts short says what the device is left with."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from driver_shim.protocol.firmware_slots import Slot
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.frame import Frame
from sdk.cli.fw import recover
from tests.support.firmware_images import image


class InterruptedLink(nullcontext[Any]):
    """A debug port at which Ctrl-C comes while the image is being handed over."""

    in_recovery = False

    def __init__(self, serial: str) -> None:
        super().__init__(self)

    def enter_recovery(self) -> None:
        """It comes back in recovery."""

    def download(self, slot: Slot, data: bytes) -> None:
        """Interrupted."""
        raise KeyboardInterrupt


def test_ctrl_c_says_that_the_device_may_be_left_in_recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new.img"
    path.write_bytes(image("1.2.3"))
    monkeypatch.setattr(recover, "RecoveryLink", InterruptedLink)
    body: Any = getattr(recover.command.callback, "__wrapped__", None)
    frame = Frame("fw recover", as_json=True, timeout=None)
    with pytest.raises(Failure, match="may be left in recovery, and slot B incomplete") as caught:
        body(frame, path, "usb:SERIAL", "B", False)
    assert (caught.value.exit_code, caught.value.code) == (ExitCode.INTERRUPTED, "interrupted")
    assert "-d usb:SERIAL --unsafe core_control=2" in str(caught.value)
