"""Events: waiting and awaiting, any number of times, from any number of threads and loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import sdk
from driver_shim import timeouts
from tests.support.busy_queues import occupied
from tests.support.children import stopped
from tests.support.rigs import TEST_TIMEOUT_S, Rig, in_process_rig, process_rig

LONG = 128 << 20
"""A fill of so many bytes keeps a queue of the emulator busy for milliseconds."""


@pytest.fixture(scope="module")
def emulated_rig() -> Iterator[Rig]:
    """An emulator process."""
    with process_rig() as rig:
        yield rig


@pytest.fixture(scope="module")
def emulated(emulated_rig: Rig) -> Iterator[sdk.Device]:
    """A device of a process of its own, where commands end while nobody waits."""
    with emulated_rig.device() as device:
        yield device


@pytest.fixture
def emulator(emulated_rig: Rig) -> int:
    """Its process."""
    assert emulated_rig.pid is not None
    return emulated_rig.pid


def in_threads(*calls: Callable[[], object]) -> None:
    """Run them at once, each in a thread; raises the first error."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def bad() -> np.ndarray:
    array = np.zeros(1, sdk.DESCRIPTOR)
    array["opcode"] = 0x60
    return array


# --- waiting --------------------------------------------------------------------------------------------------------


def test_wait_returns_the_event_and_result_its_value(device: sdk.Device) -> None:
    with device.queue() as queue:
        event = queue.nop()
        assert event.wait() is event and event.wait(0) is event
        assert event.result() is None and event.result(timeout=0) is None
        assert event.done() and "done" in repr(event)


def test_ticks_are_there_once_the_command_has_ended() -> None:
    with in_process_rig() as rig, rig.device() as device, device.queue() as queue:
        event = queue.nop()
        assert event.start_tick is None and event.end_tick is None and "pending" in repr(event)
        event.wait()
        assert isinstance(event.start_tick, int) and isinstance(event.end_tick, int)


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, "1", True])
def test_unusable_time_outs_are_value_errors(device: sdk.Device, timeout: object) -> None:
    with device.queue() as queue:
        there = device.buffer(LONG, "uint8")
        event = queue.fill(there, 1)
        with pytest.raises(ValueError, match="timeout must be"):
            event.wait(timeout)  # type: ignore[arg-type]
        event.wait(math.inf)


def test_a_time_out_leaves_the_job_going(emulated: sdk.Device, emulator: int) -> None:
    there = emulated.buffer(LONG, "uint8")
    with emulated.queue() as queue:
        event = queue.fill(there, 1)
        for timeout in (0, 0.0, 1e-9, 0.001):
            with contextlib.suppress(sdk.Timeout):
                event.wait(timeout)
        assert event.wait() is event and event.result() is None
        with stopped(emulator):
            event = queue.fill(there, 2)
            with pytest.raises(sdk.Timeout) as caught:
                event.wait(0)
        event.wait()
        assert isinstance(caught.value, TimeoutError) and caught.value.remedy


def test_the_device_bounds_waits_without_a_limit_of_their_own() -> None:
    with process_rig() as rig, rig.device() as device:
        assert device.timeout == TEST_TIMEOUT_S
        device._function.timeout = 0.05  # now that it is up: that takes longer on a loaded machine
        there = device.buffer(1 << 29, "uint8")
        queue, last = occupied(device, there)
        with pytest.raises(sdk.Timeout, match=r"0\.05 s"):
            last.wait()
        with pytest.raises(sdk.Timeout, match=r"0\.05 s"):
            asyncio.run(_awaited(last))
        queue.close()
        with device.queue() as queue:
            for _ in range(4):
                another = queue.fill(there, 1)
            another.wait(math.inf)


def test_a_failure_is_raised_each_time_and_by_every_way(device: sdk.Device) -> None:
    async def awaiting(event: sdk.Event[Any]) -> Any:
        return await event

    with device.queue() as queue:
        event = queue.submit(bad())
        for look in (event.wait, event.result, lambda: asyncio.run(awaiting(event)), event.wait):
            with pytest.raises(sdk.CommandFailed) as caught:
                look()
            assert caught.value.code == "invalid-opcode" and caught.value.index == 0
            assert caught.value.device == device.address
        assert "failed" in repr(event)


