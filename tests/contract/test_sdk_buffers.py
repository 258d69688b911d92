"""Buffers: shapes, slices, views, freeing, limits."""

from __future__ import annotations

import gc

import ml_dtypes
import numpy as np
import pytest

import sdk
from tests.support.needs import needs_python
from tests.support.rigs import in_process_rig

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "bf16", "float32", "float64", "complex64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), 5, (3, 4), (0, 4), (2, 0, 3)])
def test_host_buffers_start_zeroed_and_are_what_was_asked_for(device: sdk.Device, shape: object, dtype: str) -> None:
    buffer = device.host_buffer(shape, dtype)
    array = buffer.array
    assert array.shape == buffer.shape and array.dtype == buffer.dtype
    assert buffer.nbytes == array.nbytes and buffer.size == array.size and buffer.ndim == array.ndim
    assert not array.view(np.uint8 if array.size else array.dtype).any() if array.shape else array == 0
    assert array.flags.c_contiguous and array.flags.writeable
    assert np.asarray(buffer).dtype == array.dtype


def test_memory_that_was_used_before_is_zeroed_again(device: sdk.Device) -> None:
    for _ in range(20):
        buffer = device.host_buffer(10_000, "uint8")
        assert not buffer.array.any()
        buffer.array[...] = 0xFF
        buffer.free()


def test_array_is_the_memory_itself(device: sdk.Device) -> None:
    buffer = device.host_buffer((4, 4), "int32")
    buffer.array[1, 2] = 7
    assert buffer.array[1, 2] == 7
    assert np.shares_memory(buffer.array, np.asarray(buffer))
    assert not np.shares_memory(buffer.array, np.array(buffer, copy=True))
    assert np.asarray(buffer, dtype="float64").dtype == np.float64


def test_numpy_gets_slices_of_host_memory_and_is_told_what_to_do_for_device_memory(device: sdk.Device) -> None:
    host, there = device.host_buffer((4, 3), "int16"), device.buffer((4, 3), "int16")
    host.array[:] = np.arange(12).reshape(4, 3)
    piece = np.asarray(host[1:3])
    assert piece.tolist() == [[3, 4, 5], [6, 7, 8]] and np.shares_memory(piece, host.array)
    for thing in (there, there[1:3]):
        with pytest.raises(TypeError, match=r"copy it into a host buffer: h = dev\.host_buffer\(.*'int16'\)"):
            np.asarray(thing)


