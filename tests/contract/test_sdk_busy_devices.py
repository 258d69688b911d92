"""`Device` holds its device from before it is opened until after it is closed, and `when_busy` says what then."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdk
from driver_shim import timeouts
from driver_shim.cards.holder import device_line, holder_of
from driver_shim.function.controller import Controller
from tests.support.forks import FORKS_WITH_THREADS, exit_status
from tests.support.npuctl import Npuctl, environment
from tests.support.pipes import read_line

PATIENCE_S = 60.0

HOLD = """
import sys
import sdk
with sdk.Device(sys.argv[1], when_busy="wait", timeout=60):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Npuctl, str]]:
    """An emulator shared by this module's tests, and its address."""
    folder = tmp_path_factory.mktemp("served")
    tool = Npuctl(folder)
    with tool.served(folder / "npu.sock"):
        yield tool, f"vfio-user:{folder / 'npu.sock'}"


@pytest.fixture
def address(served: tuple[Npuctl, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Its address, with its runtime folder in use."""
    tool, where = served
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tool.runtime_folder))
    return where


@contextlib.contextmanager
def other(address: str) -> Iterator[subprocess.Popen[str]]:
    """A process that opens the device, waiting for it if need be; it says "held" then, and `end_of` ends it."""
    folder = Path(os.environ["NPU_RUNTIME_DIR"])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(folder),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def line_of(process: subprocess.Popen[str]) -> str:
    return read_line(process.stdout).strip()


def end_of(process: subprocess.Popen[str]) -> None:
    """Make it close its device and end."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def in_line(address: str, pid: int) -> None:
    """Return when the process has a ticket."""
    deadline = time.monotonic() + PATIENCE_S
    while pid not in [owner and owner.pid for owner in device_line(address).live().values()]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_device_is_held_while_it_is_open(address: str) -> None:
    with sdk.Device(address) as device:
        (listed,) = sdk.list_devices()
        assert listed.holder is not None and listed.holder.pid == os.getpid()
        assert isinstance(listed.holder, sdk.Holder)
        with pytest.raises(sdk.DeviceBusy, match=f"held by PID {os.getpid()}") as caught:
            sdk.Device(address)
        assert caught.value.holder == listed.holder and isinstance(caught.value, BlockingIOError)
        with pytest.raises(sdk.Timeout, match="this process"):
            sdk.Device(address, when_busy="wait", timeout=0.1)
        device.queue().nop().wait()
    assert holder_of(address) is None and sdk.list_devices()[0].holder is None


def test_a_device_that_is_let_go_of_is_free(address: str) -> None:
    sdk.Device(address)
    gc.collect()
    assert holder_of(address) is None
    sdk.Device(address).close()


def test_a_device_that_does_not_come_up_is_free(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Controller) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Controller, "bring_up", failing)
        with pytest.raises(KeyboardInterrupt):
            sdk.Device(address)
    assert holder_of(address) is None
    missing = address + ".missing"
    with pytest.raises(sdk.DeviceNotFound):
        sdk.Device(missing)
    assert holder_of(missing) is None


def test_closing_leaves_the_device_free_at_once(address: str) -> None:
    for _ in range(20):
        sdk.Device(address).close()


def test_threads_take_turns_and_never_find_the_server_busy(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ticket is given back after the hang-up, and the server looks at hang-ups first: no retry is needed."""
    monkeypatch.setattr(timeouts, "UNSEEN_HOLDER_POLL_S", -1.0)  # a retry would raise
    done = []

    def work() -> None:
        for _ in range(10):
            with sdk.Device(address, when_busy="wait", timeout=PATIENCE_S) as device:
                device.queue().nop().wait()
        done.append(True)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(done) == 3 and holder_of(address) is None


@pytest.mark.parametrize("end", ["returns", "is killed"])
def test_waiting_ends_when_the_other_process_ends(address: str, end: str) -> None:
    with other(address) as process:
        assert line_of(process) == "held"
        with pytest.raises(sdk.DeviceBusy, match=f"PID {process.pid}"):
            sdk.Device(address)
        timer = threading.Timer(0.2, process.kill if end == "is killed" else lambda: end_of(process))
        timer.start()
        with sdk.Device(address, when_busy="wait", timeout=PATIENCE_S) as device:
            device.queue().nop().wait()
        timer.join(PATIENCE_S)


def test_a_device_killed_away_can_be_opened_at_once_without_waiting(address: str) -> None:
    with other(address) as process:
        assert line_of(process) == "held"
        process.kill()
        process.wait(PATIENCE_S)
        sdk.Device(address).close()


def test_the_next_in_line_gets_it_on_close(address: str) -> None:
    device = sdk.Device(address)
    with other(address) as process:
        in_line(address, process.pid)
        device.close()
        assert line_of(process) == "held"


@FORKS_WITH_THREADS
def test_a_forked_child_does_not_keep_the_device(address: str) -> None:
    with sdk.Device(address) as device:
        child = os.fork()
        if child == 0:
            device.close()
            time.sleep(PATIENCE_S)
            os._exit(0)
        time.sleep(0.1)
        assert holder_of(address) is not None
    try:
        sdk.Device(address).close()
    finally:
        os.kill(child, signal.SIGKILL)
        exit_status(child)


def test_a_lost_device_is_held_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, path = Npuctl(tmp_path), tmp_path / "npu.sock"
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path))
    with tool.served(path) as process:
        device = sdk.Device(f"vfio-user:{path}")
        process.kill()
        process.wait(PATIENCE_S)
        with pytest.raises(sdk.DeviceLost):
            device._function.check_alive()
    for left in tmp_path.iterdir():
        left.unlink()
    with tool.served(path):  # another one in its place
        sdk.Device(f"vfio-user:{path}").close()
    device.close()


def test_a_private_emulator_has_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path / "npu"))
    with sdk.Device("emulator", when_busy="wait") as device:
        assert device.info.holder is None
    assert not (tmp_path / "npu").exists()
