"""What models share of a device: queues, programs, host memory; and what they leave of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest

import sdk
from sdk.model.model import Model
from sdk.model.runs import RunEvent
from sdk.model.weights import Weights
from tests.support.loaded import parts_of
from tests.support.models import model, node
from tests.support.rigs import in_process_rig, process_rig
from tests.support.waiting import PATIENCE_S

F32 = np.float32
WIDTH = 16


def doubling(width: int = WIDTH) -> onnx.ModelProto:
    """y = x + x, for any batch."""
    return model([node("Add", ["x", "x"], ["y"])], {"x": (F32, ("batch", width))}, {"y": F32})


def batch_of(size: int, value: float = 1.0, width: int = WIDTH) -> Any:
    return np.full((size, width), value, F32)


@pytest.fixture
def emulated() -> Iterator[sdk.Device]:
    """One with engines of its own."""
    with process_rig() as rig, rig.device() as device:
        yield device


def lanes_of(loaded: Model) -> int:
    return len(parts_of(loaded).lanes)


def occupied(loaded: Model, count: int) -> list[sdk.Event[dict[str, Any]]]:
    """Runs of which none has been reaped yet."""
    return [loaded.submit(batch_of(1, value)) for value in range(count)]


def test_runs_in_flight_take_a_lane_each_and_as_many_as_there_are_engines(emulated: sdk.Device) -> None:
    engines = emulated.info.engines
    assert engines is not None and engines > 1
    loaded = emulated.load(doubling())
    assert loaded(batch_of(1))["y"].tolist() == [[2.0] * WIDTH]
    assert lanes_of(loaded) == 1
    for value, event in enumerate(occupied(loaded, 3 * engines)):
        assert event.result()["y"].tolist() == [[2.0 * value] * WIDTH]
    assert lanes_of(loaded) <= engines
    assert len(emulated._function.queues) == lanes_of(loaded)


def test_more_models_than_queues_run_beside_the_queues_of_the_application(emulated: sdk.Device) -> None:
    most = emulated.info.max_queues
    assert most is not None
    own = [emulated.queue() for _ in range(most - 1)]
    models = [emulated.load(doubling()) for _ in range(most + 4)]
    for value, loaded in enumerate(models):
        assert loaded(batch_of(1, value))["y"].tolist() == [[2.0 * value] * WIDTH]
    for queue in own:
        queue.close()


@pytest.mark.parametrize("rig", [in_process_rig, process_rig])
def test_more_shapes_than_the_device_takes_programs_run_and_the_oldest_give_way(
    rig: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with rig() as opened, opened.device() as device, caplog.at_level(logging.INFO, "npu"):
        most = device.programs.limit
        loaded, other = device.load(doubling()), device.load(doubling(4))
        assert other(batch_of(1, width=4))["y"].shape == (1, 4)
        for size in range(1, most + 3):
            assert loaded(batch_of(size))["y"].shape == (size, WIDTH)
        assert device.programs == (most, most, 3)
        assert caplog.text.count("left the device for another") == 3
        for size in (1, 2):
            assert loaded(batch_of(size, 3.0))["y"].tolist() == [[6.0] * WIDTH] * size
        assert other(batch_of(1, width=4))["y"].shape == (1, 4)
        assert device.programs.evicted == 6
        loaded.close()
        other.close()
        assert device.programs.loaded == 0


def test_programs_in_flight_do_not_give_way(emulated: sdk.Device) -> None:
    emulated._function.programs._limit = 2
    models = [emulated.load(doubling()) for _ in range(6)]
    events = [loaded.submit(batch_of(1, value)) for value, loaded in enumerate(models)]
    for value, event in enumerate(events):
        assert event.result()["y"].tolist() == [[2.0 * value] * WIDTH]
    assert emulated.programs.loaded <= 2


def test_models_take_and_give_buffers_of_both_memories(emulated: sdk.Device) -> None:
    net = model(
        [node("Add", ["a", "b"], ["sum"]), node("Mul", ["a", "b"], ["product"])],
        {"a": (F32, ("n", 32)), "b": (F32, ("n", 32))},
        {"sum": F32, "product": F32},
    )
    a, b = (np.random.default_rng(seed).standard_normal((2, 32)).astype(F32) for seed in (1, 2))
    loaded = emulated.load(net)
    host = emulated.host_buffer((2, 32), "float32")
    on_device, given = emulated.buffer((2, 32), "float32"), emulated.buffer((6, 32), "float32")
    back, fetched = (emulated.host_buffer((2, 32), "float32") for _ in range(2))
    with emulated.queue() as queue:
        host.array[:] = a
        queue.copy(on_device, host).wait()
        for inputs in ({"a": host, "b": b}, {"a": on_device, "b": b}, {"a": a, "b": b}):
            for out in ({"sum": given[2:4]}, {"sum": back}, {"sum": given[0:2], "product": back}):
                result = loaded(inputs, out=out)
                for name, expected in (("sum", a + b), ("product", a * b)):
                    target = out.get(name)
                    assert target is None or result[name] is target
                    found = result[name]
                    if target is not None and target is not back:
                        queue.copy(fetched, target).wait()
                        found = fetched.array
                    np.testing.assert_array_equal(np.asarray(found), expected)


def test_buffers_on_no_cache_line_of_their_own_are_taken_and_given(emulated: sdk.Device) -> None:
    loaded = emulated.load(doubling(5))
    rows, host = emulated.buffer((4, 5), "float32"), emulated.host_buffer((4, 5), "float32")
    host.array[:] = np.arange(20).reshape(4, 5)
    with emulated.queue() as queue:
        queue.copy(rows, host).wait()
        loaded({"x": rows[1:2]}, out={"y": rows[1:2]})
        loaded({"x": host[2:3]}, out={"y": rows[3:4]})
        queue.copy(host, rows).wait()
    expected = np.arange(20).reshape(4, 5)
    expected[1], expected[3] = 2 * expected[1], 2 * expected[2]
    assert host.array.tolist() == expected.tolist()


def test_buffers_that_do_not_fit_are_refused_and_those_in_use_stay(emulated: sdk.Device) -> None:
    loaded = emulated.load(doubling())
    x = batch_of(2)
    for out, error in (
        ({"z": emulated.buffer((2, WIDTH), "float32")}, "out names output 'z'"),
        ({"y": emulated.buffer((3, WIDTH), "float32")}, "the output is float32"),
        ({"y": emulated.buffer((2, WIDTH), "int32")}, "the output is float32"),
    ):
        with pytest.raises(ValueError, match=error):
            loaded(x, out=out)
    with pytest.raises(TypeError, match="numpy array"):
        loaded(x, out={"y": x})
    with pytest.raises(TypeError, match="expected float32, got int32"):
        loaded(emulated.buffer((2, WIDTH), "int32"))
    freed = emulated.buffer((2, WIDTH), "float32")
    freed.free()
    with pytest.raises(sdk.Closed):
        loaded(freed)
    assert loaded(x)["y"].shape == x.shape


def test_a_burst_waits_for_host_memory_instead_of_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_HOST_MEMORY", str(8 << 20))
    width = 1 << 16
    with sdk.Device("emulator") as device:
        loaded = device.load(doubling(width))
        events = [loaded.submit(batch_of(1, value, width)) for value in range(40)]  # 20 MiB of operands
        for value, event in enumerate(events):
            assert (event.result()["y"] == 2.0 * value).all()

        async def burst() -> list[dict[str, Any]]:
            return await asyncio.gather(*[loaded.run_async(batch_of(1, value, width)) for value in range(40)])

        for value, outputs in enumerate(asyncio.run(burst())):
            assert (outputs["y"] == 2.0 * value).all()


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Iterator[sdk.Device]:
    """One with several engines and host memory for the operands of one `LARGE` run."""
    monkeypatch.setenv("NPU_HOST_MEMORY", str(16 << 20))
    with sdk.Device("emulator") as device:
        assert device._function.engines > 1
        yield device


LARGE = 1 << 20


def test_runs_of_several_lanes_wait_for_host_memory_that_suffices_for_one(scarce: sdk.Device) -> None:
    loaded = scarce.load(doubling(LARGE))
    events = [loaded.submit(batch_of(1, value, LARGE)) for value in range(8)]
    for value, event in enumerate(events):
        assert (event.result()["y"] == 2.0 * value).all()
    assert lanes_of(loaded) > 1
    assert (loaded(batch_of(1, 9.0, LARGE))["y"] == 18.0).all()


def test_threads_that_share_too_little_host_memory_all_get_their_results(scarce: sdk.Device) -> None:
    models = [scarce.load(doubling(LARGE)) for _ in range(2)]
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(models[value % 2], batch_of(1, value, LARGE)) for value in range(24)]
        for value, run in enumerate(runs):
            assert (run.result(PATIENCE_S)["y"] == 2.0 * value).all()


def test_a_loop_is_not_held_up_by_runs_of_other_lanes_and_models_that_have_all_host_memory(
    scarce: sdk.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = scarce.load(doubling())
    small(batch_of(1))
    large = scarce.load(doubling(LARGE))
    waiters, await_end = [], RunEvent._await_end

    def awaiting(self: RunEvent) -> None:
        waiters.append(threading.get_ident())
        await_end(self)

    monkeypatch.setattr(RunEvent, "_await_end", awaiting)

    async def burst() -> list[dict[str, Any]]:
        runs = [
            loaded.run_async(batch_of(rows, value, width))
            for value in range(8)
            for loaded, rows, width in ((large, 1, LARGE), (small, 1 << 11, WIDTH))
        ]
        return await asyncio.gather(*runs)

    for at, outputs in enumerate(asyncio.run(burst())):
        assert (outputs["y"] == 2.0 * (at // 2)).all()
    assert threading.get_ident() not in waiters


def test_a_model_lets_go_of_idle_host_memory_that_another_one_needs(scarce: sdk.Device) -> None:
    models = [scarce.load(doubling(LARGE)) for _ in range(3)]
    assert (models[0](batch_of(1, 5.0, LARGE))["y"] == 10.0).all()
    held = list(parts_of(models[0]).lanes[0].stagings._idle)  # as a thread may that is about to return
    assert len(held) == 1
    assert (models[1](batch_of(1, 6.0, LARGE))["y"] == 12.0).all()
    for value, loaded in enumerate(models * 2):
        assert (loaded(batch_of(1, value, LARGE))["y"] == 2.0 * value).all()


def test_outputs_that_nobody_took_yet_are_kept_when_another_model_needs_their_host_memory(scarce: sdk.Device) -> None:
    first, second = (scarce.load(doubling(LARGE)) for _ in range(2))
    kept = first.submit(batch_of(1, 3.0, LARGE))
    assert (second(batch_of(1, 4.0, LARGE))["y"] == 8.0).all()
    assert (kept.result()["y"] == 6.0).all()


def test_host_memory_of_a_closed_models_run_is_waited_for(scarce: sdk.Device) -> None:
    first, second = (scarce.load(doubling(LARGE)) for _ in range(2))
    ended = first.submit(batch_of(1, 3.0, LARGE))
    first.close()
    assert (second(batch_of(1, 4.0, LARGE))["y"] == 8.0).all()
    with contextlib.suppress(sdk.CommandFailed):  # unless it was done before
        assert (ended.result()["y"] == 6.0).all()


def test_a_run_that_exceeds_all_host_memory_fails_and_smaller_ones_go_on(scarce: sdk.Device) -> None:
    loaded = scarce.load(doubling(LARGE))
    with pytest.raises(sdk.HostMemoryLimit):
        loaded(batch_of(3, 1.0, LARGE))
    events = [loaded.submit(batch_of(1, value, LARGE)) for value in range(3)]
    with pytest.raises(sdk.HostMemoryLimit):
        loaded(batch_of(3, 1.0, LARGE))
    for value, event in enumerate(events):
        assert (event.result()["y"] == 2.0 * value).all()


SMALLEST_OPEN, SMALLEST_LOADED = 64 << 10, 256 << 10
"""Limits of host memory under which a device opens, and under which weights get there in small pieces."""


def nothing_left(device: sdk.Device, host_bytes: int, device_bytes: int) -> bool:
    """Whether as much memory is free as before a model was loaded, and no queue is left."""
    gc.collect()
    function = device._function
    with function._lock:
        function._clean_up()
    device.host_buffer((1,), "uint8").free()  # takes back what finalisers let go
    used = function.host_memory.used_bytes
    return (used, function.device_memory.free_bytes, function.queues) == (host_bytes, device_bytes, [])


@pytest.mark.parametrize("limit", [SMALLEST_OPEN, 2 * SMALLEST_OPEN, SMALLEST_LOADED, 2 * SMALLEST_LOADED])
def test_under_a_tiny_limit_weights_go_in_small_pieces_or_the_error_names_the_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    weights = np.arange(1 << 18, dtype=F32).reshape(1 << 9, 1 << 9)
    net = model([node("MatMul", ["x", "w"], ["y"])], {"x": (F32, ("n", 1 << 9))}, {"y": F32}, {"w": weights})
    monkeypatch.setenv("NPU_HOST_MEMORY", str(limit))
    with sdk.Device("emulator", timeout=PATIENCE_S) as device:
        before = device._function.host_memory.used_bytes, device._function.device_memory.free_bytes
        if limit < SMALLEST_LOADED:
            with pytest.raises(sdk.HostMemoryLimit, match="NPU_HOST_MEMORY"):
                device.load(net, shapes={"x": [(1, 1 << 9)]})
        else:
            loaded = device.load(net, shapes={"x": [(1, 1 << 9)]})
            x = np.eye(1, 1 << 9, 3, dtype=F32)
            with ThreadPoolExecutor(4) as threads:
                runs = [threads.submit(loaded, x) for _ in range(12)]
                assert all((run.result(PATIENCE_S)["y"] == weights[3]).all() for run in runs)
            loaded.close()
            del loaded, runs
        assert nothing_left(device, *before)


def test_where_no_further_queue_fits_host_memory_runs_share_the_first_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_HOST_MEMORY", str(2 * SMALLEST_LOADED))
    with sdk.Device("emulator") as device:
        assert device._function.engines > 1
        loaded = device.load(doubling())
        x = batch_of(1 << 10)
        assert (loaded(x)["y"] == 2).all()
        hog = []
        with contextlib.suppress(sdk.HostMemoryLimit):
            while True:
                hog.append(device.host_buffer((1,), "uint8"))
        events = [loaded.submit(x) for _ in range(8)]
        assert all((event.result()["y"] == 2).all() for event in events)
        assert lanes_of(loaded) == 1 and hog


def test_a_fault_at_run_time_names_the_node(emulated: sdk.Device) -> None:
    net = model(
        [node("Add", ["i", "i"], ["twice"]), node("Gather", ["table", "twice"], ["y"], axis=0)],
        {"i": (np.int64, ("n",))},
        {"y": F32},
        {"table": np.arange(4, dtype=F32)},
    )
    loaded = emulated.load(net)
    assert loaded(np.array([0, 1]))["y"].tolist() == [0.0, 2.0]
    with pytest.raises(sdk.CommandFailed, match=r"index-out-of-range in node 'make_y'") as caught:
        loaded(np.array([7]))
    assert (caught.value.code, caught.value.node) == ("index-out-of-range", "make_y")
    assert loaded(np.array([1]))["y"].tolist() == [2.0]


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    gc.collect()
    with open("/proc/self/maps") as lines:
        return sum("npu" in line for line in lines)


def test_runs_in_many_event_loops_leave_no_descriptors(emulated: sdk.Device) -> None:
    loaded = emulated.load(doubling())
    asyncio.run(loaded.run_async(batch_of(1)))
    before = descriptors()
    for _ in range(300):
        asyncio.run(loaded.run_async(batch_of(1)))
    assert descriptors() <= before + 4  # the last loop's own, until the next one comes


def test_models_that_are_let_go_leave_no_descriptors(emulated: sdk.Device) -> None:
    def use() -> None:
        emulated.load(doubling())(batch_of(1))

    use()
    before = descriptors()
    for _ in range(20):
        use()
    assert descriptors() <= before + 2


def test_a_device_closed_before_its_model_is_let_go_leaves_nothing() -> None:
    def use() -> tuple[Model, Any]:
        with sdk.Device("emulator") as device:
            loaded = device.load(doubling(1 << 16))
            result = loaded(batch_of(4, width=1 << 16))
        return loaded, result

    use()
    before = descriptors(), mappings()
    for _ in range(3):
        held = use()
        assert (descriptors(), mappings()) == before
        del held


@pytest.mark.parametrize("end", ["model", "reset"])
def test_an_awaited_error_of_what_was_closed_or_reset_is_not_logged_as_well(
    emulated: sdk.Device, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = emulated.load(doubling(1 << 14))

    async def main() -> list[Any]:
        runs = [loaded.run_async(batch_of(32, width=1 << 14)) for _ in range(60)]
        tasks = [asyncio.ensure_future(run) for run in runs]
        await asyncio.sleep(0.01)
        ending = threading.Thread(target=loaded.close if end == "model" else emulated.reset)
        ending.start()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        ending.join(PATIENCE_S)
        return results

    results = asyncio.run(main())
    assert any(isinstance(result, sdk.NpuError) for result in results)
    for result in results:
        assert isinstance(result, (dict, sdk.NpuError)), result
    del results
    gc.collect()
    assert "nobody waited" not in caplog.text


def test_a_reset_while_weights_are_sent_closes_the_model(emulated: sdk.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model([node("Add", ["x", "c"], ["y"])], {"x": (F32, (4,))}, {"y": F32}, {"c": np.arange(4, dtype=F32)})
    loaded = emulated.load(net)
    send = Weights.send

    def resetting(self: Weights, *arguments: Any) -> Any:
        sent = send(self, *arguments)
        emulated.reset()
        return sent

    with monkeypatch.context() as patch:
        patch.setattr(Weights, "send", resetting)
        with pytest.raises(sdk.Closed):
            loaded(np.zeros(4, F32))
    assert emulated.load(net)(np.zeros(4, F32))["y"].tolist() == [0, 1, 2, 3]


def test_large_arrays_are_copied_in_other_threads_than_the_loops(
    emulated: sdk.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, copiers = 1 << 18, []
    loaded = emulated.load(doubling(width))
    loaded(batch_of(1, width=width))
    copyto, take = np.copyto, RunEvent._take_value

    def copying(to: Any, source: Any) -> None:
        copiers.append(threading.get_ident())
        copyto(to, source)

    def taking(self: RunEvent) -> None:
        if self._convert is not None:
            copiers.append(threading.get_ident())
        take(self)

    monkeypatch.setattr("sdk.model.program_run.np.copyto", copying)
    monkeypatch.setattr(RunEvent, "_take_value", taking)

    async def main() -> list[dict[str, Any]]:
        return await asyncio.gather(*[loaded.run_async(batch_of(1, value, width)) for value in range(20)])

    for value, outputs in enumerate(asyncio.run(main())):
        assert (outputs["y"] == 2.0 * value).all()
    assert len(copiers) >= 40 and threading.get_ident() not in copiers
