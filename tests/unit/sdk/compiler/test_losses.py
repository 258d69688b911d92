"""Losses against the reference evaluator's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model
from tests.support.arrays import real
from tests.support.models import model, node
from tests.support.programs import run

F32 = np.float32
Array = NDArray[Any]


def single(op: str, inputs: dict[str, Array], **attributes: Any) -> onnx.ModelProto:
    types = {name: (array.dtype.type, array.shape) for name, array in inputs.items()}
    return model([node(op, list(inputs), ["y"], **attributes)], types, {"y": F32}, opset=13)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignored", [None, 2, -3])  # the reference takes -1 for none
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("op", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_losses(op: str, weighed: bool, ignored: int | None, reduction: str) -> None:
    scores, classes = real(3, 5, 4), np.random.default_rng(1).integers(0, 5, (3, 4))
    if ignored == -3:
        classes[0, 1] = -3
    inputs = {"x": scores, "t": classes, **({"w": np.abs(real(5, seed=2))} if weighed else {})}
    attributes: dict[str, Any] = {"reduction": reduction, **({} if ignored is None else {"ignore_index": ignored})}
    net = single(op, inputs, **attributes)
    result, expected = run(compile_model(net), inputs)["y"], ReferenceEvaluator(net).run(None, inputs)[0]
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            single("NegativeLogLikelihoodLoss", {"x": real(3, 5), "t": np.zeros(4, np.int64)}),
            "classes int64",
        ),
        (
            single("NegativeLogLikelihoodLoss", {"x": real(3, 5), "t": np.zeros(3, np.int64), "w": real(4)}),
            "weights float32",
        ),
        (
            single("SoftmaxCrossEntropyLoss", {"x": real(3, 5), "t": np.zeros(3, np.int64)}, reduction="most"),
            "reduction 'most'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(net: onnx.ModelProto, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        compile_model(net)
