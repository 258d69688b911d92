"""Models of opset 6 mean what they meant: operators broadcast along an axis, slopes go by channels."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import sdk
from tests.support.rigs import in_process_rig

RNG = np.random.default_rng(6)
X: NDArray[Any] = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
LIMIT_S = 30
"""For a thread that has nothing left to do."""
PER_CHANNEL: NDArray[Any] = np.array([0.5, 1, 2], np.float32)


def old_model(op: str, weights: NDArray[Any], **attributes: Any) -> onnx.ModelProto:
    declared = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, X.shape)]
    declared.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, weights.shape))
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "old",
        declared,
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, X.shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=3)


def result(source: Any) -> NDArray[Any]:
    with in_process_rig() as rig, rig.device() as device:
        y: NDArray[Any] = device.load(source)(x=X)["y"]
        return y


BY_CHANNEL = PER_CHANNEL[:, None, None]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (old_model("Add", PER_CHANNEL, broadcast=1, axis=1), X + BY_CHANNEL),
        (old_model("Mul", X[0, 0], broadcast=1), X * X[0, 0]),
        (old_model("Sub", X[0, :, :, 0], broadcast=1, axis=-3), X - X[0, :, :, :1]),
        (old_model("Div", np.array(2, np.float32), broadcast=1), X / 2),
        (old_model("PRelu", PER_CHANNEL), np.where(X < 0, X * BY_CHANNEL, X)),
        (old_model("PRelu", np.array([0.25], np.float32)), np.where(X < 0, X / 4, X)),
    ],
    ids=["along an axis", "along the last axes", "along two axes", "a scalar", "a slope a channel", "one slope"],
)
@pytest.mark.parametrize("kind", ["proto", "bytes", "path"])
def test_an_old_model_means_what_it_meant(
    made: onnx.ModelProto, expected: NDArray[Any], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "old.onnx"
    onnx.save(made, path)
    before = made.SerializeToString()
    source = {"proto": made, "bytes": before, "path": path}[kind]
    np.testing.assert_allclose(result(source), expected, rtol=1e-6)
    assert made.SerializeToString() == before  # the caller's stays as it is


def test_large_weights_of_an_old_model_are_its_weights(tmp_path: Path) -> None:
    weights = RNG.normal(size=(4, 5)).astype(np.float32)
    made = old_model("Add", weights, broadcast=1)
    made.graph.initializer.append(numpy_helper.from_array(np.zeros(10_000, np.float32), "unused"))
    path = tmp_path / "old.onnx"
    onnx.save(made, path)
    np.testing.assert_allclose(result(path), X + weights, rtol=1e-6)


def with_external_weights(folder: Path) -> NDArray[Any]:
    """An old model whose weights lie beside it, as "old.onnx" and "old.bin"."""
    weights = RNG.normal(size=(4, 5)).astype(np.float32)
    onnx.save(
        old_model("Add", weights, broadcast=1),
        folder / "old.onnx",
        save_as_external_data=True,
        location="old.bin",
        size_threshold=0,
    )
    return weights


def test_an_old_models_external_data_may_lie_behind_a_link(tmp_path: Path) -> None:
    weights = with_external_weights(tmp_path)
    (tmp_path / "old.bin").rename(tmp_path / "blob")
    (tmp_path / "old.bin").symlink_to("blob")
    np.testing.assert_allclose(result(tmp_path / "old.onnx"), X + weights, rtol=1e-6)


def test_an_old_model_whose_data_are_missing_says_which(tmp_path: Path) -> None:
    with_external_weights(tmp_path)
    (tmp_path / "old.bin").unlink()
    with pytest.raises(sdk.UnsupportedModel, match=r"initialiser 'w': its data lie in 'old.bin' beside the model"):
        result(tmp_path / "old.onnx")


def test_an_old_model_may_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "old.onnx"
    os.mkfifo(pipe)
    data = old_model("Add", PER_CHANNEL, broadcast=1, axis=1).SerializeToString()
    writer = threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True)
    writer.start()
    np.testing.assert_allclose(result(pipe), X + BY_CHANNEL, rtol=1e-6)
    writer.join(LIMIT_S)


def test_what_cannot_be_brought_up_is_refused_for_its_opset() -> None:
    made = old_model("Add", PER_CHANNEL, broadcast=1, axis=1)
    made.graph.node[0].op_type = "NoOperatorOfThatTime"
    with pytest.raises(sdk.UnsupportedModel, match="opset 6 of ONNX's own operators"):
        result(made)
