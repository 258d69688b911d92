"""Operators of image networks, in the forms they had over the opsets, against onnx's reference and onnxruntime."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.program_parsing import parse
from sdk.compiler import compile_model
from tests.support.arrays import real
from tests.support.models import model, node
from tests.support.onnxruntime_peer import run as peer
from tests.support.onnxruntime_peer import run_many
from tests.support.programs import run
from tests.unit.sdk.compiler.test_lowering import NEWEST, Case, compare, identify, ints

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
REGIONS = floats(0, 0, 5, 6, 1, 2, 4.5, 3, -1, 3, 9, 8).reshape(3, 4)
SINCE_16 = (16, NEWEST)
UNPOOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
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
    *(
        Case(
            "MaxPool",
            {"x": real(2, 3, 6, 5)},
            {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1], "storage_order": order},
            (8, 12, NEWEST),
            2,
        )
        for order in (0, 1)
    ),
    Case("MaxPool", {"x": real(2, 3, 9)}, {"kernel_shape": [3], "dilations": [2]}, (10, NEWEST), 2),
    *(
        Case("MaxPool", {"x": (real(1, 2, 6, 5) * 40).astype(kind)}, {"kernel_shape": [2, 2], "strides": [2, 2]}, (12,))
        for kind in (np.int8, np.uint8)
    ),
    Case(
        "MaxUnpool", {"x": real(1, 2, 2, 2), "i": ints([[[0, 3], [8, 11]], [[16, 19], [24, 27]]])}, UNPOOL, (9, NEWEST)
    ),
    Case(
        "MaxUnpool",
        {"x": real(1, 1, 2, 2), "i": ints([[[5, 7], [13, 15]]]), "c:s": ints(1, 1, 5, 6)},
        UNPOOL,
        (9, NEWEST),
    ),
    *(
        Case(
            "AffineGrid",
            {"t": real(2, rank, rank + 1), "c:s": ints(2, 1, *size)},
            {"align_corners": align},
            (20, NEWEST),
        )
        for rank, size in ((2, (3, 4)), (3, (2, 3, 4)))
        for align in (0, 1)
    ),
    Case("CenterCropPad", {"x": real(5, 4, 3), "c:s": ints(2, 7, 3)}, {}, SINCE_18),
    Case("CenterCropPad", {"x": real(5, 4, 3), "c:s": ints(8, 3)}, {"axes": [-1, 0]}, SINCE_18),
    Case("Pad", {"x": IMAGE, "c:p": ints(0, 1, 7, 3, 0, 2, 0, 9)}, {"mode": "wrap"}, (19, NEWEST)),
    *(
        Case("RoiAlign", {"x": real(2, 3, 7, 6), "r": REGIONS, "b": ints(0, 1, 1)}, {**more, "mode": mode}, SINCE_16)
        for mode in ("avg", "max")
        for more in (
            {"output_height": 2, "output_width": 3},
            {"output_height": 2, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.5},
            {"output_height": 3, "output_width": 1, "coordinate_transformation_mode": "output_half_pixel"},
        )
    ),
    *(
        Case(
            "DeformConv",
            {
                "x": real(2, 4, 5, 4),
                "w": real(6, 2, 3, 2),
                "o": real(2, 12 * groups, 3, 3),
                "b": real(6),
                "m": real(2, 6 * groups, 3, 3),
            },
            {"group": 2, "offset_group": groups, "pads": [1, 0, 1, 1], "strides": [2, 1], "dilations": [1, 2]},
            (19, NEWEST),
        )
        for groups in (1, 2)
    ),
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


class Job(NamedTuple):
    """One node that is to give what onnxruntime's gives; its first operands are inputs, the others constants."""

    op: str
    operands: dict[str, Any]
    attributes: dict[str, Any]
    opset: int
    constants: dict[str, Any] = {}  # noqa: RUF012  (never changed)


def agree(*jobs: Job) -> None:
    """Every node gives what onnxruntime's gives."""
    nets = []
    for op, operands, attributes, opset, constants in jobs:
        kinds = {name: (array.dtype, array.shape) for name, array in operands.items()}
        nodes = [node(op, [*operands, *constants], ["y"], **attributes)]
        nets.append(model(nodes, kinds, {"y": F32}, constants, opset))
    answers = run_many([(net.SerializeToString(), job.operands) for net, job in zip(nets, jobs, strict=True)])
    for net, job, expected in zip(nets, jobs, answers, strict=True):
        found = run(compile_model(net), job.operands)["y"]
        assert found.shape == expected["y"].shape, job
        np.testing.assert_allclose(found, expected["y"], rtol=1e-5, atol=1e-5, err_msg=str(job))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 3), (1, 1, 1.5, 2.2), (1, 1, 0.5, 2)], ids=str)
