"""Every fast kernel equals golden: integers to the bit, floats within max|err| <= bound * max|reference|.

The bound is 1e-5 * sqrt(K) for float32 sums of K products (K = 1 for element-wise commands), 2**-9 for float16 and
2**-6 for bfloat16. A kernel with one weight bit flipped must not pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import (
    ATTRIBUTES,
    Activation,
    BinaryFunction,
    Cell,
    CellActivation,
    CellDirection,
    CommandKind,
    Coordinates,
    GridPadding,
    Interpolation,
    NearestMode,
    PoolFunction,
    QBinaryFunction,
    ReduceFunction,
    Scores,
    UnaryFunction,
)
from driver_shim.protocol.types import wire_type_of
from emulator.engines.kernels import numpy as numpy_kernels
from emulator.engines.kernels import onnxruntime
from emulator.engines.kernels.choice import prepare
from emulator.engines.kernels.numpy import columns, quantised, regions, resizing
from emulator.engines.kernels.provider import KernelRequest
from emulator.model.operators import OPERATORS, KernelFault, SemanticError
from emulator.model.operators.shapes import reduced_shape, window_extent
from tests.support.needs import module_of_extra
from tests.support.programs import window

Array = NDArray[Any]
FLOATS = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
NARROW_BOUNDS = {"float16": 2**-9, "bfloat16": 2**-6}
OF_FLOATS = [function for function in UnaryFunction if function not in (UnaryFunction.NOT, UnaryFunction.BITWISE_NOT)]
TESTS = (UnaryFunction.IS_NAN, UnaryFunction.IS_INF)
"""Of floats, but they give bool."""
seeds = st.integers(0, 2**32 - 1)
float_names = st.sampled_from(sorted(FLOATS))


_FAST: list[str] = []
"""The choice of kernels that is compared with golden."""


@pytest.fixture(scope="module", autouse=True, params=["numpy", "auto"])
def fast_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test here runs with numpy's kernels, and with onnxruntime's where that is installed."""
    if request.param == "auto":
        module_of_extra("onnxruntime", "models")
    _FAST.append(request.param)
    yield
    _FAST.clear()


def attributes(kind: CommandKind, **values: Any) -> Any:
    layout = ATTRIBUTES[kind]
    return layout.parse(layout.build(**values))


def both(
    kind: CommandKind, given_: Any, inputs: list[Array | None], shape: tuple[int, ...], dtype: Any
) -> tuple[Array, Array]:
    """(fast, golden) outputs of one command, on read-only operands as engines hand them out."""
    results = []
    for kernels in (_FAST[0], "golden"):
        for array in inputs:
            if array is not None:
                array.flags.writeable = False
        output = np.full(shape, 77, dtype)
        with np.errstate(all="ignore"):
            prepare(kernels, request(kind, given_, inputs, output)).run(inputs, [output])
        results.append(output)
    return results[0], results[1]


def both_of_all(kind: CommandKind, given_: Any, inputs: list[Array | None], count: int) -> list[tuple[Array, Array]]:
    """(fast, golden) for each of the first `count` outputs of one command."""
    types = [None if a is None else TensorType(wire_type_of(a.dtype), a.shape) for a in inputs]
    outputs = tuple(OPERATORS[kind].infer(given_, types)[:count])
    results = []
    for kernels in (_FAST[0], "golden"):
        arrays = [np.full(tensor.shape, 77, tensor.dtype.dtype) for tensor in outputs]
        asked = KernelRequest(kind, given_, tuple(types), outputs, (None, *inputs[1:]))
        with np.errstate(all="ignore"):
            prepare(kernels, asked).run(inputs, arrays)
        results.append(arrays)
    return list(zip(*results, strict=True))


def request(kind: CommandKind, given_: Any, inputs: list[Array | None], output: Array) -> KernelRequest:
    """The preparation of a kernel for these very operands, weights and scales being constants."""
    types = tuple(None if a is None else TensorType(wire_type_of(a.dtype), a.shape) for a in inputs)
    outputs = (TensorType(wire_type_of(output.dtype), output.shape),)
    return KernelRequest(kind, given_, types, outputs, _constants(kind, inputs))


def _constants(kind: CommandKind, inputs: list[Array | None]) -> tuple[Array | None, ...]:
    """All but the data, of which there are two operands where elements are combined."""
    return (None, None, *inputs[2:]) if kind is CommandKind.QBINARY else (None, *inputs[1:])


def close(fast: Array, golden: Array, depth: int = 1) -> bool:
    """Whether a float result is within the tolerance; NaN and infinities must match exactly."""
    if fast.dtype.kind in "iub":
        return bool(np.array_equal(fast, golden))
    wide, reference = fast.astype(np.float64), golden.astype(np.float64)
    finite = np.isfinite(reference)
    if not np.array_equal(wide[~finite], reference[~finite], equal_nan=True):
        return False
    if not finite.any():
        return True
    bound = NARROW_BOUNDS.get(fast.dtype.name, 1e-5 * math.sqrt(max(depth, 1)))
    near, wanted = wide[finite], reference[finite]
    return bool(np.max(np.abs(near - wanted)) <= bound * np.max(np.abs(wanted)))


def numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Normally distributed floats, or integers over the whole range."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    return random.standard_normal(shape).astype(np.float32).astype(dtype)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and window of a convolution that the device accepts."""
    rank = draw(st.integers(1, 3))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    depthwise = draw(st.booleans())
    per_group = 1 if depthwise else draw(st.integers(0, 5))
    outputs = group * draw(st.integers(1, 4))
    window = [
        (
            draw(st.integers(1, 9)),  # extent
            draw(st.integers(1, 4)),  # kernel
            draw(st.integers(1, 3)),  # stride
            draw(st.integers(1, 2)),  # dilation
            draw(st.integers(0, 3)),  # pads
            draw(st.integers(0, 3)),
        )
        for _ in range(rank)
    ]
    assume(all(e + b + a >= (k - 1) * d + 1 for e, k, _, d, b, a in window))
    fill = 3 - rank
    return {
        "x": (draw(st.integers(0, 3)), group * per_group, *(w[0] for w in window)),
        "w": (outputs, per_group, *(w[1] for w in window)),
        "y": tuple(window_extent(e, k, s, d, (b, a), ceil=False) for e, k, s, d, b, a in window),
        "attributes": {
            "group": group,
            "strides": [w[2] for w in window] + [1] * fill,
            "dilations": [w[3] for w in window] + [1] * fill,
            "pads_begin": [w[4] for w in window] + [0] * fill,
            "pads_end": [w[5] for w in window] + [0] * fill,
        },
    }


@settings(deadline=None)
@given(
    convolutions(),
    seeds,
    float_names,
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from(Activation),
    st.sampled_from([1, 100, 1 << 20]),
)
def test_conv(
    shape: dict[str, Any],
    seed: int,
    type_name: str,
    added: tuple[bool, bool],
    activation: Activation,
    block: int,
) -> None:
    random = np.random.default_rng(seed)
    dtype = FLOATS[type_name]
    x, w = numbers(random, shape["x"], dtype), numbers(random, shape["w"], dtype)
    size = (shape["x"][0], shape["w"][0], *shape["y"])
    inputs = [x, w, numbers(random, shape["w"][:1], dtype) if added[0] else None]
    inputs += [numbers(random, size, dtype)] if added[1] else []
    given_ = attributes(CommandKind.CONV, **shape["attributes"], activation=activation, low=-0.5, high=0.75)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "COLUMN_BYTES", block)
        patch.setattr(columns, "DEPTHWISE_BYTES", block)
        fast, golden = both(CommandKind.CONV, given_, inputs, size, dtype)
    assert close(fast, golden, math.prod(shape["w"][1:]))


