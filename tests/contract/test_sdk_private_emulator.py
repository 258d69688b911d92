"""A private emulator goes with its owner, however that ends, and leaves nothing; Ctrl-C leaves the device usable."""

from __future__ import annotations

import gc
import os
import signal
import threading
from pathlib import Path

import pytest

import sdk
from tests.conftest import children, open_descriptors
from tests.support.children import run, session_ends, start
from tests.support.pipes import read_line
from tests.support.waiting import PATIENCE_S, comes_true

OPEN = """
import os, signal, sys, time
import sdk
device = sdk.Device("emulator")
queue = device.queue()
queue.fill(device.buffer(1000, "int8"), 1).wait()
print(device.info.pid, flush=True)
"""

ENDINGS = {
    "return": "",
    "exception": "raise SystemExit(0)",
    "in flight": "queue.fill(device.buffer(1 << 28, 'int8'), 1)",
    "no finalisers": "os._exit(0)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "killed with a child alive": "os.kill(os.getpid(), signal.SIGKILL)",
    "returned with a child alive": "",
}
WITH_CHILD = """
child = os.fork()
if child == 0:
    os.close(1), os.close(2)
    time.sleep(300)
print(child, flush=True)
"""


def shared_files() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def nothing_new_published(before: set[Path]) -> bool:
    """Whether shared memory holds nothing new, but for what others of this machine hold there for a moment."""
    left = shared_files() - before

    def gone() -> bool:
        left.intersection_update(shared_files())
        return not left

    return comes_true(gone)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_emulator_ends_with_its_owner(ending: str) -> None:
    published = shared_files()
    has_child = ending.endswith("child alive")
    process = start(OPEN + (WITH_CHILD if has_child else "") + ENDINGS[ending])
    emulator = int(read_line(process.stdout))
    left_over = read_line(process.stdout) if has_child else ""
    try:
        process.wait(PATIENCE_S)
        assert session_ends(emulator), "the emulator outlives its owner"
        if left_over:
            os.kill(int(left_over), 0)
    finally:
        if left_over:
            os.kill(int(left_over), signal.SIGKILL)
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    assert nothing_new_published(published)


def test_closing_ends_the_emulator_and_its_engines_at_once(leaves_nothing: None) -> None:
    with sdk.Device("emulator") as device:
        pid = device.info.pid
        assert pid is not None and pid in children()
        assert device.info.emulated and device.info.address == "emulator:generic"
        device.queue().fill(device.buffer(64, "int8"), 1).wait()
    assert pid not in children()
    assert session_ends(pid)


def test_letting_go_of_a_device_ends_it(leaves_nothing: None) -> None:
    pid = sdk.Device("emulator").info.pid
    gc.collect()
    assert pid is not None and session_ends(pid)


def test_several_devices_of_one_process_are_apart(leaves_nothing: None) -> None:
    devices = [sdk.Device("emulator") for _ in range(4)]
    try:
        assert len({device.info.pid for device in devices}) == 4
        hosts = [device.host_buffer(100, "int32") for device in devices]
        queues = [device.queue() for device in devices]
        events = [queue.fill(host, i) for i, (queue, host) in enumerate(zip(queues, hosts, strict=True))]
        for number, (event, host) in enumerate(zip(events, hosts, strict=True)):
            event.wait()
            assert (host.array == number).all()
        devices[1].close()
        queues[2].nop().wait()
    finally:
        for device in devices:
            device.close()


def _maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_opening_and_closing_leaks_nothing() -> None:
    def once() -> None:
        with sdk.Device("emulator") as device, device.queue() as queue:
            host, there = device.host_buffer(1 << 20, "int8"), device.buffer(1 << 20, "int8")
            queue.fill(there, 1)
            queue.copy(host, there).wait()

    once()
    gc.collect()
    before, maps, threads = open_descriptors(), _maps(), threading.active_count()
    for _ in range(8):
        once()
    gc.collect()
    assert open_descriptors() == before
    assert _maps() <= maps + 4  # the allocator of the C library may take some
    assert threading.active_count() <= threads  # one of an earlier test may end now


@pytest.mark.slow
def test_opening_fifty_devices_leaks_nothing() -> None:
    test_opening_and_closing_leaks_nothing()
    before, maps = open_descriptors(), _maps()
    for _ in range(6):
        test_opening_and_closing_leaks_nothing()
    assert open_descriptors() == before
    assert _maps() <= maps + 8


def test_an_emulator_that_cannot_start_is_reported_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, leaves_nothing: None, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(broken))
    with pytest.raises(sdk.DeviceLost, match="exit code 3"):
        sdk.Device("emulator")
    monkeypatch.setattr("sys.executable", str(tmp_path / "missing"))
    with pytest.raises(sdk.DeviceLost, match="did not start"):
        sdk.Device("emulator")


def test_a_limit_too_short_for_bring_up_is_a_time_out(leaves_nothing: None) -> None:
    with pytest.raises(sdk.Timeout):
        sdk.Device("emulator", timeout=0.001)


INTERRUPTED = """
import random, signal, sys, threading, time
import numpy as np
import sdk

SWALLOWED_S = 1.0  # an interrupt that hits a finaliser is reported there and goes no further
seed, rounds = int(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
device = sdk.Device("emulator")
stop = threading.Event()
shared = device.queue(depth=16)

def companion():
    there = device.buffer(1 << 20, "int8")
    while not stop.is_set():
        try:
            shared.fill(there, 1).wait()
        except sdk.Closed:
            return

def work():
    host, there = device.host_buffer(1000, "int32"), device.buffer(1000, "int32")
    with device.queue(depth=8) as queue:
        for value in range(chance.randrange(1, 20)):
            queue.fill(there, value)
            with queue.batch() as batch:
                batch.nop()
                batch.nop()
        queue.submit(np.zeros(100, sdk.DESCRIPTOR))
        queue.copy(host, there).wait()
        shared.nop().wait()
        there.free()

threads = [threading.Thread(target=companion) for _ in range(2)]
for thread in threads:
    thread.start()
interrupts = 0
for _ in range(rounds):
    try:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 2e-2))
        limit = time.monotonic() + SWALLOWED_S
        while time.monotonic() < limit:
            work()
    except KeyboardInterrupt:
        pass
    interrupts += 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    work()
if len(sys.argv) > 3:
    stop.set()
    for thread in threads:
        thread.join(30)
    for _ in range(rounds):
        try:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-2))
            limit = time.monotonic() + SWALLOWED_S
            while time.monotonic() < limit:
                device.reset()
        except KeyboardInterrupt:
            pass
        interrupts += 1
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        shared = device.queue()
        work()
stop.set()
for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
device.close()
print("interrupts", interrupts)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_ctrl_c_at_any_point_leaves_the_device_usable(seed: int) -> None:
    assert run(INTERRUPTED, str(seed), "60").split() == ["interrupts", "60"]


def test_ctrl_c_in_a_reset_leaves_the_device_usable() -> None:
    assert run(INTERRUPTED, "3", "15", "resets").split() == ["interrupts", "30"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 13))
def test_ctrl_c_at_very_many_points(seed: int) -> None:
    assert run(INTERRUPTED, str(seed), "300", "resets").split() == ["interrupts", "600"]
