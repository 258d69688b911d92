"""Integer products, quantised element-wise commands and packed weights against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import CommandKind, QBinaryFunction
from driver_shim.protocol.types import WireType
from emulator.model.operators import OPERATORS
from emulator.model.operators.shapes import SemanticError
from tests.support.programs import golden, window

Array = NDArray[Any]
F32, I8, U8 = np.float32, np.int8, np.uint8
KIND = CommandKind


def test_integer_products_subtract_the_zero_points_that_there_are() -> None:
    a, b = np.array([[3, 4]], U8), np.array([[5], [6]], I8)
    assert golden(KIND.MATMUL_INTEGER, [a, b], (1, 1), np.int32) == 3 * 5 + 4 * 6
    with_a = [a, b, np.array(1, U8)]
    assert golden(KIND.MATMUL_INTEGER, with_a, (1, 1), np.int32) == 2 * 5 + 3 * 6
    assert golden(KIND.MATMUL_INTEGER, [a, b, None, np.array(2, I8)], (1, 1), np.int32) == 3 * 3 + 4 * 4


def test_integer_products_have_zero_points_for_rows_and_columns() -> None:
    a, b = np.array([[1, 2], [3, 4]], U8), np.array([[1, 2], [3, 4]], U8)
    zeros = [np.array([[1], [3]], U8), np.array([0, 2], U8)]
    found = golden(KIND.MATMUL_INTEGER, [a, b, *zeros], (2, 2), np.int32)
    assert found.tolist() == (np.array([[0, 1], [0, 1]]) @ np.array([[1, 0], [3, 2]])).tolist()


def test_the_sum_of_integer_products_wraps_at_32_bits() -> None:
    depth = 40000
    a, b = np.full((1, depth), 255, U8), np.full((depth, 1), 255, U8)
    expected = (depth * 255 * 255 + 2**31) % 2**32 - 2**31
    assert golden(KIND.MATMUL_INTEGER, [a, b], (1, 1), np.int32) == expected


@pytest.mark.parametrize("depth", [0, 1])
def test_integer_products_over_nothing_are_zero(depth: int) -> None:
    a, b = np.zeros((2, depth), U8), np.ones((depth, 3), I8)
    assert not golden(KIND.MATMUL_INTEGER, [a, b], (2, 3), np.int32).any()


def test_padding_of_an_integer_convolution_adds_nothing() -> None:
    x, w = np.array([[[5, 6]]], U8), np.array([[[1, 10]]], I8)
    fields = window(pads_begin=[1, 0, 0], pads_end=[1, 0, 0])
    found = golden(KIND.CONV_INTEGER, [x, w, np.array(3, U8)], (1, 1, 3), np.int32, group=1, **fields)
    assert found.tolist() == [[[20, 2 + 30, 3]]]


def test_an_integer_convolution_has_a_zero_point_for_each_output_channel() -> None:
    x, w = np.array([[[5]]], U8), np.array([[[2]], [[2]]], I8)
    operands = [x, w, None, np.array([0, 1], I8)]
    found = golden(KIND.CONV_INTEGER, operands, (1, 2, 1), np.int32, group=1, **window())
    assert found.tolist() == [[[10], [5]]]


def dynamic(*values: float) -> Any:
    x = np.array(values, F32)
    outputs: list[Any] = [np.empty(x.shape, U8), np.empty((), F32), np.empty((), U8)]
    OPERATORS[KIND.DYNAMIC_QUANTIZE].run(make_attributes(KIND.DYNAMIC_QUANTIZE), [x], outputs)
    return outputs[0].tolist(), float(outputs[1]), int(outputs[2])


def test_the_range_of_the_data_becomes_scale_and_zero_point() -> None:
    # −1 to 4.1: scale 5.1/255 = 0.02, zero point round(1/0.02) = 50
    integers, scale, zero = dynamic(-1, 0, 0.02, 4.1)
    assert (integers, round(scale, 6), zero) == ([0, 50, 51, 255], 0.02, 50)


def test_a_range_always_holds_zero() -> None:
    assert dynamic(2.55, 1.0) == ([255, 100], pytest.approx(0.01), 0)
    assert dynamic(-2.55, -1.0) == ([0, 155], pytest.approx(0.01), 255)


@pytest.mark.parametrize("values", [(0.0, 0.0), ()])
def test_data_without_a_range_have_the_scale_1(values: tuple[float, ...]) -> None:
    assert dynamic(*values) == ([0] * len(values), 1.0, 0)


def test_nan_has_no_part_in_a_range() -> None:
    assert dynamic(2.55, float("nan"))[1:] == (pytest.approx(0.01), 0)


def combined(function: QBinaryFunction, a: int, b: int, scales: tuple[float, float, float], zeros: Any) -> int:
    operands: list[Array | None] = [np.array(a, I8), np.array(b, I8)]
    for scale, zero in zip(scales, zeros, strict=True):
        operands += [np.array(scale, F32), np.array(zero, I8)]
    return int(golden(KIND.QBINARY, operands, (), I8, function=function))


def test_sums_and_products_of_quantised_elements() -> None:
    # (10−2)·0.5 + (4−1)·2 = 10; over 0.25 is 40; + 3
    assert combined(QBinaryFunction.ADD, 10, 4, (0.5, 2, 0.25), (2, 1, 3)) == 43
    # (10−2)·0.5 · (4−1)·2 = 24; over 0.5 is 48; − 5
    assert combined(QBinaryFunction.MUL, 10, 4, (0.5, 2, 0.5), (2, 1, -5)) == 43


def test_halves_of_quantised_sums_round_to_even_and_results_saturate() -> None:
    assert [combined(QBinaryFunction.ADD, a, 0, (1, 1, 2), (0, 0, 0)) for a in (1, 3, 5, -1, -3)] == [0, 2, 2, 0, -2]
    assert combined(QBinaryFunction.ADD, 127, 127, (1, 1, 1), (0, 0, 0)) == 127
    assert combined(QBinaryFunction.MUL, -128, 127, (1, 1, 1), (0, 0, 0)) == -128


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0)])
def test_quantised_sums_of_a_scalar_of_one_element_and_of_none(shape: tuple[int, ...]) -> None:
    one: list[Any] = [np.ones((), F32), np.zeros((), U8)]
    found = golden(
        KIND.QBINARY, [np.full(shape, 3, U8), np.array(4, U8), *one * 3], shape, U8, function=QBinaryFunction.ADD
    )
    assert found.shape == shape and (found == 7).all()


def test_a_table_is_read_by_the_bits_of_an_element() -> None:
    table = np.arange(256, dtype=np.int16) * 3
    assert golden(KIND.LOOKUP, [np.array([0, 1, 255], U8), table], (3,), np.int16).tolist() == [0, 3, 765]
    assert golden(KIND.LOOKUP, [np.array([1, -1, -128], I8), table], (3,), np.int16).tolist() == [3, 765, 384]
    assert golden(KIND.LOOKUP, [np.array(2, U8), table], (), np.int16) == 6


def test_packed_weights_lie_low_bits_first_with_a_scale_for_each_block() -> None:
    # one row, blocks of two: weights 8+1, 8+2 | 8+3, (8+4: beyond the depth); scales 1 and 10
    b = np.array([[[0xA9], [0xCB]]], U8)
    a, scales = np.array([[1, 1, 1]], F32), np.array([[1, 10]], F32)
    assert golden(KIND.MATMUL_NBITS, [a, b, scales], (1, 1), F32, bits=4, block=2) == 1 + 2 + 30
    zeros = np.array([[0x98]], U8)
    assert golden(KIND.MATMUL_NBITS, [a, b, scales, zeros], (1, 1), F32, bits=4, block=2) == 1 + 2 + 20
    floats = np.array([[8.5, 8]], F32)
    bias = np.array([100], F32)
    operands: list[Array | None] = [a, b, scales, floats, bias]
    assert golden(KIND.MATMUL_NBITS, operands, (1, 1), F32, bits=4, block=2) == 0.5 + 1.5 + 30 + 100


def test_packed_weights_of_8_bits_have_their_middle_at_128() -> None:
    b, a, scales = np.array([[[130], [120]]], U8), np.array([1, 2], F32), np.array([[1, 0.5]], F32)
    assert golden(KIND.MATMUL_NBITS, [a, b, scales], (1,), F32, bits=8, block=1) == 2 + 2 * -4


def infer(kind: CommandKind, *inputs: tuple[WireType, tuple[int, ...]], **attributes: Any) -> None:
    OPERATORS[kind].infer(make_attributes(kind, **attributes), [TensorType(*given) for given in inputs])


BYTE, REAL, WIDE = WireType.UINT8, WireType.FLOAT32, WireType.INT32


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "reason"),
    [
        (KIND.MATMUL_INTEGER, [(REAL, (1, 1)), (BYTE, (1, 1))], {}, "must be int8 or uint8"),
        (KIND.MATMUL_INTEGER, [(BYTE, (2, 1)), (BYTE, (1, 1)), (BYTE, (2,))], {}, r"a column \[2, 1\]"),
        (KIND.MATMUL_INTEGER, [(BYTE, (2, 1)), (BYTE, (1, 3)), (BYTE, ()), (BYTE, (2,))], {}, "one or 3"),
        (KIND.DYNAMIC_QUANTIZE, [(WireType.FLOAT16, (2,))], {}, "only float32"),
        (KIND.LOOKUP, [(WIDE, (2,)), (BYTE, (256,))], {}, "must be int8 or uint8"),
        (KIND.LOOKUP, [(BYTE, (2,)), (BYTE, (255,))], {}, "must have 256 elements"),
        (KIND.MATMUL_NBITS, [(REAL, (1, 4)), (BYTE, (2, 1, 2)), (REAL, (2, 1))], {"bits": 3, "block": 8}, "3 bits"),
        (KIND.MATMUL_NBITS, [(REAL, (1, 4)), (BYTE, (2, 1, 2)), (REAL, (2, 1))], {"bits": 4, "block": 3}, "no bytes"),
        (KIND.MATMUL_NBITS, [(REAL, (1, 9)), (BYTE, (2, 1, 2)), (REAL, (2, 1))], {"bits": 4, "block": 4}, "9 inputs"),
        (KIND.QUANTIZE, [(REAL, (2, 4)), (REAL, (2, 3)), (BYTE, (2, 3))], {"axis": 1, "block": 2}, r"\[2, 2\]"),
        (KIND.QUANTIZE, [(REAL, (2, 4)), (REAL, (2, 1)), (BYTE, (2, 1))], {"axis": 1, "block": 9}, "an axis of 4"),
        (KIND.QUANTIZE, [(REAL, ()), (REAL, ()), (BYTE, ())], {"block": 1}, "no axis"),
        (KIND.QUANTIZE, [(REAL, (2,)), (WireType.FLOAT16, ()), (BYTE, ())], {}, "with scales of float16"),
    ],
)
def test_operands_that_do_not_go_together(
    kind: CommandKind, inputs: list[Any], attributes: dict[str, int], reason: str
) -> None:
    with pytest.raises(SemanticError, match=reason):
        infer(kind, *inputs, **attributes)


def test_quantisation_by_blocks_whose_last_is_short() -> None:
    x, scale, zero = np.array([[2, 4, 6]], F32), np.array([[1, 2]], F32), np.array([[0, 10]], U8)
    found = golden(KIND.QUANTIZE, [x, scale, zero], (1, 3), U8, axis=1, block=2)
    assert found.tolist() == [[2, 4, 13]]
    assert golden(KIND.DEQUANTIZE, [found, scale, zero], (1, 3), F32, axis=1, block=2).tolist() == [[2, 4, 6]]


def test_a_quotient_is_rounded_to_the_type_of_its_operands() -> None:
    # 3.4993 is a float32; the nearest float16 is 3.5, which rounds to 4
    x, scale = np.array([0.34993], F32), np.array(0.1, F32)
    assert golden(KIND.QUANTIZE, [x, scale, np.array(0, U8)], (1,), U8) == 3
    half: list[Any] = [x.astype(np.float16), scale.astype(np.float16), np.array(0, U8)]
    wide = float(half[0][0]) / float(half[1])
    assert wide < 3.5 and golden(KIND.QUANTIZE, half, (1,), U8) == 4


def test_16_bit_integers_saturate_at_their_own_limits() -> None:
    x, one = np.array([1e6, -1e6, 300], F32), np.array(1, F32)
    found = golden(KIND.QUANTIZE, [x, one, np.array(5, np.int16)], (3,), np.int16)
    assert found.tolist() == [32767, -32768, 305]


def test_an_average_is_rounded_with_its_zero_point() -> None:
    # ((3−1) + (6−1)) · 0.5 / 2 = 1.75, over 0.5 is 3.5; with 1 it is 4.5, which rounds to 4
    x, scale = np.array([[[3, 6]]], U8), np.array(0.5, F32)
    operands: list[Any] = [x, scale, np.array(1, U8), scale, np.array(1, U8)]
    found = golden(KIND.QPOOL, operands, (1, 1, 1), U8, kernel=[2, 1, 1], **window())
    assert found.tolist() == [[[4]]]


def test_padding_of_an_average_counts_as_real_zero_on_request() -> None:
    x, one = np.array([[[9]]], I8), np.array(1, F32)
    operands: list[Any] = [x, one, np.array(3, I8), one, np.array(0, I8)]
    fields: dict[str, Any] = {"kernel": [2, 1, 1], **window(pads_begin=[1, 0, 0])}
    assert golden(KIND.QPOOL, operands, (1, 1, 1), I8, **fields) == 6
    assert golden(KIND.QPOOL, operands, (1, 1, 1), I8, count_include_pad=1, **fields) == 3
