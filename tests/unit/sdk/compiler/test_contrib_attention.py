"""onnxruntime's own operators of transformers against onnxruntime itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model, contrib
from tests.support.arrays import real
from tests.support.needs import module_of_extra
from tests.support.programs import run

F32 = np.float32
Array = NDArray[Any]
B, S, T, N, D = 2, 5, 7, 4, 16
"""Samples, queries, keys, heads, elements of a head."""
H = N * D


class Case(NamedTuple):
    """One node: operands in order, by value; None for one that is left out. Those named in `constants` by place are
    initialisers."""

    op: str
    operands: list[Array | None]
    attributes: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    outputs: int = 1
    constants: tuple[int, ...] = ()
    domain: str = contrib.DOMAIN
    opset: int = 17
    types: tuple[int, ...] = (onnx.TensorProto.FLOAT,) * 4
    """Of outputs."""


def net_of(case: Case) -> tuple[onnx.ModelProto, dict[str, Array]]:
    names = ["" if array is None else f"x{i}" for i, array in enumerate(case.operands)]
    arrays = {name: array for name, array in zip(names, case.operands, strict=True) if array is not None}
    constant = {f"x{i}" for i in case.constants}
    outputs = [f"y{i}" for i in range(case.outputs)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(case.op, names, outputs, domain=case.domain, **case.attributes)],
        "operator",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in arrays.items()
            if n not in constant
        ],
        [onnx.helper.make_tensor_value_info(n, kind, None) for n, kind in zip(outputs, case.types, strict=False)],
        [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in constant],
    )
    opsets = [onnx.helper.make_opsetid("", case.opset), onnx.helper.make_opsetid(contrib.DOMAIN, 1)]
    net = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return net, {n: a for n, a in arrays.items() if n not in constant}


def padded() -> Array:
    """A mask [samples, keys] with zeros at the end."""
    mask = np.ones((B, T), np.int32)
    mask[0, 4:] = 0
    mask[1, 6:] = 0
    return mask


QKV: list[Array | None] = [real(B, S, H), real(B, T, H, seed=1), real(B, T, H, seed=2)]
BIAS = real(3 * H, seed=3)
PAST: list[Array | None] = [real(B, N, 3, D, seed=4), real(B, N, 3, D, seed=5)]
HIDDEN = 12
PROJECTED: list[Array | None] = [real(B, S, HIDDEN), real(HIDDEN, 3 * H, seed=1), real(3 * H, seed=2)]
ROWS: list[Array | None] = [real(B, S, H), real(B, S, H, seed=1), real(H, seed=2)]
KEY_HEADS = 2
GROUPED: list[Array | None] = [real(B, S, H), real(B, S, KEY_HEADS * D, seed=1), real(B, S, KEY_HEADS * D, seed=2)]
GROUPED_PAST: list[Array | None] = [real(B, KEY_HEADS, 3, D, seed=4), real(B, KEY_HEADS, 3, D, seed=5)]
GROUPS = {"num_heads": N, "kv_num_heads": KEY_HEADS}
CACHES: list[Array | None] = [real(16, D // 2), real(16, D // 2, seed=1)]


def lengths(total: int) -> list[Array | None]:
    """seqlens_k and total_sequence_length of samples that are all as long."""
    return [np.full(B, total - 1, np.int32), np.array([total], np.int32)]


EMBEDDED: list[Array | None] = [
    np.array([[1, 0, 3], [2, 2, 4]], np.int32),
    np.array([[0, 0, 1], [0, 1, 1]], np.int32),
    real(5, 8),
    real(6, 8, seed=1),
    real(2, 8, seed=2),
    real(8, seed=3),
    real(8, seed=4),
]

FLOAT_AND_INT = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32)

CASES = [
    Case("MultiHeadAttention", QKV, {"num_heads": N}),
    Case("MultiHeadAttention", [*QKV, BIAS], {"num_heads": N, "scale": 0.3}),
    Case("MultiHeadAttention", [*QKV, None, padded()], {"num_heads": N}),
    Case("MultiHeadAttention", [*QKV, None, padded()], {"num_heads": N, "mask_filter_value": -2.0}),
    Case("MultiHeadAttention", [*QKV, None, np.array([3, 7], np.int32)], {"num_heads": N}),
    Case("MultiHeadAttention", [*QKV, None, padded(), real(1, N, S, T)], {"num_heads": N}),
    Case("MultiHeadAttention", [*QKV, None, None, real(B, 1, S, T)], {"num_heads": N}),
    Case("MultiHeadAttention", [QKV[0], QKV[0], QKV[0], BIAS], {"num_heads": N, "unidirectional": 1}),
    Case("MultiHeadAttention", [QKV[0], QKV[0], QKV[0], None, None, None, *PAST], {"num_heads": N}, 3),
    Case("MultiHeadAttention", [QKV[0], real(B, N, T, D), real(B, N, T, D, seed=1)], {"num_heads": N}),
    Case("Attention", PROJECTED, {"num_heads": N}, 1, (1, 2)),
    Case("Attention", PROJECTED, {"num_heads": N, "unidirectional": 1, "scale": 0.2}),
    Case("Attention", [*PROJECTED, padded()[:, :S]], {"num_heads": N}, 1, (1, 2)),
    Case("Attention", [*PROJECTED, np.array([2, 5], np.int32)], {"num_heads": N}, 1, (1, 2)),
    Case("Attention", [*PROJECTED, None, real(2, B, N, 3, D)], {"num_heads": N, "unidirectional": 1}, 2, (1, 2)),
    Case("Attention", [*PROJECTED, None, None, real(B, N, S, S)], {"num_heads": N}, 1, (1, 2)),
    Case(
        "Attention",
        [PROJECTED[0], real(HIDDEN, 2 * H + 8), real(2 * H + 8, seed=2)],
        {"num_heads": N, "qkv_hidden_sizes": [H, H, 8]},
    ),
    Case("GroupQueryAttention", [*GROUPED, None, None, *lengths(S)], GROUPS, 3, (6,)),
    Case("GroupQueryAttention", [*GROUPED, None, None, *lengths(S)], {**GROUPS, "softcap": 1.5, "scale": 0.3}, 3),
    Case("GroupQueryAttention", [*GROUPED, None, None, *lengths(S)], {**GROUPS, "local_window_size": 2}, 3),
    Case("GroupQueryAttention", [*GROUPED, None, None, *lengths(S), *CACHES], {**GROUPS, "do_rotary": 1}, 3),
    Case(
        "GroupQueryAttention",
        [*GROUPED, None, None, *lengths(S), *CACHES],
        {**GROUPS, "do_rotary": 1, "rotary_interleaved": 1},
        3,
    ),
    Case(
        "GroupQueryAttention",
        [*(None if a is None else a[:, :1].copy() for a in GROUPED), *GROUPED_PAST, *lengths(4), *CACHES],
        {**GROUPS, "do_rotary": 1},
        3,
        (5, 6),
    ),
    Case("GroupQueryAttention", [real(B, S, (N + 2 * KEY_HEADS) * D), None, None, None, None, *lengths(S)], GROUPS, 3),
    *(
        Case("RotaryEmbedding", [x, positions, *CACHES], {"interleaved": interleaved})
        for x in (real(B, S, H), real(B, N, S, D))
        for positions in (np.array([3]), np.array([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]]))
        for interleaved in (0, 1)
    ),
    Case("RotaryEmbedding", [real(B, S, N * 20), np.array([0]), *CACHES], {"num_heads": N, "rotary_embedding_dim": D}),
    Case("SkipLayerNormalization", ROWS, {"epsilon": 1e-3}),
    Case("SkipLayerNormalization", [*ROWS, real(H, seed=3), real(H, seed=4)], {}),
    Case("SkipLayerNormalization", [ROWS[0], real(1, S, H), ROWS[2], real(H, seed=3)], {}),
    Case("SkipSimplifiedLayerNormalization", [*ROWS, real(H, seed=4)], {}),
    Case("SkipSimplifiedLayerNormalization", ROWS, {"epsilon": 1e-3}),
    Case("SimplifiedLayerNormalization", [ROWS[0], ROWS[2]], {"epsilon": 1e-3}, domain=""),
    Case("LayerNormalization", [ROWS[0], ROWS[2], real(H, seed=4)], {"epsilon": 1e-3}, domain="", opset=11),
    Case("EmbedLayerNormalization", EMBEDDED, {}, 2, types=FLOAT_AND_INT),
    Case(
        "EmbedLayerNormalization",
        [EMBEDDED[0], None, *EMBEDDED[2:4], None, *EMBEDDED[5:]],
        {"epsilon": 1e-3},
        2,
        types=FLOAT_AND_INT,
    ),
    Case(
        "EmbedLayerNormalization",
        [*EMBEDDED, np.array([[1, 1, 0], [1, 1, 1]], np.int32), np.array([[5, 1, 0], [0, 1, 2]], np.int32)],
        {},
        2,
        types=FLOAT_AND_INT,
    ),
    Case("BiasGelu", [real(B, H), real(H, seed=1)]),
    Case("Gelu", [real(B, H)]),
    Case("FastGelu", [real(B, H)]),
    Case("FastGelu", [real(B, H), real(H, seed=1)]),
    Case("QuickGelu", [real(B, H)]),
    Case("QuickGelu", [real(B, H)], {"alpha": 0.7}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.attributes}")
def test_operator_as_onnxruntime(case: Case) -> None:
    runtime = module_of_extra("onnxruntime", "models")
    net, inputs = net_of(case)
    expected = runtime.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)
    results = run(compile_model(net), inputs)
    for declared, array in zip(net.graph.output, expected, strict=True):
        assert results[declared.name].shape == array.shape
        np.testing.assert_allclose(results[declared.name], array, rtol=2e-4, atol=2e-5)


def test_the_sum_before_a_normalisation_is_its_last_output() -> None:
    net, inputs = net_of(Case("SkipLayerNormalization", ROWS, {}, 4))
    del net.graph.output[1:3]
    net.graph.node[0].output[1] = net.graph.node[0].output[2] = ""
    results = run(compile_model(net), inputs)
    np.testing.assert_allclose(results["y3"], inputs["x0"] + inputs["x1"], rtol=1e-6)


def test_packed_operands_are_the_same_as_separate_ones() -> None:
    # onnxruntime has no kernel for them on this machine.
    packed = real(B, S, N, 3, D)
    net, inputs = net_of(Case("MultiHeadAttention", [packed], {"num_heads": N}))
    query, key, value = (packed[:, :, :, i].reshape(B, S, H).copy() for i in range(3))
    other, separate = net_of(Case("MultiHeadAttention", [query, key, value], {"num_heads": N}))
    expected = run(compile_model(other), separate)["y0"]
    np.testing.assert_array_equal(run(compile_model(net), inputs)["y0"], expected)
    half, some = net_of(Case("MultiHeadAttention", [query, packed[:, :, :, 1:].copy()], {"num_heads": N}))
    np.testing.assert_array_equal(run(compile_model(half), some)["y0"], expected)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("MultiHeadAttention", [*QKV, None, np.ones((B, 3), np.int32)], {"num_heads": N}), "the mask int32"),
        (
            Case("MultiHeadAttention", [*QKV, *[None] * 5, np.ones(1, np.int32)], {"num_heads": N}),
            "past_sequence_length",
        ),
        (Case("MultiHeadAttention", QKV, {"num_heads": 5}), "in 5 heads"),
        (Case("MultiHeadAttention", QKV, {"num_heads": 0}), "num_heads is 0"),
        (Case("MultiHeadAttention", [real(B, S, H)], {"num_heads": N}), "packed into one of rank 5"),
        (Case("Attention", PROJECTED, {"num_heads": N, "do_rotary": 1}), "do_rotary"),
        (Case("Attention", PROJECTED, {"num_heads": 5}), "qkv_hidden_sizes"),
        (Case("Attention", [*PROJECTED, None, real(2, B, N, D)], {"num_heads": N}), "stacked in rank 5"),
        (
            Case("GroupQueryAttention", [*GROUPED, *GROUPED_PAST, *lengths(S)], GROUPS, 1, (5, 6)),
            "a past with room or padding",
        ),
        (
            Case("GroupQueryAttention", [*GROUPED, *GROUPED_PAST, *lengths(S + 3)], GROUPS, 1),
            "total_sequence_length must be constant",
        ),
        (
            Case("GroupQueryAttention", [*GROUPED, None, None, *lengths(S)], {**GROUPS, "smooth_softmax": 1}),
            "smooth_softmax",
        ),
        (Case("RotaryEmbedding", [real(B, S, H), np.array([0]), *CACHES], {"scale": 2.0}), "scale"),
        (Case("SkipLayerNormalization", [real(S, H), real(B, S, H), real(H)]), "does not broadcast"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.op,
)
def test_forms_that_are_refused(case: Case, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        compile_model(net_of(case)[0])