@settings(deadline=None)
@given(convolutions(), seeds, float_names, st.booleans(), st.sampled_from(Activation), st.booleans())
def test_conv_transpose(
    shape: dict[str, Any], seed: int, type_name: str, biased: bool, activation: Activation, apart: bool
) -> None:
    random = np.random.default_rng(seed)
    dtype, fields = FLOATS[type_name], dict(shape["attributes"])
    group, kernel = fields["group"], shape["w"][2:]
    if apart:  # as in networks that upsample: windows that lie beside one another
        fields |= {"strides": [*kernel, 1, 1][:3], "dilations": [1] * 3, "pads_begin": [0] * 3, "pads_end": [0] * 3}
    assume(shape["x"][1] > 0)
    x = numbers(random, shape["x"], dtype)
    w = numbers(random, (shape["x"][1], shape["w"][0] // group, *kernel), dtype)
    bias = numbers(random, shape["w"][:1], dtype) if biased else None
    padding = [0 if apart else int(stride > 1) for stride in fields["strides"]]
    given_ = attributes(
        CommandKind.CONV_TRANSPOSE, **fields, activation=activation, low=-0.5, high=0.75, output_padding=padding
    )
    types = [TensorType(wire_type_of(dtype), operand.shape) for operand in (x, w)]
    try:
        (y,) = OPERATORS[CommandKind.CONV_TRANSPOSE].infer(given_, types)
    except SemanticError:
        assume(False)
    fast, golden = both(CommandKind.CONV_TRANSPOSE, given_, [x, w, bias], y.shape, dtype)
    assert close(fast, golden, x.shape[1] // group * math.prod(kernel))


@st.composite
def products(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of two stacks of matrices that can be multiplied."""
    m, k, n = (draw(st.integers(0, 20)) for _ in range(3))
    stacks = draw(
        st.sampled_from(
            [((), ()), ((3,), ()), ((), (3,)), ((3,), (3,)), ((2, 1), (3,)), ((1, 4), (2, 1)), ((2, 3), ())]
        )
    )
    return (*stacks[0], m, k), (*stacks[1], k, n)


@settings(deadline=None)
@given(
    products(),
    seeds,
    float_names,
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from(Activation),
    st.data(),
)
def test_matmul(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    seed: int,
    type_name: str,
    flags: tuple[bool, bool, bool],
    activation: Activation,
    data: st.DataObject,
) -> None:
    random = np.random.default_rng(seed)
    dtype = FLOATS[type_name]
    a, b = (numbers(random, shape, dtype) for shape in shapes)
    size = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    if flags[0]:
        a = np.ascontiguousarray(a.swapaxes(-1, -2))
    if flags[1]:
        b = np.ascontiguousarray(b.swapaxes(-1, -2))
    bias_shape = data.draw(st.sampled_from([(), size[-1:], size, (size[-2], 1)]))
    bias = numbers(random, bias_shape, dtype) if flags[2] else None
    scale = data.draw(st.sampled_from([1.0, 0.5, -2.0]))
    given_ = attributes(
        CommandKind.MATMUL,
        transpose_a=int(flags[0]),
        transpose_b=int(flags[1]),
        activation=activation,
        alpha=scale,
        beta=data.draw(st.sampled_from([1.0, 0.25])),
        low=-1.0,
        high=1.0,
    )
    fast, golden = both(CommandKind.MATMUL, given_, [a, b, bias], size, dtype)
    assert close(fast, golden, shapes[0][-1])


def quantised_operands(
    random: np.random.Generator, x: Array, w: Array, channels: int, y_type: np.dtype[Any], options: dict[str, Any]
) -> list[Array | None]:
    """All operands of a quantised command; scales such that results spread over the output's range."""
    count = channels if options["per_channel"] else 1
    shape = (count,) if options["per_channel"] else ()
    x_zero, y_zero = numbers(random, (), x.dtype), numbers(random, (), y_type)
    w_zero = numbers(random, shape, w.dtype) if options["w_zero"] else np.zeros(shape, w.dtype)
    special = options["scale"]
    w_scale = np.full(shape, special, np.float32) if special is not None else random.uniform(1e-4, 2e-2, shape)
    bias = random.integers(-(2**31), 2**31, channels).astype(np.int32) if options["bias"] else None
    return [
        x,
        w,
        np.array(0.02, np.float32),
        np.asarray(x_zero),
        np.asarray(w_scale).astype(np.float32),
        np.asarray(w_zero),
        np.array(random.uniform(0.01, 1), np.float32),
        np.asarray(y_zero),
        bias,
    ]


bytes_types = st.sampled_from([np.dtype(np.int8), np.dtype(np.uint8)])
quantised_options = st.fixed_dictionaries(
    {
        "per_channel": st.booleans(),
        "w_zero": st.booleans(),
        "bias": st.booleans(),
        "scale": st.sampled_from([None, None, None, math.nan, math.inf, 0.0, 3e38]),
    }
)


@settings(deadline=None)
@given(convolutions(), seeds, st.tuples(bytes_types, bytes_types, bytes_types), quantised_options, st.booleans())
def test_qconv_to_the_bit(
    shape: dict[str, Any], seed: int, types: tuple[Any, Any, Any], options: dict[str, Any], relu: bool
) -> None:
    random = np.random.default_rng(seed)
    x, w = numbers(random, shape["x"], types[0]), numbers(random, shape["w"], types[1])
    inputs = quantised_operands(random, x, w, w.shape[0], types[2], options)
    given_ = attributes(CommandKind.QCONV, **shape["attributes"], relu=int(relu))
    fast, golden = both(CommandKind.QCONV, given_, inputs, (x.shape[0], w.shape[0], *shape["y"]), types[2])
    assert np.array_equal(fast, golden)


@settings(deadline=None)
@given(products(), seeds, st.tuples(bytes_types, bytes_types, bytes_types), quantised_options, st.booleans())
def test_qmatmul_to_the_bit(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    seed: int,
    types: tuple[Any, Any, Any],
    options: dict[str, Any],
    relu: bool,
) -> None:
    random = np.random.default_rng(seed)
    x, w = numbers(random, shapes[0], types[0]), numbers(random, shapes[1], types[1])
    inputs = quantised_operands(random, x, w, w.shape[-1], types[2], options)
    size = (*np.broadcast_shapes(x.shape[:-2], w.shape[:-2]), x.shape[-2], w.shape[-1])
    fast, golden = both(CommandKind.QMATMUL, attributes(CommandKind.QMATMUL, relu=int(relu)), inputs, size, types[2])
    assert np.array_equal(fast, golden)


def some_zero_points(random: np.random.Generator, kind: str, x: Array, w: Array, channels: int) -> list[Array | None]:
    """Zero points of the data and of the weights: none, one each, or one for each channel of the weights."""
    if kind == "none":
        return []
    return [
        np.asarray(numbers(random, (), x.dtype)),
        np.asarray(numbers(random, (channels,) if kind == "each" else (), w.dtype)),
    ]


zero_points = st.sampled_from(["none", "one", "each"])
EVERY_SIZE = [0.0, -0.0, math.inf, -math.inf, math.nan, 3e38, 1e-40]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("by_axis", [False, True])
@pytest.mark.parametrize("stored", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 3), (200, 3, 70)])
def test_quantize_and_dequantize_to_the_bit(shape: tuple[int, ...], stored: str, by_axis: bool, special: bool) -> None:
    random = np.random.default_rng(3)
    sizes = (3,) if by_axis and shape else ()
    x = np.asarray(random.standard_normal(shape) * 100, np.float32)
    if special and x.size >= len(EVERY_SIZE):
        x.reshape(-1)[: len(EVERY_SIZE)] = EVERY_SIZE
    scale = np.asarray(random.choice([0.5, 0.25, 1.0, 0.1], sizes), np.float32)
    zero = np.asarray(numbers(random, sizes, np.dtype(stored)))
    axis = 1 if sizes else 0
    kind = CommandKind.QUANTIZE
    fast, golden = both(kind, attributes(kind, axis=axis), [x, scale, zero], shape, np.dtype(stored))
    assert np.array_equal(fast, golden)
    kind = CommandKind.DEQUANTIZE
    forms: tuple[list[Array | None], ...] = ([golden, scale, zero], [golden, scale])
    for operands in forms:
        real, wanted = both(kind, attributes(kind, axis=axis), operands, shape, np.float32)
        assert np.array_equal(real, wanted)


@pytest.mark.parametrize("special", [None, *EVERY_SIZE])
@pytest.mark.parametrize("shape", [(3,), (1 << 15,)])
def test_dynamic_quantize_to_the_bit(shape: tuple[int, ...], special: float | None) -> None:
    x = numbers(np.random.default_rng(4), shape, np.dtype(np.float32))
    if special is not None:
        x[1] = special
    results = []
    kind = CommandKind.DYNAMIC_QUANTIZE
    types = OPERATORS[kind].infer(attributes(kind), [TensorType(wire_type_of(x.dtype), x.shape)])
    for kernels in (_FAST[0], "golden"):
        outputs = [np.empty(t.shape, t.dtype.dtype) for t in types]
        asked = KernelRequest(
            kind, attributes(kind), (TensorType(wire_type_of(x.dtype), x.shape),), tuple(types), (None,)
        )
        with np.errstate(all="ignore"):
            prepare(kernels, asked).run([x], outputs)
        results.append(outputs)
    for fast, golden in zip(*results, strict=True):
        assert np.array_equal(fast, golden)


@settings(deadline=None)
@given(products(), seeds, st.tuples(bytes_types, bytes_types), zero_points)
def test_matmul_integer_to_the_bit(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int, types: tuple[Any, Any], zeros: str
) -> None:
    random = np.random.default_rng(seed)
    x, w = numbers(random, shapes[0], types[0]), numbers(random, shapes[1], types[1])
    inputs = [x, w, *some_zero_points(random, zeros, x, w, w.shape[-1])]
    size = (*np.broadcast_shapes(x.shape[:-2], w.shape[:-2]), x.shape[-2], w.shape[-1])
    kind = CommandKind.MATMUL_INTEGER
    fast, golden = both(kind, attributes(kind), inputs, size, np.int32)
    assert np.array_equal(fast, golden)


@settings(deadline=None)
@given(convolutions(), seeds, st.tuples(bytes_types, bytes_types), zero_points)
def test_conv_integer_to_the_bit(shape: dict[str, Any], seed: int, types: tuple[Any, Any], zeros: str) -> None:
    random = np.random.default_rng(seed)
    x, w = numbers(random, shape["x"], types[0]), numbers(random, shape["w"], types[1])
    inputs = [x, w, *some_zero_points(random, zeros, x, w, w.shape[0])]
    kind = CommandKind.CONV_INTEGER
    fast, golden = both(
        kind, attributes(kind, **shape["attributes"]), inputs, (x.shape[0], w.shape[0], *shape["y"]), np.int32
    )
    assert np.array_equal(fast, golden)


@settings(deadline=None)
@given(
    seeds,
    bytes_types,
    st.sampled_from(QBinaryFunction),
    st.sampled_from([((200, 100), (200, 100)), ((150, 130), (130,)), ((1, 130), (140, 1)), ((), ()), ((0, 4), (4,))]),
    st.sampled_from([None, None, math.nan, math.inf, 0.0]),
)
def test_qbinary_to_the_bit(
    seed: int,
    dtype: np.dtype[Any],
    function: QBinaryFunction,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    special: float | None,
) -> None:
    random = np.random.default_rng(seed)
    inputs: list[Array | None] = [numbers(random, shape, dtype) for shape in shapes]
    for scale in (
        random.choice([0.1, 0.5, 0.3]),
        random.uniform(0.1, 1) if special is None else special,
        random.choice([1.0, 0.2, 20]),
    ):
        inputs += [np.array(scale, np.float32), np.asarray(numbers(random, (), dtype))]
    kind = CommandKind.QBINARY
    size = np.broadcast_shapes(*shapes)
    fast, golden = both(kind, attributes(kind, function=function), inputs, size, dtype)
    assert np.array_equal(fast, golden)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize(("kernel", "stride", "pads", "ceil"), [(3, 2, 1, 0), (2, 2, 0, 0), (3, 2, 0, 1), (3, 1, 2, 1)])
def test_qpool_to_the_bit(kernel: int, stride: int, pads: int, ceil: int, count: int, dtype: str) -> None:
    random = np.random.default_rng(1)
    x = numbers(random, (2, 3, 9, 8), np.dtype(dtype))
    x_zero, y_zero = (np.asarray(numbers(random, (), x.dtype)) for _ in range(2))
    kind = CommandKind.QPOOL
    given_ = attributes(
        kind,
        count_include_pad=count,
        ceil_mode=ceil,
        kernel=[kernel, kernel, 1],
        strides=[stride, stride, 1],
        dilations=[1] * 3,
        pads_begin=[pads, pads, 0],
        pads_end=[pads, pads, 0],
    )
    inputs: list[Array | None] = [x, np.array(0.5, np.float32), x_zero, np.array(0.25, np.float32), y_zero]
    types = [TensorType(wire_type_of(each.dtype), each.shape) for each in inputs if each is not None]
    (y,) = OPERATORS[kind].infer(given_, types)
    fast, golden = both(kind, given_, inputs, y.shape, x.dtype)
    assert np.array_equal(fast, golden)


@settings(deadline=None)
@given(
    seeds,
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32]),
    st.sampled_from(["none", "packed", "floats"]),
    st.booleans(),
    float_names,
    st.sampled_from([64, 70]),
    st.sampled_from([(2, 3), (3, 40), ()]),
)
def test_matmul_nbits(
    seed: int, bits: int, block: int, zeros: str, biased: bool, type_name: str, depth: int, leading: tuple[int, ...]
) -> None:
    random = np.random.default_rng(seed)
    dtype, rows = FLOATS[type_name], 7
    blocks = -(-depth // block)
    zero_points = {
        "none": None,
        "packed": numbers(random, (rows, -(-blocks * bits // 8)), np.dtype(np.uint8)),
        "floats": numbers(random, (rows, blocks), dtype),
    }
    inputs: list[Array | None] = [
        numbers(random, (*leading, depth), dtype),
        numbers(random, (rows, blocks, block * bits // 8), np.dtype(np.uint8)),
        numbers(random, (rows, blocks), dtype),
        zero_points[zeros],
        numbers(random, (rows,), dtype) if biased else None,
    ]
    kind = CommandKind.MATMUL_NBITS
    fast, golden = both(kind, attributes(kind, bits=bits, block=block), inputs, (*leading, rows), dtype)
    assert close(fast, golden, depth)


@pytest.mark.parametrize("depth", [257, 258, 259, 5000])
@pytest.mark.parametrize("sign", [255, 0])
def test_long_sums_of_the_largest_products_stay_exact(depth: int, sign: int) -> None:
    # (255 - 0) * (0 - 255): 258 such products reach 2**24 = 16,777,216 within one product (258 * 65025 = 16,776,450).
    x, w = np.full((3, depth), 255, np.uint8), np.full((depth, 2), sign, np.uint8)
    w[-1] ^= 1
    scale = np.array(2.0**-20, np.float32)
    inputs: list[Array | None] = [
        *(x, w, np.array(1, np.float32), np.array(0, np.uint8)),
        *(scale, np.array(255 - sign, np.uint8), np.array(1, np.float32), np.array(128, np.uint8)),
    ]
    fast, golden = both(CommandKind.QMATMUL, attributes(CommandKind.QMATMUL), inputs, (3, 2), np.uint8)
    assert np.array_equal(fast, golden)


def test_the_exact_product_is_exact_at_its_chunk_limit_and_not_beyond() -> None:
    assert quantised.EXACT_LIMIT // (255 * 255) == 258
    a, b = np.full((1, 5001), 255, np.float32), np.full((5001, 1), 255, np.float32)
    sums = np.empty((1, 1), np.int32)
    quantised._exact_product(a, b, sums, 258)
    assert sums[0, 0] == 5001 * 65025 == 325190025


def special_floats(random: np.random.Generator, dtype: np.dtype[Any]) -> Array:
    """Values of every size and sign, zeros, infinities and NaN."""
    x = np.concatenate(
        [
            random.standard_normal(200) * 10.0 ** random.integers(-6, 3, 200),
            [
                0.0,
                -0.0,
                math.inf,
                -math.inf,
                math.nan,
                1.0,
                -1.0,
                0.5,
                1.5,
                2.5,
                3.999999,
                4.0,
                -4.0,
                4.000001,
                100,
                -100,
            ],
        ]
    )
    return x.astype(np.float32).astype(dtype).reshape(4, -1)


@settings(deadline=None, max_examples=20)
@given(seeds, float_names)
@pytest.mark.parametrize("function", OF_FLOATS)
def test_unary(function: UnaryFunction, seed: int, type_name: str) -> None:
    random = np.random.default_rng(seed)
    x = special_floats(random, FLOATS[type_name])
    given_ = attributes(CommandKind.UNARY, function=function, alpha=0.25, beta=0.75)
    with np.errstate(all="ignore"):
        for start in range(x.shape[0]):  # row by row: small values are not judged by large ones
            row, result = x[start : start + 1].copy(), np.dtype(bool) if function in TESTS else x.dtype
            fast, golden = both(CommandKind.UNARY, given_, [row], row.shape, result)
            assert close(fast, golden)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("type_name", sorted(FLOATS))
@pytest.mark.parametrize("function", OF_FLOATS)
def test_unary_of_a_scalar_of_one_element_and_of_none(
    function: UnaryFunction, type_name: str, shape: tuple[int, ...]
) -> None:
    given_ = attributes(CommandKind.UNARY, function=function, alpha=0.25, beta=0.75)
    x = np.full(shape, 0.5, FLOATS[type_name])
    fast, golden = both(CommandKind.UNARY, given_, [x], shape, np.dtype(bool) if function in TESTS else x.dtype)
    assert fast.shape == shape and close(fast, golden)


def test_erf_is_accurate_near_zero_and_at_its_end() -> None:
    exponents = np.linspace(-30, 1, 4001)
    x = np.concatenate([10.0**exponents, -(10.0**exponents)]).astype(np.float32)
    output = np.empty_like(x)
    given_ = attributes(CommandKind.UNARY, function=UnaryFunction.ERF)
    prepare(_FAST[0], request(CommandKind.UNARY, given_, [x], output)).run([x], [output])
    exact = np.array([math.erf(float(value)) for value in x])
    assert np.max(np.abs(output - exact) / np.abs(exact)) < 3e-7


DIVISIONS = {BinaryFunction.DIV, BinaryFunction.MOD, BinaryFunction.FMOD, BinaryFunction.POW}
"""What some divisors or powers of integers fail."""


@pytest.mark.parametrize(
    "type_name", ["int8", "uint8", "int16", "int32", "int64", "float32", "float16", "bfloat16", "bool"]
)
@settings(deadline=None, max_examples=10)
@given(seeds, st.sampled_from([((2, 5), (2, 5)), ((2, 5), ()), ((3, 1), (1, 4)), ((4,), (3, 1, 4))]))
def test_binary(type_name: str, seed: int, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    random = np.random.default_rng(seed)
    dtype = FLOATS.get(type_name) or np.dtype(type_name)
    for function in BinaryFunction:
        a, b = numbers(random, shapes[0], dtype), numbers(random, shapes[1], dtype)
        if function in DIVISIONS and dtype.kind in "iu":
            b = np.where(b <= 0, dtype.type(3), b)
        given_ = attributes(CommandKind.BINARY, function=function)
        try:
            (y,) = OPERATORS[CommandKind.BINARY].infer(given_, [TensorType(wire_type_of(dtype), s) for s in shapes])
        except SemanticError:  # not defined for this type
            continue
        size, result = y.shape, y.dtype.dtype
        fast, golden = both(CommandKind.BINARY, given_, [a, b], size, result)
        assert close(fast, golden), function


TYPES = ["int8", "uint8", "int16", "int32", "int64", "float32", "float16", "bfloat16", "bool"]


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", TYPES)
def test_cast(source: str, target: str) -> None:
    random = np.random.default_rng(5)
    source_type, target_type = (FLOATS.get(name) or np.dtype(name) for name in (source, target))
    x = numbers(random, (3, 40), source_type)
    if source == "int64":
        x = x >> 32
    fast, golden = both(CommandKind.CAST, attributes(CommandKind.CAST), [x], x.shape, target_type)
    assert np.array_equal(fast, golden)


def flipped(array: Array, index: int, bit: int) -> Array:
    """A copy with one bit of one element turned."""
    copy = array.copy()
    flat = copy.reshape(-1).view(f"u{array.dtype.itemsize}")
    flat[index] ^= flat.dtype.type(1 << bit)
    return copy


LOWEST_EXPONENT_BIT = {"float32": 23, "float16": 10, "bfloat16": 7}


@pytest.mark.parametrize("type_name", sorted(FLOATS))
@pytest.mark.parametrize("kind", [CommandKind.MATMUL, CommandKind.CONV])
def test_one_flipped_weight_bit_is_noticed_in_floats(kind: CommandKind, type_name: str) -> None:
    random = np.random.default_rng(11)
    dtype = FLOATS[type_name]
    size: tuple[int, ...]
    if kind is CommandKind.MATMUL:
        x, w, size, depth = numbers(random, (8, 64), dtype), numbers(random, (64, 16), dtype), (8, 16), 64
        given_ = attributes(kind, alpha=1.0, beta=1.0)
    else:
        x, w, size, depth = (
            numbers(random, (1, 8, 6, 6), dtype),
            numbers(random, (16, 8, 3, 3), dtype),
            (1, 16, 4, 4),
            72,
        )
        given_ = attributes(kind, group=1, strides=[1] * 3, dilations=[1] * 3)
    golden = both(kind, given_, [x, w], size, dtype)[1]
    large = np.flatnonzero(np.abs(w.astype(np.float32)) > 1)  # halving a small one is within a narrow type's tolerance
    for index in random.choice(large, 20, replace=False):
        wrong = flipped(w, int(index), LOWEST_EXPONENT_BIT[type_name])
        assert not close(both(kind, given_, [x, wrong], size, dtype)[0], golden, depth)


@pytest.mark.parametrize("kind", [CommandKind.QMATMUL, CommandKind.QCONV])
@pytest.mark.parametrize("bit", range(8))
def test_one_flipped_weight_bit_is_noticed_in_integers(kind: CommandKind, bit: int) -> None:
    random = np.random.default_rng(12)
    x = random.integers(1, 4, (8, 16) if kind is CommandKind.QMATMUL else (1, 4, 5, 5)).astype(np.int8)
    w = random.integers(-3, 4, (16, 8) if kind is CommandKind.QMATMUL else (8, 4, 2, 2)).astype(np.int8)
    size = (8, 8) if kind is CommandKind.QMATMUL else (1, 8, 4, 4)
    one, zero = np.array(1, np.float32), np.array(0, np.int8)
    given_ = (
        attributes(kind)
        if kind is CommandKind.QMATMUL
        else attributes(kind, group=1, strides=[1] * 3, dilations=[1] * 3)
    )

    def run(weights: Array) -> tuple[Array, Array]:
        return both(kind, given_, [x, weights, one, zero, one, zero, one, zero], size, np.int8)

    fast, golden = run(w)
    assert np.array_equal(fast, golden)
    for index in random.choice(w.size, 10, replace=False):
        assert not np.array_equal(run(flipped(w, int(index), bit))[0], golden)


@pytest.mark.parametrize("type_name", ["float32", "float16"])
@pytest.mark.parametrize("logarithm", [0, 1])
@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 5), 1), ((4, 7), 1), ((3,), 0), ((0, 4), 1)])
def test_softmax(shape: tuple[int, ...], axis: int, logarithm: int, type_name: str) -> None:
    x = numbers(np.random.default_rng(1), shape, FLOATS[type_name])
    given_ = attributes(CommandKind.SOFTMAX, axis=axis, logarithm=logarithm)
    fast, golden = both(CommandKind.SOFTMAX, given_, [x], shape, x.dtype)
    assert close(fast, golden)


@pytest.mark.parametrize("permutation", [(0, 2, 3, 1), (3, 2, 1, 0), (0, 1, 2, 3), (1, 0, 2, 3)])
def test_transpose(permutation: tuple[int, ...]) -> None:
    x = numbers(np.random.default_rng(1), (4, 8, 16, 48), FLOATS["float32"])
    shape = tuple(x.shape[axis] for axis in permutation)
    given_ = attributes(CommandKind.TRANSPOSE, permutation=[*permutation, *[0] * 4])
    fast, golden = both(CommandKind.TRANSPOSE, given_, [x], shape, x.dtype)
    assert np.array_equal(fast, golden)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [0b0001, 0b0110, 0b1100, 0b1111, 0b0000])
@pytest.mark.parametrize("function", list(ReduceFunction))
def test_reduce(function: ReduceFunction, axes: int, keep: int) -> None:
    x = numbers(np.random.default_rng(1), (2, 3, 4, 5), FLOATS["float32"])
    shape = reduced_shape(x.shape, [axis for axis in range(4) if axes >> axis & 1], keep=bool(keep))
    given_ = attributes(CommandKind.REDUCE, function=function, axes=axes, keep=keep)
    fast, golden = both(CommandKind.REDUCE, given_, [x], shape, x.dtype)
    assert close(fast, golden, x.size // max(1, math.prod(shape)))


@pytest.mark.parametrize("axes", [0b01, 0b10, 0b11])
@pytest.mark.parametrize("function", list(ReduceFunction))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(1, 3), (2, 9), (33, 4)])
def test_reduce_of_special_values(shape: tuple[int, int], value: float, function: ReduceFunction, axes: int) -> None:
    x = np.ones(shape, np.float32)
    x[shape[0] // 2, 1] = value
    given_ = attributes(CommandKind.REDUCE, function=function, axes=axes)
    size = tuple(extent for axis, extent in enumerate(shape) if not axes >> axis & 1)
    fast, golden = both(CommandKind.REDUCE, given_, [x], size, x.dtype)
    assert close(fast, golden, x.size)


@pytest.mark.parametrize("type_name", ["float32", "float16", "int8"])
@pytest.mark.parametrize("function", list(PoolFunction))
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("kernel", "stride", "pads", "ceil"), [(3, 2, 1, 0), (2, 2, 0, 0), (3, 2, 0, 1), (3, 1, 2, 1)])
def test_pool(
    kernel: int, stride: int, pads: int, ceil: int, dilation: int, count: int, function: PoolFunction, type_name: str
) -> None:
    dtype = FLOATS.get(type_name, np.dtype(np.int8))
    if function is not PoolFunction.MAX:
        dtype = FLOATS.get(type_name, FLOATS["bfloat16"])
    x = numbers(np.random.default_rng(1), (2, 3, 9, 8), dtype)
    if dtype.kind == "f":
        x[0, 1, 4:6, 3] = np.nan
    given_ = attributes(
        CommandKind.POOL,
        function=function,
        count_include_pad=count,
        ceil_mode=ceil,
        p=3 if function is PoolFunction.LP else 0,
        kernel=[kernel, 2, 1],
        strides=[stride, 1, 1],
        dilations=[dilation, 1, 1],
        pads_begin=[pads, 0, 0],
        pads_end=[pads, 1, 0],
    )
    y = OPERATORS[CommandKind.POOL].infer(given_, [TensorType(wire_type_of(dtype), x.shape)])[0]
    fast, golden = both(CommandKind.POOL, given_, [x], y.shape, dtype)
    assert close(fast, golden)


@st.composite
def resizings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[float]]:
    """A shape and the scales of its dimensions."""
    rank = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(rank))
    factors = st.sampled_from([1.0, 1.0, 2.0, 3.0, 0.5, 0.3, 1.7, 1 / 3, 7 / 3])
    scales = [draw(factors) if i >= rank - 2 else 1.0 for i in range(rank)]
    assume(all(int(np.float32(extent) * np.float32(scale)) for extent, scale in zip(shape, scales, strict=True)))
    return shape, scales


