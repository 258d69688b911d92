"""Offsets of blocks, which models add to packed products as a product of their own, become zero points."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from sdk.compiler import compile_model, contrib
from tests.support.models import node
from tests.support.programs import execute_compiled

Array = NDArray[Any]
F32 = np.float32
OPSET, IR_VERSION = 24, 11
DEPTH, ROWS, BLOCK, BLOCKS = 96, 5, 32, 3
OFFSETS = np.random.default_rng(5).normal(size=(ROWS, BLOCKS)).astype(F32)
SCALES = np.random.default_rng(6).uniform(0.1, 0.5, (ROWS, BLOCKS)).astype(F32)


class Parts:
    """A product in parts; what a test sets makes another of it."""

    bits = 4
    scales = SCALES
    offsets = OFFSETS
    summed = "x"
    shape = (0, 0, -1, BLOCK)
    keep = 0
    more: tuple[onnx.NodeProto, ...] = ()
    swapped = False
    zeros = False

    def codes(self) -> Array:
        return np.random.default_rng(7).integers(0, 1 << self.bits, (ROWS, DEPTH)).astype(np.uint8)

    def model(self) -> onnx.ModelProto:
        codes = self.codes()
        packed = codes if self.bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
        constants = {
            "codes": packed.reshape(ROWS, BLOCKS, -1),
            "scales": self.scales,
            "offsets": self.offsets.T,
            "shape": np.array(self.shape, np.int64),
            "axes": np.array([-1], np.int64),
            "zero": np.zeros((ROWS, -(-BLOCKS * self.bits // 8)), np.uint8),
        }
        sizes = {"K": DEPTH, "N": ROWS, "bits": self.bits, "block_size": BLOCK}
        operands = ["x", "codes", "scales", *(["zero"] if self.zeros else [])]
        added = ["offset", "scaled"] if self.swapped else ["scaled", "offset"]
        nodes = [
            node("MatMulNBits", operands, ["scaled"], domain=contrib.DOMAIN, **sizes),
            node("Reshape", [self.summed, "shape"], ["blocks"]),
            node("ReduceSum", ["blocks", "axes"], ["sums"], keepdims=0),
            node("MatMul", ["sums", "offsets"], ["offset"]),
            node("Add", added, ["y"]),
            *self.more,
        ]
        real = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "parts",
            [real(name, onnx.TensorProto.FLOAT, [2, 3, DEPTH]) for name in ("x", "other")],
            [real("z" if self.more else "y", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(contrib.DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def run(self) -> tuple[Array, list[str]]:
        """The result, and the kernels that made it."""
        x = np.random.default_rng(8).normal(size=(2, 2, 3, DEPTH)).astype(F32)
        compiled = compile_model(self.model())
        arrays = dict(zip(("x", "other"), x, strict=True))
        (y,), report = execute_compiled(compiled, [arrays[info.name] for info in compiled.inputs])
        codes = self.codes().astype(F32).reshape(ROWS, BLOCKS, BLOCK)
        weights = (codes - (0 if self.zeros else 1 << (self.bits - 1))) * self.scales[..., None]
        summed = arrays[self.summed].reshape(2, 3, BLOCKS, BLOCK).sum(-1)
        expected = arrays["x"] @ weights.reshape(ROWS, DEPTH).T + summed @ self.offsets.T
        if self.more:
            expected = expected + summed @ self.offsets.T
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        return y, [run.kernel for run in report]


def parts(**changes: Any) -> Parts:
    made = Parts()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_product_in_parts_is_one_command(bits: int, swapped: bool) -> None:
    _, kernels = parts(bits=bits, swapped=swapped).run()
    assert kernels == ["golden.matmul_nbits"]


def test_a_block_without_a_scale_is_its_offset() -> None:
    scales = SCALES.copy()
    scales[1, 2] = scales[3, 0] = 0
    offsets = OFFSETS.copy()
    offsets[3, 0] = 0
    _, kernels = parts(scales=scales, offsets=offsets).run()
    assert kernels == ["golden.matmul_nbits"]


@pytest.mark.parametrize(
    "changes",
    [
        {"summed": "other"},
        {"zeros": True},
        {"more": (node("Add", ["y", "offset"], ["z"]),)},
        {"scales": np.full_like(SCALES, 1e-38), "offsets": OFFSETS * 1e3},
    ],
    ids=["sums of other data", "zero points already", "the offset read twice", "a zero point beyond all numbers"],
)
def test_what_is_no_offset_of_blocks_stays_as_it_is(changes: dict[str, Any]) -> None:
    _, kernels = parts(**changes).run()
    assert "golden.matmul" in kernels
