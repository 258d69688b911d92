"""Tensors of no elements: given to models, gone through them, given back by them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from tests.support import onnxruntime_peer
from tests.support.models import model, node
from tests.support.needs import module_of_extra

F32 = np.float32
Array = NDArray[Any]


class Case(NamedTuple):
    """A model, what it is given, and what it gives."""

    net: onnx.ModelProto
    inputs: dict[str, Array]
    expected: dict[str, Array]


def real(*shape: int) -> Array:
    return np.arange(int(np.prod(shape)), dtype=F32).reshape(shape)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def nothing(*shape: int, dtype: Any = F32) -> Array:
    return np.empty(shape, dtype)


def one(
    op: str, inputs: dict[str, Array], expected: Array, initializers: dict[str, Array] | None = None, **attributes: Any
) -> Case:
    """A model of one node whose inputs have any extents."""
    constants = initializers or {}
    net = model(
        [node(op, [*inputs, *constants], ["y"], **attributes)],
        {name: (array.dtype, [f"{name}{axis}" for axis in range(array.ndim)]) for name, array in inputs.items()},
        {"y": expected.dtype},
        constants,
    )
    return Case(net, inputs, {"y": expected})


def perceptron() -> onnx.ModelProto:
    """Two layers for any batch."""
    return model(
        [node("Gemm", ["x", "w", "b"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])],
        {"x": (F32, ("batch", 4))},
        {"y": F32},
        {"w": real(4, 3), "b": real(3), "v": real(3, 2)},
    )


def convolution() -> onnx.ModelProto:
    """A convolution, a pooling and a softmax for any batch."""
    return model(
        [
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
            node("Softmax", ["p"], ["y"], axis=1),
        ],
        {"x": (F32, ("batch", 2, 4, 4))},
        {"y": F32},
        {"w": real(3, 2, 3, 3)},
    )


CASES = {
    "a batch of none": Case(perceptron(), {"x": nothing(0, 4)}, {"y": nothing(0, 2)}),
    "a batch of no images": Case(convolution(), {"x": nothing(0, 2, 4, 4)}, {"y": nothing(0, 3, 3, 3)}),
    "an empty cache": one("Concat", {"past": nothing(1, 0, 4), "now": real(1, 1, 4)}, real(1, 1, 4), axis=1),
    "a sum of nothing": one("ReduceSum", {"x": nothing(2, 0)}, np.zeros(2, F32), {"axes": ints(1)}, keepdims=0),
    "a maximum of nothing": one("ReduceMax", {"x": nothing(0, 2)}, np.full((1, 2), -np.inf, F32), axes=[0]),
    "a product with nothing within": one("MatMul", {"a": nothing(2, 0), "b": nothing(0, 3)}, np.zeros((2, 3), F32)),
    "a slice of nothing": one("Slice", {"x": real(3, 2)}, nothing(0, 2), {"s": ints(2), "e": ints(1)}),
    "an expansion to nothing": one("Expand", {"x": real(3, 1)}, nothing(3, 0), {"s": ints(3, 0)}),
    "nothing reshaped": one("Reshape", {"x": nothing(0, 4)}, nothing(2, 0), {"s": ints(2, 0)}, allowzero=1),
    "a gather of nothing": one("Gather", {"x": real(3, 2), "i": nothing(0, dtype=np.int64)}, nothing(0, 2)),
    "padding around nothing": one("Pad", {"x": nothing(0, 2)}, np.zeros((1, 2), F32), {"p": ints(1, 0, 0, 0)}),
    "a running sum of nothing": one("CumSum", {"x": nothing(2, 0)}, nothing(2, 0), {"a": ints(1)}),
    "no bools": one("Not", {"x": nothing(0, 3, dtype=bool)}, nothing(0, 3, dtype=bool)),
    "no update": one(
        "ScatterND",
        {"x": real(2), "i": nothing(0, 1, dtype=np.int64), "u": nothing(0)},
        real(2),
    ),
    "a part of none": Case(
        model(
            [node("Split", ["x", "s"], ["a", "b"], axis=0)],
            {"x": (F32, ("n", 2))},
            {"a": F32, "b": F32},
            {"s": ints(0, 3)},
        ),
        {"x": real(3, 2)},
        {"a": nothing(0, 2), "b": real(3, 2)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_empty_tensors_travel_through_the_device(device: sdk.Device, name: str) -> None:
    case = CASES[name]
    found = device.load(case.net)(case.inputs)
    for output, expected in case.expected.items():
        assert (found[output].shape, found[output].dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(found[output], expected)


def test_onnxruntime_expects_the_same() -> None:
    module_of_extra("onnxruntime", "models")
    answers = onnxruntime_peer.run_many([(case.net.SerializeToString(), case.inputs) for case in CASES.values()])
    for name, case, answer in zip(CASES, CASES.values(), answers, strict=True):
        for output, expected in case.expected.items():
            np.testing.assert_array_equal(answer[output], expected, err_msg=name)


def test_a_batch_of_none_and_one_of_some_run_in_turn_and_at_once(device: sdk.Device) -> None:
    loaded = device.load(perceptron(), shapes={"x": [(0, 4), (2, 4)]})
    events = [loaded.submit({"x": real(rows, 4)}) for rows in (0, 2, 0, 2)]
    shapes = [event.result()["y"].shape for event in events]
    assert shapes == [(0, 2), (2, 2), (0, 2), (2, 2)]


@pytest.mark.parametrize("kind", ["host", "device"])
def test_buffers_of_nothing_are_given_taken_and_copied(device: sdk.Device, kind: str) -> None:
    make = device.host_buffer if kind == "host" else device.buffer
    loaded = device.load(perceptron(), shapes={"x": [(0, 4), (2, 4)]})
    given, taken = make((0, 4), "float32"), make((0, 2), "float32")
    assert loaded({"x": given}, out={"y": taken})["y"] is taken
    assert (given.nbytes, taken.shape) == (0, (0, 2))
    with device.queue() as queue:
        queue.copy(make((0, 4), "float32"), given).result()
    assert loaded(real(2, 4))["y"].shape == (2, 2)
