"""`load(..., fallback="cpu")` runs on the host what the device has no command for, and says so; else it is refused."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from sdk.compiler import placement
from sdk.compiler.placement import Where
from sdk.model.mixed import MixedModel
from sdk.model.model import Model
from tests.support.models import model, node, read_without
from tests.support.needs import module_of_extra

module_of_extra("onnxruntime", "models")
F32 = np.float32


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with sdk.Device("emulator") as opened:
        yield opened


def determinant() -> onnx.ModelProto:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Add", ["r", "k"], ["a"]),
        node("Det", ["a"], ["d"]),
        node("Mul", ["d", "f"], ["y"]),
    ]
    return model(
        nodes,
        {"x": (F32, ("n", 3, 3)), "f": (F32, (1,))},
        {"y": F32, "r": F32},
        {"k": np.eye(3, dtype=F32), "f": np.array([2], F32)},
    )


def load(device: sdk.Device, **options: Any) -> Model:
    """The model where `Det` has no command, whichever have by now."""
    return device.load(read_without(determinant(), "Det"), fallback="cpu", **options)


def real(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(F32)


def expected(x: NDArray[np.float32], factor: float = 2) -> NDArray[Any]:
    return np.asarray(np.linalg.det(np.maximum(x, 0) + np.eye(3)) * factor)


def test_without_fallback_the_model_is_refused(device: sdk.Device) -> None:
    with pytest.raises(sdk.UnsupportedModel, match=r"Det \(node 'make_d'\): the operator is not supported"):
        device.load(read_without(determinant(), "Det"))


def test_it_runs_in_part_on_the_host_and_says_so_once(device: sdk.Device, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "npu"):
        net = load(device)
        for n in (1, 5, 2):
            outputs = net(real(n, 3, 3))
            assert list(outputs) == ["y", "r"]
            np.testing.assert_allclose(outputs["y"], expected(real(n, 3, 3)), rtol=1e-4, atol=1e-5)
    (record,) = caplog.records
    assert "Det 'make_d' (unsupported-operator)" in record.getMessage()
    assert [entry.where for entry in net.report] == [Where.DEVICE, Where.DEVICE, Where.HOST, Where.DEVICE]
    assert net.report[2].crossing_bytes == 2 * 9 * 4 + 2 * 4
    assert net.plan is None and net.estimate() is None


def test_the_devices_commands_of_a_run_are_reported(device: sdk.Device) -> None:
    net = load(device)
    assert net.command_runs() == ()
    net(real(2, 3, 3))
    nodes = [run.node for run in net.command_runs()]
    assert nodes[0] == "make_r" and nodes[-1] == "make_y" and "make_d" not in nodes


def test_defaults_may_be_overridden(device: sdk.Device) -> None:
    net = load(device)
    x = real(2, 3, 3)
    np.testing.assert_allclose(net(x, f=np.array([5], F32))["y"], expected(x, 5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net(x)["y"], expected(x), rtol=1e-4, atol=1e-5)


def test_runs_may_be_awaited_and_started_from_threads(device: sdk.Device) -> None:
    net = load(device, shapes={"x": [(2, 3, 3)]})
    xs = [real(2, 3, 3) + i for i in range(12)]

    async def awaited() -> list[Any]:
        return await asyncio.gather(*(net.run_async(x) for x in xs))

    events = [net.submit(x) for x in xs]
    results = [*asyncio.run(awaited()), *(event.result() for event in events)]
    for x, outputs in zip([*xs, *xs], results, strict=True):
        np.testing.assert_allclose(outputs["y"], expected(x), rtol=1e-3, atol=1e-4)
    assert all(event.done() for event in events)


def test_an_input_array_may_be_reused_when_the_run_has_started(device: sdk.Device) -> None:
    net = load(device)
    x = real(2, 3, 3)
    wanted = expected(x)
    event = net.submit(x)
    x[:] = 0
    np.testing.assert_allclose(event.result()["y"], wanted, rtol=1e-4, atol=1e-5)


def test_errors_of_a_run_are_the_runs(device: sdk.Device) -> None:
    net = model([node("Det", ["x"], ["y"])], {"x": (np.int32, (2, 2))}, {"y": np.int32})
    loaded = device.load(read_without(net, "Det"), fallback="cpu")
    with pytest.raises(sdk.UnsupportedModel, match="neither the device nor onnxruntime"):
        loaded(np.eye(2, dtype=np.int32))
    with pytest.raises(TypeError, match="out is not possible"):
        load(device)(real(1, 3, 3), out={"y": device.host_buffer((1,), "float32")})
    with pytest.raises(ValueError, match="expected shape"):
        load(device)(real(3, 3))


def test_a_model_that_the_device_runs_stays_there_and_has_a_plan(device: sdk.Device) -> None:
    net = device.load(model([node("Relu", ["x"], ["y"])], {"x": (F32, (2, 3))}, {"y": F32}), fallback="cpu")
    assert isinstance(net, MixedModel)
    assert net.plan is not None and [entry.where for entry in net.report] == [Where.DEVICE]
    assert net(np.ones((2, 3), F32))["y"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_what_declared_shapes_rule_out_is_told_at_load(device: sdk.Device, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [node("Neg", ["x"], ["a"]), node("Expand", ["a", "s"], ["y"])]
    wide = model(nodes, {"x": (F32, (1,))}, {"y": F32}, {"s": np.array([1] * 9)})
    net = device.load(wide, fallback="cpu")
    assert "Expand 'make_y' (unsupported-form)" in caplog.text
    assert net(np.ones(1, F32))["y"].shape == (1,) * 9


def test_a_closed_model_and_a_reset_device_say_so() -> None:
    with sdk.Device("emulator") as own:
        net = load(own)
        net(real(1, 3, 3))
        net.close()
        net.close()
        with pytest.raises(sdk.Closed, match="the model is closed"):
            net(real(1, 3, 3))
        other = load(own)
        other(real(1, 3, 3))
        own.reset()
        with pytest.raises(sdk.Closed, match="load it again"):
            other(real(1, 3, 3))


def splitting(more: list[onnx.NodeProto], output: str) -> onnx.ModelProto:
    """A model that cuts x into a sequence "s" of its rows."""
    nodes = [node("Relu", ["x"], ["r"]), node("SplitToSequence", ["r", "lengths"], ["s"], axis=0), *more]
    lengths = {"lengths": np.array([1, 3]), "first": np.array(0)}
    net = model(nodes, {"x": (F32, (4, 3))}, {}, lengths)
    net.graph.output.append(onnx.ValueInfoProto(name=output))
    return net


def test_an_output_that_is_a_sequence_is_refused_at_load(device: sdk.Device) -> None:
    with pytest.raises(sdk.UnsupportedModel, match="the output 's' is a sequence, no array") as caught:
        device.load(splitting([], "s"), fallback="cpu")
    assert [problem.code for problem in caught.value.problems] == ["unsupported-interface"]


def test_a_sequence_within_a_region_of_the_host_is_nobodys_concern(device: sdk.Device) -> None:
    net = device.load(splitting([node("SequenceAt", ["s", "first"], ["y"])], "y"), fallback="cpu")
    x = real(4, 3)
    np.testing.assert_array_equal(net(x)["y"], np.maximum(x[:1], 0))


def test_a_sequence_between_regions_is_refused_at_load(device: sdk.Device) -> None:
    more = [
        node("SequenceLength", ["s"], ["n"]),
        node("Mul", ["n", "first"], ["index"]),
        node("SequenceAt", ["s", "index"], ["y"]),
    ]
    with pytest.raises(sdk.UnsupportedModel, match="the value between regions 's' is a sequence"):
        device.load(splitting(more, "y"), fallback="cpu")


def test_a_sequence_whose_type_was_not_inferred_is_refused_in_the_run(
    device: sdk.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_inferred_types", lambda graph: {})
    net = device.load(splitting([], "s"), fallback="cpu")
    with pytest.raises(sdk.UnsupportedModel, match="'s' came from onnxruntime as a list, no array"):
        net(real(4, 3))


def test_a_model_that_was_let_go_leaves_no_threads(device: sdk.Device) -> None:
    before = threading.active_count()
    net = load(device)
    net(real(1, 3, 3))
    del net
    gc.collect()
    deadline = threading.Event()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        deadline.wait(0.05)
    assert threading.active_count() <= before


def test_a_program_compiled_ahead_with_fallback_is_loaded_with_it(device: sdk.Device) -> None:
    program = sdk.compile(read_without(determinant(), "Det"), fallback="cpu")
    net = device.load(program)
    x = real(2, 3, 3)
    np.testing.assert_allclose(net(x)["y"], expected(x), rtol=1e-4, atol=1e-5)
