"""Nodes that the device has no command for are told apart, and the graph is cut into regions around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from driver_shim.errors import UnsupportedModel
from sdk.compiler import read_model
from sdk.compiler.placement import Where, place
from sdk.compiler.problems import Problem, Reason
from tests.support.models import model, node, read_without

F32 = np.float32
D, H = Where.DEVICE, Where.HOST


def net(nodes: list[onnx.NodeProto], outputs: dict[str, Any], constants: dict[str, Any] | None = None) -> Any:
    return place(read_without(model(nodes, {"x": (F32, ("n", 3, 3))}, outputs, constants), "Det"))


def cut(placement: Any) -> list[tuple[Where, list[str], tuple[str, ...], tuple[str, ...]]]:
    return [
        (region.where, [n.subject.name.removeprefix("make_") for n in region.nodes], region.inputs, region.outputs)
        for region in placement.regions
    ]


def test_a_model_that_the_device_runs_is_one_region() -> None:
    placement = net([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"])], {"y": F32})
    assert placement.is_whole
    assert cut(placement) == [(D, ["a", "y"], ("x",), ("y",))]
    assert {entry.code for entry in placement.report()} == {None}


def test_regions_are_as_large_as_the_order_of_running_allows() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Det", ["a"], ["b"]),
        node("Neg", ["x"], ["c"]),
        node("Det", ["c"], ["d"]),
        node("Abs", ["c"], ["e"]),
        node("Add", ["b", "d"], ["f"]),
        node("Add", ["f", "k"], ["y"]),
    ]
    placement = net(nodes, {"y": F32, "e": F32}, {"k": np.ones(1, F32)})
    assert cut(placement) == [
        (D, ["a", "c", "e"], ("x",), ("a", "c", "e")),
        (H, ["b", "d"], ("a", "c"), ("b", "d")),
        (D, ["f", "y"], ("b", "d"), ("y",)),
    ]
    report = placement.report({"a": 36, "b": 4, "c": 36, "d": 4})
    assert [(entry.node, entry.where.value, entry.code, entry.crossing_bytes) for entry in report] == [
        ("make_a", "device", None, 0),
        ("make_b", "host", "unsupported-operator", 40),
        ("make_c", "device", None, 0),
        ("make_d", "host", "unsupported-operator", 40),
        ("make_e", "device", None, 0),
        ("make_f", "device", None, 0),
        ("make_y", "device", None, 0),
    ]
    assert placement.report()[1].crossing_bytes is None


def test_a_constant_belongs_to_every_region_that_reads_it() -> None:
    nodes = [
        node("Constant", [], ["k"], value_float=2.0),
        node("Mul", ["x", "k"], ["a"]),
        node("Det", ["a"], ["b"]),
        node("Mul", ["b", "k"], ["y"]),
    ]
    assert cut(net(nodes, {"y": F32})) == [
        (D, ["k", "a"], ("x",), ("a",)),
        (H, ["b"], ("a",), ("b",)),
        (D, ["k", "y"], ("b",), ("y",)),
    ]


def test_what_computes_nothing_between_host_nodes_stays_on_the_host() -> None:
    nodes = [
        node("Det", ["x"], ["a"]),
        node("Unsqueeze", ["a", "axes"], ["b"]),
        node("Unsqueeze", ["b", "axes"], ["c"]),
        node("Det", ["c"], ["y"]),
    ]
    placement = net(nodes, {"y": F32}, {"axes": np.array([0])})
    assert [region.where for region in placement.regions] == [H]
    assert [entry.code for entry in placement.report()][1:3] == ["between-host-nodes"] * 2


def test_values_of_types_that_the_device_lacks_keep_their_nodes_on_the_host() -> None:
    nodes = [
        node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        node("Exp", ["wide"], ["e"]),
        node("Cast", ["e"], ["y"], to=TensorProto.FLOAT),
    ]
    placement = net(nodes, {"y": F32})
    assert [entry.code for entry in placement.report()] == ["unsupported-type"] * 3
    assert "no such type as 'wide' has" in str(placement.report()[0].reason)


def test_a_node_that_turned_out_not_to_fit_is_placed_anew() -> None:
    graph = read_model(model([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"])], {"x": (F32, (2,))}, {"y": F32}))
    placement = place(graph, {2: Problem("too large", graph.nodes[1].subject, Reason.FORM)})
    assert [(entry.where, entry.code) for entry in placement.report()] == [(D, None), (H, "unsupported-form")]


@pytest.mark.parametrize("fatal", ["damaged", "sequence"])
def test_a_model_that_runs_nowhere_is_refused(fatal: str) -> None:
    wrong = model([node("Det", ["x"], ["y"])], {"x": (F32, (2, 2))}, {"y": F32})
    if fatal == "damaged":
        wrong.graph.node[0].input[0] = "nowhere"
    else:
        wrong.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))
    with pytest.raises(UnsupportedModel) as caught:
        place(read_without(wrong, "Det"))
    assert "not supported" not in str(caught.value) or fatal == "sequence"
