"""`sdk.quantize` and `sdk.quantization_losses`: what they make, and what they refuse."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sdk
from tests.support.needs import module_of_extra

module_of_extra("onnxruntime", "models")
RANDOM = np.random.default_rng(5)
LIMIT_S = 30
"""For a thread that has nothing left to do."""
SAMPLES = [RANDOM.normal(size=(2, 3, 6, 6)).astype(np.float32) for _ in range(4)]


def net(nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    """Two convolutions, the first with a norm and ReLU behind it; `nodes` instead of them."""
    own = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "variance"], ["n1"], name="norm"),
        helper.make_node("Relu", ["n1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "w2"], ["y"], name="second"),
    ]
    weights = {
        "w1": RANDOM.normal(size=(4, 3, 3, 3)),
        "w2": RANDOM.normal(size=(5, 4, 1, 1)),
        "scale": RANDOM.uniform(0.5, 2, 4),
        "shift": RANDOM.normal(size=4),
        "mean": RANDOM.normal(size=4),
        "variance": RANDOM.uniform(0.5, 2, 4),
    }
    graph = helper.make_graph(
        own if nodes is None else nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
        if nodes is None
        else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def kinds(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def test_the_default_is_qdq_with_weights_of_int8_per_channel() -> None:
    quantised = sdk.quantize(net(), SAMPLES)
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds(quantised)
    assert not {"BatchNormalization", "Relu"} & kinds(quantised), "they become part of the convolution"
    weights = [t for t in quantised.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    assert sorted(tuple(weight.dims) for weight in weights) == [(4, 3, 3, 3), (5, 4, 1, 1)]
    scales = {tuple(t.dims) for t in quantised.graph.initializer if t.name.endswith("_scale")}
    assert {(4,), (5,)} <= scales


def test_the_other_form_has_operators_on_int8() -> None:
    quantised = sdk.quantize(net(), SAMPLES, form="qoperator", activations="uint8")
    assert "QLinearConv" in kinds(quantised) and "Conv" not in kinds(quantised)


def test_a_node_can_stay_float() -> None:
    quantised = sdk.quantize(net(), SAMPLES, keep_float=["second"])
    weights = [t for t in quantised.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    assert [tuple(weight.dims) for weight in weights] == [(4, 3, 3, 3)]


def test_path_bytes_and_model_give_the_same(tmp_path: Path) -> None:
    model = net()
    onnx.save(model, tmp_path / "net.onnx")
    sources = (model, model.SerializeToString(), tmp_path / "net.onnx")
    made = [sdk.quantize(source, SAMPLES).SerializeToString() for source in sources]
    assert made[0] == made[1] == made[2]


def test_the_given_model_is_left_alone() -> None:
    model = net()
    before = model.SerializeToString()
    sdk.quantize(model, SAMPLES)
    assert model.SerializeToString() == before


def test_progress_tells_stages_and_samples() -> None:
    told: list[tuple[str, int]] = []
    sdk.quantize(net(), ({"x": sample} for sample in SAMPLES), progress=lambda *news: told.append(news))
    assert told[0] == ("prepare", 0) and told[-1] == ("quantize", len(SAMPLES))
    assert told[1:-1] == [("calibrate", count) for count in range(1, len(SAMPLES) + 1)]


def test_logging_is_as_it_was_afterwards() -> None:
    before = logging.root.manager.disable
    sdk.quantize(net(), SAMPLES)
    assert logging.root.manager.disable == before


def test_losses_name_the_node_that_loses_most_first() -> None:
    model = net()
    # what the second convolution multiplies by 1000 is next to nothing, and all its other weights become 0 beside it
    for name, place, value in (("scale", 0, 0.0), ("shift", 0, 1e-6), ("w2", (slice(None), 0), 1000.0)):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        spoilt = numpy_helper.to_array(tensor).copy()
        spoilt[place] = value
        tensor.CopyFrom(numpy_helper.from_array(spoilt, name))
    losses = sdk.quantization_losses(model, sdk.quantize(model, SAMPLES, per_channel=False), SAMPLES)
    assert [loss.node for loss in losses] == ["second", "first"]
    assert losses[0].sqnr_db < 3 < 30 < losses[1].sqnr_db
    assert losses[0].added_noise > 0.5 and "Conv 'second'" in str(losses[0])


def test_models_that_have_nothing_to_do_with_each_other_are_refused() -> None:
    other = net([helper.make_node("Sin", ["x"], ["z"])])
    other.graph.output[0].name = "z"
    with pytest.raises(ValueError, match="no tensor in common"):
        sdk.quantization_losses(net(), other, SAMPLES)


@pytest.mark.parametrize(
    ("calibration", "error", "says"),
    [
        ([], ValueError, "there are no samples"),
        (
            [SAMPLES[0], SAMPLES[0][0]],
            ValueError,
            r"sample 1, input 'x': expected shape \(batch, 3, 6, 6\), got \(3, 6, 6\)",
        ),
        (
            [SAMPLES[0].astype(np.float64)],
            TypeError,
            r"sample 0, input 'x': expected float32, got float64; use x.astype",
        ),
        ([{"z": SAMPLES[0]}], ValueError, "sample 0: input 'x' is missing; the model takes x"),
        ([{"x": SAMPLES[0], "z": SAMPLES[0]}], ValueError, "sample 0: input 'z' is unknown"),
        ([[[1.0]]], TypeError, "expected an array of float32, got list"),
        (SAMPLES[0], TypeError, "put it into a list"),
        (None, TypeError, "another iterable of sets of inputs, not NoneType"),
        ([SAMPLES[0], SAMPLES[0] * np.float32(np.nan)], ValueError, "sample 1, input 'x': it holds nan"),
        ([SAMPLES[0] * np.float32(np.inf)], ValueError, "sample 0, input 'x', holds infinity"),
        ({"x": SAMPLES[0]}, TypeError, "put it into a list"),
    ],
)
def test_samples_that_do_not_fit_are_told_apart(calibration: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        sdk.quantize(net(), calibration)


def test_a_quantised_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is quantised already: node .* is a"):
        sdk.quantize(sdk.quantize(net(), SAMPLES), SAMPLES)


def test_a_model_with_nothing_to_quantise_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was quantised"):
        sdk.quantize(net([helper.make_node("Sin", ["x"], ["y"])]), SAMPLES)


def test_biases_that_nodes_share_and_such_of_two_dimensions_are_taken() -> None:
    """onnxruntime's quantiser numbers the copies of a shared bias: "b2" would be the second of "b"."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["b2"], name="first"),
        helper.make_node("Conv", ["b2", "w", "b"], ["b3"], name="second"),
        helper.make_node("Conv", ["b3", "w", "b"], ["b4"], name="third"),
        helper.make_node("Reshape", ["b4", "rows"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "c"], ["y"], name="last"),
    ]
    model = net(nodes)
    for name, value in {
        "w": RANDOM.normal(size=(3, 3, 1, 1)).astype(np.float32),
        "b": RANDOM.normal(size=3).astype(np.float32),
        "rows": np.array([-1, 12]),
        "v": RANDOM.normal(size=(12, 5)).astype(np.float32),
        "c": RANDOM.normal(size=(1, 5)).astype(np.float32),
    }.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    quantised = sdk.quantize(model, SAMPLES)
    onnx.checker.check_model(quantised, full_check=True)
    losses = sdk.quantization_losses(model, quantised, SAMPLES)
    assert {"first", "second", "third"} <= {loss.node for loss in losses}
    assert all(loss.sqnr_db > 20 for loss in losses)


