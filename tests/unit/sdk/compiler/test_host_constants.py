"""Constants of types that the device does not have: computed with while compiling, refused where commands read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model, model_signature, read_model
from sdk.compiler.host_constants import MOST_ELEMENTS
from sdk.compiler.placement import place
from sdk.compiler.problems import Problem, Reason
from tests.support.models import model, node
from tests.support.programs import run

F32 = np.float32
DOUBLE, FLOAT, INT64 = TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.INT64


def halved() -> onnx.ModelProto:
    """x, its last dimension halved by arithmetic in double, as exporters write it for an interpolation."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "last"], ["extent"], axis=0),
        node("Cast", ["extent"], ["wide"], to=DOUBLE),
        node("Mul", ["wide", "half"], ["scaled"]),
        node("Floor", ["scaled"], ["whole"]),
        node("Cast", ["whole"], ["end"], to=INT64),
        node("Slice", ["x", "start", "end", "last"], ["y"]),
    ]
    initializers = {"last": np.array([1]), "half": np.array([0.5], np.float64), "start": np.array([0])}
    return model(nodes, {"x": (F32, ("rows", "columns"))}, {"y": F32}, initializers)


@pytest.mark.parametrize("columns", [4, 7])
def test_shape_arithmetic_in_double_never_reaches_the_device(columns: int) -> None:
    x = np.arange(2 * columns, dtype=F32).reshape(2, columns)
    compiled = compile_model(halved(), {"x": x.shape})
    assert run(compiled, {"x": x})["y"].tolist() == x[:, : columns // 2].tolist()
    assert place(read_model(halved())).is_whole


@pytest.mark.parametrize("dtype", [np.float64, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("form", ["initialiser", "Constant"])
def test_a_table_is_cast_while_compiling(dtype: Any, form: str) -> None:
    table = np.array([1, 2, 3], dtype)
    nodes = [node("Cast", ["table"], ["narrow"], to=FLOAT), node("Mul", ["x", "narrow"], ["y"])]
    initializers = {"table": table}
    if form == "Constant":
        nodes.insert(0, node("Constant", [], ["table"], value=numpy_helper.from_array(table)))
        initializers = {}
    net = model(nodes, {"x": (F32, (3,))}, {"y": F32}, initializers)
    compiled = compile_model(net)
    assert run(compiled, {"x": np.array([2, 2, 2], F32)})["y"].tolist() == [2, 4, 6]
    assert compiled.plan.commands == 1
    assert place(read_model(net)).is_whole


def test_what_a_shape_is_filled_with_may_be_double() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["thirds"], value=numpy_helper.from_array(np.array([1 / 3]))),
        node("Cast", ["thirds"], ["narrow"], to=FLOAT),
        node("Add", ["x", "narrow"], ["y"]),
    ]
    net = model(nodes, {"x": (F32, ("n",))}, {"y": F32})
    assert run(compile_model(net, {"x": (2,)}), {"x": np.zeros(2, F32)})["y"].tolist() == [F32(1 / 3)] * 2


def test_a_table_that_a_command_reads_is_refused_by_its_name_and_a_remedy() -> None:
    net = model([node("Mul", ["x", "table"], ["y"])], {"x": (F32, (3,))}, {"y": F32}, {"table": np.ones(3)})
    with pytest.raises(UnsupportedModel, match=r"initialiser .table.: float64 .* convert the model to float32"):
        model_signature(net)


def test_a_result_that_a_command_reads_is_refused_at_the_command() -> None:
    nodes = [node("Neg", ["table"], ["negative"]), node("Mul", ["x", "negative"], ["y"])]
    net = model(nodes, {"x": (F32, (3,))}, {"y": F32}, {"table": np.ones(3)})
    with pytest.raises(UnsupportedModel, match="its operand 'negative': float64") as caught:
        compile_model(net)
    assert (caught.value.op, caught.value.problems[0].code) == ("Mul", "unsupported-type")


def test_a_cast_of_data_to_double_is_refused_on_the_device_and_placed_on_the_host() -> None:
    nodes = [node("Cast", ["x"], ["wide"], to=DOUBLE), node("Cast", ["wide"], ["y"], to=FLOAT)]
    net = model(nodes, {"x": (F32, (3,))}, {"y": F32})
    with pytest.raises(UnsupportedModel, match="float64"):
        compile_model(net)
    assert not place(read_model(net)).is_whole


def test_a_foreign_result_that_the_host_reads_is_computed_on_the_host() -> None:
    nodes = [
        node("Neg", ["table"], ["negative"]),
        node("Cast", ["x"], ["wide"], to=DOUBLE),
        node("Mul", ["wide", "negative"], ["product"]),
        node("Cast", ["product"], ["y"], to=FLOAT),
    ]
    placement = place(read_model(model(nodes, {"x": (F32, (3,))}, {"y": F32}, {"table": np.ones(3)})))
    assert all(reason is not None for reason in placement.reasons)


def test_what_cannot_be_computed_after_all_is_placed_on_the_host_with_what_reads_it() -> None:
    nodes = [
        node("Neg", ["table"], ["negative"]),
        node("Exp", ["negative"], ["power"]),
        node("Cast", ["power"], ["narrow"], to=FLOAT),
        node("Mul", ["x", "narrow"], ["y"]),
    ]
    graph = read_model(model(nodes, {"x": (F32, (3,))}, {"y": F32}, {"table": np.ones(3)}))
    refused = {2: Problem("it is refused", graph.nodes[1].subject, Reason.FORM)}
    assert [reason is None for reason in place(graph, refused).reasons] == [False, False, False, True]


def test_what_would_become_large_is_refused() -> None:
    side = 2048
    assert side * side > MOST_ELEMENTS
    nodes = [node("Mul", ["column", "row"], ["square"]), node("Cast", ["square"], ["y"], to=FLOAT)]
    tables = {"column": np.ones((side, 1)), "row": np.ones((1, side))}
    with pytest.raises(UnsupportedModel, match="may be large"):
        compile_model(model(nodes, {}, {"y": F32}, tables))


def test_constants_that_cannot_be_computed_with_are_refused() -> None:
    nodes = [node("Add", ["a", "b"], ["sum"]), node("Cast", ["sum"], ["y"], to=FLOAT)]
    with pytest.raises(UnsupportedModel, match="cannot be computed with"):
        compile_model(model(nodes, {}, {"y": F32}, {"a": np.ones(2), "b": np.ones(3)}))


def test_an_output_of_a_foreign_type_is_refused() -> None:
    net = model([node("Neg", ["table"], ["y"])], {}, {"y": np.float64}, {"table": np.ones(3)})
    with pytest.raises(UnsupportedModel, match="float64"):
        compile_model(net)
    untyped = model([node("Neg", ["table"], ["y"])], {}, {}, {"table": np.ones(3)})
    untyped.graph.output.append(helper.make_empty_tensor_value_info("y"))
    with pytest.raises(UnsupportedModel, match="float64"):
        compile_model(untyped)