@settings(deadline=None)
@given(
    resizings(),
    seeds,
    st.sampled_from(Interpolation),
    st.sampled_from(Coordinates),
    st.sampled_from(NearestMode),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from([quantised.EXACT_LIMIT, 1]),
)
def test_resize(
    changed: tuple[tuple[int, ...], list[float]],
    seed: int,
    mode: Interpolation,
    coordinates: Coordinates,
    nearest: NearestMode,
    flags: tuple[bool, bool],
    dense: int,
) -> None:
    shape, scales = changed
    rank = len(shape)
    x = numbers(np.random.default_rng(seed), shape, FLOATS["float32"])
    size = tuple(int(np.float32(extent) * np.float32(scale)) for extent, scale in zip(shape, scales, strict=True))
    given_ = attributes(
        CommandKind.RESIZE,
        mode=mode,
        coordinates=coordinates,
        nearest=nearest,
        exclude_outside=int(flags[0]),
        antialias=int(flags[1] and mode is not Interpolation.NEAREST),
        cubic=-0.5,
        extrapolation=3.0,
        extents=[*size, *[0] * (8 - rank)],
        scales=[*scales, *[0] * (8 - rank)],
        starts=[0.1, *[-0.1] * 7],
        ends=[1.1, *[0.9] * 7],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resizing, "DENSE_EXTENT", dense)
        fast, golden = both(CommandKind.RESIZE, given_, [x], size, x.dtype)
    assert close(fast, golden, 4)