def test_only_failures_that_nobody_saw_are_logged(device: sdk.Device, npu_log: pytest.LogCaptureFixture) -> None:
    with device.queue() as queue, npu_log.at_level(logging.ERROR, logger="npu"):
        with pytest.raises(sdk.CommandFailed):
            queue.submit(bad()).wait()
        gc.collect()
        assert not npu_log.records
        queue.submit(bad())
        queue.nop().wait()
        gc.collect()
        assert [record.levelname for record in npu_log.records] == ["ERROR"]
        assert "nobody waited" in npu_log.text and "invalid-opcode" in npu_log.text


def test_events_outlive_their_queue_and_its_device() -> None:
    with in_process_rig() as rig:
        with rig.device() as device, device.queue() as queue:
            fine, failed = queue.nop(), queue.submit(bad())
            unfinished = device.queue().nop()
            device.queue().drain()
            queue.drain()
        assert fine.wait(0) is fine and unfinished.done()
        with pytest.raises(sdk.CommandFailed):
            failed.wait()
        asyncio.run(_awaited(fine))


# --- event loops ----------------------------------------------------------------------------------------------------


async def _awaited(event: sdk.Event[Any]) -> Any:
    return await event


def test_an_event_can_be_awaited_any_number_of_times_from_any_loop(device: sdk.Device) -> None:
    async def several(event: sdk.Event[None]) -> None:
        await event
        await asyncio.gather(*[_awaited(event) for _ in range(20)])

    with device.queue() as queue:
        event = queue.nop()
        asyncio.run(several(event))
        asyncio.run(several(event))
        event.wait(0)


def test_loops_that_were_closed_leave_no_descriptors(emulated: sdk.Device) -> None:
    with emulated.queue() as queue:
        asyncio.run(_awaited(queue.nop()))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            with contextlib.suppress(sdk.Timeout):
                asyncio.run(_awaited(queue.nop()))
        assert len(os.listdir("/proc/self/fd")) <= before


def test_what_was_awaited_when_its_queue_ended_is_not_logged_as_unseen(
    emulated: sdk.Device, npu_log: pytest.LogCaptureFixture
) -> None:
    there = emulated.buffer(1 << 29, "uint8")

    async def main() -> None:
        queue, last = occupied(emulated, there)
        events: list[sdk.Event[Any]] = [last, *(queue.nop() for _ in range(50))]
        awaiting = [asyncio.ensure_future(_awaited(event)) for event in events]
        await asyncio.sleep(0.01)
        queue.close()
        await awaiting[0]  # the first that fails ends the loop, and all others are cancelled

    with npu_log.at_level(logging.ERROR, logger="npu"):
        with pytest.raises(sdk.CommandFailed, match="closed"):
            asyncio.run(main())
        gc.collect()
        assert not [record for record in npu_log.records if record.name == "npu"]


def test_awaiting_takes_no_thread_and_lets_the_loop_run(
    emulated: sdk.Device, emulator: int, no_second_look: None
) -> None:
    async def main() -> None:
        before = threading.active_count()
        with emulated.queue() as queue:
            there = emulated.buffer(LONG, "uint8")
            with stopped(emulator):
                tasks = [asyncio.ensure_future(_awaited(queue.fill(there, value))) for value in range(8)]
                for _ in range(5):
                    await asyncio.sleep(0.001)
                    assert threading.active_count() == before and not any(task.done() for task in tasks)
            await asyncio.gather(*tasks)

    asyncio.run(main())


