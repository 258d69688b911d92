"""Quantised operators against onnxruntime, the reference of their last bit, over shapes, scales and zero points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from sdk.compiler import compile_model, contrib
from tests.support.models import node
from tests.support.onnxruntime_server import Server
from tests.support.programs import run

Array = NDArray[Any]
F32, I8, U8 = np.float32, np.int8, np.uint8
KERNELS = ("golden", "numpy", "auto")
OPSET = 21
IR_VERSION = 10
BYTES = st.sampled_from([I8, U8])
SEEDS = st.integers(0, 2**32 - 1)
EXAMPLES = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as process:
        yield process


def net(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    constants: Mapping[str, Any],
    outputs: Mapping[str, Any],
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model over these very arrays, outputs by their types."""
    kinds = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        list(nodes),
        "quantised",
        [helper.make_tensor_value_info(name, kinds(array.dtype), array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info(name, kinds(np.dtype(dtype)), None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(contrib.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def agree(
    server: Server,
    model: onnx.ModelProto,
    inputs: Mapping[str, Array],
    steps: int = 0,
) -> None:
    """Every kernel gives onnxruntime's answer: integers to `steps`, floats to a relative 1e-5."""
    expected = server.run(model.SerializeToString(), inputs)
    compiled = compile_model(model)
    for kernels in KERNELS:
        found = run(compiled, inputs, kernels)
        for name, wanted in expected.items():
            assert (found[name].dtype, found[name].shape) == (wanted.dtype, wanted.shape)
            if wanted.dtype.kind == "f":
                largest = float(np.abs(wanted).max(initial=0))
                np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6 * max(1, largest), err_msg=kernels)
            else:
                difference = np.abs(found[name].astype(np.int64) - wanted.astype(np.int64))
                assert difference.max(initial=0) <= steps, kernels


class Draw:
    """Random operands of one example."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def whole(self, dtype: Any, *shape: int) -> Array:
        limits = np.iinfo(dtype)
        return self._random.integers(limits.min, limits.max, shape, dtype, endpoint=True)

    def scale(self, *shape: int, size: float = 1.0) -> Array:
        """Round numbers, of which results lie half-way between integers often, and others."""
        values = self._random.uniform(0.2, 2, shape)
        if self._random.integers(2):
            values = self._random.choice([0.25, 0.5, 0.75, 1.0, 1.5, 0.1, 0.2, 0.3], shape)
        return np.asarray(values * size, F32)

    def real(self, *shape: int) -> Array:
        return np.asarray(self._random.normal(size=shape), F32)


SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
PAIRS = st.sampled_from(
    [
        ((2, 3, 5), (2, 3, 5)),
        ((3, 7), (7,)),
        ((7,), (3, 7)),
        ((2, 1, 40), (2, 3, 1)),
        ((4, 1), (4, 33)),
        ((1,), (70,)),
        ((70,), (1,)),
        ((), ()),
        ((2, 3, 1, 1), (2, 3, 4, 9)),
        ((2, 3, 4, 9), (1, 3, 1, 1)),
    ]
)


@EXAMPLES
@given(SEEDS, PAIRS, BYTES, st.sampled_from(["QLinearAdd", "QLinearMul"]), st.booleans())
def test_sums_and_products_of_elements(
    server: Server, seed: int, shapes: tuple[Any, Any], dtype: Any, op: str, constant: bool
) -> None:
    draw = Draw(seed)
    a, b = draw.whole(dtype, *shapes[0]), draw.whole(dtype, *shapes[1])
    size = 1.0 if op == "QLinearAdd" else 60.0
    constants = {
        "as": draw.scale(),
        "az": draw.whole(dtype),
        "bs": draw.scale(),
        "bz": draw.whole(dtype),
        "ys": draw.scale(size=size),
        "yz": draw.whole(dtype),
    }
    inputs = {"a": a, "b": b}
    if constant:
        constants["b"] = inputs.pop("b")
    nodes = [node(op, ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"], domain=contrib.DOMAIN)]
    agree(server, net(nodes, inputs, constants, {"y": dtype}), inputs)


@EXAMPLES
@given(
    SEEDS, SHAPES, BYTES, st.sampled_from([("QLinearLeakyRelu", {"alpha": 0.3}), ("QLinearSigmoid", {})]), st.booleans()
)
def test_functions_of_one_operand(
    server: Server, seed: int, shape: tuple[int, ...], dtype: Any, op: tuple[str, dict[str, Any]], known: bool
) -> None:
    draw = Draw(seed)
    x = draw.whole(dtype, *shape)
    scales = {
        "xs": draw.scale(size=0.1),
        "xz": draw.whole(dtype),
        "ys": draw.scale(size=0.1 if op[1] else 1 / 256),
        "yz": draw.whole(dtype),
    }
    inputs = {"x": x} if known else {"x": x, **scales}
    nodes = [node(op[0], ["x", "xs", "xz", "ys", "yz"], ["y"], domain=contrib.DOMAIN, **op[1])]
    # onnxruntime's own sigmoid is an approximation
    agree(server, net(nodes, inputs, scales if known else {}, {"y": dtype}), inputs, steps=0 if op[1] else 1)


@EXAMPLES
@given(SEEDS, BYTES, st.sampled_from([(2, 3, 7, 7), (1, 5, 1, 1), (1, 8, 3, 20), (2, 4, 9)]))
def test_global_average_pool(server: Server, seed: int, dtype: Any, shape: tuple[int, ...]) -> None:
    draw = Draw(seed)
    x = draw.whole(dtype, *shape)
    scales = {"xs": draw.scale(), "xz": draw.whole(dtype), "ys": draw.scale(), "yz": draw.whole(dtype)}
    nodes = [node("QLinearGlobalAveragePool", ["x", "xs", "xz", "ys", "yz"], ["y"], domain=contrib.DOMAIN)]
    agree(server, net(nodes, {"x": x}, scales, {"y": dtype}), {"x": x})


@EXAMPLES
@given(SEEDS, BYTES, st.sampled_from([0, 1]))
def test_average_pool(server: Server, seed: int, dtype: Any, counted: int) -> None:
    draw = Draw(seed)
    x = draw.whole(dtype, 2, 3, 9, 8)
    scales = {"xs": draw.scale(), "xz": draw.whole(dtype), "ys": draw.scale(), "yz": draw.whole(dtype)}
    window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "count_include_pad": counted}
    nodes = [node("QLinearAveragePool", ["x", "xs", "xz", "ys", "yz"], ["y"], domain=contrib.DOMAIN, **window)]
    model = net(nodes, {"x": x}, scales, {"y": dtype})
    agree(server, model, {"x": x})


@EXAMPLES
@given(SEEDS, BYTES, st.booleans())
def test_concat_of_operands_with_scales_of_their_own(server: Server, seed: int, dtype: Any, same: bool) -> None:
    draw = Draw(seed)
    inputs = {"a": draw.whole(dtype, 2, 3, 4), "b": draw.whole(dtype, 2, 5, 4)}
    scales = {"as": draw.scale(), "az": draw.whole(dtype), "ys": draw.scale(), "yz": draw.whole(dtype)}
    if same:
        scales["as"], scales["az"] = scales["ys"], scales["yz"]
    names = ["ys", "yz", "a", "as", "az", "b", "ys", "yz"]
    nodes = [node("QLinearConcat", names, ["y"], domain=contrib.DOMAIN, axis=1)]
    agree(server, net(nodes, inputs, scales, {"y": dtype}), inputs)


@EXAMPLES
@given(SEEDS, BYTES, st.sampled_from([(13, -1), (11, 1)]))
def test_softmax_is_within_a_step(server: Server, seed: int, dtype: Any, form: tuple[int, int]) -> None:
    draw = Draw(seed)
    x = draw.whole(dtype, 3, 4, 5)
    zero = np.array(np.iinfo(dtype).min, dtype)
    scales = {"xs": draw.scale(size=0.05), "xz": draw.whole(dtype), "ys": np.array(1 / 256, F32), "yz": zero}
    nodes = [
        node("QLinearSoftmax", ["x", "xs", "xz", "ys", "yz"], ["y"], domain=contrib.DOMAIN, opset=form[0], axis=form[1])
    ]
    agree(server, net(nodes, {"x": x}, scales, {"y": dtype}), {"x": x}, steps=1)


MATRICES = st.sampled_from(
    [
        ((3, 5), (5, 4)),
        ((1, 1), (1, 1)),
        ((2, 3, 9), (9, 2)),
        ((2, 3, 70), (2, 70, 17)),
        ((3, 9), (2, 9, 2)),
        ((2, 1, 3, 4), (5, 4, 6)),
    ]
)


@EXAMPLES
@given(SEEDS, MATRICES, st.tuples(BYTES, BYTES), st.sampled_from(["none", "one", "columns"]), st.booleans())
def test_integer_products(
    server: Server, seed: int, shapes: tuple[Any, Any], types: tuple[Any, Any], zeros: str, constant: bool
) -> None:
    draw = Draw(seed)
    a, b = draw.whole(types[0], *shapes[0]), draw.whole(types[1], *shapes[1])
    inputs, constants, names = {"a": a, "b": b}, {}, ["a", "b"]
    if zeros != "none":
        columns = zeros == "columns" and len(shapes[1]) == 2
        constants = {"az": draw.whole(types[0]), "bz": draw.whole(types[1], *([b.shape[-1]] if columns else []))}
        names += ["az", "bz"]
    if constant:
        constants["b"] = inputs.pop("b")
    agree(server, net([node("MatMulInteger", names, ["y"])], inputs, constants, {"y": np.int32}), inputs)


@EXAMPLES
@given(SEEDS, BYTES, st.booleans(), st.sampled_from([1, 2]), st.booleans())
def test_integer_convolutions(server: Server, seed: int, weights: Any, zeros: bool, group: int, constant: bool) -> None:
    draw = Draw(seed)
    x, w = draw.whole(U8, 2, 4, 7, 6), draw.whole(weights, 6, 4 // group, 3, 2)
    constants: dict[str, Array] = {"xz": draw.whole(U8), "wz": draw.whole(weights)} if zeros else {}
    inputs = {"x": x, "w": w}
    if constant:
        constants["w"] = inputs.pop("w")
    nodes = [
        node(
            "ConvInteger",
            ["x", "w", "xz", "wz"][: 4 if zeros else 2],
            ["y"],
            group=group,
            pads=[1, 0, 2, 1],
            strides=[2, 1],
        )
    ]
    agree(server, net(nodes, inputs, constants, {"y": np.int32}), inputs)


@EXAMPLES
@given(SEEDS, SHAPES, st.sampled_from([(0.0, 1.0), (5.0, 1.0), (-5.0, 1.0), (0.0, 0.0), (0.0, 1e-30), (1.0, 1e20)]))
def test_dynamic_quantisation(server: Server, seed: int, shape: tuple[int, ...], spread: tuple[float, float]) -> None:
    x = (Draw(seed).real(*shape) * F32(spread[1]) + F32(spread[0])).astype(F32)
    outputs = {"y": U8, "scale": F32, "zero": U8}
    agree(server, net([node("DynamicQuantizeLinear", ["x"], list(outputs))], {"x": x}, {}, outputs), {"x": x})


@EXAMPLES
@given(SEEDS, BYTES, st.booleans(), st.booleans(), st.booleans())
def test_dynamically_quantised_products(
    server: Server, seed: int, weights: Any, columns: bool, zero: bool, biased: bool
) -> None:
    draw = Draw(seed)
    many = [17] if columns else []
    constants = {"b": draw.whole(weights, 33, 17), "bs": draw.scale(*many, size=0.01)}
    constants |= {"bz": draw.whole(weights, *many)} if zero else {}
    constants |= {"bias": draw.real(17)} if biased else {}
    names = ["a", "b", "bs", "bz" if zero else "", "bias" if biased else ""]
    nodes = [node("DynamicQuantizeMatMul", names, ["y"], domain=contrib.DOMAIN)]
    inputs = {"a": draw.real(2, 5, 33)}
    agree(server, net(nodes, inputs, constants, {"y": F32}), inputs)


@EXAMPLES
@given(SEEDS, st.tuples(BYTES, BYTES), st.booleans(), st.booleans())
def test_integer_products_as_floats(
    server: Server, seed: int, types: tuple[Any, Any], columns: bool, biased: bool
) -> None:
    assume(types != (I8, U8))  # onnxruntime has no such kernel
    draw = Draw(seed)
    many = [17] if columns else []
    constants = {
        "b": draw.whole(types[1], 33, 17),
        "as": draw.scale(),
        "bs": draw.scale(*many),
        "az": draw.whole(types[0]),
        "bz": draw.whole(types[1], *many),
    }
    constants |= {"bias": draw.real(17)} if biased else {}
    names = ["a", "b", "as", "bs", "az", "bz", "bias" if biased else ""]
    inputs = {"a": draw.whole(types[0], 2, 5, 33)}
    nodes = [node("MatMulIntegerToFloat", names, ["y"], domain=contrib.DOMAIN)]
    agree(server, net(nodes, inputs, constants, {"y": F32}), inputs)


@EXAMPLES
@given(SEEDS, st.tuples(BYTES, BYTES), st.booleans(), st.sampled_from(["none", "row", "all"]), st.booleans())
def test_quantised_gemm(
    server: Server, seed: int, types: tuple[Any, Any], columns: bool, bias: str, stored: bool
) -> None:
    assume(types != (I8, U8))  # onnxruntime has no such kernel
    draw = Draw(seed)
    many = [7] if columns else []
    constants = {
        "b": draw.whole(types[1], 7, 9),
        "as": draw.scale(),
        "bs": draw.scale(*many, size=0.1),
        "az": draw.whole(types[0]),
        "bz": draw.whole(types[1], *many),
    }
    if bias != "none":
        constants["c"] = draw.whole(np.int16, *((7,) if bias == "row" else (3, 7))).astype(np.int32)
    names = ["a", "as", "az", "b", "bs", "bz", "c" if bias != "none" else ""]
    if stored:
        constants |= {"ys": draw.scale(size=300), "yz": draw.whole(types[0])}
        names += ["ys", "yz"]
    inputs = {"a": draw.whole(types[0], 3, 9)}
    nodes = [node("QGemm", names, ["y"], domain=contrib.DOMAIN, transB=1, alpha=1.0)]
    agree(server, net(nodes, inputs, constants, {"y": types[0] if stored else F32}), inputs)


@EXAMPLES
@given(SEEDS, MATRICES, st.tuples(BYTES, BYTES), st.booleans(), st.booleans())
def test_quantised_products(
    server: Server, seed: int, shapes: tuple[Any, Any], types: tuple[Any, Any], columns: bool, known: bool
) -> None:
    assume(types != (I8, U8))
    draw = Draw(seed)
    columns = columns and len(shapes[1]) == 2
    many = [shapes[1][-1]] if columns else []
    scales = {
        "as": draw.scale(),
        "az": draw.whole(types[0]),
        "bs": draw.scale(*many, size=0.1),
        "bz": draw.whole(types[1], *many),
        "ys": draw.scale(size=300),
        "yz": draw.whole(types[0]),
    }
    inputs = {"a": draw.whole(types[0], *shapes[0])}
    constants = {"b": draw.whole(types[1], *shapes[1]), **scales}
    if not known:
        constants = {"b": constants["b"], "bz": scales.pop("bz")}
        inputs |= scales
    nodes = [node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])]
    agree(server, net(nodes, inputs, constants, {"y": types[0]}), inputs)


@EXAMPLES
@given(
    SEEDS,
    SHAPES,
    st.sampled_from([I8, U8, np.int16]),
    st.sampled_from([F32, np.float16]),
    st.sampled_from(["tensor", "axis", "blocks"]),
    st.sampled_from([21, 23]),
)
def test_quantisation_at_every_granularity(
    server: Server, seed: int, shape: tuple[int, ...], stored: Any, real: Any, granularity: str, opset: int
) -> None:
    draw = Draw(seed)
    attributes: dict[str, Any] = {"axis": len(shape) - 1} if granularity != "tensor" else {}
    sizes: tuple[int, ...] = ()
    if granularity == "axis":
        sizes = (shape[-1],)
    elif granularity == "blocks":
        attributes["block_size"] = 2
        sizes = (*shape[:-1], -(-shape[-1] // 2))
        assume(np.prod(sizes) > 1)  # onnxruntime takes one scale for none of blocks
    constants = {"s": draw.scale(*sizes).astype(real), "z": draw.whole(stored, *sizes)}
    inputs = {"x": (draw.real(*shape) * 100).astype(real)}
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        node("DequantizeLinear", ["q", "s", "z"], ["r"], **attributes),
    ]
    model = net(nodes, inputs, constants, {"q": stored, "r": real}, opset)
    agree(server, model, inputs)


@EXAMPLES
@given(
    SEEDS,
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 128]),
    st.sampled_from(["none", "packed", "floats"]),
    st.booleans(),
)
def test_products_of_packed_weights(server: Server, seed: int, bits: int, block: int, zeros: str, biased: bool) -> None:
    assume(not (bits == 8 and zeros == "floats"))
    draw = Draw(seed)
    depth, rows = 72, 9
    blocks = -(-depth // block)
    constants: dict[str, Array] = {
        "b": draw.whole(U8, rows, blocks, block * bits // 8),
        "s": draw.scale(rows * blocks, size=0.01),
    }
    if zeros == "packed":
        constants["z"] = draw.whole(U8, rows * -(-blocks * bits // 8))
    elif zeros == "floats":
        constants["z"] = draw.real(rows * blocks)
    if biased:
        constants["bias"] = draw.real(rows)
    names = ["a", "b", "s", "z" if zeros != "none" else "", "", "bias" if biased else ""]
    nodes = [node("MatMulNBits", names, ["y"], domain=contrib.DOMAIN, bits=bits, block_size=block, N=rows, K=depth)]
    inputs = {"a": draw.real(2, 3, depth)}
    agree(server, net(nodes, inputs, constants, {"y": F32}), inputs)


@EXAMPLES
@given(SEEDS, st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.integers(1, 3), st.booleans())
def test_rows_of_packed_weights(server: Server, seed: int, bits: int, block: int, blocks: int, zeros: bool) -> None:
    draw, rows = Draw(seed), 9
    constants: dict[str, Array] = {
        "b": draw.whole(U8, rows, blocks * block * bits // 8),
        "s": draw.scale(rows, blocks, size=0.01),
    }
    if zeros:
        constants["z"] = draw.whole(U8, rows, -(-blocks * bits // 8))
    nodes = [
        node(
            "GatherBlockQuantized",
            ["b", "i", "s", *(["z"] if zeros else [])],
            ["y"],
            domain=contrib.DOMAIN,
            bits=bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
    ]
    inputs = {"i": np.array([[0, 8, 3], [3, 3, -1]], np.int64)}
    agree(server, net(nodes, inputs, constants, {"y": F32}), inputs)


@EXAMPLES
@given(SEEDS, BYTES, st.booleans())
def test_convolutions_with_channels_last(server: Server, seed: int, dtype: Any, columns: bool) -> None:
    draw = Draw(seed)
    many = [6] if columns else []
    constants = {
        "xs": draw.scale(size=0.1),
        "xz": draw.whole(dtype),
        "w": draw.whole(I8, 6, 4, 3, 2),
        "ws": draw.scale(*many, size=0.1),
        "wz": np.zeros(many, I8),
        "ys": draw.scale(size=10),
        "yz": draw.whole(dtype),
        "b": draw.whole(np.int16, 6).astype(np.int32),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    nodes = [node("QLinearConv", names, ["y"], domain=contrib.DOMAIN, channels_last=1, pads=[1, 0, 0, 1])]
    x = draw.whole(dtype, 2, 5, 7, 4)
    agree(server, net(nodes, {"x": x}, constants, {"y": dtype}), {"x": x})


@EXAMPLES
@given(SEEDS, BYTES)
def test_pooling_with_channels_last(server: Server, seed: int, dtype: Any) -> None:
    draw = Draw(seed)
    x = draw.whole(dtype, 2, 5, 6, 3)
    scales = {"xs": draw.scale(), "xz": draw.whole(dtype), "ys": draw.scale(), "yz": draw.whole(dtype)}
    nodes = [
        node("QLinearGlobalAveragePool", ["x", *scales], ["g"], domain=contrib.DOMAIN, channels_last=1),
        node("QLinearAveragePool", ["x", *scales], ["a"], domain=contrib.DOMAIN, channels_last=1, kernel_shape=[2, 3]),
    ]
    model = net(nodes, {"x": x}, scales, {"g": dtype, "a": dtype})
    agree(server, model, {"x": x})


@EXAMPLES
@given(SEEDS, BYTES)
def test_a_choice_between_scales(server: Server, seed: int, dtype: Any) -> None:
    draw = Draw(seed)
    inputs = {"c": draw.whole(U8, 3, 4) > 127, "a": draw.whole(dtype, 3, 4), "b": draw.whole(dtype, 4)}
    scales = {
        "as": draw.scale(),
        "az": draw.whole(dtype),
        "bs": draw.scale(),
        "bz": draw.whole(dtype),
        "ys": draw.scale(),
        "yz": draw.whole(dtype),
    }
    nodes = [node("QLinearWhere", ["c", "a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"], domain=contrib.DOMAIN)]
    agree(server, net(nodes, inputs, scales, {"y": dtype}), inputs)


def test_a_scale_for_each_row_follows_the_reference() -> None:
    draw = Draw(1)
    a, b = draw.whole(U8, 3, 5), draw.whole(I8, 5, 4)
    scales = {"as": draw.scale(3), "az": draw.whole(U8, 3), "bs": draw.scale(4, size=0.1), "bz": draw.whole(I8, 4)}
    ends = {"ys": np.array(300, F32), "yz": np.array(7, U8)}
    nodes = [node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])]
    model = net(nodes, {"a": a}, {"b": b, **scales, **ends}, {"y": U8})
    left = (a.astype(np.float64) - scales["az"][:, None]) * scales["as"][:, None]
    right = (b.astype(np.float64) - scales["bz"]) * scales["bs"]
    expected = np.clip(np.rint(left @ right / 300) + 7, 0, 255)
    for kernels in KERNELS:
        np.testing.assert_array_equal(run(compile_model(model), {"a": a}, kernels)["y"], expected)


def between(
    draw: Draw, op: str, shapes: Sequence[tuple[int, ...]], dtype: Any, size: float, **attributes: Any
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A float operator between dequantised operands and a quantisation, all of scales of their own."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    inputs: dict[str, Array] = {}
    for index, shape in enumerate(shapes):
        name = f"x{index}"
        inputs[name] = draw.whole(dtype, *shape)
        constants |= {f"{name}s": draw.scale(), f"{name}z": draw.whole(dtype)}
        nodes.append(node("DequantizeLinear", [name, f"{name}s", f"{name}z"], [f"{name}r"]))
    constants |= {"ys": draw.scale(size=size), "yz": draw.whole(dtype)}
    nodes.append(node(op, [f"x{index}r" for index in range(len(shapes))], ["r"], **attributes))
    nodes.append(node("QuantizeLinear", ["r", "ys", "yz"], ["y"]))
    return net(nodes, inputs, constants, {"y": dtype}), inputs


@EXAMPLES
@given(
    SEEDS,
    BYTES,
    st.sampled_from(
        [
            ("Add", [(3, 4), (3, 4)], {}),
            ("Add", [(3, 4), (4,)], {}),
            ("Mul", [(2, 3, 4), (3, 1)], {}),
            ("Relu", [(5, 9)], {}),
            ("LeakyRelu", [(5, 9)], {"alpha": 0.3}),
            ("MaxPool", [(1, 2, 7, 6)], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
            ("AveragePool", [(1, 2, 7, 6)], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
            ("Transpose", [(2, 3, 4)], {"perm": [2, 0, 1]}),
            ("Flatten", [(2, 3, 4)], {}),
            ("Concat", [(2, 3), (2, 5), (2, 1)], {"axis": 1}),
        ]
    ),
)
def test_operators_between_dequantised_and_quantised(
    server: Server, seed: int, dtype: Any, form: tuple[str, list[tuple[int, ...]], dict[str, Any]]
) -> None:
    op, shapes, attributes = form
    model, inputs = between(Draw(seed), op, shapes, dtype, 60.0 if op == "Mul" else 1.0, **attributes)
    agree(server, model, inputs)


@EXAMPLES
@given(SEEDS, BYTES, st.sampled_from(["Relu", "Clip"]), st.booleans())
def test_clamped_convolutions_between_dequantised_and_quantised(
    server: Server, seed: int, dtype: Any, op: str, fits: bool
) -> None:
    draw = Draw(seed)
    x, w = draw.whole(dtype, 1, 3, 6, 5), draw.whole(I8, 4, 3, 2, 2)
    zero = np.array(np.iinfo(dtype).min, dtype) if fits else draw.whole(dtype)
    constants = {
        "xs": draw.scale(size=0.02),
        "xz": draw.whole(dtype),
        "w": w,
        "ws": draw.scale(size=0.02),
        "wz": np.zeros((), I8),
        "ys": np.array(6 / 255, F32),
        "yz": zero,
        "low": np.array(0, F32),
        "high": np.array(6, F32),
    }
    nodes = [
        node("DequantizeLinear", ["x", "xs", "xz"], ["xr"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wr"]),
        node("Conv", ["xr", "wr"], ["c"], pads=[1, 1, 0, 0]),
        node(op, ["c", "low", "high"] if op == "Clip" else ["c"], ["r"]),
        node("QuantizeLinear", ["r", "ys", "yz"], ["y"]),
    ]
    # onnxruntime computes in floats what is not left to saturation, and int8 data on x86 processors at all
    exact = dtype is U8 and (fits or op == "Relu")
    agree(server, net(nodes, {"x": x}, constants, {"y": dtype}), {"x": x}, steps=0 if exact else 1)
