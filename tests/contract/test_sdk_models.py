"""Models: what they accept, how they run at once, what they leave behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest

import sdk
from sdk.compiler import compile_model
from sdk.model.weights import STAGING_BYTES
from sdk.queue.completions import Completions
from tests.support.children import children_that_run, ends
from tests.support.loaded import parts_of
from tests.support.models import model, node, storage_net
from tests.support.rigs import in_process_rig, process_rig
from tests.support.waiting import wait_until

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(scope="module")
def emulated() -> Iterator[sdk.Device]:
    """A device of a process of its own, with engines of their own."""
    with process_rig() as rig, rig.device() as device:
        yield device


def product() -> onnx.ModelProto:
    """y = x @ WEIGHTS + b for any batch; `b` is an input of 3."""
    return model(
        [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])],
        {"x": (np.float32, ("batch", 4)), "b": (np.float32, (3,))},
        {"y": np.float32},
        {"w": WEIGHTS},
    )


def x_of(batch: int, value: float = 1) -> np.ndarray:
    return np.full((batch, 4), value, np.float32)


B = np.array([1, 2, 3], np.float32)


def pair() -> onnx.ModelProto:
    """Two inputs that share a symbolic extent."""
    return model(
        [node("Add", ["p", "q"], ["sum"])],
        {"p": (np.float32, ("n", 2)), "q": (np.float32, ("n", 2))},
        {"sum": np.float32},
    )


def narrow() -> onnx.ModelProto:
    """int64 arithmetic, which must fit 32 bits."""
    return model([node("Mul", ["i", "i"], ["square"])], {"i": (np.int64, (3,))}, {"square": np.int64})


# --- facts and calling forms ----------------------------------------------------------------------------------------


def test_inputs_and_outputs_say_name_shape_and_dtype(device: sdk.Device) -> None:
    loaded = device.load(product())
    assert [(i.name, i.shape, np.dtype(i.dtype).name) for i in loaded.inputs] == [
        ("x", ("batch", 4), "float32"),
        ("b", (3,), "float32"),
    ]
    assert isinstance(loaded.inputs, tuple) and isinstance(loaded.outputs, tuple)
    assert [info.name for info in loaded.outputs] == ["y"]
    assert "x" in repr(loaded) and "y" in repr(loaded)


def test_arrays_are_given_by_name_by_position_or_as_a_mapping(device: sdk.Device) -> None:
    loaded = device.load(product())
    expected = x_of(2) @ WEIGHTS + B
    host = device.host_buffer((2, 4), "float32")
    host.array[...] = 1
    for outputs in (
        loaded({"x": x_of(2), "b": B}),
        loaded(x_of(2), B),
        loaded(x=x_of(2), b=B),
        loaded(x_of(2), b=B),
        loaded(host, B),
        loaded.submit({"x": x_of(2)}, b=B).result(),
        asyncio.run(loaded.run_async(x_of(2), B)),
    ):
        assert list(outputs) == ["y"] and type(outputs["y"]) is np.ndarray
        np.testing.assert_array_equal(outputs["y"], expected)


def test_a_model_is_loaded_from_a_path_bytes_or_a_proto(device: sdk.Device, tmp_path: Path) -> None:
    path = tmp_path / "product.onnx"
    onnx.save(product(), path)
    for source in (path, str(path), path.read_bytes(), product()):
        assert device.load(source)(x_of(1), B)["y"].shape == (1, 3)
    with pytest.raises(FileNotFoundError):
        device.load(tmp_path / "missing.onnx")
    with pytest.raises(TypeError):
        device.load(7)
    with pytest.raises(TypeError):
        device.load(product(), fallbacks="cpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='use "error" or "cpu"'):
        device.load(product(), fallback="gpu")


def test_strided_and_read_only_arrays_are_taken_and_may_be_reused_at_once(device: sdk.Device) -> None:
    loaded = device.load(product())
    wide = np.arange(48, dtype=np.float32).reshape(6, 8)
    strided, fortran = wide[::2, ::2], np.asfortranarray(wide[:3, :4])
    read_only = x_of(3, 2)
    read_only.flags.writeable = False
    for array in (strided, fortran, read_only):
        np.testing.assert_array_equal(loaded(array, B)["y"], array @ WEIGHTS + B)
    reused = x_of(2, 5)
    event = loaded.submit(reused, B)
    reused[...] = 0
    np.testing.assert_array_equal(event.result()["y"], x_of(2, 5) @ WEIGHTS + B)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((x_of(1).astype(np.float64), B), TypeError, r"'x'.*expected float32, got float64.*astype\('float32'\)"),
        ((x_of(1).astype(">f4"), B), TypeError, r"'x'.*byte order.*astype"),
        ((x_of(1)[0], B), ValueError, r"'x'.*expected shape \(batch, 4\), got \(4,\)"),
        ((np.zeros((1, 5), np.float32), B), ValueError, r"expected shape \(batch, 4\), got \(1, 5\)"),
        (([[1.0] * 4], B), TypeError, r"'x'.*got list.*np\.asarray"),
        ((x_of(1),), TypeError, "'b' is missing"),
        ((x_of(1), B, B), TypeError, "3 arrays given.*takes 2: x, b"),
        (({"x": x_of(1), "c": B},), TypeError, "'c' is unknown.*x.*b"),
        ((), TypeError, "'x' is missing"),
    ],
)
def test_wrong_inputs_say_what_was_expected(
    device: sdk.Device, arguments: tuple[Any, ...], kind: type[Exception], message: str
) -> None:
    loaded = device.load(product())
    with pytest.raises(kind, match=message):
        loaded(*arguments)
    assert not parts_of(loaded).loaded  # nothing was compiled for it


def test_symbolic_extents_must_agree(device: sdk.Device) -> None:
    loaded = device.load(pair())
    two, three = np.ones((2, 2), np.float32), np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match="'n' is 2 in input 'p' and 3 in 'q'"):
        loaded(two, three)
    assert (loaded(three, three)["sum"] == 2).all()


def test_int64_and_bool_travel_through_the_device(device: sdk.Device) -> None:
    loaded = device.load(storage_net())
    ids, mask = np.array([[0, 1, 2, 3]], np.int64), np.array([[True, False, True, True]])
    outputs = loaded(ids, mask)
    assert list(outputs) == ["product", "counted", "dropped", "shifted"]
    assert [str(array.dtype) for array in outputs.values()] == ["int64", "int64", "bool", "int64"]
    np.testing.assert_array_equal(outputs["shifted"], ids + 2)
    np.testing.assert_array_equal(outputs["dropped"], outputs["counted"] == 0)


# --- shapes ---------------------------------------------------------------------------------------------------------


def test_an_unseen_shape_compiles_with_one_warning(device: sdk.Device, npu_log: pytest.LogCaptureFixture) -> None:
    loaded = device.load(product(), shapes={"x": [(1, 4), (8, 4)]})
    with npu_log.at_level(logging.WARNING, logger="npu"):
        loaded(x_of(1), B), loaded(x_of(8), B)
        assert not npu_log.records
        loaded(x_of(5), B), loaded(x_of(5), B)
        assert len(npu_log.records) == 1
        assert "(5, 4)" in npu_log.text and " s;" in npu_log.text and "shapes=" in npu_log.text
    assert set(parts_of(loaded).loaded) == {((n, 4), (3,)) for n in (1, 8, 5)}


def test_a_model_of_fixed_shapes_warns_of_nothing(device: sdk.Device, npu_log: pytest.LogCaptureFixture) -> None:
    with npu_log.at_level(logging.WARNING, logger="npu"):
        device.load(narrow())(np.array([1, 2, 3]))
    assert not npu_log.records


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"z": [(1, 4)]}, ValueError),
        ({"x": [(1, 5)]}, ValueError),
        ({"x": [(1,)]}, ValueError),
        ({"x": [(-1, 4)]}, ValueError),
        ({"x": [("n", 4)]}, ValueError),
        ({"x": (1, 4)}, TypeError),
        ({"x": 4}, TypeError),
        ({"b": [(3,)]}, ValueError),
        ({"x": [(1, 4)], "b": [(3,), (3,)]}, ValueError),
        ([(1, 4)], TypeError),
    ],
)
def test_shapes_that_do_not_fit_are_refused(device: sdk.Device, shapes: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="shape"):
        device.load(product(), shapes=shapes)


# --- runs at once ---------------------------------------------------------------------------------------------------


def test_results_are_arrays_of_their_own(device: sdk.Device) -> None:
    loaded = device.load(product())
    first, event = loaded(x_of(2, 1), B)["y"], loaded.submit(x_of(2, 1), B)
    one, same = event.result()["y"], event.result()["y"]
    assert one is same
    before = first.copy()
    loaded(x_of(2, 9), B)
    np.testing.assert_array_equal(first, before)
    first[...] = 0
    np.testing.assert_array_equal(one, before)


def test_threads_and_loops_run_one_model_at_once(emulated: sdk.Device) -> None:
    loaded = emulated.load(product())

    def check(outputs: dict[str, Any], batch: int, value: float) -> None:
        np.testing.assert_array_equal(outputs["y"], x_of(batch, value) @ WEIGHTS + B)

    def threaded(seed: int) -> None:
        for i in range(15):
            check(loaded(x_of(i % 3 + 1, seed + i), B), i % 3 + 1, seed + i)

    async def one(batch: int, value: float) -> None:
        check(await loaded.run_async(x_of(batch, value), B), batch, value)

    async def looping(seed: int) -> None:
        await asyncio.gather(*[one(i % 3 + 1, seed * i) for i in range(20)])

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(threaded, seed) for seed in range(3)]
        futures += [pool.submit(asyncio.run, looping(seed)) for seed in (5, 6)]
        for future in futures:
            future.result(60)
    assert len(parts_of(loaded).loaded) == 3


def test_events_that_are_dropped_give_their_buffers_back(emulated: sdk.Device) -> None:
    loaded = emulated.load(product())
    loaded(x_of(1000), B)
    mapped = emulated._function.host_memory.mapped_bytes
    for _ in range(100):
        loaded.submit(x_of(1000), B)
    loaded(x_of(1000), B)
    gc.collect()
    loaded(x_of(1000), B)
    for _ in range(100):
        loaded.submit(x_of(1000), B).wait()
    gc.collect()
    assert emulated._function.host_memory.mapped_bytes <= mapped + (8 << 20)


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_says_why_and_the_next_one_works(device: sdk.Device) -> None:
    loaded = device.load(narrow())
    for _ in range(3):
        event = loaded.submit(np.array([1, 2**20, 3]))
        for look in (event.wait, event.result):
            with pytest.raises(sdk.CommandFailed) as caught:
                look()
            assert caught.value.code == "value-out-of-range"
        with pytest.raises(sdk.CommandFailed):
            asyncio.run(loaded.run_async(np.array([2**40, 0, 0])))
        np.testing.assert_array_equal(loaded(np.array([3, -2, 1000]))["square"], [9, 4, 1000000])


def test_unsupported_operators_are_refused_at_load_with_node_and_reason(device: sdk.Device) -> None:
    unknown = model([node("Multinomial", ["m"], ["d"])], {"m": (np.float32, (2, 2))}, {"d": np.float32})
    with pytest.raises(sdk.UnsupportedModel) as caught:
        device.load(unknown)
    assert caught.value.op == "Multinomial" and caught.value.node == "make_d"
    for junk in (b"", b"junk", random.Random(2).randbytes(200)):
        with pytest.raises((sdk.UnsupportedModel, ValueError)):
            device.load(junk)


def test_an_engine_that_dies_fails_its_run_alone() -> None:
    with sdk.Device("emulator") as device:
        loaded = device.load(_slow())
        pid = device.info.pid
        assert pid is not None
        array = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
        expected = loaded(array)["y"]
        begun = device.activity().exec_commands
        engines = children_that_run(pid, "emulator.engines.worker")
        assert engines
        for engine in engines:
            os.kill(engine, signal.SIGSTOP)  # so that it does not finish before it dies
        event = loaded.submit(array)
        wait_until(lambda: device.activity().exec_commands > begun, "the program starts")
        for engine in engines:
            os.kill(engine, signal.SIGKILL)
        with pytest.raises(sdk.CommandFailed) as caught:
            event.wait()
        assert caught.value.code == "engine-lost"
        assert all(map(ends, engines))
        np.testing.assert_array_equal(loaded(array)["y"], expected)


def _slow() -> onnx.ModelProto:
    """A chain of products that takes a while."""
    weights = (np.random.default_rng(1).normal(size=(1024, 1024)) / 32).astype(np.float32)
    names = ["x", *[f"h{i}" for i in range(7)], "y"]
    nodes = [node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(8)]
    return model(nodes, {"x": (np.float32, (1024, 1024))}, {"y": np.float32}, {"w": weights})


def test_running_out_of_device_memory_leaves_nothing_half_applied(device: sdk.Device) -> None:
    total = device.info.memory_bytes
    assert total is not None
    loaded = device.load(_slow(), shapes={})
    hog = device.buffer(total - (1 << 20), "uint8")
    array = np.ones((1024, 1024), np.float32)
    for _ in range(3):
        with pytest.raises(sdk.OutOfDeviceMemory):
            loaded(array)
        with pytest.raises(sdk.OutOfDeviceMemory):
            device.load(_slow(), shapes={"x": [(1024, 1024)]})
    hog.free()
    assert loaded(array)["y"].shape == (1024, 1024)
    loaded.close()
    device.buffer(total, "uint8").free()


# --- the end --------------------------------------------------------------------------------------------------------


def test_closing_takes_a_model_off_the_device(device: sdk.Device) -> None:
    total = device.info.memory_bytes
    assert total is not None
    loaded = device.load(product())
    event = loaded.submit(x_of(2), B)
    event.wait()
    loaded.close()
    loaded.close()
    assert event.result()["y"].shape == (2, 3)
    with pytest.raises(sdk.Closed):
        loaded(x_of(2), B)
    assert not parts_of(loaded).loaded
    device.buffer(total, "uint8").free()


def test_letting_go_takes_models_off_the_device(device: sdk.Device) -> None:
    """More models than the device has queues, and more memory than it has left."""
    total = device.info.memory_bytes
    assert total is not None
    hog = device.buffer(total - (4 << 20), "uint8")
    weights = np.zeros((512, 512), np.float32)
    heavy = model(
        [node("MatMul", ["x", "w"], ["y"])], {"x": (np.float32, (1, 512))}, {"y": np.float32}, {"w": weights}
    ).SerializeToString()
    for _ in range(34):
        assert not device.load(heavy)(np.ones((1, 512), np.float32))["y"].any()
    hog.free()


def test_reset_and_close_end_models(device: sdk.Device) -> None:
    loaded = device.load(product())
    loaded(x_of(1), B)
    device.reset()
    with pytest.raises(sdk.Closed, match=r"the device was reset \(load it again\)"):
        loaded(x_of(1), B)
    loaded.close()
    assert device.load(product())(x_of(1), B)["y"].shape == (1, 3)
    with in_process_rig() as rig:
        other = rig.device()
        loaded = other.load(product())
        loaded(x_of(1), B)
        other.close()
        with pytest.raises(sdk.Closed):
            loaded(x_of(1), B)
        loaded.close()


@pytest.mark.parametrize("staging_bytes", [STAGING_BYTES, 16], ids=["small weights", "weights that take long"])
def test_compiling_and_running_meet_resets_without_dead_lock(
    emulated: sdk.Device, monkeypatch: pytest.MonkeyPatch, staging_bytes: int
) -> None:
    monkeypatch.setattr("sdk.model.weights.STAGING_BYTES", staging_bytes)
    stop = threading.Event()

    def running() -> None:
        while not stop.is_set():
            try:
                loaded = emulated.load(product())
                for batch in range(1, 4):
                    np.testing.assert_array_equal(loaded(x_of(batch), B)["y"], x_of(batch) @ WEIGHTS + B)
            except sdk.NpuError as error:
                assert error.code in ("device-reset", "closed"), error

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(running) for _ in range(3)]
        try:
            for _ in range(10):
                emulated.reset()
        finally:
            stop.set()
        for future in futures:
            future.result(60)
    assert emulated.load(product())(x_of(1), B)["y"].shape == (1, 3)


def test_weights_live_in_device_memory(device: sdk.Device) -> None:
    before = device.load(product())(x_of(1), B)["y"]
    loaded = device.load(product(), shapes={"x": [(1, 4)]})  # loaded; its first run may pack the weights
    (buffer,) = parts_of(loaded).weights.buffers
    weights = device.host_buffer(buffer.shape, "uint8")
    with device.queue() as queue:
        queue.copy(weights, buffer).wait()
        at = weights.array.tobytes().find(WEIGHTS.tobytes())
        assert at >= 0
        weights.array[at : at + 4].view(np.float32)[0] = 100
        queue.copy(buffer, weights).wait()
    after = loaded(x_of(1), B)["y"]
    np.testing.assert_array_equal(after - before, [[100, 0, 0]])


def test_a_further_shape_costs_its_operands_and_workspace_alone(device: sdk.Device) -> None:
    """Weights are on the device once: two copies of them would not fit beside the hog."""
    total = device.info.memory_bytes
    assert total is not None
    rng = np.random.default_rng(4)
    first, second = (rng.standard_normal((1024, 1024)).astype(np.float32) for _ in range(2))
    net = model(
        [node("MatMul", ["x", "a"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "b"], ["y"])],
        {"x": (np.float32, ("batch", 1024))},
        {"y": np.float32},
        {"a": first, "b": second},
    )
    hog = device.buffer(total - (12 << 20), "uint8")
    loaded = device.load(net)

    def used() -> int:
        return total - device._function.device_memory.free_bytes

    before = used()
    weights, largest = first.nbytes + second.nbytes, 0
    for batch in (1, 3, 2):
        x = rng.standard_normal((batch, 1024)).astype(np.float32)
        result = loaded(x)["y"]
        np.testing.assert_allclose(result, np.maximum(x @ first, 0) @ second, rtol=1e-3, atol=1e-2)
        largest = max(largest, batch)
        assert used() - before == weights + 3 * largest * 1024 * 4  # x, r (which h was fused into) and y of the largest
    loaded.close()
    hog.free()
    assert used() == 0


def test_weights_in_any_order_of_memory_and_larger_than_the_staging_arrive(
    device: sdk.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdk.model.weights.STAGING_BYTES", 1 << 12)
    weights = np.random.default_rng(5).standard_normal((300, 200)).astype(np.float32)
    net = model(
        [node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["h"]), node("MatMul", ["h", "w"], ["y"])],
        {"x": (np.float32, (2, 200))},
        {"y": np.float32},
        {"w": weights.T.copy().T},
    )
    x = np.ones((2, 200), np.float32)
    np.testing.assert_allclose(device.load(net)(x)["y"], x @ weights.T @ weights, rtol=1e-3, atol=1e-2)


def test_a_program_that_is_refused_beside_its_weights_fails_the_load_and_leaves_nothing(
    device: sdk.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdk.model.weights.STAGING_BYTES", 16)

    def refuse(*_: Any) -> NoReturn:
        raise sdk.CommandFailed("the program is refused", code="program-rejected")

    with monkeypatch.context() as patch:
        patch.setattr("sdk.open_function.OpenFunction.load_program", refuse)
        with pytest.raises(sdk.CommandFailed, match="the program is refused"):
            device.load(product(), shapes={"x": [(1, 4)]})
    assert device.load(product())(x_of(1), B)["y"].shape == (1, 3)
    assert device._function.programs.counts.loaded == 1
    total = device.info.memory_bytes
    assert total is not None
    gc.collect()
    device.buffer(total - (1 << 20), "uint8").free()


def test_weights_that_cannot_be_sent_take_the_program_that_is_loaded_beside_them_along(
    device: sdk.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdk.model.weights.STAGING_BYTES", 16)

    def fail(*_: Any) -> NoReturn:
        raise sdk.CommandFailed("the weights do not arrive")

    with monkeypatch.context() as patch:
        patch.setattr("sdk.model.weights.Upload.send", fail)
        with pytest.raises(sdk.CommandFailed, match="the weights do not arrive"):
            device.load(product(), shapes={"x": [(1, 4)]})
    assert device._function.programs.counts.loaded == 0
    assert device.load(product())(x_of(1), B)["y"].shape == (1, 3)


def test_run_async_holds_no_loop_up_while_a_program_is_compiled_or_the_queue_is_full(
    emulated: sdk.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever would wait runs in another thread than the loop's."""
    loop_thread = threading.get_ident()
    waited: list[int] = []
    wait_there = Completions.wait_until

    def compiling(*arguments: Any, **options: Any) -> Any:
        waited.append(threading.get_ident())
        return compile_model(*arguments, **options)

    def waiting(self: Completions, condition: Any, timeout: float | None, what: str, **how: bool) -> None:
        waited.append(threading.get_ident())
        wait_there(self, condition, timeout, what, **how)

    monkeypatch.setattr("sdk.model.keyed_programs.compile_model", compiling)
    monkeypatch.setattr(Completions, "wait_until", waiting)
    monkeypatch.setattr("sdk.model.staging.MOST_STAGINGS", 1)  # room for two runs, of which many are started at once
    net = emulated.load(product())

    async def main() -> list[Any]:
        return await asyncio.gather(*[net.run_async(x_of(1, value), B) for value in range(300)])

    for value, result in enumerate(asyncio.run(main())):
        np.testing.assert_allclose(result["y"], x_of(1, value) @ WEIGHTS + B, rtol=1e-5)
    assert waited and loop_thread not in waited
    net.close()


def test_a_model_says_which_kernel_carried_out_each_command_of_its_newest_run(emulated: sdk.Device) -> None:
    net = model(
        [node("MatMul", ["x", "w"], ["p"]), node("Exp", ["p"], ["y"])],
        {"x": (np.float32, ("batch", 4))},
        {"y": np.float32},
        {"w": WEIGHTS},
    )
    loaded = emulated.load(net)
    assert loaded.command_runs() == ()
    loaded(x_of(1))
    runs = loaded.command_runs()
    assert [run.node for run in runs] == ["make_p", "make_y"]
    assert [run.kernel.partition(".")[2] for run in runs] == ["matmul", "unary"]
    assert all(run.wall_seconds > 0 for run in runs)
    loaded.close()
    with pytest.raises(sdk.Closed):
        loaded.command_runs()


def test_a_model_goes_when_the_last_name_of_it_does(emulated: sdk.Device) -> None:
    loaded = emulated.load(product())
    loaded({"x": x_of(2), "b": B})
    left = weakref.ref(loaded)
    gc.disable()  # a model in a cycle would keep weights, lanes and its device until a collection
    try:
        del loaded
        assert left() is None
    finally:
        gc.enable()
