"""Every profile is a device: a net takes what was estimated, and is refused by name where a type is lacking."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import sdk
from emulator.model.profile import load_profile, profile_names
from sdk.errors import UnsupportedModel
from tests.support.models import model, node
from tests.support.waiting import PATIENCE_S

ROWS, DEPTH, COLUMNS = 24, 96, 40


def product(kind: str) -> onnx.ModelProto:
    """A product of matrices with results of its own type."""
    if kind == "int8":
        weights = {"w": np.ones((DEPTH, COLUMNS), np.int8)}
        nodes = [node("MatMulInteger", ["x", "w"], ["y"])]
        return model(nodes, {"x": (np.int8, (ROWS, DEPTH))}, {"y": np.int32}, weights)
    if kind == "bf16":
        graph = helper.make_graph(
            [node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, (ROWS, DEPTH))],
            [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, (ROWS, COLUMNS))],
            [helper.make_tensor("w", TensorProto.BFLOAT16, (DEPTH, COLUMNS), [1.0] * (DEPTH * COLUMNS))],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    dtype: Any = {"fp16": np.float16, "fp32": np.float32}[kind]
    weights = {"w": np.ones((DEPTH, COLUMNS), dtype)}
    return model([node("MatMul", ["x", "w"], ["y"])], {"x": (dtype, (ROWS, DEPTH))}, {"y": dtype}, weights)


@pytest.mark.parametrize("name", profile_names())
def test_a_device_of_every_profile_takes_what_was_estimated(name: str) -> None:
    profile = load_profile(name)
    expected = sdk.compile(product("int8"), target=name).estimate()
    assert expected is not None and expected.fits
    assert expected.bounds_only_without == profile.bounds_only_without
    with sdk.Device(f"emulator:{name}?kernels=numpy&core=none") as device:
        assert (device.info.profile, device.info.engines) == (name, profile.engines)
        assert device.info.memory_bytes == profile.memory_bytes
        net = device.load(product("int8"))
        x, y = device.buffer((ROWS, DEPTH), "int8"), device.buffer((ROWS, COLUMNS), "int32")
        run = net.submit(x, out={"y": y}).wait(PATIENCE_S)
        assert run.start_tick is not None and run.end_tick is not None
        assert run.end_tick - run.start_tick == expected.latency_ticks >= expected.bound_ticks > 0
        values = np.arange(ROWS * DEPTH, dtype=np.int8).reshape(ROWS, DEPTH)
        assert (net(values)["y"] == values.astype(np.int32) @ np.ones((DEPTH, COLUMNS), np.int32)).all()


@pytest.mark.parametrize("kind", ["int8", "fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", profile_names())
def test_a_type_runs_where_the_chip_has_a_rate_and_is_refused_by_name_elsewhere(name: str, kind: str) -> None:
    if getattr(load_profile(name), f"{kind}_macs_per_tick") is None:
        with pytest.raises(UnsupportedModel, match=f"{name} has no rate for {kind}; it has: "):
            sdk.compile(product(kind), target=name)
    else:
        found = sdk.compile(product(kind), target=name).estimate()
        assert found is not None and found.latency_ticks >= found.bound_ticks
