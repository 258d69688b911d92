"""Weights of 4 bits: constants, two to a byte in device memory, and products that never hold them as floats."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.types import WireType
from sdk.compiler import compile_model
from tests.support.models import node
from tests.support.programs import execute_compiled

Array = NDArray[Any]
F32 = np.float32
OPSET, IR_VERSION = 21, 10
DEPTH, COLUMNS, BLOCK = 520, 1040, 32
"""So many weights that their floats are not made while compiling."""


def net(weights: Array, constants: dict[str, Array], *nodes: onnx.NodeProto, depth: int = DEPTH) -> onnx.ModelProto:
    """Nodes between "x" [3, depth] and "y", the weights being "w"."""
    initializers = [numpy_helper.from_array(array, name) for name, array in {"w": weights, **constants}.items()]
    graph = helper.make_graph(
        list(nodes),
        "packed",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, depth])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def drawn(dtype: Any, *shape: int) -> Array:
    low, high = (-8, 8) if dtype is ml_dtypes.int4 else (0, 16)
    return np.random.default_rng(7).integers(low, high, shape).astype(dtype)


def spread(values: Array, axis: int, extent: int) -> Array:
    """Scales or zero points of blocks, one for each weight."""
    return np.take(np.repeat(values.astype(F32), BLOCK, axis), range(extent), axis)


@pytest.mark.parametrize("kernels", ["golden", "numpy"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4])
def test_a_product_with_blocks_of_4_bits_reads_them_packed(
    dtype: Any, zeros: bool, transposed: bool, kernels: str
) -> None:
    axis = 1 if transposed else 0
    shape = (COLUMNS, DEPTH) if transposed else (DEPTH, COLUMNS)
    blocks = tuple(-(-extent // BLOCK) if i == axis else extent for i, extent in enumerate(shape))
    weights, zero = drawn(dtype, *shape), drawn(dtype, *blocks)
    scale = np.random.default_rng(1).uniform(0.01, 0.1, blocks).astype(F32)
    model = net(
        weights,
        {"s": scale, **({"z": zero} if zeros else {})},
        node("DequantizeLinear", ["w", "s", "z"][: 3 if zeros else 2], ["real"], axis=axis, block_size=BLOCK),
        node("Gemm", ["x", "real"], ["y"], transB=int(transposed)),
    )
    compiled = compile_model(model)
    assert compiled.constants_bytes < 0.7 * weights.size
    x = np.random.default_rng(2).normal(size=(3, DEPTH)).astype(F32)
    (y,), report = execute_compiled(compiled, [x], kernels)
    assert [run.kernel for run in report] == [f"{kernels}.matmul_nbits"]
    real = weights.astype(F32) - (spread(zero, axis, DEPTH) if zeros else 0)
    real *= spread(scale, axis, DEPTH)
    np.testing.assert_allclose(y, x @ (real.T if transposed else real), rtol=1e-4, atol=1e-4)


def test_other_uses_of_4_bits_dequantise_them_on_the_device() -> None:
    weights, scale = drawn(ml_dtypes.int4, DEPTH, COLUMNS), np.full(COLUMNS, 0.5, F32)
    model = net(
        weights,
        {"s": scale},
        node("DequantizeLinear", ["w", "s"], ["real"], axis=1),
        node("MatMul", ["x", "real"], ["y"]),
    )
    compiled = compile_model(model)
    assert [each.type.dtype for each in compiled.constants].count(WireType.INT4) == 2  # the zero points, too
    x = np.ones((3, DEPTH), F32)
    (y,), report = execute_compiled(compiled, [x])
    assert [run.kernel for run in report] == ["golden.dequantize", "golden.matmul"]
    np.testing.assert_allclose(y, x @ (weights.astype(F32) * 0.5), rtol=1e-4)


def test_few_weights_become_floats_while_compiling() -> None:
    weights = drawn(ml_dtypes.uint4, 5, 3)
    model = net(
        weights,
        {"s": np.array(0.5, F32)},
        node("DequantizeLinear", ["w", "s"], ["real"]),
        node("MatMul", ["x", "real"], ["y"]),
        depth=5,
    )
    (y,), report = execute_compiled(compile_model(model), [np.ones((3, 5), F32)])
    assert [run.kernel for run in report] == ["golden.matmul"]
    np.testing.assert_allclose(y[0], weights.astype(F32).sum(0) * 0.5)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("Transpose", ["w"], ["t"]), node("Cast", ["t"], ["y"], to=1)], "4-bit integers can be constants"),
        ([node("Cast", ["x"], ["t"], to=22), node("Cast", ["t"], ["y"], to=1)], "only constants can have it"),
        (
            [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
            "to int4: int8, uint8 and int16 are possible",
        ),
    ],
    ids=["computed", "cast to", "quantised to"],
)
def test_nothing_computes_4_bit_integers(nodes: list[onnx.NodeProto], reason: str) -> None:
    constants = {"s": np.array(1, F32), "z": np.zeros((), ml_dtypes.int4)}
    with pytest.raises(UnsupportedModel, match=reason):
        compile_model(net(drawn(ml_dtypes.int4, 5, 3), constants, *nodes, depth=5))
