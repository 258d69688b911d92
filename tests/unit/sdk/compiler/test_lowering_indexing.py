"""Operators that find elements, of many types and of integers, against onnx's own reference evaluator."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model
from tests.support import onnxruntime_peer
from tests.support.arrays import real
from tests.support.models import model, node
from tests.support.needs import module_of_extra
from tests.support.programs import run
from tests.unit.sdk.compiler.test_lowering import ALL, F32, INDEXING, NEWEST, SINCE_18, Case, compare, ints

I32 = np.int32


def places(values: Any) -> NDArray[Any]:
    """Indices of any shape."""
    return np.array(values, np.int64)


X = real(2, 3, 4)
WHOLE = np.array([[7, -7, 5, -128], [3, 0, -1, 127]], np.int8)
BOOLS = np.array([[True, False, True], [False, False, True]])
SPECIAL = np.array([-np.inf, np.inf, np.nan, -1.5, 0, 3], F32)
BACK = places([[2, -1], [0, -3]])
"""Indices of a dimension of three, from both ends."""
SINCE_11, SINCE_16, SINCE_20, SINCE_26 = (11, 13, NEWEST), (16, 18, NEWEST), (20, NEWEST), (26, NEWEST)
REDUCTIONS = ("none", "add", "mul", "max", "min")
TYPES: tuple[Any, ...] = (np.int8, np.uint8, np.int16, np.int32, np.int64, np.float16, F32)


def of(dtype: Any, *shape: int, seed: int = 0) -> NDArray[Any]:
    """Whole numbers that any type holds."""
    return np.random.default_rng(seed).integers(0, 5, shape).astype(dtype)


CASES = [
    Case("GatherElements", {"x": real(3, 2), "i": BACK}, {}, SINCE_11),
    Case("GatherElements", {"x": real(2, 3), "i": BACK.astype(I32)}, {"axis": 1}, SINCE_11),
    Case("GatherElements", {"x": BOOLS, "c:i": places([[1], [-1]])}, {"axis": 1}, SINCE_11),
    Case("GatherND", {"x": X, "i": places([[1, -1, 3], [0, 0, -4]])}, {}, SINCE_11),
    Case("GatherND", {"x": X, "i": places([[1], [0], [-1]])}, {}, SINCE_11),
    Case("GatherND", {"x": X, "i": places([[[1], [2]], [[0], [-1]]])}, {"batch_dims": 1}, (12, 13, NEWEST)),
    Case("GatherND", {"x": real(2, 2, 3), "i": places([[[2], [0]], [[1], [1]]])}, {"batch_dims": 2}, (12, 13, NEWEST)),
    Case("TensorScatter", {"x": real(2, 4, 3), "u": real(2, 2, 3, seed=1), "i": places([1, 2])}, {}, (24, NEWEST)),
    Case("TensorScatter", {"x": real(2, 4, 3), "u": real(2, 2, 3, seed=1)}, {}, (24, NEWEST)),
    Case(
        "TensorScatter",
        {"x": X, "u": real(2, 3, 2, seed=1), "c:i": places([3, 1])},
        {"mode": "circular", "axis": -1},
        (24, NEWEST),
    ),
    Case("ScatterElements", {"x": real(3, 2), "i": BACK, "u": real(2, 2, seed=1)}, {}, SINCE_11),
    Case("ScatterElements", {"x": X, "i": BACK.reshape(2, 2, 1), "u": real(2, 2, 1)}, {"axis": 1}, SINCE_11),
    *(
        Case(
            "ScatterElements", {"x": of(kind, 3, 2), "i": places([[2, 0], [2, -3]]), "u": of(kind, 2, 2)}, how, SINCE_16
        )
        for kind in (F32, np.int64)
        for how in ({"reduction": "add"}, {"reduction": "mul"})
    ),
    *(
        Case("ScatterElements", {"x": of(F32, 3, 2), "i": places([[2, 0], [2, -3]]), "u": of(F32, 2, 2)}, how, SINCE_18)
        for how in ({"reduction": "max"}, {"reduction": "min"})
    ),
    *(
        Case("ScatterND", {"x": X, "i": places([[1], [-2]]), "u": real(2, 3, 4, seed=1)}, {"reduction": how}, SINCE_18)
        for how in REDUCTIONS
    ),
    Case("ScatterND", {"x": X, "i": places([[1, 2, -1], [0, 0, 0]]), "u": real(2)}, {}, SINCE_11),
    Case("TopK", {"x": X}, {"k": 2}, (7, 9), 2),
    Case("TopK", {"x": X, "c:k": ints([2])[0]}, {"axis": 1}, (10,), 2),
    *(
        Case("TopK", {"x": of(kind, 3, 5), "c:k": ints(3)}, {"largest": largest, "axis": axis}, SINCE_11, 2)
        for kind in (F32, np.int64)
        for largest, axis in ((0, -1), (1, 0))
    ),
    *(Case("TopK", {"x": of(kind, 7), "c:k": ints(4)}, {}, (NEWEST,), 2) for kind in TYPES),
    *(
        Case("CumSum", {"x": x, "c:a": np.array(axis, I32)}, {"exclusive": exclusive, "reverse": reverse}, SINCE_11)
        for x in (X, of(I32, 2, 3, 4))
        for axis in (1, -1)
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
    *(
        Case("CumProd", {"x": x, "c:a": np.array(1, I32)}, {"exclusive": exclusive, "reverse": reverse}, SINCE_26)
        for x in (X, of(np.int64, 2, 3, 4))
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
    *(
        Case("OneHot", {"i": i, "c:d": np.array(3, np.int64), "v": np.array([2, 5], kind)}, {"axis": axis}, (9, 11))
        for i in (ints([0, 2], [1, 0]), of(F32, 2, 2) % 3)
        for kind in (F32, np.int8)
        for axis in (-1, 1)
    ),
    Case("OneHot", {"i": ints(-1, -3, 3, -4, 1), "c:d": np.array(3.0, F32), "c:v": real(2)}, {}, (11, NEWEST)),
    Case("EyeLike", {"x": real(3, 4)}, {}, (9, NEWEST)),
    Case("EyeLike", {"x": of(I32, 3, 4)}, {"k": -1}, (9, NEWEST)),
    Case("EyeLike", {"x": real(3, 4)}, {"k": 1, "dtype": 7}, (9, NEWEST)),
    Case("ReverseSequence", {"x": X, "l": ints(1, 2, 2)}, {}, (10, NEWEST)),
    Case("ReverseSequence", {"x": X, "c:l": ints(3, 1)}, {"batch_axis": 0, "time_axis": 1}, (10, NEWEST)),
    Case("NonZero", {"c:x": BOOLS}, {}, (9, NEWEST)),
    Case("NonZero", {"c:x": X * 0}, {}, (9, NEWEST)),
    Case("Compress", {"x": X, "c:c": np.array([False, True, True])}, {"axis": 1}, (9, 11, NEWEST)),
    Case("Compress", {"x": X, "c:c": np.array([True, False, True])}, {}, (9, 11, NEWEST)),
    Case("Unique", {"c:x": np.array([2, 1, 1, 3, 4, 3], F32)}, {}, (11, NEWEST), 4),
    Case("Unique", {"c:x": np.array([2, 1, 1, 3, 4, 3], F32)}, {"sorted": 0}, (11, NEWEST), 4),
    Case("Unique", {"c:x": np.array([[1, 0], [1, 0], [2, 3]], F32)}, {"axis": 0}, (11, NEWEST), 4),
    Case("Hardmax", {"x": X}, {}, (13, NEWEST)),
    Case("Hardmax", {"x": of(F32, 2, 3, 4)}, {"axis": 1}, (13, NEWEST)),
    Case("Shrink", {"x": X}, {}, (9, NEWEST)),
    Case("Shrink", {"x": of(np.int64, 2, 5)}, {"lambd": 1.5, "bias": 1.5}, (9, NEWEST)),
    Case("Det", {"x": real(2, 2, 4, 4)}, {}, (11, 22, NEWEST)),
    Case("Det", {"x": real(3, 3)}, {}, (11, 22, NEWEST)),
    Case("BitCast", {"x": X}, {"to": 6}, SINCE_26),
    Case("BitCast", {"x": WHOLE}, {"to": 2}, SINCE_26),
    *(Case(op, {"x": X}, {}, (7, NEWEST)) for op in ("Tan", "Atan")),
    *(Case(op, {"x": X / 4}, {}, (7, NEWEST)) for op in ("Asin", "Acos")),
    *(Case(op, {"x": X}, {}, (9, NEWEST)) for op in ("Sinh", "Cosh", "Asinh")),
    Case("Acosh", {"x": np.abs(X) + 1}, {}, (9, NEWEST)),
    Case("Atanh", {"x": X / 4}, {}, (9, NEWEST)),
    Case("IsNaN", {"x": SPECIAL}, {}, (9, 13, NEWEST)),
    *(
        Case("IsInf", {"x": SPECIAL}, {"detect_negative": below, "detect_positive": above}, (10, NEWEST))
        for below in (0, 1)
        for above in (0, 1)
    ),
    *(Case(op, {"a": WHOLE, "b": WHOLE[::-1].copy()}, {}, SINCE_18) for op in ("BitwiseAnd", "BitwiseOr")),
    Case("BitwiseXor", {"a": of(np.int64, 3, 1), "b": of(np.int64, 4, seed=1)}, {}, SINCE_18),
    Case("BitwiseNot", {"a": WHOLE}, {}, SINCE_18),
    *(
        Case("BitShift", {"a": of(np.uint8, 2, 4), "b": of(np.uint8, 4, seed=1)}, {"direction": way}, (11, NEWEST))
        for way in ("LEFT", "RIGHT")
    ),
    *(
        Case("BitShift", {"a": of(I32, 2, 4) - 2, "b": ints(-1, 0, 2, 32).astype(I32)}, {"direction": way}, (28,))
        for way in ("LEFT", "RIGHT")
    ),
    *(
        Case("Mod", {"a": of(kind, 4, 3), "b": of(kind, 3, seed=1) + kind(1)}, {"fmod": fmod}, (10, 13, NEWEST))
        for kind in (np.int8, np.uint8, np.int16, np.int32, np.int64)
        for fmod in (0, 1)
    ),
    Case("Mod", {"a": X, "b": real(4, seed=1)}, {"fmod": 1}, (10, 13, NEWEST)),
    Case("Mod", {"a": X, "b": real(4, seed=1)}, {}, (28, NEWEST)),
    Case("Mod", {"a": ints(-7, 7, -7), "b": ints(3, -3, -3)}, {}, (10, NEWEST)),
    *(Case(op, {"x": X, "c:a": ints(0, -1)}, {}, SINCE_18) for op in ("ReduceProd", "ReduceLogSumExp")),
    *(
        Case(f"Reduce{name}", {"x": of(kind, 2, 3, 4) + kind(1), "c:a": ints(1)}, {"keepdims": keep}, SINCE_18)
        for name in ("Prod", "Mean", "L1", "L2", "Sum", "Max", "Min")
        for kind in (I32, np.int64)
        for keep in (0, 1)
    ),
    *(Case(op, {"x": of(np.int8, 3, 4), "c:a": ints(0)}, {}, SINCE_18) for op in ("ReduceMax", "ReduceMin")),
    *(Case(op, {"x": BOOLS, "c:a": ints(1)}, {"keepdims": 0}, SINCE_20) for op in ("ReduceMax", "ReduceMin")),
    *(
        Case(f"Reduce{name}", {"x": X, "c:a": ints()}, {"noop_with_empty_axes": 1}, SINCE_18)
        for name in ("Sum", "Max", "SumSquare", "L2")
    ),
    Case("Pow", {"x": X, "c:e": np.array(2, F32)}, {}, ALL),
    Case("Pow", {"x": of(I32, 2, 3), "e": of(I32, 3, seed=1)}, {}, (12, 13, NEWEST)),
    Case("Pow", {"x": of(I32, 2, 3), "c:e": np.array(2, np.int64)}, {}, (12, 13, NEWEST)),
    Case("Pow", {"x": of(I32, 2, 3), "e": np.array([0.5, 2, 3], F32)}, {}, (12, 13, NEWEST)),
    Case("Pow", {"x": np.abs(X), "e": of(np.int8, 4)}, {}, (12, 13, NEWEST)),
    Case("Pow", {"x": real(2), "c:e": np.full((1, 3, 1), 2, F32)}, {}, ALL),
    *(
        Case(op, {"a": of(kind, 2, 3), "b": of(kind, 3, seed=1) + kind(1)}, {}, (14, NEWEST))
        for op in ("Add", "Sub", "Mul", "Div")
        for kind in (np.int8, np.uint8, np.int16)
    ),
    *(
        Case(op, {"a": of(kind, 2, 3), "b": of(kind, 3, seed=1), "c": of(kind, 1, seed=2)}, {}, (12, NEWEST))
        for op in ("Max", "Min")
        for kind in TYPES
    ),
    *(Case(op, {"a": X}, {}, (8, NEWEST)) for op in ("Max", "Min", "Sum", "Mean")),
    *(Case("Where", {"c": BOOLS, "x": of(t, 2, 3), "y": of(t, 3, seed=1)}, {}, (9, NEWEST)) for t in (*TYPES, bool)),
    *(Case("Identity", {"x": of(kind, 2, 3)}, {}, (14, NEWEST)) for kind in (*TYPES, bool)),
    Case("Equal", {"a": BOOLS, "b": BOOLS[:, ::-1].copy()}, {}, (7, NEWEST)),
    *(Case(op, {"a": BOOLS, "b": BOOLS[:, :1].copy()}, {}, (7, NEWEST)) for op in ("And", "Or", "Xor")),
    *(Case("Abs", {"x": x}, {}, (13, NEWEST)) for x in (WHOLE[:, :3].copy(), of(np.uint8, 3))),
    *(Case(op, {"x": WHOLE[:, :3].copy()}, {}, (13, NEWEST)) for op in ("Neg", "Sign")),
    Case("PRelu", {"x": of(I32, 2, 3) - 2, "s": of(I32, 3, seed=1)}, {}, (16, NEWEST)),
    *(Case("MatMul", {"a": of(kind, 2, 3, 4), "b": of(kind, 4, 2)}, {}, (9, NEWEST)) for kind in (I32, np.int64)),
    *(Case("Gemm", {"a": of(kind, 2, 3), "b": of(kind, 3, 2)}, {}, (11, 13)) for kind in (I32, np.int64)),
    Case("Gemm", {"a": of(I32, 3, 2), "b": of(I32, 3, 2), "c": of(I32, 2)}, {"transA": 1}, (9, 11, 13)),
    Case("Trilu", {"x": of(np.int64, 4, 5), "c:k": np.array(-7, np.int64)}, {}, (14, NEWEST)),
    Case("Tile", {"x": X, "c:r": ints(0, 1, 2)}, {}, (13, NEWEST)),
    Case("Pad", {"x": X, "c:p": ints(0, 1, 5, 2, 0, 1)}, {"mode": "wrap"}, (19, NEWEST)),
    Case("Clip", {"x": X}, {}, (7, 12, 13)),
    Case("Clip", {"x": WHOLE, "c:l": np.array(-5, np.int8), "c:h": np.array(5, np.int8)}, {}, (12, NEWEST)),
    Case("Dropout", {"x": X, "c:r": np.array(0, F32), "c:t": np.array(True)}, {}, (12, NEWEST), 2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.attributes}")
def test_operator_as_the_reference(case: Case) -> None:
    for opset in case.opsets:
        compare(case, opset)


PEER_CASES: list[tuple[str, dict[str, Any], dict[str, Any], int, Any]] = [
    *(
        (f"Reduce{name}", {"x": x, "c:a": ints(1)}, {"keepdims": keep}, 20, x.dtype)
        for name in ("Sum", "Prod", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
        for x in (of(I32, 3, 4), -of(I32, 2, 3), np.zeros((2, 0, 3), I32), np.zeros((2, 0, 3), F32), real(2, 3))
        for keep in (0, 1)
        # Logarithms of what is below 0 are nothing to compare, nor is a mean of nothing.
        if not (name.startswith("LogSum") and x.min(initial=0) < 0) and (x.size or name != "Mean")
    ),
    *((op, {"x": np.zeros((2, 3, 0), F32)}, {"axis": 1}, 17, np.int64) for op in ("ArgMax", "ArgMin")),
    ("GatherElements", {"x": X, "i": BACK.reshape(2, 2, 1)}, {"axis": 1}, 17, F32),
    ("TopK", {"x": np.array([2, 7, 7, 7, 2], F32), "c:k": ints(4)}, {}, 17, F32),
    ("TopK", {"x": np.array([2, 7, 7, 7, 2], F32), "c:k": ints(4)}, {"largest": 0}, 17, F32),
    ("Mod", {"a": WHOLE.astype(I32), "b": np.array([3, -3, 7, -7], I32)}, {}, 17, I32),
    ("Mod", {"a": WHOLE.astype(I32), "b": np.array([3, -3, 7, -7], I32)}, {"fmod": 1}, 17, I32),
    ("Clip", {"x": SPECIAL}, {}, 17, F32),
    ("Clip", {"x": SPECIAL.astype(np.float16)}, {}, 17, np.float16),
    ("Clip", {"x": SPECIAL, "c:l": np.array(1, F32), "c:h": np.array(-1, F32)}, {}, 17, F32),
    ("Max", {"a": SPECIAL, "b": SPECIAL[::-1].copy()}, {}, 17, F32),
    ("Min", {"a": SPECIAL, "b": SPECIAL[::-1].copy()}, {}, 17, F32),
    ("Cast", {"x": SPECIAL}, {"to": 9}, 17, np.bool_),
    ("Cast", {"x": WHOLE.astype(I32) * 3}, {"to": 3}, 17, np.int8),
    ("Hardmax", {"x": of(F32, 2, 3, 4)}, {"axis": 1}, 11, F32),
    ("Shrink", {"x": real(4, 5)}, {"lambd": 0.3, "bias": 0.1}, 17, F32),
    ("CumSum", {"x": real(3, 0, 2), "c:a": ints(1)[0]}, {"exclusive": 1}, 17, F32),
    ("ReverseSequence", {"x": of(np.int64, 4, 2, 3), "l": ints(4, 1)}, {}, 17, np.int64),
]
"""What the reference evaluator does not take, or does by the letter of numpy: (operator, operands, attributes, opset,
type of the result)."""


def test_operators_as_onnxruntime() -> None:
    module_of_extra("onnxruntime", "models")
    jobs, ours = [], []
    for op, operands, attributes, opset, dtype in PEER_CASES:
        net = one_node(op, operands, dtype, opset, attributes)
        given = {name: array for name, array in operands.items() if not name.startswith("c:")}
        jobs.append((net.SerializeToString(), given))
        shapes = {name: array.shape for name, array in given.items()}
        ours.append(run(compile_model(net, shapes), given)["y"])
    for case, expected, result in zip(PEER_CASES, onnxruntime_peer.run_many(jobs), ours, strict=True):
        assert result.shape == expected["y"].shape, case
        np.testing.assert_allclose(result, expected["y"], rtol=1e-5, atol=1e-6, err_msg=str(case[:3]))


def test_every_operator_of_this_module_is_compared_here() -> None:
    assert {case.op for case in CASES} | {"Scatter"} >= INDEXING


def one_node(op: str, operands: dict[str, Any], dtype: Any, opset: int, attributes: dict[str, Any]) -> onnx.ModelProto:
    """A model of one node, whose first output is "y"; "c:" prefixed operands are constants."""
    given = {name: np.asarray(array) for name, array in operands.items()}
    return model(
        [node(op, list(given), ["y", "i"] if op == "TopK" else ["y"], **attributes)],
        {name: (array.dtype, array.shape) for name, array in given.items() if not name.startswith("c:")},
        {"y": dtype},
        {name: array for name, array in given.items() if name.startswith("c:")},
        opset=opset,
    )


def computed(op: str, operands: dict[str, Any], dtype: Any, opset: int = NEWEST, **attributes: Any) -> Any:
    """What one node gives."""
    return run(compile_model(one_node(op, operands, dtype, opset, attributes)), operands)["y"].tolist()


@pytest.mark.parametrize(
    ("start", "end", "step", "expected"),
    [
        (-9, -8, -1, [0]),
        (9, -9, -2, [3, 1]),
        (-9, 9, 1, [0, 1, 2, 3]),
        (4, 9, 1, []),
        (1, -9, -1, [1, 0]),
        (3, 3, -1, []),
    ],
)
def test_slice_clamps_its_limits_to_the_data(start: int, end: int, step: int, expected: list[int]) -> None:
    limits = {"c:s": ints(start), "c:e": ints(end), "c:a": ints(0), "c:t": ints(step)}
    assert computed("Slice", {"x": ints(0, 1, 2, 3), **limits}, np.int64, 13) == expected


@pytest.mark.parametrize("opset", [9, 10])
def test_scatter_is_what_scatter_elements_is_later(opset: int) -> None:
    operands = {"x": np.zeros((3, 3), F32), "i": ints([1, 0, 2], [0, 2, 1]), "u": np.array([[1, 2, 3], [4, 5, 6]], F32)}
    assert computed("Scatter", operands, F32, opset) == [[4, 2, 0], [1, 0, 6], [0, 5, 3]]


@pytest.mark.parametrize(("axis", "expected"), [(0, [[0, 0], [0, 1]]), (1, [[0, 1], [0, 1]])])
def test_hardmax_before_opset_13_works_on_a_matrix(axis: int, expected: list[list[int]]) -> None:
    assert computed("Hardmax", {"x": np.array([[1, 3], [2, 4]], F32)}, F32, 11, axis=axis) == expected


@pytest.mark.parametrize("opset", [7, 10, 11, 13])
@pytest.mark.parametrize("dtype", [F32, np.float16])
def test_clip_closes_a_limit_that_is_not_given_by_the_largest_number(opset: int, dtype: Any) -> None:
    if opset < 11 and dtype is np.float16:
        return
    most = float(np.finfo(dtype).max)
    clipped = computed("Clip", {"x": SPECIAL[[0, 1, 3]].astype(dtype)}, dtype, opset)
    assert clipped == [-most, most, -1.5]


def test_clip_of_one_limit_that_is_computed_closes_the_other() -> None:
    most = float(np.finfo(F32).max)
    limit = {"x": SPECIAL[[0, 1, 3]], "l": np.array(-2, F32)}
    assert computed("Clip", limit, F32) == [-2, most, -1.5]


@pytest.mark.parametrize(("op", "inputs"), [("NonZero", 1), ("Unique", 1), ("Compress", 2)])
def test_what_gives_as_many_elements_as_the_data_has_it_is_refused_by_a_code_of_its_own(op: str, inputs: int) -> None:
    names = ["x", "condition"][:inputs]
    kinds = {"x": (F32, (3,)), "condition": (np.bool_, (3,))}
    net = model([node(op, names, ["y"])], {n: kinds[n] for n in names}, {"y": np.int64 if op == "NonZero" else F32})
    with pytest.raises(UnsupportedModel, match="depends on the data") as caught:
        compile_model(net)
    assert caught.value.problems[0].code == "data-dependent-shape"


@pytest.mark.parametrize(
    ("op", "operands", "attributes", "reason"),
    [
        ("TopK", {"x": X, "c:k": ints(5)}, {}, "5 of 4 elements"),
        ("TopK", {"x": X, "c:k": ints(-1)}, {}, "k is"),
        ("GatherND", {"x": X, "i": places([[0, 0, 0, 0]])}, {}, "indices of 4 dimensions"),
        ("GatherElements", {"x": X, "i": places([[[0] * 9]])}, {}, "reach beyond"),
        ("ScatterND", {"x": X, "i": places([[0]]), "u": X}, {}, "must be"),
        ("ScatterElements", {"x": X, "i": places([[[0]]]), "u": X}, {}, "for indices"),
        ("Det", {"x": X}, {}, "no square matrix"),
        ("BitCast", {"x": X}, {"to": 10}, "as wide as"),
        ("Mod", {"a": X, "b": X}, {}, "fmod=1"),
        ("EyeLike", {"x": X}, {}, "no matrix"),
        ("Compress", {"x": X, "c:c": np.ones(3, bool)}, {"axis": 0}, "keeps element 2 of 2"),
        ("ReverseSequence", {"x": X, "l": ints(1, 2)}, {}, "for a batch of 3"),
        ("Tile", {"x": X, "c:r": ints(1, -1, 1)}, {}, "none negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_is_refused_with_a_reason(
    op: str, operands: dict[str, Any], attributes: dict[str, Any], reason: str
) -> None:
    opset = 26 if op == "BitCast" else 18
    with pytest.raises(UnsupportedModel, match=reason):
        computed(op, operands, F32, opset, **attributes)


def test_topk_and_bit_operations_take_narrow_floats_by_their_values() -> None:
    x = np.array([1, 3, 2], ml_dtypes.bfloat16)
    net = model(
        [node("TopK", ["x", "k"], ["y", "i"])],
        {"x": (ml_dtypes.bfloat16, (3,))},
        {"y": ml_dtypes.bfloat16, "i": np.int64},
        {"k": ints(2)},
        opset=24,
    )
    results = run(compile_model(net), {"x": x})
    assert (results["y"].astype(F32).tolist(), results["i"].tolist()) == ([3, 2], [1, 2])
    assert onnx.defs.get_schema("TopK").since_version <= NEWEST