def test_the_first_resize_as_onnxruntime(mode: str, scales: tuple[float, ...]) -> None:
    agree(Job("Resize", {"x": IMAGE}, {"mode": mode}, 10, {"s": floats(*scales)}))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_as_onnxruntime(mode: str) -> None:
    scales = (1.0, 1.0, 2.0, 1.5)
    agree(
        Job("Upsample", {"x": IMAGE}, {"mode": mode, "scales": scales}, 7),
        Job("Upsample", {"x": IMAGE}, {"mode": mode}, 9, {"s": floats(*scales)}),
    )


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
def test_conv_transpose_as_onnxruntime(attributes: dict[str, Any]) -> None:
    operands = {"x": real(2, 4, 5, 4), "w": real(4, 3, 3, 2, seed=1), "b": real(6, seed=2)}
    agree(*(Job("ConvTranspose", operands, attributes, opset) for opset in (7, 11, 22)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
def test_conv_of_every_rank_as_onnxruntime(auto: str, rank: int) -> None:
    operands = {"x": real(2, 4, *[7, 8, 5][:rank]), "w": real(6, 2, *[3, 2, 2][:rank], seed=1), "b": real(6, seed=2)}
    dilations = [1] * rank if auto.startswith("SAME") else [2, 3, 1][:rank]  # onnxruntime refuses both at once
    moves = {"strides": [2, 1, 3][:rank], "dilations": dilations}
    agree(Job("Conv", operands, {"group": 2, "auto_pad": auto, **moves}, 22))


def test_a_dilated_convolution_with_padding_of_its_own_is_the_one_with_that_padding() -> None:
    x, w, moves = real(1, 2, 7, 6), real(3, 2, 3, 2), {"strides": [2, 1], "dilations": [2, 3]}
    # Rows reach over 5, from 4 places 2 apart: 11 elements, 4 more than there are; columns over 4: 9, 3 more than 6.
    own, given = (
        run(
            compile_model(model([node("Conv", ["x", "w"], ["y"], **more, **moves)], X, {"y": F32}, {"w": w}, 22)),
            {"x": x},
        )["y"]
        for more in ({"auto_pad": "SAME_LOWER"}, {"pads": [2, 2, 2, 1]})
    )
    assert own.shape == (1, 3, 4, 6)
    assert np.array_equal(own, given)


@pytest.mark.parametrize("rank", [1, 3])
def test_conv_transpose_of_other_ranks_as_onnxruntime(rank: int) -> None:
    operands = {"x": real(1, 2, *[4] * rank), "w": real(2, 3, *[3] * rank, seed=1)}
    agree(Job("ConvTranspose", operands, {"strides": [2] * rank, "pads": [1] * 2 * rank}, 22))


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


X = {"x": (F32, (1, 2, 7, 6))}
GRIDS = {"g": np.random.default_rng(3).uniform(-1.6, 1.6, (2, 3, 4, 2)).astype(F32)}


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample_as_onnxruntime(padding: str, align: int) -> None:
    attributes = {"padding_mode": padding, "align_corners": align}
    images, volumes = {"x": real(2, 3, 5, 4)} | GRIDS, {"x": real(1, 2, 3, 4, 2), "g": real(1, 2, 3, 2, 3, seed=1)}
    agree(
        *(Job("GridSample", images, {"mode": mode, **attributes}, 16) for mode in ("nearest", "bilinear", "bicubic")),
        *(Job("GridSample", images, {"mode": mode, **attributes}, 22) for mode in ("nearest", "linear", "cubic")),
        *(Job("GridSample", volumes, {"mode": mode, **attributes}, 22) for mode in ("nearest", "linear")),
    )


def test_negative_padding_cuts_as_in_onnxruntime() -> None:
    pads = {"p": ints(0, 0, -1, 2, 0, 0, 3, -2)}
    agree(*(Job("Pad", {"x": IMAGE}, {"mode": mode}, 19, pads) for mode in ("constant", "edge")))


def test_regions_as_onnxruntime() -> None:
    x, boxes = real(2, 3, 7, 6), floats(0, 0, 0, 9, 5, 1, 2, 3, 4, 11, 1, 6, 6, 3, 3).reshape(3, 5)
    agree(
        Job("RoiAlign", {"x": x, "r": REGIONS, "b": ints(0, 1, 1)}, {"output_height": 2, "output_width": 2}, 10),
        *(Job("MaxRoiPool", {"x": x, "r": boxes}, {"pooled_shape": [2, 3], "spatial_scale": s}, 7) for s in (1.0, 0.5)),
    )


BOXES = {"boxes": (F32, (1, 6, 4)), "scores": (F32, (1, 1, 6))}


def test_boxes_that_are_left_are_as_many_as_the_data_say() -> None:
    net = model([node("NonMaxSuppression", [*BOXES, "most"], ["y"])], BOXES, {"y": np.int64}, {"most": ints(3)}, 11)
    with pytest.raises(UnsupportedModel, match="the shape of its result depends on the data"):
        compile_model(net)


def test_no_box_is_left_where_none_is_asked_for() -> None:
    net = model([node("NonMaxSuppression", [*BOXES], ["y"])], BOXES, {"y": np.int64}, {}, 11)
    inputs = {name: np.ones(shape, F32) for name, (_, shape) in BOXES.items()}
    assert run(compile_model(net), inputs)["y"].shape == (0, 3)


POOLING: dict[str, list[dict[str, Any]]] = {
    "kernel_shape": [{"kernel_shape": [2, 3]}, {"kernel_shape": [3, 3]}],
    "strides": [{}, {"strides": [2, 3]}, {"strides": [3, 1]}],
    "pads": [{}, {"pads": [1, 0, 1, 1]}, *({"auto_pad": auto} for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"))],
    "dilations": [{}, {"dilations": [2, 1]}],
    "ceil_mode": [{}, {"ceil_mode": 1}],
    "count_include_pad": [{}, {"count_include_pad": 1}],
}
"""Attributes of pooling, and what each may be."""


PAIRS = [
    (op, opset, *pair)
    for op, opset in (("MaxPool", 12), ("AveragePool", 19), ("LpPool", 18))
    for pair in itertools.combinations(POOLING, 2)
    if op == "AveragePool" or "count_include_pad" not in pair
]


@pytest.mark.parametrize(("op", "opset", "first", "second"), PAIRS)
def test_attributes_of_pooling_go_together_as_in_onnxruntime(op: str, opset: int, first: str, second: str) -> None:
    forms = [
        {"kernel_shape": [3, 3], **one, **other} for one, other in itertools.product(POOLING[first], POOLING[second])
    ]
    agree(
        *(
            Job(op, {"x": real(1, 2, 7, 6)}, form, opset)
            for form in forms
            if "SAME" not in form.get("auto_pad", "") or "dilations" not in form  # the next test has those
        )
    )


def test_global_lp_pool_as_onnxruntime() -> None:
    agree(*(Job("GlobalLpPool", {"x": IMAGE}, more, 7) for more in ({}, {"p": 1}, {"p": 2}, {"p": 3})))


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool", "Conv"])
def test_a_dilated_window_with_padding_of_its_own_covers_the_data_as_specified(op: str, auto: str) -> None:
    # onnxruntime's pooling pads for the window without its dilation, which leaves a smaller output.
    attributes = {"kernel_shape": [3, 3], "dilations": [2, 1], "strides": [2, 1], "auto_pad": auto}
    weights = {"w": real(2, 2, 3, 3)} if op == "Conv" else {}
    net = model([node(op, ["x", *weights], ["y"], **attributes)], {"x": (F32, (1, 2, 7, 6))}, {"y": F32}, weights, 22)
    inferred = onnx.shape_inference.infer_shapes(net).graph.output[0].type.tensor_type.shape.dim
    (y,) = compile_model(net).outputs
    assert y.shape == tuple(extent.dim_value for extent in inferred) == (1, 2, 4, 6)


def test_dilated_maxima_with_padding_of_their_own_by_hand() -> None:
    # A window of 3 dilated by 2 reaches over 5: two elements of padding on each side.
    attributes = {"kernel_shape": [3], "dilations": [2], "auto_pad": "SAME_UPPER"}
    net = model([node("MaxPool", ["x"], ["y"], **attributes)], {"x": (F32, (1, 1, 5))}, {"y": F32}, {}, 22)
    x = np.array([[[1, 9, 3, 4, 5]]], F32)
    assert run(compile_model(net), {"x": x})["y"].tolist() == [[[3, 9, 5, 9, 5]]]


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
