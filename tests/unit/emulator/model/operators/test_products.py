"""MATMUL, CONV and POOL against values worked out by hand and against onnx's reference implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from driver_shim.protocol.program_commands import Activation, CommandKind, PoolFunction
from driver_shim.protocol.types import WireType
from emulator.model.operators.shapes import SemanticError, window_extent
from tests.support.arrays import real
from tests.support.programs import golden, window

F32 = np.float32


def reference(op: str, inputs: list[NDArray[Any]], opset: int = 21, **attributes: Any) -> NDArray[Any]:
    """One node on onnx's own reference evaluator."""
    names = [f"i{i}" for i in range(len(inputs))]
    node = onnx.helper.make_node(op, names, ["y"], **attributes)
    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, inputs, strict=True)
    ]
    graph = onnx.helper.make_graph([node], "g", infos, [onnx.helper.make_tensor_value_info("y", 1, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    result: NDArray[Any] = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))[0]
    return result


def test_matmul_by_hand() -> None:
    a, b = np.array([[1, 2], [3, 4]], F32), np.array([[5, 6], [7, 8]], F32)
    result = golden(CommandKind.MATMUL, [a, b], (2, 2), F32, alpha=1, beta=0)
    assert result.tolist() == [[19, 22], [43, 50]]


def test_matmul_with_everything_by_hand() -> None:
    a, b = np.array([[1, 2], [3, 4]], F32), np.array([[5, 6], [7, 8]], F32)
    bias = np.array([-40, 1], F32)
    fields = {"transpose_a": 1, "transpose_b": 1, "alpha": 2, "beta": 3, "activation": Activation.RELU}
    # a' b' = [[1·5+3·6, 1·7+3·8], [2·5+4·6, 2·7+4·8]] = [[23, 31], [34, 46]]; · 2 + 3 · bias, negatives to 0
    assert golden(CommandKind.MATMUL, [a, b, bias], (2, 2), F32, **fields).tolist() == [[0, 65], [0, 95]]


def test_matmul_broadcasts_leading_dimensions() -> None:
    a, b = real(3, 1, 2, 5), real(4, 5, 6, seed=1)
    result = golden(CommandKind.MATMUL, [a, b], (3, 4, 2, 6), F32, alpha=1)
    np.testing.assert_allclose(result, np.matmul(a, b), rtol=1e-6)


def test_half_precision_sums_are_rounded_once() -> None:
    # 2048 + 1 + 1 in float16 steps stays 2048; in float32 it is 2050, which float16 can hold.
    a = np.array([[2048, 1, 1]], np.float16)
    result = golden(CommandKind.MATMUL, [a, np.ones((3, 1), np.float16)], (1, 1), np.float16, alpha=1)
    assert result.tolist() == [[2050]]


def test_bfloat16_sums_are_rounded_once() -> None:
    kind = WireType.BFLOAT16.dtype
    a = np.array([[256, 1, 1]], kind)
    result = golden(CommandKind.MATMUL, [a, np.ones((3, 1), kind)], (1, 1), kind, alpha=1)
    assert float(result[0, 0]) == 258


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Activation.NONE, [-8, 0.5]),
        (Activation.RELU, [0, 0.5]),
        (Activation.CLIP, [-1, 0.25]),
        (Activation.SIGMOID, [1 / (1 + np.exp(8)), 1 / (1 + np.exp(-0.5))]),
        (Activation.TANH, [np.tanh(-8), np.tanh(0.5)]),
    ],
)
def test_activations(activation: Activation, expected: list[float]) -> None:
    fields = {"alpha": 1, "activation": activation, "low": -1, "high": 0.25}
    result = golden(CommandKind.MATMUL, [np.array([[-8, 0.5]], F32).T, np.ones((1, 1), F32)], (2, 1), F32, **fields)
    np.testing.assert_allclose(result[:, 0], expected, rtol=1e-6)


def test_conv_by_hand() -> None:
    x = np.arange(9, dtype=F32).reshape(1, 1, 3, 3)
    w = np.array([[[[1, 0], [0, -1]]]], F32)
    result = golden(CommandKind.CONV, [x, w, np.array([10], F32)], (1, 1, 2, 2), F32, group=1, **window())
    assert result.tolist() == [[[[6, 6], [6, 6]]]]


