"""Without the extra `[firmware]` there is no management core, and everything says so; all else works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from driver_shim.errors import FirmwareError
from driver_shim.firmware.core_state import read_sensors
from driver_shim.firmware.mailbox import Mailbox
from driver_shim.function.registers import Registers
from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.mailbox import MailboxCommand, MailboxState
from driver_shim.protocol.registers import NEVER_MEASURED, Post
from driver_shim.transport.in_process import InProcessTransport
from emulator.build import build
from emulator.management.port import AbsentCore
from emulator.management.process import core_process, options
from emulator.management.process.options import CoreOptions, start_core
from emulator.model.profile import load_profile
from tests.support.bus_client import BOTH, BusClient

MISSING = "no_module_of_this_name"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python in which one module of the extra is not installed."""
    monkeypatch.setattr(core_process, "NEEDED_MODULES", ("unicorn", MISSING))


@pytest.fixture
def transport(bare: None) -> Iterator[InProcessTransport]:
    function = build("generic", "numpy", core=CoreOptions())
    try:
        assert isinstance(function.chip.management, AbsentCore)
        yield InProcessTransport(function, ResetCause.DEVICE_RESET)
    finally:
        function.close()


def test_a_missing_module_leaves_the_core_out_and_the_log_says_why(
    bare: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "npu.emulator.management")
    assert start_core(load_profile("generic"), None, CoreOptions(), None) is None
    assert f"{MISSING} not installed; pip install 'npu-sdk[firmware]'" in caplog.text


@pytest.mark.parametrize("chosen", [{"firmware": "x.elf"}, {"board": "board.toml"}, {"uart": "pty"}])
def test_what_needs_the_core_is_an_error_without_it(bare: None, chosen: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"npu-sdk\[firmware\]"):
        start_core(load_profile("generic"), None, CoreOptions(**chosen), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["", "tty", "tcp", "tcp:", "tcp:70000", "tcp:x", "stdio:1"])
def test_a_uart_that_is_not_understood_names_what_is(where: str) -> None:
    with pytest.raises(ValueError, match="pty, tcp:PORT or stdio"):
        start_core(load_profile("generic"), None, CoreOptions(uart=where), None)


def test_registers_mailbox_and_sensors_say_that_there_is_none(transport: InProcessTransport) -> None:
    bus = BusClient(transport)
    bus.command(BOTH)
    registers = Registers(transport)
    assert registers.boot_progress.post_code == Post.ABSENT
    assert registers.mailbox_status.state == MailboxState.ABSENT
    assert registers.sensor_age.read() == NEVER_MEASURED
    assert registers.console_room.read() == 0
    registers.core_control.write(reset=1)
    registers.console_input.write(byte=1)
    registers.mailbox_control.write(ring=1)
    assert registers.mailbox_status.state == MailboxState.ABSENT
    readings = read_sensors(registers)
    assert readings is None or readings.temperature_celsius is None
    with pytest.raises(FirmwareError, match="no management core"):
        Mailbox(transport).request(MailboxCommand.PING)
    bus.enable()
    assert registers.status.ready == 1
    bus.close()


def test_the_image_of_a_new_chip_is_shipped() -> None:
    assert options.FACTORY_IMAGE.exists()


@pytest.mark.parametrize("celsius", [float("nan"), float("inf"), -300.0])
def test_a_temperature_that_there_is_not_is_refused(celsius: float) -> None:
    with pytest.raises(ValueError, match="degrees Celsius, not"):
        CoreOptions(ambient_celsius=celsius)