@pytest.mark.parametrize("type_name", sorted(FLOATS))
@pytest.mark.parametrize("root_mean_square", [0, 1])
@pytest.mark.parametrize(
    ("axes", "scale", "bias"),
    [
        (0b100, (5,), (5,)),
        (0b100, (5,), None),
        (0b110, (3, 5), (3, 5)),
        (0b110, (3, 1), (1,)),
        (0b111, None, None),
        (0b101, (5,), None),
        (0, None, None),
    ],
)
@pytest.mark.parametrize("outputs", [1, 3])
def test_layer_norm(
    axes: int,
    scale: tuple[int, ...] | None,
    bias: tuple[int, ...] | None,
    root_mean_square: int,
    outputs: int,
    type_name: str,
) -> None:
    random, dtype = np.random.default_rng(1), FLOATS[type_name]
    vectors = [None if shape is None else numbers(random, shape, dtype) for shape in (scale, bias)]
    given_ = attributes(CommandKind.LAYER_NORM, axes=axes, epsilon=1e-5, root_mean_square=root_mean_square)
    x = numbers(random, (2, 3, 5), dtype) + dtype.type(3)
    for fast, golden in both_of_all(CommandKind.LAYER_NORM, given_, [x, *vectors], outputs):
        assert close(fast, golden, 8)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1)], ids=str)
