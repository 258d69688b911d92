"""RESIZE by values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from driver_shim.protocol.program_commands import CommandKind, Coordinates, Interpolation, NearestMode
from emulator.model.operators.shapes import SemanticError
from tests.support.programs import golden

F32 = np.float32


def resized(values: Any, extents: list[int], scales: list[float], dtype: Any = F32, **fields: Any) -> Any:
    """RESIZE of a tensor, by dimension."""
    fill = [0] * (8 - len(extents))
    roi = {name: [*fields.pop(name, []), *[0.0] * 8][:8] for name in ("starts", "ends")}
    fields = {"cubic": -0.75, **fields, "extents": [*extents, *fill], "scales": [*scales, *fill], **roi}
    return golden(CommandKind.RESIZE, [np.array(values, dtype)], extents, dtype, **fields).tolist()


def test_nearest_elements_repeat_in_every_type() -> None:
    for dtype in (np.int8, np.bool_, np.float16, np.int64):
        assert resized([[1, 0]], [2, 4], [2, 2], dtype) == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_linear_by_half_pixels_repeats_the_edge() -> None:
    # places -0.25, 0.25, 0.75, 1.25
    assert resized([4, 8], [4], [2], mode=Interpolation.LINEAR) == [4, 5, 7, 8]


@pytest.mark.parametrize(
    ("coordinates", "expected"),
    [
        (Coordinates.HALF_PIXEL, [0, 0.25, 0.75, 1.25, 1.75, 2]),
        (Coordinates.ASYMMETRIC, [0, 0.5, 1, 1.5, 2, 2]),
        (Coordinates.ALIGN_CORNERS, [0, 0.4, 0.8, 1.2, 1.6, 2]),
        (Coordinates.TF_HALF_PIXEL_FOR_NN, [0.25, 0.75, 1.25, 1.75, 2, 2]),
    ],
)
def test_where_elements_are_found(coordinates: Coordinates, expected: list[float]) -> None:
    found = resized([0, 1, 2], [6], [2], mode=Interpolation.LINEAR, coordinates=coordinates)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("nearest", "expected"),
    [  # asymmetric, halves: places 0, 0.5, 1, 1.5
        (NearestMode.ROUND_PREFER_FLOOR, [1, 1, 2, 2]),
        (NearestMode.ROUND_PREFER_CEIL, [1, 2, 2, 2]),
        (NearestMode.FLOOR, [1, 1, 2, 2]),
        (NearestMode.CEIL, [1, 2, 2, 2]),
    ],
)
def test_which_element_is_the_nearest(nearest: NearestMode, expected: list[int]) -> None:
    assert resized([1, 2], [4], [2], coordinates=Coordinates.ASYMMETRIC, nearest=nearest) == expected


def test_pytorch_takes_the_first_element_when_one_is_left() -> None:
    coordinates = Coordinates.PYTORCH_HALF_PIXEL
    assert resized([3, 5, 7], [1], [1 / 3], mode=Interpolation.LINEAR, coordinates=coordinates) == [3]
    assert resized([3, 5, 7], [1], [1 / 3], mode=Interpolation.LINEAR) == [5]


def test_symmetric_half_pixels_centre_what_a_scale_leaves_over() -> None:
    # 4 · 0.6 = 2.4 elements, 2 of which are there: the offset is 2 · (1 - 2 / 2.4) = 1/3
    places = [1 / 3 + 0.5 / 0.6 - 0.5, 1 / 3 + 1.5 / 0.6 - 0.5]
    found = resized([0, 1, 2, 3], [2], [0.6], mode=Interpolation.LINEAR, coordinates=Coordinates.HALF_PIXEL_SYMMETRIC)
    np.testing.assert_allclose(found, places, rtol=1e-6)


def test_cubic_overshoots_and_without_outside_it_adds_up_to_one() -> None:
    # Keys with a = -0.75 at distances 1.25, 0.25, 0.75, 1.75 of the place -0.25: elements -2, -1, 0, 1.
    weights = [-0.03515625, 0.26171875, 0.87890625, -0.10546875]
    one = resized([0, 1], [4], [2], mode=Interpolation.CUBIC)
    assert one[0] == pytest.approx(weights[3])
    inside = resized([0, 1], [4], [2], mode=Interpolation.CUBIC, exclude_outside=1)
    assert inside[0] == pytest.approx(weights[3] / (weights[2] + weights[3]))


def test_a_smaller_image_without_aliases_weighs_all_it_covers() -> None:
    # A filter twice as wide at place 0.5: distances 1.5, 0.5, 0.5, 1.5, halved; the edge repeats.
    found = resized([4, 8, 4, 8], [2], [0.5], mode=Interpolation.LINEAR, antialias=1)
    assert found == [(4 * 0.25 + 4 * 0.75 + 8 * 0.75 + 4 * 0.25) / 2, (8 * 0.25 + 4 * 0.75 + 8 * 0.75 + 8 * 0.25) / 2]


def test_a_crop_beyond_the_data_has_a_value_of_its_own() -> None:
    found = resized(
        [1, 2, 3],
        [3],
        [1],
        mode=Interpolation.LINEAR,
        coordinates=Coordinates.TF_CROP_AND_RESIZE,
        starts=[0.25],
        ends=[1.25],
        extrapolation=9,
    )
    assert found == [1.5, 2.5, 9]


def test_a_scalar_and_nothing_are_left_as_they_are() -> None:
    assert resized(5, [], []) == 5
    assert resized(np.zeros((0, 3)), [0, 6], [1, 2]) == []


@pytest.mark.parametrize(
    ("extents", "scales", "fields", "message"),
    [
        ([4], [0.0], {}, "the scale of dimension 0 is 0.0"),
        ([4], [float("nan")], {}, "must be finite"),
        ([4], [1e-9], {"mode": Interpolation.LINEAR, "antialias": 1}, "4 elements of 20000000.. each"),
        ([4], [2.0], {"antialias": 1}, "antialias goes with linear and cubic"),
        ([4], [2.0], {"mode": 3}, "3 is no Interpolation"),
    ],
)
def test_what_has_no_meaning_is_refused(
    extents: list[int], scales: list[float], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SemanticError, match=message):
        resized([1, 2], extents, scales, **fields)


def test_sums_of_integers_are_refused() -> None:
    with pytest.raises(SemanticError, match="int8 operands are not possible"):
        resized([1, 2], [4], [2], np.int8, mode=Interpolation.LINEAR)