def test_loops_leave_no_reader_and_no_descriptor_behind(emulated: sdk.Device, leaves_nothing: None) -> None:
    async def main() -> None:
        for _ in range(20):  # a vector is used by one queue after the other
            with emulated.queue() as queue:
                await queue.nop()
                await asyncio.gather(*[_awaited(queue.nop()) for _ in range(5)])
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        assert len(loop._selector.get_map()) == 1  # type: ignore[attr-defined] # asyncio's own pipe

    for _ in range(3):
        asyncio.run(main())


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleepers never look again by themselves, so a wake-up that is lost ends in a time-out."""
    monkeypatch.setattr(timeouts, "LIVENESS_S", 3600.0)


def test_queues_that_follow_each_other_in_one_loop_wake_it(emulated: sdk.Device, no_second_look: None) -> None:
    """A queue that left must not take the reader of the next one on its vector along."""

    async def main() -> None:
        there = emulated.buffer(LONG, "uint8")
        for _ in range(40):
            with emulated.queue() as queue:
                for value in range(4):
                    await queue.fill(there, value)

    asyncio.run(main())


def test_cancelling_a_task_does_not_stop_the_job(emulated: sdk.Device, emulator: int, no_second_look: None) -> None:
    there, host = emulated.buffer(LONG, "uint8"), emulated.host_buffer(16, "uint8")

    async def main() -> None:
        with emulated.queue() as queue:
            with stopped(emulator):
                event = queue.fill(there, 7)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(_awaited(event), 0.001)
                task = asyncio.ensure_future(_awaited(event))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await event
            await queue.copy(host, there[:16])

    asyncio.run(main())
    assert (host.array == 7).all()


def test_a_loop_that_is_closed_while_it_awaits_harms_nobody(emulated: sdk.Device) -> None:
    there = emulated.buffer(LONG, "uint8")
    with emulated.queue() as queue:
        for _ in range(3):
            event = queue.fill(there, 1)
            loop = asyncio.new_event_loop()
            waiting = loop.create_task(asyncio.wait([loop.create_task(_awaited(event))], timeout=0))
            loop.run_until_complete(waiting)
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.call_soon(loop.stop)
            loop.run_forever()
            loop.close()
            event.wait()
            asyncio.run(_awaited(queue.nop()))


def test_a_failure_reaches_a_task_that_awaits(device: sdk.Device) -> None:
    async def main() -> None:
        with device.queue() as queue:
            with pytest.raises(sdk.CommandFailed):
                await queue.submit(bad())
            results = await asyncio.gather(
                *[_awaited(queue.submit(bad())) for _ in range(4)], _awaited(queue.nop()), return_exceptions=True
            )
        assert [type(result) for result in results[:4]] == [sdk.CommandFailed] * 4 and results[4] is None

    asyncio.run(main())


# --- many at once ---------------------------------------------------------------------------------------------------


def test_threads_and_loops_share_one_queue_and_no_wake_up_is_lost(emulated: sdk.Device, no_second_look: None) -> None:
    with emulated.queue(depth=64) as queue:
        there = emulated.buffer(LONG, "uint8")

        def some(chance: random.Random) -> sdk.Event[None]:
            return queue.fill(there[: chance.choice((64, 4 << 20, LONG))], 1) if chance.random() < 0.3 else queue.nop()

        def syncing(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(100):
                some(chance).wait()

        async def looping(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(100):
                await asyncio.gather(*[_awaited(some(chance)) for _ in range(3)])

        in_threads(
            *[lambda seed=seed: syncing(seed) for seed in range(4)],
            *[lambda seed=seed: asyncio.run(looping(seed)) for seed in (8, 9)],
        )


def test_one_event_wakes_every_waiter(emulated: sdk.Device, no_second_look: None) -> None:
    there = emulated.buffer(LONG, "uint8")
    with emulated.queue() as queue:
        event = queue.fill(there, 3)

        async def looping() -> None:
            await asyncio.gather(*[_awaited(event) for _ in range(10)])

        in_threads(*[event.wait] * 6, *[lambda: asyncio.run(looping())] * 2)
        assert event.done()


def test_submitting_threads_keep_their_own_order(emulated: sdk.Device) -> None:
    hosts = [emulated.host_buffer(1, "int32") for _ in range(4)]
    with emulated.queue(depth=16) as queue:

        def count(host: sdk.HostBuffer) -> None:
            for value in range(300):
                event = queue.fill(host, value)
            event.wait()
            assert host.array[0] == 299

        in_threads(*[lambda host=host: count(host) for host in hosts])


def test_every_thread_may_use_its_own_queue(emulated: sdk.Device) -> None:
    def work(seed: int) -> None:
        for _ in range(10):
            with emulated.queue(depth=8) as queue:
                host, there = emulated.host_buffer(100, "int32"), emulated.buffer(100, "int32")
                queue.fill(there, seed)
                queue.copy(host, there).wait()
                assert (host.array == seed).all()
                there.free()

    in_threads(*[lambda seed=seed: work(seed) for seed in range(6)])