def test_layer_norm_of_few_elements(shape: tuple[int, int]) -> None:
    given_ = attributes(CommandKind.LAYER_NORM, axes=0b10, epsilon=1e-5)
    scale = np.ones(shape[1:], np.float32)
    for fast, golden in both_of_all(CommandKind.LAYER_NORM, given_, [np.ones(shape, np.float32), scale, scale], 3):
        assert close(fast, golden)


_USUAL = {
    Cell.RNN: [CellActivation.TANH],
    Cell.GRU: [CellActivation.SIGMOID, CellActivation.TANH],
    Cell.LSTM: [CellActivation.SIGMOID, CellActivation.TANH, CellActivation.TANH],
}


@pytest.mark.parametrize("type_name", ["float32", "float16"])
@pytest.mark.parametrize("variant", ["usual", "bare", "linear", "coupled", "clipped", "peeping", "uneven", "rare"])
@pytest.mark.parametrize("direction", CellDirection)
@pytest.mark.parametrize("cell", Cell)
def test_recurrent(cell: Cell, direction: CellDirection, variant: str, type_name: str) -> None:
    random, dtype = np.random.default_rng(1), FLOATS[type_name]
    steps, batch, features, hidden = 4, 3, 5, 6
    directions, gates = (
        2 if direction is CellDirection.BIDIRECTIONAL else 1,
        {Cell.RNN: 1, Cell.GRU: 3, Cell.LSTM: 4}[cell],
    )
    if cell is not Cell.LSTM and variant in ("coupled", "peeping"):
        return
    chosen = [CellActivation.SOFTSIGN] * len(_USUAL[cell]) if variant == "rare" else _USUAL[cell]
    given_ = attributes(
        CommandKind.RECURRENT,
        cell=cell,
        direction=direction,
        activations=[*chosen * directions, *[0] * (6 - len(chosen) * directions)],
        alphas=[0.0] * 6,
        betas=[0.0] * 6,
        clip=0.5 if variant == "clipped" else 0.0,
        input_forget=int(variant == "coupled"),
        linear_before_reset=int(variant == "linear"),
    )
    state = (directions, batch, hidden)
    inputs: list[Array | None] = [
        numbers(random, shape, dtype)
        for shape in (
            (steps, batch, features),
            (directions, gates * hidden, features),
            (*state[:1], gates * hidden, hidden),
        )
    ]
    if variant != "bare":
        inputs += [numbers(random, (directions, 2 * gates * hidden), dtype), None, numbers(random, state, dtype)]
        inputs += [numbers(random, state, dtype)] if cell is Cell.LSTM else []
    if variant == "peeping":
        inputs.append(numbers(random, (directions, 3 * hidden), dtype))
    if variant == "uneven":
        inputs[4] = np.array([4, 1, 2], np.int32)
    for fast, golden in both_of_all(CommandKind.RECURRENT, given_, inputs, 3 if cell is Cell.LSTM else 2):
        assert close(fast, golden, 64)


