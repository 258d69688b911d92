"""onnxruntime's own operators: their forms as onnxruntime states them, and what becomes of models that use them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model, contrib
from tests.support.arrays import real
from tests.support.models import model, node
from tests.support.needs import module_of_extra
from tests.support.programs import run

F32 = np.float32


def contrib_net(op: str, *shapes: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    """One node over float32 inputs a, b, …"""
    names = [chr(ord("a") + i) for i in range(len(shapes))]
    net = model(
        [node(op, names, ["y"], domain=contrib.DOMAIN, **attributes)],
        {name: (F32, shape) for name, shape in zip(names, shapes, strict=True)},
        {"y": F32},
    )
    net.opset_import.add(domain=contrib.DOMAIN, version=1)
    return net


def gather(data: tuple[int, ...], scales: tuple[int, ...], **attributes: int) -> onnx.ModelProto:
    """GatherBlockQuantized of one row of packed data."""
    net = model(
        [node("GatherBlockQuantized", ["a", "b", "c"], ["y"], domain=contrib.DOMAIN, **attributes)],
        {"a": (np.uint8, data), "b": (np.int64, (1,)), "c": (F32, scales)},
        {"y": F32},
    )
    net.opset_import.add(domain=contrib.DOMAIN, version=1)
    return net


def test_the_table_of_forms_is_onnxruntimes_own() -> None:
    module_of_extra("onnxruntime", "models")
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    theirs = {s.name: s for s in native.get_all_operator_schema() if s.domain == contrib.DOMAIN}
    for name, schema in contrib.SCHEMAS.items():
        known = theirs[name]
        assert (schema.min_input, schema.max_input) == (known.min_input, known.max_input), name
        assert (schema.min_output, schema.max_output) == (known.min_output, known.max_output), name
        attributes = {a: (int(found.type), found.required) for a, found in known.attributes.items()}
        assert {a: tuple(held) for a, held in schema.attributes.items()} == attributes, name


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (contrib_net("NoSuch", (1,)), "operators of the domain 'com.microsoft' are not supported"),
        (contrib_net("FusedMatMul", (1, 1)), "1 inputs; the operator takes 2"),
        (contrib_net("FusedMatMul", (1, 1), (1, 1), odd=1), "the attribute 'odd' is unknown or of a wrong type"),
        (contrib_net("FusedMatMul", (1, 1), (1, 1), alpha=1), "the attribute 'alpha' is unknown or of a wrong type"),
        (contrib_net("FusedMatMul", (1, 1), (1, 1), transBatchA=1), "transBatchA and transBatchB are not supported"),
        (contrib_net("FusedGemm", (1, 1), (1, 1), activation="Selu"), "activation 'Selu'; Relu, Sigmoid"),
        (contrib_net("DynamicQuantizeLSTM", *[(1,)] * 12), r"DynamicQuantizeLSTM .*keep the LSTM in float32"),
        (contrib_net("QAttention", *[(1,)] * 5, num_heads=1), r"QAttention .*without fusing attention"),
        (contrib_net("MatMulNBits", *[(1,)] * 5, K=1, N=1, block_size=16), "a g_idx .* is not supported"),
        (contrib_net("MatMulNBits", *[(1, 2)] * 3, K=1, N=1, block_size=16), "for K 1, N 1, blocks of 16, 4 bits"),
        (contrib_net("GatherBlockQuantized", (4, 16), (1,), (4, 1)), "data float32.* of 4 bits; uint8 of 4 or 8 bits"),
        (gather((4, 16), (4, 1), bits=2), "of 2 bits; uint8 of 4 or 8 bits"),
        (gather((4, 16), (4, 1), quantize_axis=0), "must lie along the last axis"),
        (gather((4, 16), (4, 1), gather_axis=1), "must lie along the last axis"),
        (gather((4, 16), (4, 3), block_size=16), "for rows of 32 in blocks of 16"),
        (gather((4, 16), (4, 32), block_size=-1), "for rows of 32 in blocks of -1"),
        (contrib_net("QLinearSigmoid", *[(1,)] * 4), "must be int8 or uint8"),
        (contrib_net("FusedConv", (1, 1, 3), (1, 1, 3), (1,), (1, 1, 2)), "the addend float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forms_that_are_refused(net: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        compile_model(net)


def test_a_fused_product_of_transposed_stacks() -> None:
    a, b = real(2, 4, 3), real(5, 4, seed=1)
    net = contrib_net("FusedMatMul", a.shape, b.shape, transA=1, transB=1, alpha=0.5)
    expected = 0.5 * a.swapaxes(1, 2) @ b.T
    np.testing.assert_allclose(run(compile_model(net), {"a": a, "b": b})["y"], expected, rtol=1e-5)


def test_a_fused_gemm_ends_in_its_activation() -> None:
    a, b, c = real(3, 4), real(4, 5, seed=1), real(5, seed=2)
    net = contrib_net(
        "FusedGemm", a.shape, b.shape, c.shape, alpha=2.0, beta=0.5, activation="LeakyRelu", activation_alpha=0.25
    )
    compiled = compile_model(net)
    sums = 2 * a @ b + 0.5 * c
    expected = np.where(sums >= 0, sums, 0.25 * sums)
    np.testing.assert_allclose(run(compiled, {"a": a, "b": b, "c": c})["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_fused_convolution_adds_before_its_activation() -> None:
    x, w, b, z = real(1, 2, 5), real(3, 2, 3, seed=1), real(3, seed=2), real(1, 3, 3, seed=3)
    net = contrib_net("FusedConv", x.shape, w.shape, b.shape, z.shape, activation="Clip", activation_params=[-0.5, 0.5])
    sums = np.stack([np.tensordot(w, x[0, :, i : i + 3]) for i in range(3)], axis=1) + b[:, None]
    expected = np.clip(sums[None] + z, -0.5, 0.5)
    np.testing.assert_allclose(run(compile_model(net), {"a": x, "b": w, "c": b, "d": z})["y"], expected, atol=1e-5)
