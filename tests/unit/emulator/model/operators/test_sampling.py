"""GRID_SAMPLE, ROI_ALIGN, ROI_POOL and DEFORM_CONV by values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program_commands import CommandKind, GridPadding, Interpolation, PoolFunction
from emulator.model.operators import KernelFault, SemanticError
from tests.support.programs import golden, window

F32 = np.float32
ROW = np.array([[[1, 2, 3, 4]]], F32)
SQUARE = np.arange(16, dtype=F32).reshape(1, 1, 4, 4)


def sampled(places: list[float], **fields: Any) -> list[float]:
    """GRID_SAMPLE of a row of four elements."""
    grid = np.array(places, F32).reshape(1, -1, 1)
    fields = {"mode": Interpolation.LINEAR, **fields}
    found = golden(CommandKind.GRID_SAMPLE, [ROW, grid], (1, 1, len(places)), F32, **fields)
    return [float(value) for value in found.ravel()]


def test_a_grid_goes_from_edge_to_edge_or_from_centre_to_centre() -> None:
    assert sampled([-0.75, 0, 0.75]) == [1, 2.5, 4]
    assert sampled([-1, 0, 1], align_corners=1) == [1, 2.5, 4]


@pytest.mark.parametrize(
    ("padding", "expected"),
    [  # the edge is half a centre's weight away; 1.5 is the place 4.5, beyond the edge by one element
        (GridPadding.ZEROS, [0.5, 2, 0]),
        (GridPadding.BORDER, [1, 4, 4]),
        (GridPadding.REFLECTION, [1, 4, 3.5]),
    ],
)
def test_what_is_outside_of_the_data(padding: GridPadding, expected: list[float]) -> None:
    assert sampled([-1, 1, 1.5], padding=padding) == expected


def test_the_nearest_element_is_the_even_one_of_two() -> None:
    assert sampled([-0.5, 0.5, 0], mode=Interpolation.NEAREST) == [1, 3, 3]  # places 0.5, 2.5, 1.5


def test_the_cubic_filter_has_a_wider_reach() -> None:
    # Between elements 1 and 2: -3/32, 19/32, 19/32, -3/32 of 1, 2, 3, 4.
    assert sampled([0], mode=Interpolation.CUBIC) == [2.5]
    assert sampled([-0.5], mode=Interpolation.CUBIC) == [(19 * (1 + 2) - 3 * 3) / 32]


@pytest.mark.parametrize("padding", list(GridPadding))
@pytest.mark.parametrize("mode", list(Interpolation))
def test_a_place_that_is_no_number_harms_nothing(mode: Interpolation, padding: GridPadding) -> None:
    found = sampled([np.nan, np.inf, -np.inf, 1e30, -0.75], mode=mode, padding=padding)
    assert found[-1] == pytest.approx(1)


def test_a_grid_names_the_last_dimension_first() -> None:
    grid = np.array([[[[1, -1]]]], F32)
    found = golden(CommandKind.GRID_SAMPLE, [SQUARE, grid], (1, 1, 1, 1), F32, align_corners=1)
    assert found.tolist() == [[[[3]]]]


def regions(kind: CommandKind, boxes: list[list[float]], size: tuple[int, int], **fields: Any) -> NDArray[Any]:
    operands = [SQUARE, np.array(boxes, F32)]
    if kind is CommandKind.ROI_ALIGN:
        operands.append(np.array(fields.pop("batch", [0] * len(boxes)), np.int64))
    fields = {"spatial_scale": 1.0, "output_height": size[0], "output_width": size[1], **fields}
    return golden(kind, operands, (len(boxes), 1, *size), F32, **fields)


def test_a_region_is_averaged_bin_by_bin() -> None:
    # Samples 2 by 2 in each bin lie on the elements' centres when pixels are shifted by a half.
    found = regions(CommandKind.ROI_ALIGN, [[0, 0, 4, 4]], (2, 2), function=PoolFunction.AVERAGE, half_pixel=1)
    assert found.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


def test_the_largest_part_of_samples_is_the_maximum() -> None:
    found = regions(CommandKind.ROI_ALIGN, [[0, 0, 4, 4]], (1, 2), function=PoolFunction.MAX, half_pixel=1)
    assert found.tolist() == [[[[13, 15]]]]


def test_one_sample_of_a_region_without_the_shift() -> None:
    # The centre of [1, 3) by [0, 2) is (2, 1): row 1, column 2.
    found = regions(CommandKind.ROI_ALIGN, [[1, 0, 3, 2]], (1, 1), function=PoolFunction.AVERAGE, sampling_ratio=1)
    assert found.tolist() == [[[[6]]]]


def test_a_region_is_scaled_and_outside_of_the_data_there_are_zeros() -> None:
    fields = {"function": PoolFunction.AVERAGE, "sampling_ratio": 1, "spatial_scale": 0.5}
    assert regions(CommandKind.ROI_ALIGN, [[2, 0, 6, 4], [12, 0, 16, 4]], (1, 1), **fields).ravel().tolist() == [6, 0]


@pytest.mark.parametrize(
    ("boxes", "batch", "status", "message"),
    [
        ([[0, 0, 1, 1]], [1], Status.INDEX_OUT_OF_RANGE, r"outside of \[0, 0\]"),
        ([[0, 0, 17, 1]], [0], Status.VALUE_OUT_OF_RANGE, "a region is 17.0 long, with data of 4"),
        ([[0, 0, np.nan, 1]], [0], Status.VALUE_OUT_OF_RANGE, "a region is nan long"),
    ],
)
def test_a_region_that_cannot_be_fails_the_command(
    boxes: list[list[float]], batch: list[int], status: Status, message: str
) -> None:
    with pytest.raises(KernelFault, match=message) as caught:
        regions(CommandKind.ROI_ALIGN, boxes, (1, 1), function=PoolFunction.AVERAGE, batch=batch, half_pixel=1)
    assert caught.value.status is status


def test_regions_of_whole_elements_have_their_largest() -> None:
    # Both ends belong to a region; bins overlap where they do not divide it.
    found = regions(CommandKind.ROI_POOL, [[0, 0, 0, 2, 2], [0, 3, 3, 3, 3]], (2, 2))
    assert found.tolist() == [[[[5, 6], [9, 10]]], [[[15, 15], [15, 15]]]]


def test_a_region_far_outside_fails_the_command() -> None:
    with pytest.raises(KernelFault, match="far outside"):
        regions(CommandKind.ROI_POOL, [[0, 0, 0, 1e9, 1]], (1, 1))


def deformed(offsets: NDArray[Any], mask: NDArray[Any] | None = None, bias: NDArray[Any] | None = None) -> Any:
    """DEFORM_CONV of one tap over a row of the square's first elements."""
    x, w = SQUARE[:, :, :1, :], np.ones((1, 1, 1, 1), F32)
    fields = {"group": 1, "offset_group": 1, **window()}
    return golden(CommandKind.DEFORM_CONV, [x, w, offsets, bias, mask], (1, 1, 1, 4), F32, **fields).ravel().tolist()


