"""Queues: what they accept, how they fill, batches, raw descriptors, and what they keep alive."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import sdk
from driver_shim.protocol.commands import IoOpcode, Space
from tests.support.busy_queues import occupied
from tests.support.rigs import in_process_rig

BIG = 256 << 20
"""A fill that takes the device many slices."""


def nops(count: int) -> np.ndarray:
    return np.zeros(count, sdk.DESCRIPTOR)


@pytest.mark.parametrize("depth", [1, 0, -1, 4097, 2.0, "8", None, True])
def test_depth_is_an_int_from_2_to_4096(device: sdk.Device, depth: object) -> None:
    with pytest.raises(ValueError, match="2 to 4096"):
        device.queue(depth=depth)  # type: ignore[arg-type]


def test_unknown_ways_to_be_full_are_refused(device: sdk.Device) -> None:
    with pytest.raises(ValueError, match='"wait" or "raise"'):
        device.queue(when_full="drop")


@pytest.mark.parametrize("keyword", ["priority", "deadline", "ordered"])
def test_keywords_that_are_not_built_are_type_errors(device: sdk.Device, keyword: str) -> None:
    with pytest.raises(TypeError):
        device.queue(**{keyword: "normal"})  # type: ignore[arg-type]
    with device.queue() as queue, pytest.raises(TypeError):
        queue.nop(**{keyword: 1})


@pytest.mark.parametrize("depth", [2, 3, 64, 100, 4096])
def test_a_full_queue_that_raises_does_so_at_depth_plus_one(depth: int) -> None:
    with in_process_rig() as rig, rig.device() as device, device.queue(depth=depth, when_full="raise") as queue:
        events = [queue.nop() for _ in range(depth)]
        with pytest.raises(sdk.QueueFull) as caught:
            queue.nop()
        assert caught.value.depth == depth and isinstance(caught.value, BlockingIOError)
        with pytest.raises(sdk.QueueFull):
            queue.submit(nops(1))
        assert not any(event.done() for event in events)  # in process the device runs only while somebody waits
        events[-1].wait()
        for _ in range(depth):
            queue.nop()
        queue.drain()


def test_a_submission_that_does_not_fit_leaves_nothing_behind() -> None:
    with in_process_rig() as rig, rig.device() as device, device.queue(depth=8, when_full="raise") as queue:
        there = device.buffer(8, "int8")
        queue.fill(there, 1).wait()
        with pytest.raises(sdk.QueueFull):
            queue.submit(nops(9), keep=(there,))
        queue.nop()
        with pytest.raises(sdk.QueueFull):
            queue.submit(nops(8), keep=(there,))
        with pytest.raises(sdk.QueueFull), queue.batch() as batch:
            recorded = [batch.fill(there, 2) for _ in range(8)]
        for event in recorded:
            with pytest.raises(sdk.CommandFailed) as caught:
                event.wait()
            assert caught.value.code == "batch-dropped"
        queue.drain()
        there.free()
        before = device.activity()
        assert (queue.submit(nops(8)).result() == 0).all()
        assert device.activity().nop_commands == before.nop_commands + 8


@pytest.mark.parametrize("depth", [2, 5, 4096])
def test_a_queue_that_waits_takes_any_number(device: sdk.Device, depth: int) -> None:
    before = device.activity().nop_commands
    with device.queue(depth=depth) as queue:
        for _ in range(5000):
            queue.nop()
        event = queue.submit(nops(10_001))
        with queue.batch() as batch:
            for _ in range(5001):
                batch.nop()
        assert event.result().shape == (10_001,)
    assert device.activity().nop_commands == before + 20_002


def test_all_queues_of_the_device_can_be_open_and_one_more_is_refused(device: sdk.Device) -> None:
    limit = device.info.max_queues
    assert limit is not None
    queues = [device.queue(depth=2) for _ in range(limit)]
    with pytest.raises(sdk.CommandFailed, match="in use") as caught:
        device.queue()
    assert caught.value.remedy
    for queue in queues:
        queue.nop().wait()
    queues[7].close()
    device.queue().nop().wait()
    for queue in queues:
        queue.close()


# --- copy and fill --------------------------------------------------------------------------------------------------


def test_copies_need_equal_shapes_and_dtypes(device: sdk.Device) -> None:
    with device.queue() as queue:
        target = device.buffer((4, 4), "int8")
        for shape, dtype in (((16,), "int8"), ((4, 4), "uint8"), ((4, 5), "int8"), ((4, 4, 1), "int8")):
            with pytest.raises(ValueError, match="equal shapes and dtypes"):
                queue.copy(target, device.host_buffer(shape, dtype))


def test_arrays_are_refused_with_the_line_that_mends_it(device: sdk.Device) -> None:
    with device.queue() as queue:
        target = device.buffer((4, 4), "int8")
        array = np.zeros((4, 4), np.int8)
        for call in (
            lambda: queue.copy(target, array),  # type: ignore[arg-type]
            lambda: queue.copy(array, target),  # type: ignore[arg-type]
            lambda: queue.fill(array, 0),  # type: ignore[arg-type]
            lambda: queue.submit(nops(1), keep=(array,)),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError, match=r"host_buffer\(\(4, 4\), 'int8'\)"):
                call()
        with pytest.raises(TypeError, match="buffer"):
            queue.copy(target, [1, 2])  # type: ignore[arg-type]


def test_slices_and_rows_are_copied(device: sdk.Device) -> None:
    host, there = device.host_buffer((6, 4), "int32"), device.buffer((6, 4), "int32")
    host.array[...] = np.arange(24).reshape(6, 4)
    result = device.host_buffer((6, 4), "int32")
    with device.queue() as queue:
        queue.fill(there, -1)
        queue.copy(there[1:3], host[4:6])
        queue.copy(there[5], host[0])
        queue.fill(there[0][1:3], 9)
        queue.copy(result, there).wait()
        queue.copy(result[0], result[5]).wait()
    expected = np.full((6, 4), -1, np.int32)
    expected[1:3], expected[5] = host.array[4:6], host.array[0]
    expected[0] = expected[5]
    np.testing.assert_array_equal(result.array, expected)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("bf16", -1.5), ("float16", float("inf")), ("float32", float("nan")), ("complex64", 1 - 2j), ("float64", -0.0)],
)
def test_fill_of_every_width(device: sdk.Device, dtype: str, value: complex) -> None:
    host, there = device.host_buffer(37, dtype), device.buffer(37, dtype)
    with device.queue() as queue:
        queue.fill(there, value)
        queue.copy(host, there).wait()
    expected = np.full(37, value, host.dtype)
    assert host.array.tobytes() == expected.tobytes()
    with device.queue() as queue, pytest.raises(ValueError, match="exactly representable"):
        queue.fill(there, 1 / 3 if dtype != "float64" else 2**53 + 1)


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_doorbell_and_invisible_before_its_end(device: sdk.Device) -> None:
    host, there = device.host_buffer(8, "int32"), device.buffer(8, "int32")
    before = device.activity()
    with device.queue() as queue:
        with queue.batch() as batch:
            batch.fill(there, 5)
            batch.barrier()
            last = batch.copy(host, there)
            assert len(batch) == 3 and not last.done()
            assert device.activity().fill_commands == before.fill_commands
        last.wait()
    after = device.activity()
    assert (host.array == 5).all()
    assert (after.fill_commands, after.copy_commands, after.barrier_commands) == (
        before.fill_commands + 1,
        before.copy_commands + 1,
        before.barrier_commands + 1,
    )


def test_an_exception_drops_the_whole_batch(device: sdk.Device) -> None:
    there = device.buffer(8, "int32")
    before = device.activity()
    with device.queue() as queue:
        with pytest.raises(KeyError), queue.batch() as batch:
            event = batch.fill(there, 5)
            raise KeyError
        with pytest.raises(sdk.CommandFailed) as caught:
            event.result()
        assert caught.value.code == "batch-dropped" and event.done()
        queue.nop().wait()
        there.free()
    assert device.activity().fill_commands == before.fill_commands


def test_waiting_inside_a_batch_is_refused_rather_than_endless(device: sdk.Device) -> None:
    with device.queue() as queue, queue.batch() as batch:
        event = batch.nop()
        with pytest.raises(ValueError, match="only recorded"):
            event.wait()
        with pytest.raises(ValueError, match="only recorded"):
            event.result(0)
        with pytest.raises(ValueError, match="only recorded"):
            event.__await__().send(None)
        assert not event.done() and event.start_tick is None
    event.wait(10)


def test_a_batch_is_used_once(device: sdk.Device) -> None:
    with device.queue() as queue:
        batch = queue.batch()
        with pytest.raises(ValueError, match="with block"):
            batch.nop()
        with batch:
            batch.nop()
        with pytest.raises(ValueError, match="submitted"):
            batch.nop()
        with pytest.raises(ValueError, match="once"), batch:
            pass
        with queue.batch():
            pass  # an empty one is fine


# --- raw descriptors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4, np.uint8),
        np.zeros((2, 2), sdk.DESCRIPTOR),
        np.zeros((), sdk.DESCRIPTOR),
        np.zeros(4, sdk.DESCRIPTOR.newbyteorder(">")),
        [0] * 4,
        b"\0" * 64,
        None,
    ],
)
def test_what_is_no_array_of_descriptors_is_a_type_error(device: sdk.Device, array: object) -> None:
    with device.queue() as queue, pytest.raises(TypeError, match=r"sdk\.DESCRIPTOR"):
        queue.submit(array)  # type: ignore[arg-type]


def test_descriptors_of_any_layout_in_memory_are_taken_and_not_kept(device: sdk.Device) -> None:
    there, host = device.buffer(1000, "uint64"), device.host_buffer(1000, "uint64")
    fills = nops(1000)
    fills["opcode"], fills["pattern_size"], fills["size"] = IoOpcode.FILL, 8, 8
    fills["destination_space"] = Space.DEVICE
    fills["destination"] = there.address + 8 * np.arange(1000)
    fills["pattern"] = np.arange(1000) + 7
    spread = np.zeros(2000, sdk.DESCRIPTOR)
    spread[::2] = fills
    with device.queue() as queue:
        for source in (fills.copy(), spread[::2], fills[::-1]):
            read_only = source.view()
            read_only.flags.writeable = False
            queue.fill(there, 0)
            event = queue.submit(read_only, keep=there)
            assert not read_only["command_id"].any()  # ids are set in the ring, not here
            if source.flags.owndata:
                source[...] = 0  # may be reused as soon as submit returned
            assert (event.result() == 0).all() and event.result().dtype == np.uint8
            queue.copy(host, there).wait()
            np.testing.assert_array_equal(host.array, np.arange(1000) + 7)


def test_one_event_stands_for_all_descriptors(device: sdk.Device) -> None:
    with device.queue(depth=16) as queue:
        first, last = queue.nop(), None
        event = queue.submit(nops(500))
        last = queue.nop()
        last.wait()
        assert event.done() and first.done()
        assert first.end_tick is not None and event.start_tick is not None and event.end_tick is not None
        assert last.start_tick is not None
        assert first.end_tick <= event.start_tick <= event.end_tick <= last.start_tick


# --- keeping --------------------------------------------------------------------------------------------------------


def test_buffers_in_flight_cannot_be_freed_and_survive_being_let_go() -> None:
    with in_process_rig() as rig, rig.device() as device, device.queue() as queue:
        host, there = device.host_buffer(64, "int8"), device.buffer(64, "int8")
        event = queue.copy(there[2:8], host[2:8])
        for buffer in (host, there):
            with pytest.raises(sdk.BufferInUse) as caught:
                buffer.free()
            assert isinstance(caught.value, BufferError) and caught.value.remedy
            assert buffer.address >= 0
        observers: list[weakref.ref[sdk.HostBuffer | sdk.DeviceBuffer]] = [weakref.ref(host), weakref.ref(there)]
        del host, there, buffer, caught
        gc.collect()
        assert all(observer() is not None for observer in observers)
        event.wait()
        gc.collect()
        assert all(observer() is None for observer in observers)


def test_kept_buffers_of_raw_descriptors_are_pinned_until_all_of_them_ended() -> None:
    with in_process_rig() as rig, rig.device() as device, device.queue() as queue:
        there = device.buffer(64, "int8")
        for keep in (there, (there,), [there[1:3]]):
            event = queue.submit(nops(20), keep=keep)
            with pytest.raises(sdk.BufferInUse):
                there.free()
            event.wait()
        there.free()


def test_a_batch_pins_what_it_recorded_only_once_it_is_submitted() -> None:
    with in_process_rig() as rig, rig.device() as device, device.queue() as queue:
        kept = device.buffer(64, "int8")
        with queue.batch() as batch:
            event = batch.fill(kept, 0)
        with pytest.raises(sdk.BufferInUse):
            kept.free()
        event.wait()
        kept.free()


# --- the end --------------------------------------------------------------------------------------------------------


def test_leaving_a_queue_drains_it(device: sdk.Device) -> None:
    with device.queue() as queue:
        events = [queue.nop() for _ in range(200)]
    assert all(event.done() for event in events)
    assert queue.closed
    for event in events:
        event.wait()


def test_a_closed_queue_refuses_and_fails_what_was_in_flight(device: sdk.Device) -> None:
    there = device.buffer(BIG, "uint8")
    queue, slow = occupied(device, there)
    behind = queue.nop()
    queue.close()
    queue.close()
    for wait in (slow.wait, behind.wait):
        with pytest.raises(sdk.CommandFailed) as caught:
            wait()
        assert caught.value.code == "queue-closed"
    for call in (queue.nop, queue.barrier, lambda: queue.submit(nops(0)), lambda: queue.submit(nops(3)), queue.drain):
        with pytest.raises(sdk.Closed):
            call()
    with pytest.raises(sdk.Closed), queue.batch() as batch:
        batch.nop()
    there.free()


def test_leaving_by_an_exception_drains_nothing() -> None:
    with in_process_rig() as rig:
        with pytest.raises(KeyError), rig.device() as device:
            with pytest.raises(LookupError), device.queue() as queue:
                of_the_queue = queue.nop()
                raise LookupError
            of_the_device = device.queue().nop()
            raise KeyError
        assert device.closed
        for event, code in ((of_the_queue, "queue-closed"), (of_the_device, "device-closed")):
            with pytest.raises(sdk.CommandFailed) as caught:
                event.wait()
            assert caught.value.code == code
