"""Operators of image networks, in the forms they had over the opsets, against onnx's reference and onnxruntime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.program_parsing import parse
from sdk.compiler import compile_model
from tests.support.models import model, node
from tests.support.onnxruntime_peer import run as peer
from tests.support.programs import run
from tests.unit.sdk.compiler.test_lowering import NEWEST, Case, compare, identify, ints, real

F32 = np.float32
IMAGE = real(1, 2, 5, 4)
COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "half_pixel_symmetric",
)


def floats(*values: float) -> NDArray[Any]:
    return np.array(values, F32)


NO_ROI, NO_SCALES = floats(), floats()
BY_SCALES = {"x": IMAGE, "c:r": NO_ROI, "c:s": floats(1, 1, 2, 0.6)}
BY_SIZES = {"x": IMAGE, "c:r": NO_ROI, "c:n": NO_SCALES, "c:s": ints(1, 2, 3, 7)}
SINCE_11, SINCE_13, SINCE_18, SINCE_19 = (11, 13, 18, NEWEST), (13, 18, NEWEST), (18, NEWEST), (19, NEWEST)

CASES = [
    *(
        Case(
            "Resize",
            operands,
            {"mode": mode, "coordinate_transformation_mode": coordinates},
            SINCE_19 if coordinates == "half_pixel_symmetric" else SINCE_11,
        )
        for operands, mode, coordinates in itertools.product(
            (BY_SCALES, BY_SIZES), ("nearest", "linear", "cubic"), COORDINATES
        )
    ),
    *(
        Case("Resize", BY_SIZES, {"mode": "nearest", "nearest_mode": nearest}, SINCE_11)
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    *(
        Case("Resize", BY_SCALES, {"mode": mode, **more}, SINCE_18)
        for mode in ("linear", "cubic")
        for more in ({"antialias": 1}, {"exclude_outside": 1}, {"antialias": 1, "exclude_outside": 1})
    ),
    Case("Resize", BY_SCALES, {"mode": "cubic", "cubic_coeff_a": -0.5}, SINCE_11),
    *(
        Case(
            "Resize",
            {"x": IMAGE, "c:r": floats(0, 0, 0.2, -0.1, 1, 1, 0.9, 1.2), "c:s": floats(1, 1, 2, 0.6)},
            {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0},
            SINCE_11,
        )
        for mode in ("nearest", "linear", "cubic")
    ),
    *(
        Case(
            "Resize",
            {"x": IMAGE, "c:r": NO_ROI, "c:n": NO_SCALES, "c:s": ints(7, 9)},
            {"mode": "linear", "axes": [3, 2], "keep_aspect_ratio_policy": policy},
            SINCE_18,
        )
        for policy in ("stretch", "not_larger", "not_smaller")
    ),
    Case("Resize", {"x": np.arange(6, dtype=np.int8).reshape(1, 1, 2, 3), "c:r": NO_ROI, "c:s": floats(1, 1, 2, 2)}),
    Case("Resize", BY_SCALES | {"c:s": floats(1, 1, 1, 1)}),
    Case("Col2Im", {"x": real(2, 12, 15), "c:i": ints(6, 5), "c:b": ints(2, 3)}, {}, SINCE_18),
    Case(
        "Col2Im",
        {"x": real(1, 18, 4), "c:i": ints(6, 5), "c:b": ints(3, 3)},
        {"strides": [3, 2], "pads": [1, 0, 1, 0], "dilations": [2, 1]},
        SINCE_18,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_operator_as_the_reference(case: Case) -> None:
    for opset in case.opsets:
        compare(case, opset)


def agree(
    op: str, operands: dict[str, Any], attributes: dict[str, Any], opset: int, constants: dict[str, Any] | None = None
) -> None:
    """One node gives what onnxruntime's gives."""
    constants = constants or {}
    kinds = {name: (array.dtype, array.shape) for name, array in operands.items()}
    net = model([node(op, [*operands, *constants], ["y"], **attributes)], kinds, {"y": F32}, constants, opset)
    (expected,) = peer(net.SerializeToString(), operands).values()
    found = run(compile_model(net), operands)["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 3), (1, 1, 1.5, 2.2), (1, 1, 0.5, 2)], ids=str)
def test_the_first_resize_as_onnxruntime(mode: str, scales: tuple[float, ...]) -> None:
    agree("Resize", {"x": IMAGE}, {"mode": mode}, 10, {"s": floats(*scales)})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_as_onnxruntime(mode: str) -> None:
    scales = (1.0, 1.0, 2.0, 1.5)
    agree("Upsample", {"x": IMAGE}, {"mode": mode, "scales": scales}, 7)
    agree("Upsample", {"x": IMAGE}, {"mode": mode}, 9, {"s": floats(*scales)})


@pytest.mark.parametrize(
    "attributes",
    [
        {"group": 2, "strides": [2, 1], "pads": [1, 0, 0, 1]},
        {"group": 2, "strides": [3, 2], "output_padding": [2, 1], "dilations": [2, 1]},
        {"group": 2, "strides": [2, 2], "output_shape": [11, 9]},
        {"group": 2, "strides": [2, 2], "output_shape": [10, 8], "auto_pad": "SAME_UPPER"},
        {"group": 2, "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"group": 2, "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"group": 2, "strides": [2, 2], "auto_pad": "VALID", "kernel_shape": [3, 2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("opset", [7, 11, 22])
def test_conv_transpose_as_onnxruntime(attributes: dict[str, Any], opset: int) -> None:
    operands = {"x": real(2, 4, 5, 4), "w": real(4, 3, 3, 2, seed=1), "b": real(6, seed=2)}
    agree("ConvTranspose", operands, attributes, opset)


@pytest.mark.parametrize("rank", [1, 3])
def test_conv_transpose_of_other_ranks_as_onnxruntime(rank: int) -> None:
    operands = {"x": real(1, 2, *[4] * rank), "w": real(2, 3, *[3] * rank, seed=1)}
    agree("ConvTranspose", operands, {"strides": [2] * rank, "pads": [1] * 2 * rank}, 22)


@pytest.mark.parametrize("group", [1, 2])
def test_normalisation_and_activation_after_a_transposed_convolution_are_part_of_it(group: int) -> None:
    statistics = {name: np.abs(real(6, seed=i)) + 0.1 for i, name in enumerate("smv")} | {"t": real(6, seed=7)}
    weights = real(4, 6 // group, 2, 2)
    net = model(
        [
            node("ConvTranspose", ["x", "w"], ["c"], group=group, strides=[2, 2]),
            node("BatchNormalization", ["c", "s", "t", "m", "v"], ["n"]),
            node("Relu", ["n"], ["y"]),
        ],
        {"x": (F32, (1, 4, 3, 3))},
        {"y": F32},
        {"w": weights, **statistics},
    )
    x = {"x": real(1, 4, 3, 3, seed=9)}
    compiled = compile_model(net)
    assert [command.kind.name for command in parse(compiled.image).commands] == ["CONV_TRANSPOSE"]
    (expected,) = peer(net.SerializeToString(), x).values()
    np.testing.assert_allclose(run(compiled, x)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "operands", "constants", "attributes", "message"),
    [
        ("Resize", {"x": IMAGE, "s": floats(1, 1, 2, 2)}, {}, {}, "its scales must be constant numbers"),
        ("Resize", {"x": IMAGE}, {"s": floats(2, 2)}, {}, r"scales \[2.0, 2.0\] for 4 dimensions"),
        ("Resize", {"x": IMAGE}, {"s": floats(1, 1, 0, 2)}, {}, "they must be positive"),
        (
            "Resize",
            {"x": IMAGE.astype(np.int8)},
            {"s": floats(1, 1, 2, 2)},
            {"mode": "linear"},
            "cast to float32 first",
        ),
        (
            "Resize",
            {"x": IMAGE},
            {"s": floats(1, 1, 2, 2)},
            {"mode": "area"},
            "'area' is none of nearest, linear, cubic",
        ),
    ],
)
def test_what_cannot_be_resized_is_refused_by_reason(
    op: str, operands: dict[str, Any], constants: dict[str, Any], attributes: dict[str, Any], message: str
) -> None:
    kinds = {name: (array.dtype, array.shape) for name, array in operands.items()}
    names = ["x", "", "s"]
    net = model([node(op, names, ["y"], **attributes)], kinds, {"y": operands["x"].dtype}, constants, 18)
    with pytest.raises(UnsupportedModel, match=message):
        compile_model(net)
