"""A net of the quantised operators that products and QDQ form lack, for tests of programs of every kind."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.models import node

F32, I8, U8 = np.float32, np.int8, np.uint8
OPSET, IR_VERSION = 21, 10
CONTRIB = "com.microsoft"
DEPTH, COLUMNS = 16, 1 << 15
"""So many weights of 4 bits that their floats are not made while compiling."""


def integer_net() -> onnx.ModelProto:
    """Integer products, quantisation by the data's range, quantised sums and functions, packed weights."""
    rng = np.random.default_rng(3)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        node("MatMulInteger", ["q", "m", "qz", "mz"], ["p"]),
        node("ConvInteger", ["i", "w", "iz"], ["c"], pads=[1, 1]),
        node("QLinearAdd", ["i", "s", "iz", "i", "s", "iz", "s", "iz"], ["a"], domain=CONTRIB),
        node("QLinearSigmoid", ["a", "s", "iz", "s", "iz"], ["l"], domain=CONTRIB),
        node("QLinearAveragePool", ["i", "s", "iz", "s", "iz"], ["v"], domain=CONTRIB, kernel_shape=[3], pads=[1, 1]),
        node("MatMulNBits", ["x", "b", "bs", "bz"], ["n"], domain=CONTRIB, K=DEPTH, N=5, block_size=16, bits=4),
        node("DequantizeLinear", ["h", "hs"], ["hr"], axis=1),
        node("MatMul", ["x", "hr"], ["f"]),
        node("QuantizeLinear", ["x", "ks", "kz"], ["k"], axis=1, block_size=8),
    ]
    constants: dict[str, Any] = {
        "m": rng.integers(-9, 9, (DEPTH, 4), I8),
        "mz": rng.integers(-9, 9, 4, I8),
        "w": rng.integers(-9, 9, (3, 2, 3), I8),
        "iz": np.array(7, U8),
        "s": np.array(0.5, F32),
        "b": rng.integers(0, 255, (5, 1, 8), U8),
        "bs": np.ones(5, F32),
        "bz": rng.integers(0, 255, 5, U8),
        "h": rng.integers(-8, 8, (DEPTH, COLUMNS)).astype(ml_dtypes.int4),
        "hs": np.ones(COLUMNS, F32),
        "ks": np.ones((3, 2), F32),
        "kz": np.zeros((3, 2), np.int16),
    }
    kinds = helper.np_dtype_to_tensor_dtype
    outputs = {"v": U8, "p": np.int32, "c": np.int32, "l": U8, "n": F32, "f": F32, "k": np.int16}
    graph = helper.make_graph(
        nodes,
        "integers",
        [
            helper.make_tensor_value_info("x", kinds(np.dtype(F32)), [3, DEPTH]),
            helper.make_tensor_value_info("i", kinds(np.dtype(U8)), [1, 2, 6]),
        ],
        [helper.make_tensor_value_info(name, kinds(np.dtype(dtype)), None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
