"""ONNX models made for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sdk.compiler.compile import HANDLED
from sdk.compiler.graph import Graph
from sdk.compiler.loading import open_source
from sdk.compiler.reader import read_graph

Array = NDArray[Any]
OPSET = 17
IR_VERSION = 8


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[int | str]]],
    outputs: Mapping[str, Any],
    initializers: Mapping[str, Any] | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model; inputs are {name: (numpy dtype, shape)}, outputs {name: numpy dtype}."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)
            for name, dtype in outputs.items()
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (initializers or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    """A node named after its first output."""
    return helper.make_node(op, inputs, outputs, name=f"make_{outputs[0]}", **attributes)


def read_without(source: Any, *ops: str) -> Graph:
    """A model as it is read where the device has no command for some operators."""
    return read_graph(open_source(source), HANDLED - set(ops))


def storage_net() -> onnx.ModelProto:
    """A small net that carries int64 and bool through the device.

    int64 in and out, arithmetic and indices in int64, bool in and out, masks made from comparisons.
    """
    nodes = [
        node("Add", ["ids", "shift"], ["shifted"]),
        node("Gather", ["table", "shifted"], ["rows"], axis=0),
        node("ReduceSum", ["rows", "axes"], ["scores"], keepdims=0),
        node("Greater", ["scores", "threshold"], ["high"]),
        node("And", ["high", "mask"], ["kept"]),
        node("Where", ["kept", "shifted", "nothing"], ["chosen"]),
        node("ArgMax", ["rows"], ["best"], axis=2, keepdims=0),
        node("Mul", ["chosen", "best"], ["product"]),
        node("Cast", ["kept"], ["counted"], to=TensorProto.INT64),
        node("Not", ["kept"], ["dropped"]),
    ]
    rng = np.random.default_rng(3)
    initializers = {
        "shift": np.array(2, np.int64),
        "table": rng.normal(size=(12, 5)).astype(np.float32),
        "axes": np.array([2], np.int64),
        "threshold": np.array(0.1, np.float32),
        "nothing": np.array(-1, np.int64),
    }
    inputs = {"ids": (np.int64, ("batch", 4)), "mask": (np.bool_, ("batch", 4))}
    outputs = {"product": np.int64, "counted": np.int64, "dropped": np.bool_, "shifted": np.int64}
    return model(nodes, inputs, outputs, initializers)


def quantised_net(
    seed: int, activation: Any, *, form: str, per_channel: bool, relu: bool, weights: Any = np.int8
) -> tuple[onnx.ModelProto, Array]:
    """A convolution and a matrix product in integers, with odd shapes; returns the model and an input for it.

    `form`: "operator" (QLinearConv, QLinearMatMul) or "qdq". Same seed, same net. ReLU follows the convolution; in
    operator form it is DequantizeLinear, Relu, QuantizeLinear, which is a clamp at the zero point.
    """
    rng = np.random.default_rng(seed)

    def whole(dtype: Any, *shape: int) -> Array:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, shape).astype(dtype)

    def scale(low: float, high: float, *shape: int) -> Array:
        return np.asarray(rng.uniform(low, high, shape), np.float32)

    batch, channels, filters, columns = (int(v) for v in rng.integers(1, 6, 4))
    height, width = (int(v) for v in rng.integers(5, 10, 2))
    kernel = [int(v) for v in rng.integers(1, 4, 2)]
    group = 2 if channels % 2 == 0 and rng.integers(2) else 1
    filters *= group
    strides, dilations = [int(v) for v in rng.integers(1, 3, 2)], [1, int(rng.integers(1, 3))]
    pads = [int(v) for v in rng.integers(0, 2, 4)]
    x = whole(activation, batch, channels, height, width)
    w = whole(weights, filters, channels // group, *kernel)
    out = [
        (n + pads[i] + pads[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i, n in enumerate((height, width))
    ]
    inner = filters * out[0] * out[1]
    initializers: dict[str, Any] = {
        "x_scale": scale(0.005, 0.05),
        "x_zero": whole(activation, 1)[0],
        "w": w,
        "w_scale": scale(0.005, 0.05, *([filters] if per_channel else [])),
        "w_zero": np.zeros(filters, weights) if per_channel else _one_zero_point(whole, weights),
        "c_scale": scale(0.5, 5),
        "c_zero": whole(activation, 1)[0],
        "bias": rng.integers(-9000, 9000, filters).astype(np.int32),
        "shape": np.array([batch, inner], np.int64),
        "m": whole(weights, inner, columns),
        "m_scale": scale(0.005, 0.05, *([columns] if per_channel else [])),
        "m_zero": np.zeros(columns, weights) if per_channel else _one_zero_point(whole, weights),
        "y_scale": scale(0.5, 20),
        "y_zero": whole(activation, 1)[0],
    }
    moves: dict[str, Any] = {"group": group, "strides": strides, "dilations": dilations, "pads": pads}
    if form == "operator":
        nodes = _operator_nodes(moves, relu)
    else:
        initializers["b_scale"] = initializers["x_scale"] * initializers["w_scale"]
        initializers["b_zero"] = np.zeros(initializers["b_scale"].shape, np.int32)
        nodes = _qdq_nodes(moves, relu, per_channel)
    return model(nodes, {"x": (activation, x.shape)}, {"y": activation}, initializers, opset=13), x


def _one_zero_point(whole: Callable[..., Array], weights: Any) -> Array:
    """Signed weights are symmetric by convention, unsigned ones are not."""
    return np.zeros((), weights) if weights is np.int8 else whole(weights, 1)[0]


def _operator_nodes(moves: dict[str, Any], relu: bool) -> list[onnx.NodeProto]:
    operands = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "c_scale", "c_zero", "bias"]
    nodes = [node("QLinearConv", operands, ["conv" if relu else "c"], **moves)]
    if relu:
        nodes += [
            node("DequantizeLinear", ["conv", "c_scale", "c_zero"], ["conv_real"]),
            node("Relu", ["conv_real"], ["relu"]),
            node("QuantizeLinear", ["relu", "c_scale", "c_zero"], ["c"]),
        ]
    nodes.append(node("Reshape", ["c", "shape"], ["flat"]))
    operands = ["flat", "c_scale", "c_zero", "m", "m_scale", "m_zero", "y_scale", "y_zero"]
    nodes.append(node("QLinearMatMul", operands, ["y"]))
    return nodes


def _qdq_nodes(moves: dict[str, Any], relu: bool, per_channel: bool) -> list[onnx.NodeProto]:
    first, second = ({"axis": 0}, {"axis": 1}) if per_channel else ({}, {})
    nodes = [
        node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_real"]),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], **first),
        node("DequantizeLinear", ["bias", "b_scale", "b_zero"], ["b_real"], **first),
        node("Conv", ["x_real", "w_real", "b_real"], ["conv"], **moves),
    ]
    if relu:
        nodes.append(node("Relu", ["conv"], ["relu"]))
    return [
        *nodes,
        node("QuantizeLinear", ["relu" if relu else "conv", "c_scale", "c_zero"], ["c"]),
        node("Reshape", ["c", "shape"], ["flat"]),
        node("DequantizeLinear", ["flat", "c_scale", "c_zero"], ["flat_real"]),
        node("DequantizeLinear", ["m", "m_scale", "m_zero"], ["m_real"], **second),
        node("MatMul", ["flat_real", "m_real"], ["product"]),
        node("QuantizeLinear", ["product", "y_scale", "y_zero"], ["y"]),
    ]
