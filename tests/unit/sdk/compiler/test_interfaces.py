"""Models as exporters write them: defaults, open dimensions, no types, functions, inputs that determine shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from driver_shim.errors import UnsupportedModel
from sdk.compiler import ANY_SHAPE, compile_model, model_signature, read_model
from sdk.compiler.compile import NeedsValues
from tests.support.models import model, node
from tests.support.programs import run

F32 = np.float32
W = np.arange(12, dtype=F32).reshape(4, 3)
X = np.arange(8, dtype=F32).reshape(2, 4)


def product(shape: Any = (2, 4)) -> onnx.ModelProto:
    return model([node("MatMul", ["x", "w"], ["y"])], {"x": (F32, shape)}, {"y": F32}, {"w": W})


def with_defaults(ir_version: int) -> onnx.ModelProto:
    """Weights declared as the first input, as models before IR version 4 have to."""
    net = product()
    net.graph.input.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    net.ir_version = ir_version
    return net


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_an_initialiser_that_is_an_input_is_a_default(ir_version: int) -> None:
    signature = model_signature(with_defaults(ir_version))
    assert [info.name for info in signature.inputs] == ["x"]
    assert [str(info) for info in signature.optional] == ["w: float32[4, 3]"]
    np.testing.assert_array_equal(run(compile_model(with_defaults(ir_version)), {"x": X})["y"], X @ W)


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_a_default_that_is_overridden_becomes_an_input(ir_version: int) -> None:
    compiled = compile_model(with_defaults(ir_version), {"w": W.shape})
    assert [info.name for info in compiled.inputs] == ["x", "w"]
    np.testing.assert_array_equal(run(compiled, {"x": X, "w": W + 1})["y"], X @ (W + 1))


@pytest.mark.parametrize("extent", [-1, 0, None, "", "?"])
def test_dimensions_that_exporters_leave_open_are_unknown(extent: Any) -> None:
    net = product((extent, 4))
    assert model_signature(net).inputs[0].shape == ("x.0", 4)
    np.testing.assert_array_equal(run(compile_model(net, {"x": X.shape}), {"x": X})["y"], X @ W)


def test_two_dimensions_without_a_name_need_not_be_equal() -> None:
    net = model([node("Concat", ["x", "z"], ["y"], axis=0)], {"x": (F32, ("?", 4)), "z": (F32, ("?", 4))}, {"y": F32})
    assert [info.shape for info in model_signature(net).inputs] == [("x.0", 4), ("z.0", 4)]


def test_an_input_without_a_shape_takes_any() -> None:
    net = product()
    net.graph.input[0].type.tensor_type.ClearField("shape")
    assert model_signature(net).inputs[0].shape == ANY_SHAPE
    assert compile_model(net, {"x": (5, 4)}).outputs[0].shape == (5, 3)
    with pytest.raises(ValueError, match="of any rank: give numbers"):
        compile_model(net)


@pytest.mark.parametrize("how", ["no type", "undefined type", "no shape"])
def test_what_an_output_does_not_declare_is_inferred(how: str) -> None:
    net = product(("n", 4))
    if how == "no type":
        net.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="y"))
    elif how == "undefined type":
        net.graph.output[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    assert str(model_signature(net).outputs[0]) == "y: float32[n, 3]"
    np.testing.assert_array_equal(run(compile_model(net, {"x": X.shape}), {"x": X})["y"], X @ W)


def with_function() -> onnx.ModelProto:
    scaled = helper.make_function(
        "local",
        "Scaled",
        ["a"],
        ["c"],
        [node("Constant", [], ["k"], value_float=3.0), node("Mul", ["a", "k"], ["c"])],
        [helper.make_opsetid("", 17)],
    )
    net = model(
        [helper.make_node("Scaled", ["x"], ["s"], domain="local"), node("Relu", ["s"], ["y"])],
        {"x": (F32, (2, 4))},
        {"y": F32},
    )
    net.opset_import.append(helper.make_opsetid("local", 1))
    net.functions.append(scaled)
    return net


def test_functions_of_the_model_are_written_out() -> None:
    np.testing.assert_array_equal(run(compile_model(with_function()), {"x": X})["y"], 3 * X)


def calling(**bodies: str) -> onnx.ModelProto:
    """A model that calls the function F; each function holds the one node that is named."""
    net = model([helper.make_node("F", ["x"], ["y"], domain="local", name="call")], {"x": (F32, (2, 4))}, {"y": F32})
    net.opset_import.append(helper.make_opsetid("local", 1))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for name, op in bodies.items():
        body = [helper.make_node(op, ["a"], ["b"], domain="local" if op in bodies else "")]
        net.functions.append(helper.make_function("local", name, ["a"], ["b"], body, opsets))
    return net


@pytest.mark.parametrize(
    ("bodies", "who"),
    [
        ({"F": "F"}, "it calls itself"),
        ({"F": "G", "G": "F"}, "it calls itself"),
        ({"F": "G", "G": "G"}, "'G', which it calls, calls itself"),
        ({"F": "Relu", "G": "G"}, None),
    ],
)
def test_a_function_that_calls_itself_is_named(bodies: dict[str, str], who: str | None) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        compile_model(calling(**bodies))
    (problem,) = caught.value.problems
    assert (problem.op, problem.node) == ("F", "call")
    what = "a function of the model that cannot be written out"
    assert problem.reason == (what if who is None else f"{what}: {who}")


def test_a_function_of_another_opset_than_the_models_is_told() -> None:
    net = with_function()
    net.functions[0].opset_import[0].version = 13
    with pytest.raises(UnsupportedModel, match="it is of opset 13 of ONNX's own operators, the model of opset 17"):
        compile_model(net)


def test_an_operator_without_a_command_runs_by_its_body_in_onnx() -> None:
    net = model(
        [node("CenterCropPad", ["x", "shape"], ["y"])],
        {"x": (F32, (5, 6))},
        {"y": F32},
        {"shape": np.array([3, 4])},
        opset=18,
    )
    x = np.arange(30, dtype=F32).reshape(5, 6)
    np.testing.assert_array_equal(run(compile_model(net), {"x": x})["y"], x[1:4, 1:5])


def reshaping() -> onnx.ModelProto:
    """The target of a Reshape is made of an input's elements, some of them computed."""
    nodes = [
        node("Mul", ["rows", "two"], ["doubled"]),
        node("Concat", ["doubled", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"two": np.array([2]), "rest": np.array([-1])}
    return model(nodes, {"x": (F32, (2, 4)), "rows": (np.int64, (1,))}, {"y": F32}, constants)


def test_inputs_that_determine_shapes_are_asked_for_and_compiled_by_value() -> None:
    graph = read_model(reshaping())
    with pytest.raises(NeedsValues, match="depends on the values of 'rows'") as caught:
        compile_model(graph)
    assert caught.value.inputs == ("rows",)
    for rows, shape in ((1, (2, 4)), (2, (4, 2))):
        compiled = compile_model(graph, values={"rows": np.array([rows])})
        assert (compiled.outputs[0].shape, [info.name for info in compiled.inputs]) == (shape, ["x"])


def test_a_value_that_is_computed_on_the_device_cannot_determine_a_shape() -> None:
    net = reshaping()
    net.graph.node.insert(0, node("ArgMax", ["x"], ["rows"], axis=1, keepdims=0))
    del net.graph.input[1]
    with pytest.raises(UnsupportedModel, match="must be constant whole numbers") as caught:
        compile_model(net)
    assert not isinstance(caught.value, NeedsValues)


def test_a_value_of_another_type_than_the_input_is_refused() -> None:
    with pytest.raises(ValueError, match="input 'rows' is int64"):
        compile_model(reshaping(), values={"rows": np.array([1], np.int32)})


def test_every_problem_has_a_code() -> None:
    nodes = [
        node("Multinomial", ["x"], ["a"]),
        helper.make_node("Thing", ["x"], ["b"], domain="com.example"),
        helper.make_node("Nonsense", ["x"], ["c"]),
    ]
    net = model(nodes, {"x": (F32, (2, 2)), "d": (np.float64, (2,))}, {"a": F32})
    assert [(p.subject.op, str(p.code)) for p in read_model(net).problems] == [
        (None, "unsupported-type"),
        ("Multinomial", "unsupported-operator"),
        ("Thing", "unsupported-domain"),
        ("Nonsense", "malformed"),
    ]


@pytest.mark.parametrize("size", [4, 64])
def test_older_models_are_converted_to_the_oldest_opset_that_is_taken(size: int) -> None:
    random = np.random.default_rng(size)
    w, b, k = (random.normal(size=shape).astype(F32) for shape in ((size, size), (size,), (size, size)))
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        node("Add", ["p", "b"], ["q"], broadcast=1),
        node("Constant", [], ["k"], value=helper.make_tensor("k", TensorProto.FLOAT, k.shape, k.tobytes(), raw=True)),
        node("MatMul", ["q", "k"], ["y"]),
    ]
    inputs = {"x": (F32, (2, size)), "w": (F32, w.shape), "b": (F32, b.shape)}
    net = model(nodes, inputs, {"y": F32}, {"w": w, "b": b}, opset=6)
    net.ir_version = 3
    x = random.normal(size=(2, size)).astype(F32)
    np.testing.assert_allclose(run(compile_model(net), {"x": x})["y"], (x @ w + b) @ k, rtol=1e-4)
