"""What lies between dequantised and quantised values becomes commands on integers, wherever that means the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from sdk.compiler import compile_model
from tests.support.models import model, node
from tests.support.programs import execute_compiled

F32, U8 = np.float32, np.uint8
IMAGE = (1, 2, 6, 6)


def kinds(net: onnx.ModelProto, *inputs: Any) -> list[str]:
    """The commands that run, by kind."""
    _, report = execute_compiled(compile_model(net), inputs)
    return [run.kernel.removeprefix("golden.") for run in report]


def chain(
    *middle: onnx.NodeProto, shape: tuple[int, ...] = IMAGE, scale: float = 0.5, zero: int = 0, operands: int = 1
) -> tuple[onnx.ModelProto, list[Any]]:
    """uint8 operands a, b, … in the scale 0.5, dequantised as A, B, …; nodes that give "r"; the result quantised."""
    names = [chr(ord("a") + i) for i in range(operands)]
    nodes = [node("DequantizeLinear", [name, "s", "z"], [name.upper()]) for name in names]
    constants = {
        "s": np.array(0.5, F32),
        "z": np.array(0, U8),
        "ys": np.array(scale, F32),
        "yz": np.array(zero, U8),
        "low": np.array(0, F32),
        "high": np.array(6, F32),
    }
    nodes += [*middle, node("QuantizeLinear", ["r", "ys", "yz"], ["y"])]
    net = model(nodes, dict.fromkeys(names, (U8, shape)), {"y": U8}, constants)
    return net, [np.ones(shape, U8)] * operands


@pytest.mark.parametrize(
    ("made", "commands"),
    [
        (chain(node("Add", ["A", "B"], ["r"]), operands=2), ["qbinary"]),
        (chain(node("Mul", ["A", "B"], ["r"]), operands=2), ["qbinary"]),
        (chain(node("Sigmoid", ["A"], ["r"]), scale=1 / 256), ["lookup"]),
        (chain(node("Tanh", ["A"], ["t"]), node("Abs", ["t"], ["r"])), ["lookup"]),
        (chain(node("Identity", ["A"], ["r"]), scale=0.25), ["lookup"]),
        (chain(node("Reshape", ["A", "shape"], ["r"]), shape=(2, 3)), ["copy"]),
        (chain(node("Transpose", ["A"], ["r"])), ["transpose"]),
        (chain(node("Transpose", ["A"], ["r"]), scale=0.25), ["transpose", "lookup"]),
        (chain(node("MaxPool", ["A"], ["r"], kernel_shape=[2, 2])), ["pool"]),
        (chain(node("Concat", ["A", "B"], ["r"], axis=1), operands=2), ["concat"]),
        (chain(node("Concat", ["A", "B"], ["r"], axis=1), operands=2, zero=3), ["lookup", "lookup", "concat"]),
        (chain(node("Add", ["A", "B"], ["t"]), node("Relu", ["t"], ["r"]), operands=2), ["qbinary"]),
        (chain(node("Add", ["A", "B"], ["t"]), node("Clip", ["t", "low", "high"], ["r"]), operands=2, scale=6 / 255),
         ["qbinary"]),
        (chain(node("AveragePool", ["A"], ["r"], kernel_shape=[2, 2])), ["qpool"]),
        (chain(node("Add", ["A", "B"], ["t"]), node("Relu", ["t"], ["r"]), operands=2, zero=1),
         ["dequantize", "dequantize", "binary", "unary", "quantize"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_commands_on_integers(made: tuple[onnx.ModelProto, list[Any]], commands: list[str]) -> None:
    net, inputs = made
    net.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3, 2]), "shape"))
    assert kinds(net, *inputs) == commands


def test_a_sum_that_something_else_reads_stays_in_floats() -> None:
    net, inputs = chain(node("Add", ["A", "B"], ["r"]), operands=2)
    net.graph.output.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None))
    assert "binary" in kinds(net, *inputs) and "qbinary" not in kinds(net, *inputs)
