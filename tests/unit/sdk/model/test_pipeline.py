"""Models run in part on the host, and give what onnxruntime gives for all of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from driver_shim.errors import NpuError, UnsupportedModel
from sdk.compiler import compile_model, read_model
from sdk.compiler.graph import Graph
from sdk.compiler.placement import Where
from sdk.model.pipeline import Pipeline
from tests.support.models import model, node, read_without
from tests.support.needs import module_of_extra
from tests.support.programs import run

onnxruntime = module_of_extra("onnxruntime", "models")
F32 = np.float32
Arrays = Mapping[str, NDArray[Any]]


class OnDevice:
    """A region compiled for each run, on the golden kernels."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def run(self, arrays: Arrays) -> Arrays:
        return run(compile_model(self._graph, {name: array.shape for name, array in arrays.items()}), arrays)

    def check(self) -> None:
        compile_model(self._graph)


def as_onnxruntime(source: onnx.ModelProto | Path, inputs: Arrays) -> Pipeline:
    pipeline = Pipeline(read_without(source, "Det", "Einsum"), OnDevice)
    data = source.SerializeToString() if isinstance(source, onnx.ModelProto) else str(source)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(inputs)), strict=True))
    for _ in range(2):
        results = pipeline.run(inputs)
        assert list(results) == list(expected)
        for name, array in expected.items():
            assert (results[name].dtype, results[name].shape) == (array.dtype, array.shape)
            np.testing.assert_allclose(results[name], array, rtol=1e-5, atol=1e-6)
    return pipeline


def sides(pipeline: Pipeline) -> str:
    return "".join("h" if entry.where is Where.HOST else "d" for entry in pipeline.report)


def real(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(F32)


def determinant(constants: Any = None) -> onnx.ModelProto:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Add", ["r", "k"], ["a"]),
        node("Det", ["a"], ["d"]),
        node("Mul", ["d", "d"], ["s"]),
        node("Add", ["s", "w"], ["y"]),
    ]
    k = np.eye(3, dtype=F32) if constants is None else constants
    return model(nodes, {"x": (F32, ("n", 3, 3))}, {"y": F32, "r": F32}, {"k": k, "w": np.array([2], F32)})


def test_a_model_runs_in_part_on_the_host() -> None:
    pipeline = as_onnxruntime(determinant(), {"x": real(5, 3, 3)})
    assert sides(pipeline) == "ddhdd"
    (moved,) = [entry for entry in pipeline.report if entry.where is Where.HOST]
    assert (moved.op, moved.code, moved.crossing_bytes) == ("Det", "unsupported-operator", 5 * 9 * 4 + 5 * 4)


def test_what_runs_on_the_host_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "npu"):
        pipeline = Pipeline(read_without(determinant(), "Det"), OnDevice)
        pipeline.run({"x": real(2, 3, 3)})
        pipeline.run({"x": real(4, 3, 3)})
    (record,) = caplog.records
    assert "1 of 5 nodes run on the host, in onnxruntime: Det 'make_d' (unsupported-operator)" in record.getMessage()


def test_a_model_that_the_device_runs_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    net = model([node("Relu", ["x"], ["y"])], {"x": (F32, (2, 3))}, {"y": F32})
    pipeline = as_onnxruntime(net, {"x": real(2, 3)})
    assert pipeline.is_whole and not caplog.records


def test_a_node_that_only_shapes_rule_out_moves_to_the_host_when_they_are_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = [node("Neg", ["x"], ["a"]), node("Expand", ["a", "s"], ["b"]), node("Relu", ["b"], ["y"])]
    net = model(nodes, {"x": (F32, (1,))}, {"y": F32}, {"s": np.array([1] * 9)})
    pipeline = as_onnxruntime(net, {"x": real(1)})
    assert sides(pipeline) == "dhh"
    assert [entry.code for entry in pipeline.report] == [None, "unsupported-form", "unsupported-form"]
    assert "Expand 'make_b' (unsupported-form)" in caplog.text


def test_a_node_that_declared_shapes_rule_out_is_found_without_a_run() -> None:
    nodes = [node("Neg", ["x"], ["a"]), node("Expand", ["a", "s"], ["y"])]
    net = model(nodes, {"x": (F32, (1,))}, {"y": F32}, {"s": np.array([1] * 9)})
    pipeline = Pipeline(read_model(net), OnDevice)
    assert sides(pipeline) == "dd"
    pipeline.check()
    assert sides(pipeline) == "dh"


