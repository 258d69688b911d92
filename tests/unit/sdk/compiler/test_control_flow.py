"""Branches are chosen while compiling or both computed; loops are unrolled. The reference is ONNX's own evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.program_commands import CommandKind
from sdk.compiler import compile_model
from sdk.compiler.compile import NeedsValues
from tests.support.models import model, node
from tests.support.programs import run
from tests.unit.sdk.compiler.test_compile import kinds

F32 = np.float32
X = np.arange(6, dtype=F32).reshape(2, 3) - 2
Arrays = dict[str, NDArray[Any]]


def graph(
    nodes: list[onnx.NodeProto], outputs: list[str], inputs: list[str] | None = None, **constants: Any
) -> onnx.GraphProto:
    """A graph within a node; its inputs and outputs have no types, as exporters may leave them."""
    return helper.make_graph(
        nodes,
        "within",
        [helper.make_empty_tensor_value_info(name) for name in inputs or []],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )


def as_the_reference(net: onnx.ModelProto, inputs: Arrays) -> None:
    expected = ReferenceEvaluator(net).run(None, inputs)
    results = run(compile_model(net, {name: array.shape for name, array in inputs.items()}), inputs)
    for array, wanted in zip(results.values(), expected, strict=True):
        assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(array, wanted, rtol=1e-6)


def choice(then: onnx.GraphProto, otherwise: onnx.GraphProto, condition: Any = None) -> onnx.ModelProto:
    inputs: dict[str, Any] = {"x": (F32, ("n", 3))}
    constants = {"half": np.array(0.5, F32)}
    if condition is None:
        inputs["b"] = (np.bool_, ())
    else:
        constants["b"] = np.array(condition)
    return model(
        [node("If", ["b"], ["z"], then_branch=then, else_branch=otherwise), node("Neg", ["z"], ["y"])],
        inputs,
        {"y": F32},
        constants,
    )


RELU = graph([node("Relu", ["x"], ["r"])], ["r"])
SCALED = graph([node("Mul", ["x", "half"], ["m"]), node("Add", ["m", "k"], ["r"])], ["r"], k=np.ones(3, F32))
WIDER = graph([node("Concat", ["x", "x"], ["r"], axis=1)], ["r"])


@pytest.mark.parametrize(("condition", "expected"), [(True, [CommandKind.UNARY]), (False, [CommandKind.BINARY] * 2)])
def test_a_known_condition_leaves_one_branch(condition: bool, expected: list[CommandKind]) -> None:
    net = choice(RELU, SCALED, condition)
    as_the_reference(net, {"x": X})
    assert kinds(compile_model(net, {"x": X.shape}).image)[:-1] == expected


def test_a_condition_that_follows_from_shapes_is_known() -> None:
    net = choice(RELU, SCALED, True)
    del net.graph.initializer[1]
    for made in (
        node("Equal", ["rows", "one"], ["b"]),
        node("Squeeze", ["row"], ["rows"]),
        node("Slice", ["shape", "from", "to"], ["row"]),
        node("Shape", ["x"], ["shape"]),
    ):
        net.graph.node.insert(0, made)
    for name, array in {"one": np.array(1), "from": np.array([0]), "to": np.array([1])}.items():
        net.graph.initializer.append(numpy_helper.from_array(array, name))
    as_the_reference(net, {"x": X})
    as_the_reference(net, {"x": X[:1]})


@pytest.mark.parametrize("condition", [True, False])
def test_a_condition_on_the_device_selects_between_both_branches(condition: bool) -> None:
    as_the_reference(choice(RELU, SCALED), {"x": X, "b": np.array(condition)})


def test_branches_of_different_shapes_are_compiled_for_the_value_of_an_input() -> None:
    net = choice(RELU, WIDER)
    with pytest.raises(NeedsValues, match="different shapes; it depends on the values of 'b'") as caught:
        compile_model(net, {"x": X.shape})
    assert caught.value.inputs == ("b",)
    for value, columns in ((True, 3), (False, 6)):
        compiled = compile_model(net, {"x": X.shape}, {"b": np.array(value)})
        assert [info.name for info in compiled.inputs] == ["x"]
        assert compiled.outputs[0].shape == (2, columns)


def test_a_branch_that_cannot_run_asks_which_one_it_is() -> None:
    # such as the branch for another sampling rate, in which a window is longer than what there is
    reflected = graph([node("Pad", ["x", "far"], ["r"], mode="reflect")], ["r"], far=np.array([9, 0, 0, 0]))
    net = choice(RELU, reflected)
    with pytest.raises(NeedsValues, match=r"a branch cannot run: Pad .*; it depends on the values of 'b'") as caught:
        compile_model(net, {"x": X.shape})
    assert caught.value.inputs == ("b",)
    compiled = compile_model(net, {"x": X.shape}, {"b": np.array(True)})
    assert CommandKind.UNARY in kinds(compiled.image)


def test_a_branch_that_may_fail_is_not_run_in_vain() -> None:
    gather = graph([node("Gather", ["x", "i"], ["r"])], ["r"])
    net = choice(gather, RELU)
    net.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [2]))
    with pytest.raises(NeedsValues, match="may fail"):
        compile_model(net, {"x": (2, 3)})


def loop(trips: Any, *, until: int | None = None) -> onnx.ModelProto:
    """total and power after `trips` rounds, and each round's power; with `until`, rounds end when they number that."""
    nodes = [
        node("Mul", ["power_in", "x"], ["power_out"]),
        node("Add", ["total_in", "power_out"], ["total_out"]),
        node("Identity", ["power_out"], ["row"]),
    ]
    if until is None:
        nodes.append(node("Identity", ["go_in"], ["go_out"]))
    else:
        nodes.append(node("Less", ["i", "last"], ["go_out"]))
    outputs = ["go_out", "power_out", "total_out", "row"]
    body = graph(nodes, outputs, ["i", "go_in", "power_in", "total_in"], last=np.array((until or 1) - 1))
    return model(
        [node("Loop", ["trips" if trips is not None else "", "go", "x", "x"], ["p", "t", "rows"], body=body)],
        {"x": (F32, (2, 3))},
        {"p": F32, "t": F32, "rows": F32},
        {"trips": np.array(trips or 0), "go": np.array(True)},
    )


