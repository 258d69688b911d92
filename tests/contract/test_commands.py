"""What commands do and how they fail, on every transport."""

from __future__ import annotations

import numpy as np
import pytest

import sdk
from driver_shim.protocol.commands import BARRIER, COPY, DESCRIPTOR, FILL, NOP, IoOpcode, Space, Status


def descriptors(count: int, opcode: int = IoOpcode.NOP) -> np.ndarray:
    array = np.zeros(count, DESCRIPTOR)
    array["opcode"] = opcode
    return array


def test_nop_completes_with_ticks_of_the_profile(device: sdk.Device) -> None:
    with device.queue() as queue:
        event = queue.nop()
        assert event.result() is None
        assert event.start_tick is not None and event.end_tick is not None
        assert event.end_tick >= event.start_tick


def test_copy_there_and_back_keeps_every_byte(device: sdk.Device) -> None:
    source = device.host_buffer((1000, 33), "int16")
    target = device.host_buffer((1000, 33), "int16")
    middle = device.buffer((1000, 33), "int16")
    source.array[...] = np.random.default_rng(1).integers(-(2**15), 2**15, (1000, 33))
    with device.queue() as queue:
        queue.copy(middle, source)
        queue.copy(target, middle).wait()
    np.testing.assert_array_equal(target.array, source.array)


def test_copies_longer_than_a_slice_arrive_whole(device: sdk.Device) -> None:
    elements = (5 << 20) + 12345
    source, target = device.host_buffer(elements, "uint8"), device.host_buffer(elements, "uint8")
    middle = device.buffer(elements, "uint8")
    source.array[...] = np.arange(elements, dtype=np.uint32).view(np.uint8)[:elements]
    with device.queue() as queue:
        queue.copy(middle, source)
        queue.copy(target, middle).wait()
    np.testing.assert_array_equal(target.array, source.array)


@pytest.mark.parametrize("shift", [0, 1, -1, 70_000, -70_000])
def test_overlapping_device_copies_behave_like_memmove(device: sdk.Device, shift: int) -> None:
    elements, room = 3 << 20, 1 << 20
    whole = device.buffer(elements + 2 * room, "uint8")
    start = device.host_buffer(elements + 2 * room, "uint8")
    result = device.host_buffer(elements + 2 * room, "uint8")
    start.array[...] = np.random.default_rng(2).integers(0, 256, start.shape)
    expected = start.array.copy()
    expected[room + shift : room + shift + elements] = start.array[room : room + elements]
    with device.queue() as queue:
        queue.copy(whole, start)
        queue.copy(whole[room + shift : room + shift + elements], whole[room : room + elements])
        queue.copy(result, whole).wait()
    np.testing.assert_array_equal(result.array, expected)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint8", 255), ("int8", -128), ("int16", -2), ("float32", 0.5), ("int64", -(2**63)), ("bool", True)],
)
def test_fill_sets_every_element(device: sdk.Device, dtype: str, value: object) -> None:
    host = device.host_buffer(1001, dtype)
    with device.queue() as queue:
        queue.fill(host, value).wait()
        assert (host.array == value).all()
        there = device.buffer(1001, dtype)
        queue.fill(host, 0)
        queue.fill(there, value)
        queue.copy(host, there).wait()
    assert (host.array == value).all()


def test_commands_of_one_queue_see_what_earlier_ones_wrote(device: sdk.Device) -> None:
    host, there = device.host_buffer(64, "int32"), device.buffer(64, "int32")
    with device.queue(depth=64) as queue:
        for value in range(500):
            queue.fill(there, value)
        queue.copy(host, there).wait()
    assert (host.array == 499).all()


def test_ticks_of_one_queue_never_go_back(device: sdk.Device) -> None:
    with device.queue() as queue:
        events = [queue.nop() for _ in range(300)]
        events[-1].wait()
    ticks = [tick for event in events for tick in (event.start_tick or 0, event.end_tick or 0)]
    assert ticks == sorted(ticks)


def test_array_submission_reports_the_first_bad_index(device: sdk.Device) -> None:
    array = descriptors(3000)
    array["opcode"][1234] = 0x7F
    array["opcode"][2000] = 0x7F
    with device.queue() as queue:
        event = queue.submit(array)
        with pytest.raises(sdk.CommandFailed) as caught:
            event.wait()
        assert caught.value.index == 1234
        assert caught.value.code == "invalid-opcode"
        assert (queue.submit(descriptors(5000)).result() == 0).all()