@pytest.mark.parametrize("type_name", ["float32", "float16"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("flat", [False, True], ids=["apart", "beside"])
@pytest.mark.parametrize(
    "variant",
    ["plain", "bool", "float", "rows", "batch", "narrow", "vector", "causal", "past", "window", "cap", "valid"],
)
@pytest.mark.parametrize("outputs", [1, 3, 4])
def test_attention(variant: str, flat: bool, heads: tuple[int, int], outputs: int, type_name: str) -> None:
    random, dtype = np.random.default_rng(1), FLOATS[type_name]
    batch, queries, keys, size, value_size = 2, 5, 6, 4, 3
    shapes = [(heads[0], queries, size), (heads[1], keys, size), (heads[1], keys, value_size)]
    inputs: list[Array | None] = [numbers(random, (batch, *shape), dtype) for shape in shapes]
    if flat:
        inputs = [a.swapaxes(1, 2).reshape(batch, a.shape[2], -1).copy() for a in inputs if a is not None]
    masks: dict[str, Array] = {
        "bool": random.random((queries, keys)) > 0.5,
        "float": np.where(random.random((1, heads[0], queries, keys)) > 0.5, 0, -np.inf).astype(dtype),
        "rows": numbers(random, (queries, keys), dtype),
        "batch": numbers(random, (batch, 1, 1, keys), dtype),
        "narrow": numbers(random, (queries, keys - 2), dtype),
        "vector": numbers(random, (keys,), dtype),
    }
    if variant == "bool":
        masks["bool"][0] = False
    if variant in masks:
        inputs.append(masks[variant])
    elif variant == "past":
        inputs += [None, *(numbers(random, (batch, heads[1], 2, n), dtype) for n in (size, value_size))]
    elif variant == "valid":
        inputs += [None, None, None, np.array([3, 6])]
    given_ = attributes(
        CommandKind.ATTENTION,
        scale=0.5,
        softcap=2.0 if variant == "cap" else 0.0,
        query_heads=heads[0] if flat else 0,
        key_heads=heads[1] if flat else 0,
        left_window=2 if variant == "window" else -1,
        right_window=1 if variant == "window" else -1,
        causal=int(variant in ("causal", "past", "valid")),
        scores=Scores.PROBABILITIES,
    )
    for fast, golden in both_of_all(CommandKind.ATTENTION, given_, inputs, outputs):
        assert close(fast, golden, 16)


CACHE = (2, 48, 16, 3, 32)
"""40 of its blocks are what a table names; a block of a plane has 6 KiB in float32."""
TABLES = {
    "adjacent": np.arange(3, 43),
    "in pieces": np.concatenate([np.arange(20, 40), np.arange(10), np.arange(38, 48)]),
    "scattered": np.random.default_rng(2).permutation(48)[:40],
}


@pytest.mark.parametrize("type_name", FLOATS)
@pytest.mark.parametrize("order", TABLES)
@pytest.mark.parametrize("flat", [False, True], ids=["stacked", "flat"])
@pytest.mark.parametrize(
    ("tokens", "rows", "options"),
    [
        (1, [(0, 0, 1), (1, 300, 1), (0, 639, 1)], {"causal": 1}),
        (1, [(0, 127, 1), (1, 255, 1), (0, 130, 1)], {"causal": 1, "softcap": 2.0}),
        (1, [(0, 50, 1), (1, 600, 1), (0, 9, 0)], {"causal": 1, "left_window": 200}),
        (1, [(0, 50, 1), (1, 1000, 1), (0, 5000, 1)], {"causal": 1, "left_window": 400, "ring": 500}),
        (7, [(0, 100, 7), (1, 601, 5), (0, 0, 1)], {"causal": 1}),
        (7, [(0, 100, 7), (1, 601, 5), (0, 0, 7)], {"causal": 0, "softcap": 1.0}),
        (130, [(0, 500, 130), (1, 0, 129), (0, 17, 66)], {"causal": 1}),
        (130, [(0, 500, 130), (1, 0, 129), (0, 17, 66)], {"causal": 0}),
        (130, [(0, 510, 130), (1, 0, 130), (0, 20, 3)], {"causal": 1, "left_window": 40}),
        (130, [(0, 510, 130), (1, 900, 130), (0, 20, 3)], {"causal": 0, "left_window": 40, "ring": 200}),
    ],
)
def test_cache_attention(
    tokens: int, rows: list[tuple[int, int, int]], options: dict[str, Any], flat: bool, order: str, type_name: str
) -> None:
    random, dtype, heads = np.random.default_rng(1), FLOATS[type_name], 6
    cache = numbers(random, CACHE, dtype)
    query = numbers(random, (len(rows), tokens, heads * 32) if flat else (len(rows), heads, tokens, 32), dtype)
    tables = np.stack([TABLES[order], TABLES["adjacent"]]).astype(np.int32)
    fields = {"scale": 0.2, "left_window": -1, "value_plane": 1, "query_heads": heads if flat else 0, **options}
    given_ = attributes(CommandKind.CACHE_ATTENTION, **fields)
    operands: list[Array | None] = [query, cache, cache, tables, np.array(rows, np.int32)]
    fast, golden = both(CommandKind.CACHE_ATTENTION, given_, operands, query.shape, dtype)
    assert close(fast, golden, 640)


@pytest.mark.parametrize("type_name", FLOATS)
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turned", [8, 16], ids=["half", "whole"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 16), (2, 5, 48)], ids=["stacked", "flat"])
def test_rotary(shape: tuple[int, ...], turned: int, interleaved: int, type_name: str) -> None:
    random, dtype = np.random.default_rng(1), FLOATS[type_name]
    x = numbers(random, shape, dtype)
    x.reshape(-1)[[3, 40, 90]] = np.nan, np.inf, -np.inf
    cosines, sines = (numbers(random, (20, turned // 2), dtype) for _ in range(2))
    positions = random.integers(0, 20, (2, 5))
    given_ = attributes(CommandKind.ROTARY, heads=3 if len(shape) == 3 else 0, interleaved=interleaved)
    fast, golden = both(CommandKind.ROTARY, given_, [x, cosines, sines, positions], shape, dtype)
    assert close(fast, golden, 2)


def test_rotary_of_a_place_that_there_is_not_fails() -> None:
    x, cosines = np.ones((1, 1, 1, 4), np.float32), np.ones((3, 2), np.float32)
    operands: list[Array | None] = [x, cosines, cosines, np.array([[3]])]
    given_ = attributes(CommandKind.ROTARY, heads=0, interleaved=1)
    with pytest.raises(KernelFault, match="outside 0 to 2"):
        both(CommandKind.ROTARY, given_, operands, x.shape, x.dtype)


@pytest.mark.parametrize("type_name", FLOATS)
@pytest.mark.parametrize("order", TABLES)
@pytest.mark.parametrize("flat", [False, True], ids=["stacked", "flat"])
@pytest.mark.parametrize(("past", "ring"), [(0, 0), (90, 0), (500, 0), (70, 100), (10**6, 129)])
def test_cache_append_to_the_bit(past: int, ring: int, flat: bool, order: str, type_name: str) -> None:
    random, dtype = np.random.default_rng(1), FLOATS[type_name]
    cache = numbers(random, CACHE, dtype)
    update = numbers(random, (2, 100, 96) if flat else (2, 3, 100, 32), dtype)
    tables = np.stack([TABLES[order], TABLES["adjacent"]]).astype(np.int32)
    given_ = attributes(CommandKind.CACHE_APPEND, plane=1, heads=3 if flat else 0, ring=ring)
    operands: list[Array | None] = [cache, update, tables, np.array([(0, past, 100), (1, past, 3)], np.int32)]
    fast, golden = both(CommandKind.CACHE_APPEND, given_, operands, CACHE, dtype)
    assert np.array_equal(fast, golden)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 2), (1, 1)])
@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", list(GridPadding))
@pytest.mark.parametrize("mode", list(Interpolation))
def test_grid_sample(mode: Interpolation, padding: GridPadding, align: int, spatial: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    x = numbers(random, (2, 3, *spatial), FLOATS["float32"])
    grid = random.uniform(-1.6, 1.6, (2, *[3] * len(spatial), len(spatial))).astype(np.float32)
    given_ = attributes(CommandKind.GRID_SAMPLE, mode=mode, padding=padding, align_corners=align)
    fast, golden = both(CommandKind.GRID_SAMPLE, given_, [x, grid], (2, 3, *[3] * len(spatial)), x.dtype)
    assert close(fast, golden, 16)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", [Interpolation.LINEAR, Interpolation.CUBIC])
@pytest.mark.parametrize("size", [(7, 9), (24, 20), (5, 30)])
def test_resize_spreads_what_is_no_number_as_far_as_its_filter_reaches(
    mode: Interpolation, size: tuple[int, int], value: float
) -> None:
    x = numbers(np.random.default_rng(1), (1, 2, 12, 10), FLOATS["float32"])
    x[0, 0, 5, 4] = value
    scales = [1.0, 1.0, size[0] / 12, size[1] / 10, *[0] * 4]
    given_ = attributes(CommandKind.RESIZE, mode=mode, cubic=-0.75, extents=[1, 2, *size, *[0] * 4], scales=scales)
    fast, golden = both(CommandKind.RESIZE, given_, [x], (1, 2, *size), x.dtype)
    assert 0 < np.count_nonzero(~np.isfinite(golden)) < golden.size / 4
    assert np.array_equal(np.isfinite(fast), np.isfinite(golden))


def region_operands(count: int, type_name: str = "float32") -> list[Array]:
    """Two images of 13 by 17, regions of which some reach beyond them, and whose image each is of."""
    random = np.random.default_rng(1)
    x = numbers(random, (2, 6, 13, 17), FLOATS[type_name])
    corners = random.uniform(-20, 60, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(-5, 80, (count, 2))], 1).astype(x.dtype)
    return [x, boxes, random.integers(0, 2, count)]


@pytest.mark.parametrize("type_name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("function", [PoolFunction.AVERAGE, PoolFunction.MAX])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("half_pixel", [0, 1])
def test_roi_align(half_pixel: int, ratio: int, function: PoolFunction, type_name: str) -> None:
    size = {"output_height": 3, "output_width": 2, "spatial_scale": 0.25}
    given_ = attributes(CommandKind.ROI_ALIGN, function=function, sampling_ratio=ratio, half_pixel=half_pixel, **size)
    operands: list[Array | None] = [*region_operands(40, type_name)]
    fast, golden = both(CommandKind.ROI_ALIGN, given_, operands, (40, 6, 3, 2), FLOATS[type_name])
    assert close(fast, golden, 64)


@pytest.mark.parametrize(("operand", "value"), [(0, np.nan), (0, np.inf), (1, np.nan), (1, 1e9), (2, 2), (2, -1)])
def test_regions_that_cannot_be_are_faults_of_every_kernel_and_data_that_are_no_numbers_spread_alike(
    operand: int, value: float
) -> None:
    given_ = attributes(
        CommandKind.ROI_ALIGN, function=PoolFunction.AVERAGE, spatial_scale=0.25, output_height=2, output_width=2
    )
    operands: list[Array | None] = [*region_operands(5)]
    changed = operands[operand]
    assert changed is not None
    changed.reshape(-1)[changed.size // 2] = value
    faults = contextlib.nullcontext() if operand == 0 else pytest.raises(KernelFault)
    with faults:
        fast, golden = both(CommandKind.ROI_ALIGN, given_, operands, (5, 6, 2, 2), np.float32)
        assert np.allclose(fast, golden, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("type_name", ["float32", "float16"])
@pytest.mark.parametrize(("group", "offset_group"), [(1, 1), (2, 1), (1, 2), (2, 4)])
@pytest.mark.parametrize("extras", ["", "bias", "mask", "bias and mask"])
@pytest.mark.parametrize("tile", [regions.TILE_ELEMENTS, 20])
def test_deform_conv(
    monkeypatch: pytest.MonkeyPatch, tile: int, extras: str, group: int, offset_group: int, type_name: str
) -> None:
    monkeypatch.setattr(regions, "TILE_ELEMENTS", tile)
    given_, operands = deform_conv(group, offset_group, extras, FLOATS[type_name])
    fast, golden = both(CommandKind.DEFORM_CONV, given_, operands, (2, 6, 5, 4), FLOATS[type_name])
    assert close(fast, golden, 128)


def deform_conv(group: int, offset_group: int, extras: str, dtype: Any) -> tuple[Any, list[Array | None]]:
    random = np.random.default_rng(1)
    places = window(strides=[2, 2], dilations=[1, 2], pads_begin=[1, 2], pads_end=[1, 1])
    x, w = numbers(random, (2, 8, 9, 9), dtype), numbers(random, (6, 8 // group, 2, 3), dtype)
    offset = random.uniform(-6, 6, (2, offset_group * 12, 5, 4)).astype(dtype)
    bias = numbers(random, (6,), dtype) if "bias" in extras else None
    mask = random.uniform(0, 1, (2, offset_group * 6, 5, 4)).astype(dtype) if "mask" in extras else None
    return attributes(CommandKind.DEFORM_CONV, group=group, offset_group=offset_group, **places), [
        *(x, w, offset, bias, mask)
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("operand", [0, 2, 4])
def test_deform_conv_makes_of_special_values_what_golden_makes(operand: int, value: float) -> None:
    given_, operands = deform_conv(1, 1, "mask", FLOATS["float32"])
    changed = operands[operand]
    assert changed is not None
    changed.reshape(-1)[changed.size // 2] = value
    fast, golden = both(CommandKind.DEFORM_CONV, given_, operands, (2, 6, 5, 4), np.float32)
    assert np.allclose(fast, golden, rtol=1e-4, atol=1e-4 if value != 1e30 else 1e26, equal_nan=True)


@pytest.mark.parametrize("type_name", ["float32", "float16", "bfloat16", "int8", "int64"])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize(("shape", "axis"), [((5000,), 0), ((3, 4000), 1), ((2500, 2), 0), ((2, 30), 1)])
def test_top_k(shape: tuple[int, ...], axis: int, largest: int, type_name: str) -> None:
    dtype = FLOATS.get(type_name) or np.dtype(type_name)
    random = np.random.default_rng(1)
    x = random.integers(-100, 100, shape).astype(dtype)  # of which many are equal
    for extra in ([], [math.inf, -math.inf], [math.nan]) if dtype.kind not in "iu" else ([],):
        given_data = x.copy()
        given_data.reshape(-1)[: len(extra)] = extra
        for k in (1, 7, 30):
            given_ = attributes(CommandKind.TOP_K, axis=axis, k=k, largest=largest)
            for fast, golden in both_of_all(CommandKind.TOP_K, given_, [given_data], 2):
                assert np.array_equal(fast.astype(np.float64), golden.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize("type_name", ["float32", "float16", "bfloat16", "int8", "bool"])
@pytest.mark.parametrize(
    ("data", "wanted", "axis"),
    [((5,), (9,), 0), ((4, 5, 6), (4, 2, 6), 1), ((4, 5, 6), (3, 5, 4), 1), ((4, 5), (4, 7), 1), ((3, 0), (3, 0), 0)],
)
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_gather_elements(data: tuple[int, ...], wanted: tuple[int, ...], axis: int, type_name: str, index: Any) -> None:
    random = np.random.default_rng(1)
    x = numbers(random, data, FLOATS.get(type_name) or np.dtype(type_name))
    indices = random.integers(-data[axis], data[axis], wanted).astype(index)
    given_ = attributes(CommandKind.GATHER_ELEMENTS, axis=axis)
    fast, golden = both(CommandKind.GATHER_ELEMENTS, given_, [x, indices], wanted, x.dtype)
    assert np.array_equal(fast, golden)


def test_gather_elements_beyond_the_data_is_a_fault_of_every_kernel() -> None:
    with pytest.raises(KernelFault):
        x, indices = np.ones(3, np.float32), np.array([3])
        both(CommandKind.GATHER_ELEMENTS, attributes(CommandKind.GATHER_ELEMENTS), [x, indices], (1,), x.dtype)


def test_every_fast_kernel_has_a_comparison_here() -> None:
    compared: dict[CommandKind, Callable[..., Any]] = {
        CommandKind.MATMUL: test_matmul,
        CommandKind.CONV: test_conv,
        CommandKind.QMATMUL: test_qmatmul_to_the_bit,
        CommandKind.QCONV: test_qconv_to_the_bit,
        CommandKind.MATMUL_INTEGER: test_matmul_integer_to_the_bit,
        CommandKind.CONV_INTEGER: test_conv_integer_to_the_bit,
        CommandKind.QBINARY: test_qbinary_to_the_bit,
        CommandKind.MATMUL_NBITS: test_matmul_nbits,
        CommandKind.QPOOL: test_qpool_to_the_bit,
        CommandKind.QUANTIZE: test_quantize_and_dequantize_to_the_bit,
        CommandKind.DEQUANTIZE: test_quantize_and_dequantize_to_the_bit,
        CommandKind.DYNAMIC_QUANTIZE: test_dynamic_quantize_to_the_bit,
        CommandKind.UNARY: test_unary,
        CommandKind.BINARY: test_binary,
        CommandKind.CAST: test_cast,
        CommandKind.POOL: test_pool,
        CommandKind.SOFTMAX: test_softmax,
        CommandKind.TRANSPOSE: test_transpose,
        CommandKind.REDUCE: test_reduce,
        CommandKind.RESIZE: test_resize,
        CommandKind.CONV_TRANSPOSE: test_conv_transpose,
        CommandKind.LAYER_NORM: test_layer_norm,
        CommandKind.RECURRENT: test_recurrent,
        CommandKind.ATTENTION: test_attention,
        CommandKind.ROTARY: test_rotary,
        CommandKind.CACHE_APPEND: test_cache_append_to_the_bit,
        CommandKind.CACHE_ATTENTION: test_cache_attention,
        CommandKind.GRID_SAMPLE: test_grid_sample,
        CommandKind.TOP_K: test_top_k,
        CommandKind.GATHER_ELEMENTS: test_gather_elements,
        CommandKind.ROI_ALIGN: test_roi_align,
        CommandKind.DEFORM_CONV: test_deform_conv,
    }
    assert compared.keys() == numpy_kernels.KINDS | onnxruntime.KINDS


@pytest.mark.parametrize("scale", [-0.5, 0.0, math.nan])
def test_attention_of_any_scale(scale: float) -> None:
    random = np.random.default_rng(1)
    q, k, v = (numbers(random, (1, 2, length, size), FLOATS["float32"]) for length, size in ((5, 8), (7, 8), (7, 6)))
    given_ = attributes(CommandKind.ATTENTION, scale=scale, left_window=-1, right_window=-1)
    for fast, golden in both_of_all(CommandKind.ATTENTION, given_, [q, k, v], 1):
        assert close(fast, golden, 16)


@pytest.mark.parametrize("function", [UnaryFunction.GELU, UnaryFunction.GELU_TANH])
def test_gelu_of_the_largest_numbers(function: UnaryFunction) -> None:
    x = np.array([3e38, 2e38, -3e38], np.float32)
    fast, golden = both(CommandKind.UNARY, attributes(CommandKind.UNARY, function=function), [x], x.shape, x.dtype)
    assert np.array_equal(fast, golden, equal_nan=True)


SIZES = [1, 1 << 12]
"""How often data are repeated: faster kernels begin at some size."""


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.parametrize("stored", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("type_name", ["float32", "float16", "bfloat16"])
def test_quantize_of_what_is_no_number_is_as_documented(type_name: str, stored: str, times: int) -> None:
    limits = np.iinfo(stored)
    x = np.tile(np.array([math.nan, -math.nan, math.inf, -math.inf, 1, -0.0]).astype(FLOATS[type_name]), times)
    scale, zero = np.array(0.5, FLOATS[type_name]), np.array(3, stored)
    for found in both(CommandKind.QUANTIZE, attributes(CommandKind.QUANTIZE), [x, scale, zero], x.shape, stored):
        assert found.tolist() == [3, 3, limits.max, limits.min, 5, 3] * times


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.parametrize("type_name", ["float32", "float16", "bfloat16"])
def test_sign_of_nan_is_nan_as_documented(type_name: str, times: int) -> None:
    x = np.tile(np.array([math.nan, -math.nan, math.inf, -math.inf, -0.0, 0.5]).astype(FLOATS[type_name]), times)
    given_ = attributes(CommandKind.UNARY, function=UnaryFunction.SIGN)
    for found in both(CommandKind.UNARY, given_, [x], x.shape, x.dtype):
        assert np.array_equal(found, np.tile([math.nan, math.nan, 1, -1, 0, 1], times), equal_nan=True)


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.parametrize("type_name", ["float32", "float16", "bfloat16"])
def test_a_maximum_of_minus_infinities_is_one_and_of_nan_is_nan_as_documented(type_name: str, times: int) -> None:
    low, nan = -math.inf, math.nan
    row = np.array([low, low, low, 1, nan, low, nan, nan]).astype(FLOATS[type_name])
    x = np.tile(row, (1, times, 1))
    given_ = attributes(
        CommandKind.POOL,
        function=PoolFunction.MAX,
        kernel=[2, 1, 1],
        strides=[1, 1, 1],
        dilations=[1, 1, 1],
        pads_begin=[1, 0, 0],
        pads_end=[1, 0, 0],
    )
    values = [low, low, low, 1, nan, nan, nan, nan, nan]
    for found in both(CommandKind.POOL, given_, [x], (1, times, 9), x.dtype):
        assert np.array_equal(found, np.tile(values, (1, times, 1)), equal_nan=True)
    (largest, places) = both_of_all(CommandKind.POOL, given_, [x], 2)
    for found in largest:
        assert np.array_equal(found, np.tile(values, (1, times, 1)), equal_nan=True)
    starts = len(row) * np.arange(times)[:, np.newaxis]
    for found in places:
        assert np.array_equal(found[0], np.array([0, 0, 1, 3, 4, 4, 6, 6, 7]) + starts)