@pytest.mark.parametrize(("net", "rounds"), [(loop(3), 3), (loop(5, until=2), 2), (loop(None, until=4), 4)])
def test_loops_with_a_known_number_of_rounds_are_unrolled(net: onnx.ModelProto, rounds: int) -> None:
    results = run(compile_model(net), {"x": X})
    powers = np.stack([X ** (2 + i) for i in range(rounds)])
    np.testing.assert_allclose(results["p"], powers[-1], rtol=1e-6)
    np.testing.assert_allclose(results["t"], X + powers.sum(0), rtol=1e-6)
    np.testing.assert_allclose(results["rows"], powers, rtol=1e-6)


def test_a_loop_whose_rounds_an_input_counts_is_compiled_for_its_value() -> None:
    net = loop(3)
    (trips,) = [tensor for tensor in net.graph.initializer if tensor.name == "trips"]
    net.graph.initializer.remove(trips)
    net.graph.input.append(helper.make_tensor_value_info("trips", TensorProto.INT64, []))
    with pytest.raises(NeedsValues) as caught:
        compile_model(net)
    assert caught.value.inputs == ("trips",)
    results = run(compile_model(net, values={"trips": np.array(2)}), {"x": X})
    np.testing.assert_allclose(results["p"], X**3, rtol=1e-6)


def test_a_loop_that_data_end_is_refused() -> None:
    body = graph(
        [node("Mul", ["v", "v"], ["w"]), node("ReduceMax", ["w"], ["m"], keepdims=0)], ["go_out", "w"], ["i", "go", "v"]
    )
    body.node.append(node("Less", ["m", "limit"], ["go_out"]))
    net = model(
        [node("Loop", ["", "start", "x"], ["y"], body=body)],
        {"x": (F32, (2,))},
        {"y": F32},
        {"start": np.array(True), "limit": np.array(9, F32)},
    )
    with pytest.raises(UnsupportedModel, match="condition must be known while compiling") as caught:
        compile_model(net)
    assert caught.value.problems[0].code == "unsupported-form"


def test_an_endless_loop_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="more than 1024 iterations"):
        compile_model(loop(1 << 40))


@pytest.mark.parametrize("attributes", [{}, {"scan_input_directions": [1], "scan_output_directions": [1]}])
def test_scans_are_unrolled(attributes: dict[str, Any]) -> None:
    body = graph([node("Add", ["s", "item"], ["t"]), node("Relu", ["t"], ["row"])], ["t", "row"], ["s", "item"])
    net = model(
        [node("Scan", ["start", "x"], ["last", "rows"], body=body, num_scan_inputs=1, **attributes)],
        {"x": (F32, (4, 3))},
        {"last": F32, "rows": F32},
        {"start": np.ones(3, F32)},
    )
    x = np.arange(12, dtype=F32).reshape(4, 3) - 5
    results = run(compile_model(net), {"x": x})
    order = x[::-1] if attributes else x
    sums = 1 + np.cumsum(order, axis=0)
    rows = np.maximum(sums, 0)
    np.testing.assert_allclose(results["last"], sums[-1])
    np.testing.assert_allclose(results["rows"], rows[::-1] if attributes else rows)


def test_a_scan_of_opset_8_has_a_batch() -> None:
    body = graph([node("Add", ["s", "item"], ["t"]), node("Relu", ["t"], ["row"])], ["t", "row"], ["s", "item"])
    net = model(
        [node("Scan", ["", "start", "x"], ["last", "rows"], body=body, num_scan_inputs=1)],
        {"x": (F32, (2, 4, 3))},
        {"last": F32, "rows": F32},
        {"start": np.ones((2, 3), F32)},
        opset=8,
    )
    x = np.arange(24, dtype=F32).reshape(2, 4, 3) - 9
    results = run(compile_model(net), {"x": x})
    sums = 1 + np.cumsum(x, axis=1)
    np.testing.assert_allclose(results["last"], sums[:, -1])
    np.testing.assert_allclose(results["rows"], np.maximum(sums, 0))


def test_names_within_two_branches_may_be_the_same() -> None:
    then = graph([node("Relu", ["x"], ["t"]), node("Neg", ["t"], ["r"])], ["r"])
    otherwise = graph([node("Abs", ["x"], ["t"]), node("Exp", ["t"], ["r"])], ["r"])
    as_the_reference(choice(then, otherwise), {"x": X, "b": np.array(False)})
