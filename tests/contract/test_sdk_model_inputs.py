"""Models as exporters write them, on a device: defaults that are overridden, shapes given as inputs, plans."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import sdk
from sdk.compiler.compiled import ANY_SHAPE
from sdk.memory.buffers import DEVICE_ALIGNMENT
from tests.support.models import model, node

F32 = np.float32
W = np.arange(12, dtype=F32).reshape(4, 3)
X = np.arange(8, dtype=F32).reshape(2, 4)


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with sdk.Device("emulator") as opened:
        yield opened


def with_default(ir_version: int = 3) -> onnx.ModelProto:
    net = model([node("MatMul", ["x", "w"], ["y"])], {"w": (F32, W.shape), "x": (F32, ("n", 4))}, {"y": F32}, {"w": W})
    net.ir_version = ir_version
    return net


@pytest.mark.parametrize("ir_version", [3, 8])
def test_a_default_is_used_unless_a_call_names_the_input(device: sdk.Device, ir_version: int) -> None:
    net = device.load(with_default(ir_version))
    assert [info.name for info in net.inputs] == ["x"]
    assert [info.name for info in net.optional_inputs] == ["w"]
    for _ in range(2):
        np.testing.assert_array_equal(net(X)["y"], X @ W)
        np.testing.assert_array_equal(net(X, w=W + 1)["y"], X @ (W + 1))
        np.testing.assert_array_equal(net({"w": W * 2, "x": X})["y"], X @ (W * 2))
    with pytest.raises(TypeError, match="input 'z' is unknown"):
        net(X, z=W)
    with pytest.raises(ValueError, match="expected shape"):
        net(X, w=W.T.copy())


RAGGED = np.empty(2, object)
RAGGED[:] = [[1], [2, 3]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array(["a", "b"]), r"expected float32, got text \(<U1\); it takes numbers: turn text into those before"),
        (np.array([b"a", b"b"]), r"got text \(\|S1\); it takes numbers"),
        ("a", r"expected an array x: float32\[2\], got str; it takes numbers"),
        (
            np.array(["a", "b"], object),
            r"got Python objects \(dtype object\); .*np\.array\(x\.tolist\(\), dtype='float32'\)",
        ),
        (RAGGED, r"got Python objects \(dtype object\)"),
        (np.array(["2020-01-01"] * 2, "M8[D]"), r"got datetime64\[D\]; give numbers"),
        (np.zeros(2, ">f4"), r"got float32 of foreign byte order; use x.astype\('float32'\)"),
        (np.zeros(2), r"got float64; use x.astype\('float32'\)"),
    ],
)
def test_what_is_no_array_of_numbers_is_told_with_what_to_do(device: sdk.Device, given: Any, message: str) -> None:
    net = device.load(model([node("Neg", ["x"], ["y"])], {"x": (F32, (2,))}, {"y": F32}))
    with pytest.raises(TypeError, match="input 'x': " + message if message[0] == "e" else message):
        net(given)


def reshaping() -> onnx.ModelProto:
    return model([node("Reshape", ["x", "s"], ["y"])], {"x": (F32, (2, 4)), "s": (np.int64, ("k",))}, {"y": F32})


def test_a_shape_that_is_an_input_is_compiled_for_with_one_warning(
    device: sdk.Device, caplog: pytest.LogCaptureFixture
) -> None:
    net = device.load(reshaping())
    with caplog.at_level(logging.WARNING, "npu"):
        for shape in ((4, 2), (8,), (1, 2, 4), (4, 2), (2, 2, 2)):
            np.testing.assert_array_equal(net(X, np.array(shape))["y"], X.reshape(shape))
    told = [record.getMessage() for record in caplog.records]
    assert told == ["shapes depend on the values of 's': a program is compiled for each of them"]


def test_a_shape_that_is_an_input_is_compiled_for_in_asynchronous_runs_too(device: sdk.Device) -> None:
    net = device.load(reshaping(), shapes={"s": [(2,)]})
    shapes = [(4, 2), (2, 4), (8, 1), (1, 8)] * 3

    async def runs() -> list[Any]:
        return await asyncio.gather(*(net.run_async(X, np.array(shape)) for shape in shapes))

    for shape, outputs in zip(shapes, asyncio.run(runs()), strict=True):
        assert outputs["y"].shape == shape


def test_an_input_without_a_shape_takes_any_rank(device: sdk.Device) -> None:
    net = model([node("Relu", ["x"], ["y"])], {"x": (F32, (1,))}, {"y": F32})
    net.graph.input[0].type.tensor_type.ClearField("shape")
    loaded = device.load(net)
    assert loaded.inputs[0].shape == ANY_SHAPE
    for shape in ((3,), (2, 2), ()):
        assert loaded(np.ones(shape, F32))["y"].shape == shape


def test_a_batch_of_nothing_is_possible(device: sdk.Device) -> None:
    net = device.load(with_default(8))
    assert net(X[:0])["y"].shape == (0, 3)
    np.testing.assert_array_equal(net(X)["y"], X @ W)


def test_control_flow_runs_on_the_device(device: sdk.Device) -> None:
    branches = [
        helper.make_graph([node(op, ["x"], ["r"])], op, [], [helper.make_empty_tensor_value_info("r")])
        for op in ("Relu", "Neg")
    ]
    net = model(
        [node("If", ["b"], ["y"], then_branch=branches[0], else_branch=branches[1])],
        {"x": (F32, (3,)), "b": (np.bool_, ())},
        {"y": F32},
    )
    loaded = device.load(net)
    x = np.array([-1, 0, 2], F32)
    assert loaded(x, np.array(True))["y"].tolist() == [0, 0, 2]
    assert loaded(x, np.array(False))["y"].tolist() == [1, 0, -2]


def test_the_plan_is_known_before_anything_is_loaded(device: sdk.Device) -> None:
    net = device.load(model([node("MatMul", ["x", "w"], ["y"])], {"x": (F32, (2, 4))}, {"y": F32}, {"w": W}))
    plan = net.plan
    assert plan is not None and plan.commands == 1
    np.testing.assert_array_equal(net(X)["y"], X @ W)
    assert net.plan == plan
    assert [entry.where.value for entry in net.report] == ["device"]
    assert device.load(with_default()).plan is None


def test_a_program_compiled_ahead_is_loaded_as_it_is(device: sdk.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    program = sdk.compile(with_default(), shapes={"x": X.shape})
    net = device.load(program, shapes={"x": [X.shape]})
    assert net.plan == program.plan

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was compiled again")

    monkeypatch.setattr("sdk.model.keyed_programs.compile_model", refuse)
    np.testing.assert_array_equal(net(X)["y"], X @ W)


def test_an_undeclared_output_type_is_inferred(device: sdk.Device) -> None:
    net = with_default(8)
    net.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="y"))
    assert str(device.load(net).outputs[0]) == "y: float32[n, 3]"
    assert helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT) == device.load(net)(X)["y"].dtype


def layers() -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Exp", ["a"], ["b"]),
        node("Sqrt", ["b"], ["c"]),
        node("Mul", ["b", "c"], ["d"]),
        node("Add", ["d", "x"], ["y"]),
    ]
    return model(nodes, {"x": (F32, (40, 64))}, {"y": F32}, {"w": np.ones((64, 64), F32)})


def test_the_estimate_is_what_an_idle_engine_takes_to_the_tick(device: sdk.Device) -> None:
    net = device.load(layers())
    estimate = net.estimate()
    x, y = device.buffer((40, 64), "float32"), device.buffer((40, 64), "float32")
    run = net.submit(x, out={"y": y}).wait()  # on device memory, so that no copies are part of it
    assert estimate is not None and run.start_tick is not None and run.end_tick is not None
    assert run.end_tick - run.start_tick == estimate.latency_ticks


def test_the_plans_peak_is_what_the_allocator_hands_out() -> None:
    with sdk.Device("emulator") as own:
        memory = own._function.device_memory
        net = own.load(layers())
        plan = net.plan
        before = memory.free_bytes
        assert plan is not None
        net(np.ones((40, 64), F32))
        taken = before - memory.free_bytes
        assert 0 <= taken - plan.peak_bytes < 2 * DEVICE_ALIGNMENT  # weights, and one lane's memory


def test_an_input_given_twice_and_outputs_that_share_memory_are_refused(device: sdk.Device) -> None:
    net = model(
        [node("Neg", ["x"], ["y"]), node("Abs", ["x"], ["z"])],
        {"x": (np.float32, (2, 3))},
        dict.fromkeys("yz", np.float32),
    )
    loaded, x = device.load(net), np.ones((2, 3), np.float32)
    for arguments in ((x,), ({"x": x},)):
        with pytest.raises(TypeError, match="'x' is given twice"):
            loaded(*arguments, x=x)
    shared = device.host_buffer((3, 3), "float32")
    for out in ({"y": shared[0:2], "z": shared[1:3]}, {"y": shared[0:2], "z": shared[0:2]}):
        with pytest.raises(ValueError, match="share memory"):
            loaded(x, out=out)
    apart = {"y": device.host_buffer((2, 3), "float32"), "z": device.host_buffer((2, 3), "float32")}
    loaded(x, out=apart)
    assert (apart["y"].array == -1).all() and (apart["z"].array == 1).all()
