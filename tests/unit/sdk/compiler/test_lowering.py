"""Each operator, in the forms it had over the opsets, against onnx's own reference evaluator."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from sdk.compiler import compile_model, contrib
from sdk.compiler.lowering import LOWERINGS
from tests.support.arrays import real
from tests.support.models import model, node
from tests.support.programs import run

F32 = np.float32
NEWEST = onnx.defs.onnx_opset_version()
IR_VERSION = 10


class Case(NamedTuple):
    """One node: operands by value ("c:" prefixed names are initialisers), attributes, opsets, number of outputs."""

    op: str
    operands: dict[str, Any]
    attributes: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    opsets: tuple[int, ...] = (13, 18, NEWEST)
    outputs: int = 1


def ints(*values: Any) -> NDArray[Any]:
    return np.array(values, np.int64)


OLD, NEW = (11,), (13, 18, NEWEST)
BEFORE_18 = (11, 13)
SINCE_18 = (18, NEWEST)
ALL = (11, 13, 18, NEWEST)
X = real(2, 3, 4)
IMAGE = real(2, 3, 4, 5)
HEADS = real(2, 4, 7, 5)
"""Two samples, four heads, seven places, five elements."""
SINCE_27 = (27, NEWEST)
SINCE_23 = (23, 24, NEWEST)
STATISTICS = (real(3, seed=1), real(3, seed=2), real(3, seed=3), np.abs(real(3, seed=4)) + 0.1)
"""Scale, bias, mean and variance of three channels."""
SINCE_15, SINCE_17 = (15, 18, NEWEST), (17, 18, NEWEST)
"""The first for BatchNormalization: at opset 9 to 14 the reference trains."""
BOOLS = np.array([[True, False], [False, True]])

CASES = [
    *(
        Case(op, {"x": X})
        for op in ("Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Exp", "Tanh", "Sigmoid", "Erf", "Relu")
    ),
    *(Case(op, {"x": X}) for op in ("Softplus", "Sin", "Cos", "Reciprocal", "Identity")),
    *(Case(op, {"x": np.abs(X) + 1}) for op in ("Log", "Sqrt")),
    Case("LeakyRelu", {"x": X}),
    Case("LeakyRelu", {"x": X}, {"alpha": 0.3}),
    Case("Elu", {"x": X}),
    Case("Elu", {"x": X}, {"alpha": 0.3}),
    Case("HardSigmoid", {"x": X}),
    Case("HardSigmoid", {"x": X}, {"alpha": 0.3, "beta": 0.1}),
    Case("Not", {"x": BOOLS}, opsets=ALL),
    *(Case(op, {"a": X, "b": real(3, 1, seed=1)}) for op in ("Add", "Sub", "Mul", "Div")),
    *(Case(op, {"a": X, "b": real(4, seed=1)}) for op in ("Less", "Greater", "Equal")),
    *(Case(op, {"a": X, "b": X.copy()}) for op in ("LessOrEqual", "GreaterOrEqual")),
    *(Case(op, {"a": BOOLS, "b": BOOLS.T.copy()}, opsets=ALL) for op in ("And", "Or", "Xor")),
    *(Case(op, {"a": X, "b": real(4, seed=1), "c": real(3, 1, seed=2)}) for op in ("Max", "Min", "Sum", "Mean")),
    Case("Pow", {"a": np.abs(X), "b": np.array(2, F32)}),
    Case("Pow", {"a": X, "c:b": ints(3)}),
    Case("Clip", {"x": X, "c:l": np.array(-0.5, F32), "c:h": np.array(0.5, F32)}, opsets=ALL),
    Case("Clip", {"x": X, "l": np.array(-0.5, F32)}, opsets=ALL),
    Case("Clip", {"x": np.arange(6, dtype=np.int32), "c:l": np.array(2, np.int32)}, opsets=(12, *NEW)),
    Case("Clip", {"x": np.arange(6), "c:l": np.array(2), "c:h": np.array(1 << 62)}, opsets=(12, *NEW)),
    Case("Clip", {"x": X}, {"min": -0.5, "max": 0.25}, (7, 10)),
    Case("Clip", {"x": X}, {"max": 0.25}, (7, 10)),
    Case("Cast", {"x": X * 9}, {"to": 6}),
    Case("Cast", {"x": X}, {"to": 10}),
    Case("Cast", {"x": BOOLS}, {"to": 1}),
    Case("CastLike", {"x": X * 9, "like": np.zeros((1, 2), np.int32)}, {}, (15, NEWEST)),
    Case("CastLike", {"x": X, "c:like": np.zeros((), F32)}, {}, (15, NEWEST)),
    Case("Where", {"c": BOOLS, "x": real(2, 2), "y": real(1, 2)}, opsets=(16, NEWEST)),
    Case("Dropout", {"x": X}),
    Case("MatMul", {"a": X, "b": real(4, 5)}),
    Case("MatMul", {"a": real(4), "b": real(4, 5)}),
    Case("MatMul", {"a": X, "b": real(4)}),
    Case("MatMul", {"a": real(4), "b": real(4, seed=1)}),
    Case("MatMul", {"a": real(4), "b": real(2, 4, 3)}),
    Case("Gemm", {"a": real(3, 2), "b": real(4, 3)}, {"transA": 1, "transB": 1}),
    Case("Gemm", {"a": real(2, 3), "b": real(3, 4), "c": real(2, 1)}, {"alpha": 0.5, "beta": 2.0}),
    Case("Conv", {"x": real(1, 2, 6, 5), "w": real(4, 1, 3, 3), "b": real(4)}, {"group": 2, "pads": [1, 0, 2, 1]}),
    Case("Conv", {"x": real(1, 2, 6, 5), "w": real(4, 2, 2, 3)}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", {"x": real(1, 2, 6, 5), "w": real(4, 2, 2, 2)}, {"auto_pad": "SAME_LOWER"}),
    Case("Conv", {"x": real(1, 2, 9), "w": real(4, 2, 3)}, {"auto_pad": "VALID", "dilations": [2]}),
    Case("MaxPool", {"x": real(1, 2, 6, 5)}, {"kernel_shape": [2, 3], "strides": [2, 1]}),
    Case(
        "AveragePool", {"x": real(1, 2, 6, 5)}, {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1], "count_include_pad": 1}
    ),
    Case("GlobalMaxPool", {"x": real(2, 3, 4, 5)}),
    Case("GlobalAveragePool", {"x": real(2, 3, 4, 5)}),
    *(Case(op, {"x": X}, {"axes": [-1], "keepdims": 0}, BEFORE_18) for op in ("ReduceMean", "ReduceMax", "ReduceMin")),
    *(
        Case(op, {"x": X, "c:a": ints(0, -1)}, {}, SINCE_18)
        for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1")
    ),
    *(Case(op, {"x": X}, {"keepdims": 0}, SINCE_18) for op in ("ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")),
    Case("ReduceSum", {"x": X}, {"axes": [1]}, OLD),
    Case("ReduceSum", {"x": X, "c:a": ints(1)}),
    Case("ReduceSum", {"x": X}, {"noop_with_empty_axes": 1}),
    Case("ReduceSum", {"x": X}),
    Case("ReduceLogSum", {"x": np.abs(X)}, {"axes": [1]}, BEFORE_18),
    Case("ReduceLogSum", {"x": np.abs(X), "c:a": ints(0, -1)}, {"keepdims": 0}, SINCE_18),
    Case("ArgMax", {"x": X}, {"axis": 1}),
    Case("ArgMin", {"x": X}, {"axis": -1, "keepdims": 0}),
    Case("Softmax", {"x": X}, {"axis": 1}),
    Case("Softmax", {"x": X}),
    Case("LogSoftmax", {"x": X}, {"axis": -1}, ALL),
    Case("Reshape", {"x": X, "c:s": ints(0, -1)}),
    Case("Reshape", {"x": X, "c:s": ints(24)}),
    Case("Flatten", {"x": X}),
    Case("Flatten", {"x": X}, {"axis": -1}),
    Case("Flatten", {"x": X}, {"axis": 0}),
    Case("Squeeze", {"x": real(1, 2, 1)}, {"axes": [-1]}, OLD),
    Case("Squeeze", {"x": real(1, 2, 1), "c:a": ints(0)}),
    Case("Squeeze", {"x": real(1, 2, 1)}, {}, ALL),
    Case("Unsqueeze", {"x": X}, {"axes": [0, -1]}, OLD),
    Case("Unsqueeze", {"x": X, "c:a": ints(1, -1)}),
    Case("Transpose", {"x": X}),
    Case("Transpose", {"x": X}, {"perm": [1, 0, 2]}),
    Case("Slice", {"x": X, "c:s": ints(-1, 1), "c:e": ints(-9, 9), "c:a": ints(2, 1), "c:t": ints(-2, 1)}, {}, ALL),
    Case("Slice", {"x": X}, {"starts": [-2, 0], "ends": [9, 2], "axes": [2, 1]}, (7, 9)),
    Case("Slice", {"x": X}, {"starts": [0, 1], "ends": [2, 3]}, (7, 9)),
    Case("Split", {"x": X}, {"axis": 2, "split": [1, 3]}, OLD, 2),
    Case("Split", {"x": X, "c:s": ints(1, 2)}, {"axis": 1}, NEW, 2),
    Case("Split", {"x": real(7)}, {"num_outputs": 3}, SINCE_18, 3),
    Case("Split", {"x": X}, {"axis": 0}, (11, 13), 2),
    Case("Concat", {"a": X, "b": X}, {"axis": -1}),
    Case("Gather", {"x": X, "c:i": ints([0, -1])}, {"axis": 2}),
    Case("Pad", {"x": X}, {"pads": [0, 1, 1, 2, 0, 1], "value": 1.5}, (7, 10)),
    Case("Pad", {"x": X}, {"pads": [0, 2, 1, 0, 0, 3], "mode": "reflect"}, (7, 10)),
    Case("Pad", {"x": X, "c:p": ints(0, 1, 1, 2, 0, 1)}),
    Case("Pad", {"x": X, "c:p": ints(0, 2, 1, 0, 0, 3)}, {"mode": "reflect"}),
    Case("Pad", {"x": X, "c:p": ints(0, 2, 1, 0, 0, 3)}, {"mode": "edge"}),
    Case("Pad", {"x": X, "c:p": ints(1, 1), "c:v": np.array(7, F32), "c:a": ints(-1)}, {}, SINCE_18),
    Case("Expand", {"x": real(3, 1), "c:s": ints(2, 1, 4)}),
    Case("Expand", {"x": real(3, 1), "c:s": ints(1)}),
    *(
        Case(
            "BatchNormalization",
            {"x": real(2, 3, *size), **{f"{held}{i}": STATISTICS[i] for i in range(4)}},
            more,
            SINCE_15,
        )
        for size in ((), (4,), (4, 5))
        for held in ("c:", "s")
        for more in ({}, {"epsilon": 0.1})
    ),
    Case("InstanceNormalization", {"x": IMAGE, "c:s": real(3, seed=1), "c:b": real(3, seed=2)}),
    Case("InstanceNormalization", {"x": X, "s": real(3, seed=1), "b": real(3, seed=2)}, {"epsilon": 0.5}),
    Case("LayerNormalization", {"x": X, "c:s": real(4, seed=1), "c:b": real(4, seed=2)}, {}, SINCE_17),
    Case("LayerNormalization", {"x": X, "c:s": real(3, 4, seed=1)}, {"axis": 1, "epsilon": 0.1}, SINCE_17, 3),
    Case("MeanVarianceNormalization", {"x": IMAGE}),
    Case("MeanVarianceNormalization", {"x": X}, {"axes": [0, -1]}),
    *(
        Case("LpNormalization", {"x": np.abs(X)}, {"axis": axis, "p": p}, (22, NEWEST))
        for axis in (1, -1)
        for p in (1, 2)
    ),
    Case("GroupNormalization", {"x": real(2, 6, 4), "c:s": real(6), "c:b": real(6)}, {"num_groups": 3}, (21, NEWEST)),
    Case("RMSNormalization", {"x": X, "c:s": real(4, seed=1)}, {}, (23, NEWEST)),
    Case("RMSNormalization", {"x": X, "c:s": real(3, 4, seed=1)}, {"axis": -2, "epsilon": 0.1}, (23, NEWEST)),
    *(Case("LRN", {"x": real(7, 7, 3, 2)}, {"size": size, "alpha": 0.5, "bias": 2.0}) for size in (1, 3, 4)),
    Case("LRN", {"x": real(5, 5, 3, 2)}, {"size": 5, "beta": 0.5}),  # the reference takes the batch for the channels
    Case("HardSwish", {"x": X * 4}, {}, (14, NEWEST)),
    Case("Gelu", {"x": X}, {}, (20, NEWEST)),
    Case("Gelu", {"x": X}, {"approximate": "tanh"}, (20, NEWEST)),
    Case("Mish", {"x": X}, {}, SINCE_18),
    Case("Swish", {"x": X}, {"alpha": 1.5}, (24, NEWEST)),
    Case("Swish", {"x": X}, {}, (24, NEWEST)),
    Case("Selu", {"x": X}),
    Case("Selu", {"x": X}, {"alpha": 2.0, "gamma": 3.0}),
    Case("Celu", {"x": X}, {}, (12, *NEW)),
    Case("Celu", {"x": X}, {"alpha": 2.5}, (12, *NEW)),
    Case("PRelu", {"x": X, "c:s": real(3, 1)}),
    Case("ThresholdedRelu", {"x": X}, {"alpha": 0.5}),
    Case("Shrink", {"x": X}, {"lambd": 0.4}),
    Case("Shrink", {"x": X}, {"lambd": 0.4, "bias": 0.3}),
    Case("Softsign", {"x": X}),
    Case("Attention", {"q": HEADS, "k": HEADS, "v": HEADS}, {}, SINCE_23),
    Case("Attention", {"q": HEADS, "k": HEADS, "v": HEADS}, {"is_causal": 1, "scale": 0.3, "softcap": 2.0}, SINCE_23),
    Case("Attention", {"q": HEADS, "k": real(2, 2, 3, 5), "v": real(2, 2, 3, 6), "m": real(7, 3)}, {}, SINCE_23),
    Case(
        "Attention",
        {"q": real(2, 7, 12), "k": real(2, 4, 6), "v": real(2, 4, 8), "m": real(2, 1, 7, 4) > 0},
        {"q_num_heads": 4, "kv_num_heads": 2},
        SINCE_23,
    ),
    *(
        Case(
            "Attention",
            {"q": HEADS, "k": HEADS, "v": HEADS, "m": real(7, 9), "p": real(2, 4, 2, 5), "w": real(2, 4, 2, 5)},
            {"qk_matmul_output_mode": mode, "is_causal": 1, "softcap": 1.5},
            SINCE_23,
            4,
        )
        for mode in (1, 2, 3)
    ),
    Case("Attention", {"q": HEADS, "k": HEADS, "v": HEADS}, {"left_window_size": 2, "right_window_size": 1}, (NEWEST,)),
    *(
        Case("RotaryEmbedding", {"x": x, "c": real(2, 7, 3), "s": real(2, 7, 3, seed=1)}, more, (23, NEWEST))
        for x, more in ((real(2, 4, 7, 6), {}), (real(2, 7, 24), {"num_heads": 4}))
    ),
    *(
        Case(
            "RotaryEmbedding",
            {"x": real(2, 4, 3, 6), "c": real(9, 2), "s": real(9, 2, seed=1), "p": ints([0, 1, 2], [8, 7, 3])},
            {"interleaved": interleaved, "rotary_embedding_dim": 4},
            (23, NEWEST),
        )
        for interleaved in (0, 1)
    ),
    *(
        Case(
            "LinearAttention",
            {"q": real(2, 5, 12), "k": real(2, 5, 6), "v": real(2, 5, 8), "p": real(2, 2, 3, 4), **more},
            {"q_num_heads": 4, "kv_num_heads": 2, "update_rule": rule},
            (27, NEWEST),
            2,
        )
        for rule, more in (
            ("gated", {"d": -np.abs(real(2, 5, 2))}),
            ("gated_delta", {"d": -np.abs(real(2, 5, 6)), "b": real(2, 5, 2)}),
        )
    ),
    Case(
        "LinearAttention",
        {"q": real(2, 5, 6), "k": real(2, 5, 6), "v": real(2, 5, 8)},
        {"q_num_heads": 2, "kv_num_heads": 2, "update_rule": "linear", "scale": 0.4},
        (27, NEWEST),
        2,
    ),
    *(
        Case(
            "CausalConvWithState", {"x": real(2, 3, 7), "c:w": real(3, 1, 4), **more}, {"activation": name}, SINCE_27, 2
        )
        for name, more in (("none", {}), ("silu", {"c:b": real(3), "p": real(2, 3, 3)}), ("swish", {"c:b": real(3)}))
    ),
    Case("CausalConvWithState", {"x": real(2, 3, 7), "w": real(3, 1, 1)}, {}, SINCE_27, 2),
    Case("Tile", {"x": X, "c:r": ints(2, 1, 3)}),
    Case("Tile", {"x": X, "c:r": ints(1, 1, 1)}),
    *(Case("DepthToSpace", {"x": real(2, 12, 2, 3)}, {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    Case("SpaceToDepth", {"x": real(2, 3, 4, 6)}, {"blocksize": 2}),
    Case("SpaceToDepth", {"x": real(2, 3, 4, 6)}, {"blocksize": 2, "mode": "CRD"}, (NEWEST,)),
    *(Case("Trilu", {"x": X}, {"upper": upper}, (14, NEWEST)) for upper in (0, 1)),
    *(Case("Trilu", {"x": X, "c:k": np.array(k, np.int64)}, {}, (14, NEWEST)) for k in (-1, 2)),
    Case("QuantizeLinear", {"x": X * 50, "c:s": np.array(0.7, F32), "c:z": np.array(3, np.int8)}),
    Case(
        "QuantizeLinear",
        {"x": X * 50, "c:s": np.array([0.7, 1, 2], F32), "c:z": ints(1, 2, 3).astype(np.uint8)},
        {"axis": 1},
    ),
    Case(
        "DequantizeLinear",
        {"x": np.arange(6, dtype=np.uint8), "c:s": np.array(0.7, F32), "c:z": np.array(3, np.uint8)},
        opsets=(19, NEWEST),
    ),
]

FOLDED_ALWAYS = {"Shape", "Size", "Constant", "ConstantOfShape", "Range"}
IMAGES = {
    *(
        "Resize",
        "Upsample",
        "ConvTranspose",
        "Col2Im",
        "LpPool",
        "GlobalLpPool",
        "MaxUnpool",
        "GridSample",
        "AffineGrid",
    ),
    *("RoiAlign", "MaxRoiPool", "DeformConv", "CenterCropPad"),
    "NonMaxSuppression",
}
"""Compared in test_lowering_images.py."""
ELSEWHERE = {
    *("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"),
    *("If", "Loop", "Scan", "RNN", "GRU", "LSTM", "SimplifiedLayerNormalization", "ai.onnx.preview.FlexAttention"),
}
"""Compared with onnxruntime, whose arithmetic is the reference; control flow and networks in modules of their own."""

INDEXING = {
    *("GatherElements", "GatherND", "Scatter", "ScatterElements", "ScatterND", "TopK", "CumSum", "CumProd", "OneHot"),
    *("EyeLike", "ReverseSequence", "NonZero", "Compress", "Unique", "Hardmax", "Shrink", "Det", "BitCast"),
    *("Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "IsNaN", "IsInf", "ReduceProd"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift", "Mod", "TensorScatter"),
}
"""Compared in `test_lowering_indexing.py`."""
SUMS = {
    *("Einsum", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", "DFT", "STFT", "MelWeightMatrix"),
    *("HannWindow", "HammingWindow", "BlackmanWindow"),
}
"""Compared in `test_einsum.py`, `test_losses.py` and `test_spectra.py`."""


def identify(case: Case) -> str:
    return f"{case.op}-{case.attributes}"


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_operator_as_the_reference(case: Case) -> None:
    for opset in case.opsets:
        compare(case, opset)


def compare(case: Case, opset: int) -> None:
    names = [name.removeprefix("c:") + "_in" for name in case.operands]
    outputs = [f"y{i}" for i in range(case.outputs)]
    arrays = {name: np.asarray(a) for name, a in zip(names, case.operands.values(), strict=True)}
    constant = {name for name, given in zip(names, case.operands, strict=True) if given.startswith("c:")}
    attributes = dict(case.attributes)
    graph = onnx.helper.make_graph(
        [node(case.op, names, outputs, **attributes)],
        "operator",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in arrays.items()
            if n not in constant
        ],
        [],
        [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in constant],
    )
    net = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    graph = net.graph
    graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in outputs)
    inputs = {n: a for n, a in arrays.items() if n not in constant}
    expected = ReferenceEvaluator(net).run(None, inputs)
    for declared, array in zip(graph.output, expected, strict=True):
        declared.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    results = run(compile_model(net), inputs)
    for name, array in zip(outputs, expected, strict=True):
        assert (results[name].dtype, results[name].shape) == (array.dtype, array.shape), f"opset {opset}"
        np.testing.assert_allclose(results[name], array, rtol=1e-5, atol=1e-6, err_msg=f"opset {opset}")


@pytest.mark.parametrize(("axis", "rows"), [(0, (1, 24)), (1, (2, 12)), (2, (6, 4))])
def test_softmax_before_opset_13_works_on_a_matrix(axis: int, rows: tuple[int, int]) -> None:
    # The reference evaluator knows only the later meaning.
    net = model([node("Softmax", ["x"], ["y"], axis=axis)], {"x": (F32, X.shape)}, {"y": F32}, opset=11)
    powers = np.exp(X.reshape(rows))
    expected = (powers / powers.sum(1, keepdims=True)).reshape(X.shape)
    np.testing.assert_allclose(run(compile_model(net), {"x": X})["y"], expected, rtol=1e-5)


@pytest.mark.parametrize("p", [1, 2])
def test_a_norm_of_zero_gives_zeros(p: int) -> None:
    # The reference evaluator divides by it, and warns.
    net = model([node("LpNormalization", ["x"], ["y"], axis=0, p=p)], {"x": (F32, (2, 2))}, {"y": F32}, opset=22)
    result = run(compile_model(net), {"x": np.array([[0, 3], [0, -3]], F32)})["y"]
    np.testing.assert_allclose(
        result, [[0, 3 / (6 if p == 1 else np.sqrt(18))], [0, -3 / (6 if p == 1 else np.sqrt(18))]]
    )


def test_every_operator_is_compared_somewhere() -> None:
    own = {op for op in LOWERINGS if not op.startswith(f"{contrib.DOMAIN}.")}
    assert {case.op for case in CASES} | FOLDED_ALWAYS | ELSEWHERE | IMAGES | INDEXING | SUMS == own
