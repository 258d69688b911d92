"""The firmware verbs against a real emulator process, whose core executes the reference firmware."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import emulator.management
import sdk
from driver_shim.function.bring_up import enable_function
from driver_shim.function.registers import Registers
from driver_shim.protocol.registers import Post
from driver_shim.transport.vfio_user import VfioUserTransport
from firmware_tools.build import read_program
from tests.support import pipes
from tests.support.children import child_commands
from tests.support.firmware_images import image
from tests.support.npuctl import PATIENCE_S, Npuctl, environment
from tests.support.pipes import read_line, read_rest
from tests.support.waiting import wait_until

ELF = Path(emulator.management.__file__).parent / "firmware" / "reference.elf"
RESETS = bytes.fromhex("b7020110 13031000 23aa6200 6f000000")
"""A firmware that resets the core at once: lui t0, 0x10010; li t1, 1; sw t1, 0x14(t0); j ."""
BANNER = b"reference firmware 1.0.0"
POLL_S = 0.05


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[Npuctl, str]]:
    """(tool, address) of a fresh emulator whose firmware has started."""
    tool = Npuctl(tmp_path)
    address = f"vfio-user:{tmp_path / 'npu.sock'}"
    with tool.served(tmp_path / "npu.sock"):
        await_firmware(tmp_path / "npu.sock")
        yield tool, address


def await_firmware(path: Path) -> None:
    """Without npuctl, which takes as long to start as the firmware."""
    deadline = time.monotonic() + PATIENCE_S
    with closing(VfioUserTransport.connect(path, PATIENCE_S)) as transport:
        enable_function(transport)
        while Registers(transport).boot_progress.post_code != Post.FIRMWARE_READY:
            assert time.monotonic() < deadline, "the firmware does not come up"
            time.sleep(0.01)


def await_sensors(opened: sdk.Device) -> None:
    """Readings count while they are a second old at most, which a stalled core does not keep to."""
    wait_until(lambda: opened.sensors() is not None, "a fresh reading", PATIENCE_S)


def await_stage(tool: Npuctl, address: str, stage: str) -> None:
    def reached() -> bool:
        return bool(tool.document("info", "-d", address)["devices"][0]["boot_progress"] == stage)

    wait_until(reached, f"the core at {stage}", PATIENCE_S)


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    """Version 1.1.0 of the reference firmware, as a file."""
    return written(tmp_path / "1.1.0.bin", image("1.1.0", security_counter=1, payload=read_program(ELF).payload))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def running(tool: Npuctl, address: str) -> dict[str, Any]:
    found: dict[str, Any] = tool.document("fw info", "-d", address)["devices"][0]
    return found


def test_flash_activate_confirm_and_roll_back(device: tuple[Npuctl, str], firmware: Path) -> None:
    tool, address = device
    (done,) = tool.document("fw flash", str(firmware), "-d", address, "--yes")["devices"]
    assert (done["outcome"]["verified"], done["outcome"]["needs_reset"]) == (True, True)
    assert running(tool, address)["firmware"]["version"] == "1.0.0"
    (done,) = tool.document("fw rollback", "-d", address, "--yes")["devices"]
    assert done["withdrawn_trial"] == {"slot": "B", "version": "1.1.0"}
    assert [slot["proven"] for slot in running(tool, address)["slots"]] == [True, False]
    document = tool.document("fw rollback", "-d", address, "--yes", code=1)
    assert [error["code"] for error in document["errors"]] == ["untried"]
    (done,) = tool.document("fw flash", str(firmware), "-d", address, "--yes")["devices"]
    assert done["outcome"]["kept_bytes"] == firmware.stat().st_size
    (done,) = tool.document("fw flash", str(firmware), "-d", address, "--yes", "--activate")["devices"]
    assert done["plan"]["action"] == "nothing-to-do"
    assert (done["activation"]["version"], done["activation"]["on_trial"]) == ("1.1.0", True)
    (seen,) = tool.document("info", "-d", address)["devices"]
    assert (seen["firmware"], seen["firmware_slot"], seen["firmware_on_trial"]) == ("1.1.0", "B", True)
    assert tool("fw", "flash", str(firmware), "-d", address, "--yes", "--allow-reinstall").returncode == 1
    assert tool.document("fw confirm", "-d", address, "--yes")["devices"][0]["changed"]
    assert not tool.document("fw confirm", "-d", address, "--yes")["devices"][0]["changed"]
    assert [slot["proven"] for slot in running(tool, address)["slots"]] == [True, True]
    (done,) = tool.document("fw rollback", "-d", address, "--yes", "--activate")["devices"]
    assert done["activation"]["version"] == "1.0.0"
    texts = [line["record"]["text"] for line in tool.lines("fw log", "-d", address)]
    assert any("is confirmed" in text for text in texts)
    assert not any(text.startswith("text 0x") for text in texts)


def test_a_change_outlives_the_reader_of_its_report(device: tuple[Npuctl, str], firmware: Path) -> None:
    tool, address = device
    with subprocess.Popen(
        [sys.executable, "-m", "npuctl", "fw", "flash", str(firmware), "-d", address, "--yes", "--activate"],
        env=environment(tool.runtime_folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0
    found = running(tool, address)["firmware"]
    assert (found["version"], found["on_trial"]) == ("1.1.0", True)


def test_firmware_that_does_not_come_up_falls_back(device: tuple[Npuctl, str], tmp_path: Path) -> None:
    tool, address = device
    broken = written(tmp_path / "broken.bin", image("2.0.0", security_counter=1, payload=RESETS))
    document = tool.document("fw flash", str(broken), "-d", address, "--yes", "--activate", code=5)
    assert [error["code"] for error in document["errors"]] == ["fell-back"]
    found = running(tool, address)
    assert (found["firmware"]["version"], found["firmware"]["on_trial"]) == ("1.0.0", False)
    assert [slot["failed"] for slot in found["slots"]] == [False, True]
    assert "trial failed" in tool("fw", "flash", str(broken), "-d", address, "--yes").stdout


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"security_counter": 1, "hardware_ids": (7,)}, "refused"),
        ({"security_counter": 0}, "refused"),
        ({"security_counter": 1, "hardware_ids": ()}, "refused"),
    ],
)
def test_what_the_device_would_refuse_is_not_sent(
    device: tuple[Npuctl, str], tmp_path: Path, facts: dict[str, Any], code: str
) -> None:
    tool, address = device
    path = written(tmp_path / "wrong.bin", image("2.0.0", **facts))
    document = tool.document("fw flash", str(path), "-d", address, "--yes", code=1)
    assert [error["code"] for error in document["errors"]] == [code]
    assert running(tool, address)["update"]["state"] == "none"


def test_a_device_in_use_is_left_alone(device: tuple[Npuctl, str], firmware: Path) -> None:
    tool, address = device
    holder = environment(tool.runtime_folder)["NPU_RUNTIME_DIR"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_RUNTIME_DIR", holder)
        with sdk.Device(address) as opened:
            assert opened.info.firmware == "1.0.0"
            await_sensors(opened)
            for verb in ("fw info", "fw log"):
                document = tool.document(verb, "-d", address, code=1)
                assert [error["code"] for error in document["errors"]] == ["device-busy"]
            assert tool("fw", "flash", str(firmware), "-d", address, "--yes").returncode == 1


def test_the_console_answers_what_is_piped_in_and_survives_a_reset_of_the_core(device: tuple[Npuctl, str]) -> None:
    tool, address = device
    with subprocess.Popen(
        [sys.executable, "-m", "npuctl", "console", "-d", address, "--linger", "5"],
        env=environment(tool.runtime_folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(b"help\rreset\r")
            process.stdin.flush()
            shown = read_until(process.stdout.fileno(), BANNER, 2)  # a boot may take longer than it lingers
            assert b"lists these" in shown
            process.stdin.write(b"help\r")
            process.stdin.close()
            assert "lists these" in read_rest(process.stdout)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    assert running(tool, address)["firmware"]["boots"] == 1
    pieces = [line["console"]["text"] for line in tool.lines("console", "-d", address)]
    assert "lists these" in "".join(pieces)


@pytest.mark.parametrize("ending", ["key", signal.SIGTERM, signal.SIGKILL])
def test_the_terminal_is_put_right_however_the_console_ends(
    device: tuple[Npuctl, str], ending: str | signal.Signals
) -> None:
    """SIGKILL is for the process that does the work; the tool's own puts the terminal right."""
    tool, address = device
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [sys.executable, "-m", "npuctl", "console", "-d", address, "--new"],
        env=environment(tool.runtime_folder),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    try:
        read_until(master, b"leaves")
        os.write(master, b"help\r")
        read_until(master, b"lists these")
        assert termios.tcgetattr(slave) != before
        if isinstance(ending, str):
            os.write(master, b"\x1d")
        elif ending is signal.SIGKILL:
            (child,) = child_commands(process.pid)
            os.kill(child, ending)
        else:
            process.send_signal(ending)
        code = process.wait(PATIENCE_S)
        assert code == (0 if isinstance(ending, str) else 128 + ending)
        assert termios.tcgetattr(slave) == before
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        os.close(master)
        os.close(slave)


def read_until(fd: int, wanted: bytes, times: int = 1) -> bytes:
    """Read what is shown until `wanted` has come so often."""
    shown = pipes.read_until(fd, lambda shown: shown.count(wanted) >= times, PATIENCE_S)
    assert shown.count(wanted) >= times, shown
    return shown


def test_following_the_log_ends_with_ctrl_c(device: tuple[Npuctl, str], firmware: Path) -> None:
    tool, address = device
    command = [sys.executable, "-m", "npuctl", "fw", "log", "-d", address, "--follow", "--json"]
    with subprocess.Popen(
        command,
        env=environment(tool.runtime_folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(read_line(process.stdout))["record"]["sequence"] == 0
        os.killpg(process.pid, signal.SIGINT)
        rest = read_rest(process.stdout).splitlines()
        assert process.wait(PATIENCE_S) == 130
    assert json.loads(rest[-1])["errors"][0]["code"] == "interrupted"