def test_each_element_is_taken_from_its_offset() -> None:
    offsets = np.zeros((1, 2, 1, 4), F32)
    offsets[0, 1, 0] = [1, 0.5, -2, 1]  # columns 1, 1.5, 0, and one outside
    assert deformed(offsets) == [1, 1.5, 0, 0]
    offsets[0, 0, 0] = 0.25  # a quarter towards a row of zeros
    assert deformed(offsets) == [0.75, 1.125, 0, 0]


def test_a_mask_weighs_and_a_bias_is_added() -> None:
    mask, bias = np.array([[[[2, 0, 1, 0.5]]]], F32), np.array([10], F32)
    assert deformed(np.zeros((1, 2, 1, 4), F32), mask, bias) == [10, 10, 12, 11.5]


@pytest.mark.parametrize(
    ("kind", "shapes", "fields", "message"),
    [
        (CommandKind.GRID_SAMPLE, [(1, 1, 4, 4), (1, 2, 2, 3)], {}, "grid float32"),
        (CommandKind.GRID_SAMPLE, [(1, 1, 0), (1, 2, 1)], {}, "1 to 3 spatial dimensions"),
        (CommandKind.GRID_SAMPLE, [(1, 1, 4), (1, 2, 1)], {"mode": 3}, "3 is no Interpolation"),
        (CommandKind.ROI_POOL, [(1, 1, 4, 4), (1, 4)], {"output_height": 1, "output_width": 1}, "must have 5 columns"),
        (CommandKind.ROI_POOL, [(1, 1, 4, 4), (1, 5)], {"output_height": 0, "output_width": 1}, "is empty"),
        (
            CommandKind.DEFORM_CONV,
            [(1, 2, 4, 4), (1, 2, 1, 1), (1, 4, 4, 4)],
            {"group": 1, "offset_group": 1},
            "offset",
        ),
        (CommandKind.DEFORM_CONV, [(1, 2, 4, 4), (1, 2, 1, 1), (1, 2, 4, 4)], {"group": 1}, "0 groups of offsets"),
    ],
)
def test_what_does_not_go_together_is_refused(
    kind: CommandKind, shapes: list[tuple[int, ...]], fields: dict[str, Any], message: str
) -> None:
    fields = {**fields, **({"group": 1, **window()} if kind is CommandKind.DEFORM_CONV else {})}
    with pytest.raises(SemanticError, match=message):
        golden(kind, [np.ones(shape, F32) for shape in shapes], (1, 1, 4, 4), F32, **fields)