def test_float64_stays_on_the_host() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Cast", ["r"], ["wide"], to=TensorProto.DOUBLE),
        node("Mul", ["wide", "factor"], ["product"]),
        node("Cast", ["product"], ["narrow"], to=TensorProto.FLOAT),
        node("Neg", ["narrow"], ["y"]),
    ]
    net = model(nodes, {"x": (F32, (2, 3))}, {"y": F32}, {"factor": np.array(1 / 3)})
    assert sides(as_onnxruntime(net, {"x": real(2, 3)})) == "dhhhd"


def test_an_input_and_an_output_of_a_type_that_the_device_lacks() -> None:
    net = model(
        [
            node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            node("Neg", ["f"], ["g"]),
            node("Cast", ["g"], ["y"], to=11),
        ],
        {"x": (np.float64, (3,))},
        {"y": np.float64},
    )
    assert sides(as_onnxruntime(net, {"x": np.arange(3, dtype=np.float64)})) == "hdh"


def test_a_shape_that_the_host_computes() -> None:
    nodes = [
        node("NonZero", ["x"], ["where"]),
        node("Shape", ["where"], ["shape"]),
        node("Relu", ["x"], ["r"]),
        node("Cast", ["where"], ["real"], to=TensorProto.FLOAT),
        node("Neg", ["real"], ["y"]),
    ]
    net = model(nodes, {"x": (F32, (2, 3))}, {"y": F32, "r": F32, "shape": np.int64})
    as_onnxruntime(net, {"x": np.array([[1, 0, 2], [0, 0, 3]], F32)})


def test_a_node_with_a_graph_in_it_runs_on_the_host_with_what_the_graph_reads() -> None:
    branch = helper.make_graph([node("Det", ["a"], ["t"])], "then", [], [helper.make_empty_tensor_value_info("t")])
    other = helper.make_graph(
        [node("ReduceSum", ["a"], ["e"], keepdims=0)], "else", [], [helper.make_empty_tensor_value_info("e")]
    )
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("If", ["b"], ["c"], then_branch=branch, else_branch=other),
        node("Neg", ["c"], ["y"]),
    ]
    net = model(nodes, {"x": (F32, (3, 3)), "b": (np.bool_, ())}, {"y": F32})
    for flag in (True, False):
        assert sides(as_onnxruntime(net, {"x": real(3, 3), "b": np.array(flag)})) == "dhd"


@pytest.mark.parametrize("external", [False, True])
def test_large_weights_of_a_host_region_stay_where_they_are_mapped(tmp_path: Path, external: bool) -> None:
    weights = real(64, 64, 96)
    nodes = [
        node("Constant", [], ["c"], value=numpy_helper.from_array(real(64, 64))),
        node("Mul", ["x", "c"], ["p"]),
        node("Einsum", ["p", "w"], ["e"], equation="ij,jkl->ikl"),
        node("Det", ["p"], ["d"]),
        node("Add", ["e", "d"], ["y"]),
    ]
    net = model(nodes, {"x": (F32, (64, 64))}, {"y": F32}, {"w": weights})
    path = tmp_path / "net.onnx"
    onnx.save_model(net, str(path), save_as_external_data=external, location="weights.bin")
    as_onnxruntime(path, {"x": real(64, 64) / 64})


def test_what_onnxruntime_does_not_run_either_is_refused_with_its_reason() -> None:
    net = model([node("Det", ["x"], ["y"])], {"x": (np.int32, (2, 2))}, {"y": np.int32})
    pipeline = Pipeline(read_without(net, "Det"), OnDevice)
    with pytest.raises(UnsupportedModel, match="neither the device nor onnxruntime runs node 'make_y'"):
        pipeline.run({"x": np.eye(2, dtype=np.int32)})


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NpuError, match="is not installed") as caught:
        Pipeline(read_without(determinant(), "Det"), OnDevice)
    assert (caught.value.code, caught.value.remedy) == ("missing-extra", "pip install 'npu-sdk[models]'")