def test_what_branches_use_is_made_before_them() -> None:
    def branch(constant: float) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Constant", [], [f"c{constant}"], value_float=constant),
            helper.make_node("Mul", ["late", f"c{constant}"], [f"y{constant}"]),
        ]
        output = helper.make_tensor_value_info(f"y{constant}", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, "branch", [], [output])

    model = net()
    model.graph.node[-1].output[0] = "late"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "largest"], ["is"]),
            helper.make_node("If", ["is"], ["y"], then_branch=branch(2.0), else_branch=branch(3.0)),
        ]
    )
    onnx.checker.check_model(sdk.quantize(model, SAMPLES), full_check=True)


def test_models_of_older_opsets_are_brought_to_one_that_has_scales_per_channel() -> None:
    model = net()
    model.opset_import[0].version = 11
    model.ir_version = 3  # and yet no initialiser is an input
    quantised = sdk.quantize(model, SAMPLES)
    assert quantised.opset_import[0].version == 13
    onnx.checker.check_model(quantised, full_check=True)


def test_initialisers_that_are_inputs_are_constants_and_nothing_is_printed_of_them(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = net()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    quantised = sdk.quantize(model, SAMPLES)
    assert [value.name for value in quantised.graph.input] == ["x"]
    assert capfd.readouterr() == ("", "")


def test_only_the_operators_named_are_quantised() -> None:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["s"], name="sum"),
        helper.make_node("Conv", ["s", "w"], ["y"], name="conv"),
    ]
    model = net(nodes)
    model.graph.initializer.append(numpy_helper.from_array(RANDOM.normal(size=(3, 3, 1, 1)).astype(np.float32), "w"))
    named = [
        {
            node.input[0]
            for node in sdk.quantize(model, SAMPLES, operators=ops).graph.node
            if node.op_type == "QuantizeLinear"
        }
        for ops in (["Conv"], ["Conv", "Add"])
    ]
    assert "x" not in named[0] and "x" in named[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"form": "qqd"}, "form='qqd'; it is one of 'qdq', 'qoperator'"),
        ({"activations": "int4"}, "activations='int4'; it is one of 'int8', 'uint8'"),
        ({"keep_float": ["third"]}, "keep_float names 'third'; the model has no such node"),
        ({"operators": ["Conv", "Foo"]}, "operators names 'Foo'; neither ONNX nor the model has such an operator"),
        ({"operators": []}, "operators is empty: name those to quantise"),
    ],
)
def test_options_that_do_not_exist_are_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sdk.quantize(net(), SAMPLES, **options)


