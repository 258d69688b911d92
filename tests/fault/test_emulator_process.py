"""The emulator as a process: when it ends, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.vfio_user import Command
from driver_shim.protocol.vfio_user_framing import encode_command
from driver_shim.transport.vfio_user import VfioUserTransport
from sdk.device import on_transport
from tests.fault.test_vfio_user_server import KINDS, PAGE
from tests.support.bus_server import RawClient, memory_file

PATIENCE_S = 60.0
POLL_S = 0.01


@contextlib.contextmanager
def emulator(arguments: Sequence[str], fds: Sequence[int] = ()) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "emulator", "--kernels", "numpy", *arguments]
    process = subprocess.Popen(command, pass_fds=fds, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(POLL_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("attached", [True, False])
def test_a_served_emulator_ends_by_signal_and_removes_its_socket(
    tmp_path: Path, number: signal.Signals, attached: bool
) -> None:
    path = tmp_path / "npu.sock"
    with emulator(["--socket", str(path)]) as process:
        wait_for(path)
        client = VfioUserTransport.connect(path, PATIENCE_S)
        if not attached:
            client.close()
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert not path.exists()
        client.close()


def test_clients_that_vanish_within_each_kind_of_message_leave_a_device_that_serves_on(tmp_path: Path) -> None:
    """One cut in the middle of each kind; every byte of each is tried in one process in test_vfio_user_server.py."""
    path = tmp_path / "npu.sock"
    with emulator(["--socket", str(path)]) as process, contextlib.ExitStack() as files:
        wait_for(path)
        before = None
        for command, payload, extra in KINDS.values():
            fds = [memory_file(PAGE)] if extra == "memory" else [os.eventfd(0)] if extra == "eventfd" else []
            for fd in fds:
                files.callback(os.close, fd)
            message = encode_command(1, command, payload)
            with RawClient.connect(path) as client:
                if command != Command.VERSION:
                    client.negotiate()
                client.send_bytes(message[: len(message) // 2], fds)
            with RawClient.connect(path) as client:
                client.negotiate()
                opened = len(os.listdir(f"/proc/{process.pid}/fd"))
            before = before or opened
            assert opened == before, f"a descriptor leaked after {command.name}"
        transport = VfioUserTransport.connect(path, PATIENCE_S)
        with on_transport(transport, timeout=PATIENCE_S) as device, device.queue() as queue:
            queue.nop().wait()
            assert device.registers.reset_cause.cause == ResetCause.CLIENT_LOST
        transport.close()


def test_a_second_emulator_on_the_same_socket_fails_clearly_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "npu.sock"
    with emulator(["--socket", str(path)]):
        wait_for(path)
        VfioUserTransport.connect(path, PATIENCE_S).close()
        with emulator(["--socket", str(path)]) as second:
            _, text = second.communicate(timeout=PATIENCE_S)
        assert second.returncode == 1
        assert "another process serves there" in text
        VfioUserTransport.connect(path, PATIENCE_S).close()


def test_an_unknown_profile_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    with emulator(["--socket", str(tmp_path / "s"), "--profile", "nonesuch"]) as process:
        _, text = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "nonesuch" in text and "Traceback" not in text
    assert not (tmp_path / "s").exists()


def test_a_private_emulator_ends_when_its_owner_hangs_up_and_ignores_ctrl_c() -> None:
    ours, theirs = socket.socketpair()
    with emulator(["--connection-fd", str(theirs.fileno())], [theirs.fileno()]) as process:
        theirs.close()
        client = VfioUserTransport.from_socket(ours, timeout=PATIENCE_S)
        process.send_signal(signal.SIGINT)
        assert client.config_read(0, 4) != b"\xff" * 4
        client.close()
        assert process.wait(PATIENCE_S) == 0


def test_a_private_emulator_ends_with_the_process_that_owns_it() -> None:
    ours, theirs = socket.socketpair()
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(owner.pid)
    arguments = ["--connection-fd", str(theirs.fileno()), "--owner-pid-fd", str(pidfd)]
    with emulator(arguments, [theirs.fileno(), pidfd]) as process:
        theirs.close()
        client = VfioUserTransport.from_socket(ours, timeout=PATIENCE_S)
        owner.communicate(b"\n", timeout=PATIENCE_S)
        assert process.wait(PATIENCE_S) == 0
        client.close()
    os.close(pidfd)