@pytest.mark.parametrize(
    ("x", "w", "group", "strides", "dilations", "begins", "ends"),
    [
        ((1, 1, 7), (2, 1, 3), 1, [2], [1], [1], [0]),
        ((2, 4, 8, 9), (6, 2, 3, 2), 2, [1, 2], [2, 1], [1, 0], [0, 1]),
        ((1, 6, 5, 5), (6, 1, 3, 3), 6, [1, 1], [1, 1], [1, 1], [1, 1]),
        ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), 1, [1, 2, 3], [1, 1, 2], [0, 1, 2], [1, 1, 0]),
        ((1, 3, 1, 1), (2, 3, 1, 1), 1, [1, 1], [1, 1], [0, 0], [0, 0]),
    ],
)
def test_conv_as_the_reference(
    x: tuple[int, ...],
    w: tuple[int, ...],
    group: int,
    strides: list[int],
    dilations: list[int],
    begins: list[int],
    ends: list[int],
) -> None:
    data, weights, bias = real(*x), real(*w, seed=1), real(w[0], seed=2)
    moves: dict[str, Any] = {"strides": strides, "dilations": dilations}
    expected = reference("Conv", [data, weights, bias], group=group, pads=[*begins, *ends], **moves)
    result = golden(
        CommandKind.CONV,
        [data, weights, bias],
        expected.shape,
        F32,
        group=group,
        **window(**moves, pads_begin=begins, pads_end=ends),
    )
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_conv_transpose_by_hand() -> None:
    x, w = np.array([[[[1, 2]]]], F32), np.array([[[[1, 10], [100, 1000]]]], F32)
    fields = {"group": 1, "output_padding": [0, 0, 0], **window(strides=[1, 1])}
    result = golden(CommandKind.CONV_TRANSPOSE, [x, w, np.array([0.5], F32)], (1, 1, 2, 3), F32, **fields)
    assert result.tolist() == [[[[1.5, 12.5, 20.5], [100.5, 1200.5, 2000.5]]]]


def test_conv_transpose_cuts_its_padding_and_adds_to_its_end() -> None:
    x, w = np.array([[[1, 2]]], F32), np.array([[[1, 1]]], F32)
    fields = {"group": 1, "output_padding": [2, 0, 0], **window(strides=[3], dilations=[2], pads_begin=[1])}
    # The canvas is 1 0 1 2 0 2 and two more; the first is cut away.
    assert golden(CommandKind.CONV_TRANSPOSE, [x, w], (1, 1, 7), F32, **fields).tolist() == [[[0, 1, 2, 0, 2, 0, 0]]]


def test_conv_transpose_of_groups_and_its_activation_by_hand() -> None:
    x, w = np.array([[[1], [2], [-3], [4]]], F32), np.array([[[1], [2]], [[3], [4]], [[5], [6]], [[7], [8]]], F32)
    fields = {"group": 2, "output_padding": [0, 0, 0], "activation": Activation.CLIP, "low": 9, "high": 12, **window()}
    # (1·1 + 2·3, 1·2 + 2·4), (-3·5 + 4·7, -3·6 + 4·8), clipped
    result = golden(CommandKind.CONV_TRANSPOSE, [x, w], (1, 4, 1), F32, **fields)
    assert result.ravel().tolist() == [9, 10, 12, 12]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pads_begin": [2, 0, 0], "pads_end": [2, 0, 0]}, r"padding leaves an output of \[0\]"),
        ({"strides": [0, 1, 1]}, "strides and dilations are at least 1"),
        ({"group": 2}, "in 2 groups"),
        ({"output_padding": [0, 1, 0]}, "must have output padding 0"),
        ({"output_padding": [1 << 31, 0, 0]}, "2147483652 elements with padding"),
    ],
)
def test_a_transposed_convolution_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    fields = {"group": 1, "output_padding": [0, 0, 0], **window(), **changes}
    with pytest.raises(SemanticError, match=message):
        golden(CommandKind.CONV_TRANSPOSE, [real(1, 1, 3), real(1, 1, 2)], (1, 1, 4), F32, **fields)