def test_addresses_are_aligned_and_slices_follow_them(device: sdk.Device) -> None:
    for buffer in (device.host_buffer((8, 3), "int16"), device.buffer((8, 3), "int16")):
        assert buffer.address % 64 == 0
        assert buffer[2:5].address == buffer.address + 12
        assert buffer[2:5].shape == (3, 3) and buffer[2:5].nbytes == 18
        assert buffer[-1].address == buffer.address + 42 and buffer[-1].shape == (3,)
        assert buffer[2:5][1:].address == buffer.address + 18
        assert buffer[5:2].shape == (0, 3)
        assert buffer[:].shape == buffer.shape and len(buffer) == 8
        assert [row.address for row in buffer] == [buffer.address + 6 * i for i in range(8)]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (slice(None, None, 2), ValueError),
        (slice(None, None, -1), ValueError),
        (8, IndexError),
        (-9, IndexError),
        ((1, 2), TypeError),
        (1.0, TypeError),
        (True, TypeError),
        (None, TypeError),
        (..., TypeError),
    ],
)
def test_what_is_no_contiguous_slice_is_refused(device: sdk.Device, key: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        device.buffer((8, 3), "int16")[key]


def test_scalars_cannot_be_sliced(device: sdk.Device) -> None:
    scalar = device.host_buffer((), "int8")
    with pytest.raises(IndexError):
        scalar[0]
    with pytest.raises(TypeError):
        len(scalar)


def test_numpy_imports_host_buffers_through_dlpack(device: sdk.Device) -> None:
    buffer = device.host_buffer((3, 5), "float32")
    imported = np.from_dlpack(buffer)
    buffer.array[1] = 2
    assert imported[1, 0] == 2 and buffer.__dlpack_device__() == (1, 0)
    with pytest.raises(sdk.BufferInUse):
        buffer.free()
    del imported
    buffer.free()


def test_bfloat16_is_exported_as_such(device: sdk.Device) -> None:
    import ctypes

    buffer = device.host_buffer(4, "bf16")
    capsule = buffer.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # DLTensor: data (8 bytes), device (8), ndim (4), then dtype: code 4 is kDLBfloat, 16 bits, 1 lane
    assert ctypes.string_at(pointer(capsule, b"dltensor") + 20, 4) == bytes([4, 16, 1, 0])
    del capsule
    buffer.free()


def test_a_live_view_keeps_a_host_buffer_from_being_freed(device: sdk.Device) -> None:
    buffer = device.host_buffer(64, "uint8")
    view = buffer.array[10:20]
    with pytest.raises(sdk.BufferInUse) as caught:
        buffer.free()
    assert caught.value.device == device.address and caught.value.remedy
    buffer.array[0] = 1  # still whole
    del view
    buffer.free()


def test_freeing_twice_is_fine_and_use_after_is_closed(device: sdk.Device) -> None:
    host, there = device.host_buffer(64, "uint8"), device.buffer(64, "uint8")
    other = device.buffer(64, "uint8")
    piece = there[3:9]
    for buffer in (host, there):
        buffer.free()
        buffer.free()
        assert buffer.closed
        with pytest.raises(sdk.Closed):
            _ = buffer.address
    with pytest.raises(sdk.Closed):
        _ = host.array
    with pytest.raises(sdk.Closed):
        np.asarray(host)
    with device.queue() as queue:
        for call in (
            lambda: queue.copy(other, host),
            lambda: queue.copy(there, other),
            lambda: queue.fill(piece, 0),
            lambda: queue.submit(np.zeros(1, sdk.DESCRIPTOR), keep=(there,)),
        ):
            with pytest.raises(sdk.Closed):
                call()
        with pytest.raises(sdk.Closed), queue.batch() as batch:
            last = device.buffer(64, "uint8")
            batch.fill(last, 0)
            last.free()
        queue.nop().wait()


def test_letting_go_gives_memory_back(device: sdk.Device) -> None:
    total = device.info.memory_bytes
    assert total is not None
    for _ in range(10):
        device.buffer(total // 4 * 3, "uint8")
    for _ in range(50):
        device.host_buffer(4 << 20, "uint8")
    gc.collect()
    assert device._function.host_memory.mapped_bytes < 100 << 20  # of 200 MiB asked for in turn


def test_an_array_outlives_its_buffer(device: sdk.Device) -> None:
    array = device.host_buffer(100_000, "uint8").array
    array[...] = 9
    others = [device.host_buffer(100_000, "uint8") for _ in range(30)]
    for other in others:
        other.array[...] = 1
    assert (array == 9).all()


def test_device_memory_ends_in_an_error_that_tells_exhaustion_from_fragmentation(device: sdk.Device) -> None:
    total = device.info.memory_bytes
    assert total is not None and device.info.memory == total
    with pytest.raises(sdk.OutOfDeviceMemory, match="exhaustion") as caught:
        device.buffer(total + 1, "uint8")
    assert caught.value.requested > total >= caught.value.available and caught.value.remedy
    eighths = [device.buffer(total // 8, "uint8") for _ in range(8)]
    with pytest.raises(MemoryError, match="exhaustion"):
        device.buffer(1, "uint8")
    for buffer in eighths[::2]:
        buffer.free()
    with pytest.raises(sdk.OutOfDeviceMemory, match="fragmentation") as caught:
        device.buffer(total // 4, "uint8")
    assert caught.value.largest == total // 8
    eighths[1].free()
    device.buffer(total // 4, "uint8")


@pytest.mark.parametrize("place", ["buffer", "host_buffer"])
@pytest.mark.parametrize("shape", [2**62, 2**63, 2**80, (2**40, 2**40), 1 << 45])
def test_absurd_sizes_are_memory_errors(device: sdk.Device, place: str, shape: object) -> None:
    with pytest.raises((sdk.OutOfDeviceMemory, sdk.HostMemoryLimit)) as caught:
        getattr(device, place)(shape, "int64")
    assert isinstance(caught.value, MemoryError) and caught.value.remedy
    device.host_buffer(8, "int8").free()


def test_the_host_memory_limit_of_the_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_HOST_MEMORY", "8M")
    with in_process_rig() as rig, rig.device() as device:
        with pytest.raises(sdk.HostMemoryLimit, match="NPU_HOST_MEMORY"):
            device.host_buffer(8 << 20, "uint8")
        first = device.host_buffer(5 << 20, "uint8")
        with pytest.raises(MemoryError):
            device.host_buffer(5 << 20, "uint8")
        first.free()
        device.host_buffer(5 << 20, "uint8")


def test_a_buffer_of_another_device_is_refused(device: sdk.Device) -> None:
    with in_process_rig() as rig, rig.device() as other, device.queue() as queue:
        ours, theirs = device.buffer(8, "int8"), other.buffer(8, "int8")
        for call in (
            lambda: queue.copy(ours, theirs),
            lambda: queue.copy(theirs, ours),
            lambda: queue.fill(theirs[1:], 0),
            lambda: queue.submit(np.zeros(1, sdk.DESCRIPTOR), keep=[theirs]),
        ):
            with pytest.raises(ValueError, match="devices do not share memory"):
                call()
        with pytest.raises(ValueError), queue.batch() as batch:
            batch.fill(theirs, 0)


def test_zero_size_buffers_can_be_made_copied_and_freed(device: sdk.Device) -> None:
    with device.queue() as queue:
        for shape in ((0,), (0, 3), (3, 0)):
            host, there = device.host_buffer(shape, "float32"), device.buffer(shape, "float32")
            assert host.array.shape == shape and np.from_dlpack(host).shape == shape
            queue.copy(there, host).wait()
            queue.fill(there, 1).wait()
            host.free()
            there.free()


def test_closing_the_device_leaves_arrays_readable(device: sdk.Device) -> None:
    with in_process_rig() as rig:
        other = rig.device()
        buffer = other.host_buffer(16, "uint8")
        array = buffer.array
        array[...] = 3
        other.close()
        assert (array == 3).all()
        assert buffer.closed
        buffer.free()
        with pytest.raises(sdk.Closed):
            _ = buffer.array
        with pytest.raises(sdk.Closed):
            other.host_buffer(1, "int8")


@needs_python(3, 12)
def test_buffers_export_the_buffer_protocol(device: sdk.Device) -> None:
    assert memoryview(device.host_buffer(4, "uint8")).nbytes == 4  # type: ignore[arg-type]
