"""Compilation without a device: the plan, where nodes run, and what a run will take."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest

import sdk
from driver_shim.protocol.program import align_up
from emulator.model.profile import load_profile
from sdk.compiler.compile import HANDLED
from sdk.errors import UnsupportedModel
from tests.support.models import model, node, storage_net

F32 = np.float32
N = 64


def net(rows: int | str = 4) -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Exp", ["a"], ["b"]),
        node("Sqrt", ["b"], ["c"]),
        node("Mul", ["b", "c"], ["d"]),
        node("Add", ["d", "x"], ["y"]),
    ]
    return model(nodes, {"x": (F32, (rows, N))}, {"y": F32}, {"w": np.ones((N, N), F32)})


def host_only_operator() -> str:
    """An operator that onnxruntime runs and no lowering takes: which one that is may change."""
    return next(op for op in ("Det", "Unique", "NonZero", "StringNormalizer") if op not in HANDLED)


def test_the_plan_says_what_lives_when() -> None:
    plan = sdk.compile(net()).plan
    assert plan is not None
    row = 4 * N * 4
    assert [(each.node, each.first, each.last) for each in plan.live] == [
        ("make_a", 0, 1),
        ("make_b", 1, 3),
        ("make_c", 2, 3),
        ("make_d", 3, 4),
    ]
    assert plan.constants_bytes == N * N * 4
    assert plan.operands_bytes == 2 * row
    assert plan.peak_live_bytes == 3 * row == plan.workspace_bytes
    assert plan.unshared_workspace_bytes == 4 * row
    assert plan.largest_hole_bytes == 0
    assert plan.peak_bytes == plan.constants_bytes + plan.operands_bytes + plan.workspace_bytes
    live_at = [sum(each.size_bytes for each in plan.live if each.first <= i <= each.last) for i in range(plan.commands)]
    assert max(live_at) == plan.peak_live_bytes


@pytest.mark.parametrize("shape", [[(2, N)], "ab", 5, [2.5, N]])
def test_what_is_no_shape_is_told_with_an_example(shape: Any) -> None:
    with pytest.raises(TypeError, match=r"input 'x': .* is no shape; compile takes one shape for an input"):
        sdk.compile(net("n"), shapes={"x": shape})


def test_shapes_that_name_no_input_are_told_with_an_example() -> None:
    with pytest.raises(TypeError, match=r"shapes takes a shape by input, .*, not a list"):
        sdk.compile(net("n"), shapes=[(2, N)])  # type: ignore[arg-type]


def test_a_hole_in_the_workspace_at_its_peak_is_told() -> None:
    nodes = [
        node("Exp", ["x"], ["small"]),
        node("Concat", ["small", "x"], ["large"], axis=0),
        node("Concat", ["large", "large", "x"], ["larger"], axis=0),
        node("ReduceSum", ["larger"], ["total"], keepdims=0),
        node("Mul", ["total", "x"], ["y"]),
    ]
    plan = sdk.compile(model(nodes, {"x": (F32, (8, N))}, {"y": F32})).plan
    assert plan is not None
    assert plan.largest_hole_bytes == align_up(8 * N * 4)
    assert plan.workspace_bytes == plan.peak_live_bytes + plan.largest_hole_bytes


def test_the_estimate_is_that_of_the_chips_figures() -> None:
    program = sdk.compile(net(), target="generic")
    estimate = program.estimate()
    assert estimate is not None and program.plan is not None
    profile = load_profile("generic")
    assert estimate.latency_ticks == profile.exec_fixed_ticks + sum(each.ticks for each in estimate.commands)
    assert estimate.latency_seconds == estimate.latency_ticks / profile.tick_hz
    assert (estimate.macs, estimate.moved_bytes) == (program.plan.macs, program.plan.moved_bytes)
    assert [each.node for each in estimate.commands] == ["make_a", "make_b", "make_c", "make_d", "make_y"]
    with pytest.raises(ValueError, match="unknown profile 'none'"):
        program.estimate("none")


def test_open_dimensions_need_numbers() -> None:
    with pytest.raises(ValueError, match="give numbers"):
        sdk.compile(net("rows"))
    program = sdk.compile(net("rows"), shapes={"x": (3, N)})
    assert (program.inputs[0].shape, program.outputs[0].shape) == ((3, N), (3, N))


def test_what_the_device_cannot_run_is_an_error_or_left_to_the_host() -> None:
    op = host_only_operator()
    wrong = model(
        [node("Relu", ["x"], ["a"]), node(op, ["a"], ["b"]), node("Neg", ["a"], ["y"])],
        {"x": (F32, (2, 2))},
        {"y": F32},
    )
    with pytest.raises(UnsupportedModel, match=f"{op} .*not supported"):
        sdk.compile(wrong)
    program = sdk.compile(wrong, fallback="cpu")
    assert [(each.op, each.where.value, each.code) for each in program.report] == [
        ("Relu", "device", None),
        (op, "host", "unsupported-operator"),
        ("Neg", "device", None),
    ]
    assert program.plan is None and program.estimate() is None


def test_a_node_that_shapes_rule_out_is_left_to_the_host() -> None:
    nodes = [node("Neg", ["x"], ["a"]), node("Expand", ["a", "s"], ["y"])]
    wide = model(nodes, {"x": (F32, (1,))}, {"y": F32}, {"s": np.array([1] * 9)})
    with pytest.raises(UnsupportedModel, match="rank 9"):
        sdk.compile(wide)
    report = sdk.compile(wide, fallback="cpu").report
    assert [(each.op, each.code) for each in report] == [("Neg", None), ("Expand", "unsupported-form")]
    assert "rank 9" in str(report[1].reason)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"fallback": "gpu"}, "use one of 'error', 'cpu'"), ({"target": "none"}, "unknown profile 'none'")],
)
def test_wrong_options_are_value_errors(options: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sdk.compile(net(), **options)  # type: ignore[arg-type]


def test_compiling_opens_no_device_and_starts_nothing() -> None:
    code = (
        "import sdk, subprocess, socket; from tests.support.models import storage_net\n"
        "def refuse(*a, **k): raise AssertionError('something was started')\n"
        "subprocess.Popen.__init__ = refuse; socket.socket.__init__ = refuse\n"
        "print(sdk.compile(storage_net(), shapes={'ids': (1, 4), 'mask': (1, 4)}).estimate().latency_ticks)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    own = sdk.compile(storage_net(), shapes={"ids": (1, 4), "mask": (1, 4)}).estimate()
    assert own is not None and int(done.stdout) == own.latency_ticks