def test_max_pool_by_hand_ignores_padding() -> None:
    x = np.array([[[-3, -1, -2]]], F32)
    result = golden(
        CommandKind.POOL,
        [x],
        (1, 1, 3),
        F32,
        function=PoolFunction.MAX,
        kernel=[3, 1, 1],
        **window(pads_begin=[1], pads_end=[1]),
    )
    assert result.tolist() == [[[-1, -1, -1]]]


@pytest.mark.parametrize("include", [0, 1])
def test_average_pool_counts_padding_as_told(include: int) -> None:
    x = np.array([[[6, 3, 9]]], F32)
    result = golden(
        CommandKind.POOL,
        [x],
        (1, 1, 3),
        F32,
        function=PoolFunction.AVERAGE,
        count_include_pad=include,
        kernel=[3, 1, 1],
        **window(pads_begin=[1], pads_end=[1]),
    )
    assert result.tolist() == [[[3, 6, 4]]] if include else [[[4.5, 6, 6]]]


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ceil", [0, 1])
def test_pool_as_the_reference(op: str, ceil: int) -> None:
    x = real(2, 3, 8, 7)
    expected = reference(op, [x], kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=ceil)
    result = golden(
        CommandKind.POOL,
        [x],
        expected.shape,
        F32,
        function=PoolFunction.MAX if op == "MaxPool" else PoolFunction.AVERAGE,
        ceil_mode=ceil,
        kernel=[3, 2, 1],
        **window(strides=[2, 2], pads_begin=[1, 0], pads_end=[1, 1]),
    )
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "pads", "ceil", "expected"),
    [
        (7, 3, 2, 1, (0, 0), False, 3),
        (8, 3, 2, 1, (0, 0), False, 3),
        (8, 3, 2, 1, (0, 0), True, 4),
        (5, 3, 1, 2, (0, 0), False, 1),
        (4, 1, 3, 1, (0, 0), True, 2),
        # The last window would begin in the end padding: it does not exist.
        (2, 1, 2, 1, (0, 1), True, 1),
    ],
)
def test_positions_of_a_window(
    size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], ceil: bool, expected: int
) -> None:
    assert window_extent(size, kernel, stride, dilation, pads, ceil=ceil) == expected


@pytest.mark.parametrize(
    ("kind", "shapes", "output", "fields"),
    [
        (CommandKind.MATMUL, [(2, 3), (4, 5)], (2, 5), {}),
        (CommandKind.MATMUL, [(3,), (3, 5)], (5,), {}),
        (CommandKind.MATMUL, [(2, 3), (3, 5)], (2, 4), {}),
        (CommandKind.MATMUL, [(2, 3), (3, 5), (3,)], (2, 5), {}),
        (CommandKind.MATMUL, [(2, 3), (3, 5)], (2, 5), {"activation": 77}),
        (CommandKind.MATMUL, [(2, 3), (3, 5)], (2, 5), {"transpose_a": 2}),
        (CommandKind.CONV, [(1, 3, 5), (2, 2, 3)], (1, 2, 3), {"group": 1, **window()}),
        (CommandKind.CONV, [(1, 3, 5), (2, 3, 3)], (1, 2, 3), {"group": 0, **window()}),
        (CommandKind.CONV, [(1, 3, 5), (2, 3, 3)], (1, 2, 3), {"group": 1, **window(strides=[0])}),
        (CommandKind.CONV, [(1, 3, 5), (2, 3, 7)], (1, 2, 3), {"group": 1, **window()}),
        (CommandKind.CONV, [(1, 3, 5), (2, 3, 3)], (1, 2, 3), {"group": 1, **window(strides=[1, 2])}),
        (CommandKind.CONV, [(1, 3, 5), (2, 3, 3), (3,)], (1, 2, 3), {"group": 1, **window()}),
    ],
)
def test_operands_that_do_not_go_together_are_refused(
    kind: CommandKind, shapes: list[tuple[int, ...]], output: tuple[int, ...], fields: dict[str, Any]
) -> None:
    with pytest.raises(SemanticError):
        golden(kind, [real(*shape) for shape in shapes], output, F32, **fields)