def test_mixed_arrays_complete_in_order(device: sdk.Device) -> None:
    there, host = device.buffer(8, "uint64"), device.host_buffer(8, "uint64")
    array = descriptors(100)
    array[50]["opcode"] = IoOpcode.FILL
    array[50]["destination"], array[50]["size"] = there.address, there.nbytes
    array[50]["destination_space"], array[50]["pattern_size"], array[50]["pattern"] = Space.DEVICE, 8, 7
    array[99]["opcode"] = IoOpcode.COPY
    array[99]["destination"], array[99]["source"], array[99]["size"] = host.address, there.address, 64
    array[99]["source_space"] = Space.DEVICE
    with device.queue() as queue:
        assert queue.submit(array, keep=(there, host)).result().shape == (100,)
    assert (host.array == 7).all()


def _raw(device: sdk.Device, entry: bytes) -> tuple[int, str]:
    """Status of one raw descriptor, and the newest message of the error log."""
    with device.queue() as queue:
        event = queue.submit(np.frombuffer(entry, DESCRIPTOR).copy())
        try:
            event.wait()
        except sdk.CommandFailed as error:
            return error.status, device.errors()[0].message
    return 0, ""


BAD_ENTRIES = {
    "unknown opcode": (NOP.build(opcode=0x60), Status.INVALID_OPCODE),
    "admin opcode on an I/O queue": (NOP.build(opcode=0x80), Status.INVALID_OPCODE),
    "flags": (NOP.build(flags=1), Status.INVALID_FIELD),
    "context": (NOP.build(context=3), Status.INVALID_CONTEXT),
    "reserved bytes of nop": (NOP.build()[:63] + b"\1", Status.INVALID_FIELD),
    "reserved bytes of barrier": (BARRIER.build(opcode=4)[:63] + b"\1", Status.INVALID_FIELD),
    "copy from an unmapped bus address": (
        COPY.build(opcode=1, source=0x10, size=16, destination_space=1),
        Status.DMA_FAULT,
    ),
    "copy to an unmapped bus address": (
        COPY.build(opcode=1, destination=(1 << 64) - 8, size=16, source_space=1),
        Status.DMA_FAULT,
    ),
    "copy beyond device memory": (
        COPY.build(opcode=1, destination=(1 << 30) - 8, size=16, destination_space=1, source_space=1),
        Status.DEVICE_ADDRESS_FAULT,
    ),
    "copy of nearly 2**64 bytes": (
        COPY.build(opcode=1, size=(1 << 64) - 1, destination_space=1, source_space=1),
        Status.DEVICE_ADDRESS_FAULT,
    ),
    "unknown space": (COPY.build(opcode=1, destination_space=2), Status.INVALID_FIELD),
    "fill with a pattern of 3 bytes": (
        FILL.build(opcode=2, destination_space=1, pattern_size=3),
        Status.INVALID_FIELD,
    ),
    "fill with a pattern too wide": (
        FILL.build(opcode=2, destination_space=1, pattern_size=1, pattern=256),
        Status.INVALID_FIELD,
    ),
    "fill of a misaligned size": (
        FILL.build(opcode=2, destination_space=1, pattern_size=4, size=6),
        Status.MISALIGNED,
    ),
    "exec of no program": (NOP.build(opcode=3), Status.INVALID_PROGRAM),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_bad_commands_complete_with_a_distinct_status_and_are_logged(device: sdk.Device, name: str) -> None:
    entry, expected = BAD_ENTRIES[name]
    status, message = _raw(device, entry)
    assert Status(status) is expected
    assert expected.slug in message
    with device.queue() as queue:
        queue.nop().wait()


def test_empty_buffers_and_empty_arrays_are_fine(device: sdk.Device) -> None:
    nothing, none = device.host_buffer((0, 4), "float32"), device.buffer((0, 4), "float32")
    with device.queue() as queue:
        queue.copy(none, nothing).wait()
        queue.fill(none, 1).wait()
        assert queue.submit(descriptors(0)).result().size == 0