@pytest.mark.parametrize("option", ["operators", "keep_float"])
@pytest.mark.parametrize("names", ["Conv", 1, [1]])
def test_names_that_are_no_list_of_them_are_told(option: str, names: Any) -> None:
    with pytest.raises(TypeError, match=f"{option} is a list of names"):
        sdk.quantize(net(), SAMPLES, **{option: names})


def test_a_model_that_computes_no_finite_range_is_told() -> None:
    nodes = [helper.make_node("Log", ["x"], ["l"]), helper.make_node("Conv", ["l", "w"], ["y"], name="conv")]
    model = net(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w"))
    with pytest.raises(ValueError, match="the model computes nan or infinity of them"):
        sdk.quantize(model, [np.zeros_like(SAMPLES[0])])


def test_what_a_callers_progress_asserts_is_the_callers() -> None:
    def progress(stage: str, samples: int) -> None:
        assert stage != "calibrate", "too long"

    with pytest.raises(AssertionError, match="too long"):
        sdk.quantize(net(), SAMPLES, progress=progress)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "net.onnx"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(net().SerializeToString(),), daemon=True)
    writer.start()
    assert "QuantizeLinear" in kinds(sdk.quantize(pipe, SAMPLES))
    writer.join(LIMIT_S)


def test_what_is_no_model_is_refused_as_by_load(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(sdk.UnsupportedModel, match="a ZIP archive"):
        sdk.quantize(tmp_path / "weights.pt", SAMPLES)


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(sdk.NpuError, match="onnxruntime") as caught:
        sdk.quantize(net(), SAMPLES)
    assert caught.value.code == "missing-extra" and "npu-sdk[models]" in str(caught.value.remedy)
