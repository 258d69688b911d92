"""Resets, loss, close and fork, each while threads and loops use the device."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import sdk
from tests.support.busy_queues import occupied
from tests.support.children import stopped
from tests.support.forks import FORKS_WITH_THREADS, exit_status
from tests.support.rigs import in_process_rig, process_rig
from tests.support.waiting import wait_until

BIG = 256 << 20
PATIENCE_S = 60.0


@pytest.fixture
def victim() -> sdk.Device:  # type: ignore[misc]
    """A private emulator to do harm to."""
    device = sdk.Device("emulator", timeout=PATIENCE_S)
    yield device
    device.close()


def process_of(device: sdk.Device) -> int:
    """Before it is stopped: `info` may ask the device for its firmware."""
    assert device.info.pid is not None
    return device.info.pid


def working(device: sdk.Device) -> None:
    """Fails unless the device computes."""
    host, there = device.host_buffer(64, "int32"), device.buffer(64, "int32")
    with device.queue() as queue:
        queue.fill(there, 7)
        queue.copy(host, there).wait()
    assert (host.array == 7).all()


# --- reset ----------------------------------------------------------------------------------------------------------


def test_a_reset_fails_what_is_outstanding_and_closes_what_is_on_the_device(device: sdk.Device) -> None:
    host, there = device.host_buffer(8, "int8"), device.buffer(BIG, "uint8")
    host.array[...] = 5
    queue, slow = occupied(device, there)
    behind = queue.nop()
    device.reset()
    for wait in (slow.wait, behind.wait):
        with pytest.raises(sdk.CommandFailed) as caught:
            wait()
        assert caught.value.code == "device-reset" and caught.value.device == device.address
    for call in (queue.nop, lambda: queue.submit(np.zeros(1, sdk.DESCRIPTOR)), lambda: there.address):
        with pytest.raises(sdk.Closed):
            call()
    with pytest.raises(sdk.Closed):
        queue.fill(host, 1)
    there.free()
    assert (host.array == 5).all()
    with device.queue() as another:
        another.fill(host, 6).wait()
    assert (host.array == 6).all()
    working(device)


def test_resets_can_follow_each_other(device: sdk.Device) -> None:
    for _ in range(20):
        device.queue().nop()
        device.reset()
    working(device)


def test_threads_and_loops_meet_a_reset_with_nothing_but_device_reset_and_closed(victim: sdk.Device) -> None:
    stop = threading.Event()
    seen: set[str] = set()
    there = victim.buffer(BIG, "uint8")
    queues = [victim.queue(depth=32) for _ in range(2)]
    _, outstanding = occupied(victim, there)  # the others may all be between two commands when the reset comes
    rounds = threading.Semaphore(0)

    def submitting(queue: sdk.Queue) -> None:
        while not stop.is_set():
            queue.nop()
            queue.submit(np.zeros(50, sdk.DESCRIPTOR))
            with queue.batch() as batch:
                batch.nop()

    def waiting(queue: sdk.Queue) -> None:
        while not stop.is_set():
            queue.fill(there, 1).wait()
            queue.nop().wait()
            rounds.release()

    async def awaiting(queue: sdk.Queue) -> None:
        while not stop.is_set():
            await asyncio.gather(*[_awaited(queue.fill(there, 2)) for _ in range(3)])

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except sdk.NpuError as error:
            seen.add(error.code)

    calls: list[Callable[[], object]] = [outstanding.wait]
    for queue in queues:
        calls += [
            lambda queue=queue: submitting(queue),  # type: ignore[misc]
            lambda queue=queue: waiting(queue),  # type: ignore[misc]
            lambda queue=queue: asyncio.run(awaiting(queue)),  # type: ignore[misc]
        ]
    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for _ in range(2 * len(queues)):  # else a reset could come before anybody waits for anything
        assert rounds.acquire(timeout=PATIENCE_S)
    victim.reset()
    for thread in threads:
        thread.join(PATIENCE_S)
    stop.set()
    assert not any(thread.is_alive() for thread in threads)
    assert seen <= {"device-reset", "closed"} and "device-reset" in seen
    working(victim)


async def _awaited(event: sdk.Event[None]) -> None:
    await event


def test_allocations_loads_and_log_pages_meet_resets(victim: sdk.Device) -> None:
    """Whatever runs beside a reset works, or says device-reset or closed; nothing dead-locks, nothing is mixed up."""
    stop = threading.Event()

    def allocating() -> None:
        while not stop.is_set():
            buffer = victim.buffer(1000, "int8")
            host = victim.host_buffer(1000, "int8")
            buffer.free()
            host.free()

    def asking() -> None:
        while not stop.is_set():
            _tolerant(victim.activity)
            _tolerant(victim.errors)

    def queueing() -> None:
        while not stop.is_set():
            _tolerant(lambda: working(victim))

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(work) for work in (allocating, asking, queueing, queueing)]
        try:
            for _ in range(15):
                victim.reset()
        finally:
            stop.set()
        for future in futures:
            future.result(PATIENCE_S)
    working(victim)


def _tolerant(call: Callable[[], object]) -> None:
    try:
        call()
    except sdk.NpuError as error:
        if error.code not in ("device-reset", "closed"):
            raise


# --- loss -----------------------------------------------------------------------------------------------------------


def test_every_waiter_sees_the_device_die(victim: sdk.Device) -> None:
    there = victim.buffer(BIG, "uint8")
    queue, emulator = victim.queue(depth=1024), process_of(victim)
    os.kill(emulator, signal.SIGSTOP)  # so that nothing ends before it dies
    events = [queue.fill(there, 1) for _ in range(100)]

    async def awaiting() -> None:
        results = await asyncio.gather(*map(_awaited, events), return_exceptions=True)
        assert {type(result) for result in results} == {sdk.DeviceLost}

    def waiting(event: sdk.Event[None]) -> None:
        with pytest.raises(sdk.DeviceLost) as caught:
            event.wait()
        assert isinstance(caught.value, ConnectionError)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(waiting, event) for event in events[::20]]
        futures += [pool.submit(asyncio.run, awaiting()) for _ in range(2)]
        os.kill(emulator, signal.SIGKILL)
        for future in futures:
            future.result(PATIENCE_S)
    for call in (
        queue.nop,
        victim.queue,
        lambda: victim.buffer(1, "int8"),
        lambda: victim.host_buffer(1, "int8"),
        victim.activity,
        victim.reset,
    ):
        with pytest.raises(sdk.DeviceLost):
            call()
    assert victim.closed and victim.info.profile == "generic"
    there.free()


@pytest.mark.parametrize("what", ["activity", "queue", "reset", "close", "load"])
def test_a_device_that_dies_during_a_call_is_lost(what: str, victim: sdk.Device) -> None:
    queue = victim.queue()
    event = queue.nop()
    chance = random.Random(what)
    timer = threading.Timer(chance.random() * 0.02, os.kill, (process_of(victim), signal.SIGKILL))
    timer.start()
    try:
        with pytest.raises(sdk.DeviceLost):
            while True:
                if what == "queue":
                    victim.queue(depth=2).close()
                elif what == "load":
                    _load(victim)
                elif what == "close":
                    queue.nop().wait()
                else:
                    getattr(victim, what)()
    finally:
        timer.join(PATIENCE_S)
    victim.close()
    assert event.done()
    with pytest.raises((sdk.DeviceLost, sdk.Closed)):
        queue.nop()


def _load(device: sdk.Device) -> None:
    try:
        device._function.load_program(b"no program", ())
    except sdk.CommandFailed as error:
        assert error.code == "program-rejected"


def test_a_device_that_dies_while_it_closes_is_closed(victim: sdk.Device) -> None:
    _, event = occupied(victim, victim.buffer(BIG, "uint8"))
    os.kill(process_of(victim), signal.SIGKILL)
    victim.close()
    victim.close()
    assert victim.closed
    with pytest.raises(sdk.NpuError):
        event.wait()


def test_leaving_a_with_block_of_a_dead_device_says_so() -> None:
    with pytest.raises(sdk.DeviceLost), sdk.Device("emulator") as device:
        queue, emulator = device.queue(), process_of(device)
        os.kill(emulator, signal.SIGSTOP)
        queue.nop()
        os.kill(emulator, signal.SIGKILL)
    assert device.closed


# --- close ----------------------------------------------------------------------------------------------------------


def test_closing_with_commands_in_flight_fails_them() -> None:
    with in_process_rig() as rig:
        device = rig.device()
        queue, host = device.queue(), device.host_buffer(8, "int8")
        array = host.array
        event = queue.fill(host, 1)
        device.close()
        device.close()
        with pytest.raises(sdk.CommandFailed) as caught:
            event.wait()
        assert caught.value.code == "device-closed"
        for call in (queue.nop, device.reset, device.errors, device.queue, lambda: device.load("no.onnx")):
            with pytest.raises(sdk.Closed):
                call()
        queue.close()
        host.free()
        assert array.shape == (8,) and "closed" in repr(device) and device.info.name


def test_closing_wakes_whoever_waits(victim: sdk.Device) -> None:
    there = victim.buffer(BIG, "uint8")
    _, event = occupied(victim, there)
    codes: list[str] = []

    def waiting() -> None:
        try:
            event.wait()
        except sdk.NpuError as error:
            codes.append(error.code)

    async def awaiting() -> None:
        try:
            await event
        except sdk.NpuError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=waiting) for _ in range(3)]
    threads.append(threading.Thread(target=lambda: asyncio.run(awaiting())))
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    victim.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(codes) == 4 and set(codes) <= {"device-closed", "closed"}


def test_a_loss_that_a_waiting_thread_was_told_of_is_not_logged_as_unseen(
    npu_log: pytest.LogCaptureFixture,
) -> None:
    def lose() -> None:
        with process_rig() as rig, rig.device() as device, device.queue() as queue:
            assert rig.pid is not None
            os.kill(rig.pid, signal.SIGSTOP)
            event = queue.nop()
            killer = threading.Timer(0.3, os.kill, (rig.pid, signal.SIGKILL))  # while it sleeps
            killer.start()
            with pytest.raises(sdk.DeviceLost):
                event.wait(PATIENCE_S)
            killer.join(PATIENCE_S)

    with npu_log.at_level(logging.ERROR, logger="npu"):
        lose()
        gc.collect()  # the loss, which the device kept, held on to where it was raised, and that to the event
        assert not [record for record in npu_log.records if "nobody waited" in record.getMessage()]


# --- fork -----------------------------------------------------------------------------------------------------------


def _in_child(device: sdk.Device, queue: sdk.Queue, host: sdk.HostBuffer, pending: sdk.Event[None]) -> None:
    """What a forked child may try; each must raise Closed, promptly."""
    calls: list[Callable[[], object]] = [
        queue.nop,
        queue.barrier,
        queue.drain,
        lambda: queue.fill(host, 1),
        lambda: queue.submit(np.zeros(1, sdk.DESCRIPTOR)),
        pending.wait,
        pending.result,
        lambda: asyncio.run(_awaited(pending)),
        lambda: host.array,
        lambda: host.address,
        lambda: device.host_buffer(1, "int8"),
        lambda: device.buffer(1, "int8"),
        device.queue,
        device.reset,
        device.errors,
        lambda: device.load("model.onnx"),
    ]
    for call in calls:
        try:
            call()
        except sdk.Closed as error:
            assert "parent" in str(error) or "freed" in str(error)
        else:
            raise AssertionError(f"{call} was not refused")
    assert pending.done()
    queue.close()
    host.free()
    device.close()


@FORKS_WITH_THREADS
@pytest.mark.parametrize("way", ["exit", "_exit"])
def test_a_forked_child_gets_closed_and_harms_nothing(victim: sdk.Device, way: str) -> None:
    queue = victim.queue(depth=64)
    host, there = victim.host_buffer(64, "int32"), victim.buffer(BIG, "uint8")
    stop = threading.Event()

    def busy() -> None:  # so that the fork finds locks taken
        while not stop.is_set():
            queue.fill(there, 1).wait()

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            occupied_queue, _ = occupied(victim, there)
            pending = occupied_queue.fill(there, 2)  # whatever the other threads reap until the fork
            if way == "exit":
                child = multiprocessing.get_context("fork").Process(
                    target=_in_child, args=(victim, queue, host, pending)
                )
                child.start()
                child.join(PATIENCE_S)
                assert child.exitcode == 0
                child.close()
            else:
                pid = os.fork()
                if pid == 0:
                    status = 1
                    try:
                        _in_child(victim, queue, host, pending)
                        status = 0
                    finally:
                        os._exit(status)
                assert exit_status(pid) == 0
            occupied_queue.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    queue.fill(host, 9).wait()
    assert (host.array == 9).all()
    working(victim)


@FORKS_WITH_THREADS
def test_a_forked_child_gets_closed_for_a_command_that_waits_for_room() -> None:
    """It is in no slot of the ring yet, and the ring's pages are not inherited."""
    with process_rig() as rig, rig.device() as device:
        assert rig.pid is not None
        queue = device.queue(depth=2)
        recorded: list[sdk.Event[None]] = []

        def submit() -> None:
            with queue.batch() as batch:
                recorded.extend((batch.nop(), batch.nop()))
                full.wait(PATIENCE_S)
                leaving.set()

        full, leaving = threading.Event(), threading.Event()
        with stopped(rig.pid):
            queue.nop()
            queue.nop()
            thread = threading.Thread(target=submit)
            thread.start()
            full.set()
            assert leaving.wait(PATIENCE_S)
            wait_until(lambda: not recorded[0]._recording._is_open, "the block has ended")  # type: ignore[union-attr]
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    recorded[0].wait(PATIENCE_S)
                except sdk.Closed:
                    status = 0
                finally:
                    os._exit(status)
            assert exit_status(pid) == 0
        thread.join(PATIENCE_S)
        recorded[1].wait()


@FORKS_WITH_THREADS
def test_a_child_can_open_a_device_of_its_own(victim: sdk.Device) -> None:
    child = multiprocessing.get_context("fork").Process(target=_open_and_work)
    child.start()
    child.join(PATIENCE_S)
    assert child.exitcode == 0
    child.close()
    working(victim)


def _open_and_work() -> None:
    with sdk.Device("emulator") as device:
        working(device)
