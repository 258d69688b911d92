"""What no shapes can mend is told when a model is read, whatever dimensions it leaves open; nothing else is."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import sdk.compiler.lowering.elementwise
from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model, compile_program, model_signature, read_model
from sdk.compiler.foreseen import COMPUTING
from sdk.compiler.lowering import LOWERINGS
from sdk.compiler.placement import Where, place
from tests.support.models import model, node
from tests.support.programs import run

F32 = np.float32
OPEN: dict[str, tuple[Any, tuple[str, ...]]] = {"x": (F32, ("n", "m"))}


def told(net: onnx.ModelProto) -> list[tuple[str | None, str | None]]:
    """(operator, code) of what is said against a model when it is loaded."""
    with pytest.raises(UnsupportedModel) as caught:
        model_signature(net)
    return [(problem.op, problem.code) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("op", "operands", "constants"),
    [
        ("NonZero", ["r"], {}),
        ("Unique", ["r"], {}),
        ("Compress", ["r", "b"], {}),
        ("NonMaxSuppression", ["boxes", "scores", "most"], {"most": np.array([3])}),
    ],
)
def test_a_result_as_large_as_the_data_say_is_told_with_all_dimensions_open(
    op: str, operands: list[str], constants: dict[str, Any]
) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Greater", ["r", "zero"], ["b"]), node(op, operands, ["y"])]
    inputs = {**OPEN, "boxes": (F32, ("k", "l", 4)), "scores": (F32, ("k", "c", "l"))}
    dtype = F32 if op in ("Unique", "Compress") else np.int64
    net = model(nodes, inputs, {"y": dtype}, {"zero": np.zeros(1, F32), **constants})
    assert told(net) == [(op, "data-dependent-shape")]
    assert place(read_model(net)).report()[2].where is Where.HOST


def test_what_follows_is_no_problem_of_its_own() -> None:
    nodes = [node("NonZero", ["x"], ["where"]), node("Unique", ["where"], ["y"])]
    assert told(model(nodes, OPEN, {"y": np.int64})) == [("NonZero", "data-dependent-shape")]


def test_data_that_become_double_are_told_with_all_dimensions_open() -> None:
    nodes = [node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE), node("Cast", ["wide"], ["y"], to=TensorProto.FLOAT)]
    assert told(model(nodes, OPEN, {"y": F32})) == [("Cast", "unsupported-type")]


@pytest.mark.parametrize("form", ["initialiser", "Constant", "Cast"])
def test_a_double_that_was_computed_of_constants_is_told_where_it_meets_data(form: str) -> None:
    table = np.ones(3, F32 if form == "Cast" else np.float64)
    nodes = [node("Neg", ["table"], ["negative"]), node("Mul", ["x", "negative"], ["y"])]
    initializers = {"table": table}
    if form == "Constant":
        nodes.insert(0, node("Constant", [], ["table"], value=numpy_helper.from_array(table)))
        initializers = {}
    elif form == "Cast":
        initializers = {"narrow": table}
        nodes.insert(0, node("Cast", ["narrow"], ["table"], to=TensorProto.DOUBLE))
    net = model(nodes, OPEN, {"y": F32}, initializers)
    assert told(net) == [("Mul", "unsupported-type")]
    with pytest.raises(UnsupportedModel, match="its operand 'negative': float64"):
        model_signature(net)


def test_an_input_that_may_be_compiled_for_by_value_is_not_taken_for_data() -> None:
    nodes = [
        node("ConstantOfShape", ["extents"], ["filled"], value=numpy_helper.from_array(np.ones(1, F32))),
        node("NonZero", ["extents"], ["where"]),
        node("Shape", ["where"], ["y"]),
    ]
    net = model(nodes, {"extents": (np.int64, ("rank",))}, {"y": np.int64, "filled": F32})
    model_signature(net)
    compiled = compile_model(net, values={"extents": np.array([2, 0, 3])})
    assert run(compiled, {})["y"].tolist() == [1, 2]


def test_what_a_given_value_settles_is_compiled() -> None:
    net = model([node("NonZero", ["x"], ["y"])], OPEN, {"y": np.int64})
    assert told(net) == [("NonZero", "data-dependent-shape")]
    program = compile_program(net, values={"x": np.array([[0, 1]], F32)})
    assert program.plan is not None
    assert run(compile_model(net, values={"x": np.array([[0, 1]], F32)}), {})["y"].tolist() == [[0], [1]]


@pytest.mark.parametrize("op", ["Size", "Shape"])
def test_what_shapes_say_is_not_taken_for_data(op: str) -> None:
    nodes = [node(op, ["x"], ["extent"]), node("NonZero", ["extent"], ["where"]), node("Neg", ["where"], ["y"])]
    model_signature(model(nodes, OPEN, {"y": np.int64}))


def test_an_open_model_without_such_nodes_has_nothing_against_it() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    net = model(nodes, {"x": (F32, ("n", 2))}, {"y": F32}, {"w": np.ones((2, 2), F32)})
    assert read_model(net).problems == ()


@pytest.mark.parametrize("op", sorted(COMPUTING))
def test_no_operator_that_is_taken_to_ask_for_no_value_asks_for_one(op: str) -> None:
    source = inspect.getsource(LOWERINGS[op])
    assert not any(word in source for word in ("constant_ints", "constant_float", "not_constant", "depends("))


def test_every_elementwise_operator_is_followed_but_those_that_need_not_give_data() -> None:
    assert set(sdk.compiler.lowering.elementwise.LOWERINGS) - COMPUTING == {"CastLike", "Dropout"}
