"""Every kind of command, in every function and type it has, on scalars, on extents of one and on extents of nothing.

A row gives operands of which one dimension after another has the extent. Fast kernels must give what golden gives; a
command none of whose outputs has elements is not run, as on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import (
    MAX_RANK,
    ArgumentFunction,
    BinaryFunction,
    Cell,
    CellActivation,
    CommandKind,
    CumulateFunction,
    Interpolation,
    PadMode,
    PoolFunction,
    QBinaryFunction,
    ReduceFunction,
    ScatterMode,
    ScatterReduction,
    UnaryFunction,
)
from driver_shim.protocol.types import PACKED, WireType, wire_type_of
from emulator.engines.kernels.choice import prepare
from emulator.engines.kernels.provider import KernelRequest
from emulator.model.operators import OPERATORS, KernelFault, SemanticError
from tests.support.needs import module_of_extra
from tests.support.programs import window

Array = NDArray[Any]
Fields = dict[str, Any]
Row = tuple[Fields, Sequence[Array | None]]
Extent = int | None
"""None stands for rank 0."""
F32 = np.float32
ELEMENTS = [kind for kind in WireType if kind not in PACKED]
"""Types of what commands compute with."""


def filled(values: Sequence[int], fill: int = 0) -> list[int]:
    return [*values, *[fill] * (MAX_RANK - len(values))]


def array(dtype: WireType, shape: Sequence[int], least: int = 0) -> Array:
    """Small whole numbers, which every type holds, none below `least`."""
    count = int(np.prod(shape))
    return (np.arange(count) % 3 + least).astype(dtype.dtype).reshape(tuple(shape))


def shapes(extent: Extent, *given: int) -> Iterator[tuple[int, ...]]:
    """The given shape with each dimension in turn as the extent; the scalar for rank 0."""
    if extent is None:
        yield ()
        return
    for axis in range(len(given)):
        yield (*given[:axis], extent, *given[axis + 1 :])


def real(shape: Sequence[int]) -> Array:
    return array(WireType.FLOAT32, shape)


def places(*shape: int) -> Array:
    """Indices that are 0."""
    return np.zeros(shape, np.int64)


def target(shape: Sequence[int]) -> Fields:
    return {"rank": len(shape), "shape": filled(shape)}


# --- rows -----------------------------------------------------------------------------------------------------------


def unary(extent: Extent) -> Iterator[Row]:
    for function, dtype, shape in itertools.product(UnaryFunction, ELEMENTS, shapes(extent, 2, 3)):
        yield {"function": function, "alpha": 0.5, "beta": 1.0}, [array(dtype, shape)]


def binary(extent: Extent) -> Iterator[Row]:
    for function, dtype, shape in itertools.product(BinaryFunction, ELEMENTS, shapes(extent, 2, 3)):
        for other in (shape, shape[1:], ()):
            yield {"function": function}, [array(dtype, shape), array(dtype, other, 1)]


def where(extent: Extent) -> Iterator[Row]:
    for dtype, shape in itertools.product(ELEMENTS, shapes(extent, 2, 3)):
        yield {}, [array(WireType.BOOL, shape), array(dtype, shape[1:]), array(dtype, ())]


def cast(extent: Extent) -> Iterator[Row]:
    for source, dtype, shape in itertools.product(ELEMENTS, ELEMENTS, shapes(extent, 2, 3)):
        yield {"dtype": dtype}, [array(source, shape)]


def reduce(extent: Extent) -> Iterator[Row]:
    for function, dtype, shape in itertools.product(ReduceFunction, ELEMENTS, shapes(extent, 2, 3)):
        for axes, keep in itertools.product(range(1 << len(shape)), (0, 1)):
            yield {"function": function, "axes": axes, "keep": keep}, [array(dtype, shape)]


def along_an_axis(**each: Sequence[Any]) -> Callable[[Extent], Iterator[Row]]:
    """Rows of a kind of one operand that works along an axis, for every combination of further fields."""

    def rows(extent: Extent) -> Iterator[Row]:
        for dtype, shape, values in itertools.product(
            ELEMENTS, shapes(extent, 2, 3), itertools.product(*each.values())
        ):
            for axis in range(len(shape)):
                yield {"axis": axis, **dict(zip(each, values, strict=True))}, [array(dtype, shape)]

    return rows


def matmul(extent: Extent) -> Iterator[Row]:
    for m, k, n in shapes(extent, 2, 3, 4):
        for kind in (WireType.FLOAT32, WireType.FLOAT16, WireType.INT32):
            a, b = array(kind, (2, m, k)), array(kind, (k, n))
            yield {"alpha": 1.0, "beta": 1.0}, [a, b]
            yield {"alpha": 1.0, "beta": 1.0}, [a[0], b, array(kind, (n,))]


def quantised(x: Array, w: Array, channels: int) -> list[Array | None]:
    one, zero = np.ones((), F32), np.zeros((), np.int8)
    return [x, w, one, zero, one, zero, one, zero, array(WireType.INT32, (channels,))]


def qmatmul(extent: Extent) -> Iterator[Row]:
    for m, k, n in shapes(extent, 2, 3, 4):
        yield {"relu": 1}, quantised(array(WireType.INT8, (m, k)), array(WireType.INT8, (k, n)), n)


def windows(extent: Extent) -> Iterator[tuple[tuple[int, ...], int, int, Fields]]:
    """(shape of the data, filters, kernel, movement) of convolutions of one spatial dimension."""
    for batch, channels, filters, size in shapes(extent, 2, 3, 4, 5):
        yield (batch, channels, size), filters, 2, window(pads_begin=[1], pads_end=[1])


def conv(extent: Extent) -> Iterator[Row]:
    for shape, filters, kernel, movement in windows(extent):
        x, w = real(shape), real((filters, shape[1], kernel))
        yield {"group": 1, **movement}, [x, w, real((filters,))]
        yield {"group": 1, **movement}, [x.astype(np.float16), w.astype(np.float16)]


def qconv(extent: Extent) -> Iterator[Row]:
    for shape, filters, kernel, movement in windows(extent):
        w = array(WireType.INT8, (filters, shape[1], kernel))
        yield {"group": 1, "relu": 0, **movement}, quantised(array(WireType.INT8, shape), w, filters)


def pool(extent: Extent) -> Iterator[Row]:
    for function, (shape, _, kernel, movement) in itertools.product(PoolFunction, windows(extent)):
        yield {"function": function, "kernel": [kernel, 1, 1], **movement}, [real(shape)]


def quantize(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        yield {"axis": 0}, [real(shape), np.ones((), F32), np.zeros((), np.int8)]


def dequantize(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        yield {"axis": 0}, [array(WireType.INT8, shape), np.ones((), F32), np.zeros((), np.int8)]


def copy(extent: Extent) -> Iterator[Row]:
    for dtype, shape in itertools.product(ELEMENTS, shapes(extent, 2, 3)):
        for wanted in (shape, (1, *shape), shape[::-1]):
            yield target(wanted), [array(dtype, shape)]


def transpose(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        yield {"permutation": filled(range(len(shape))[::-1])}, [real(shape)]


def slice_(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        for step in (1, -1):
            starts = [0 if step > 0 or not held else held - 1 for held in shape]
            for taken in (shape, [0] * len(shape)):
                fields = {"starts": filled(starts), "steps": filled([step] * len(shape)), "extents": filled(taken)}
                yield fields, [real(shape)]


def concat(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        for axis in range(len(shape)):
            other = (*shape[:axis], 2, *shape[axis + 1 :])
            yield {"axis": axis}, [real(shape), real(other), real(shape)]


def gather(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        for axis, wanted in itertools.product(range(len(shape)), ((), (1,), (0,), (2, 0))):
            if shape[axis] or 0 in wanted:
                yield {"axis": axis}, [real(shape), places(*wanted)]


def pad(extent: Extent) -> Iterator[Row]:
    for mode, shape in itertools.product(PadMode, shapes(extent, 2, 3)):
        for margin in (0, 1):
            margins = filled([margin] * len(shape))
            yield {"mode": mode, "begins": margins, "ends": margins}, [real(shape), real(())]


def expand(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        for wanted in (shape, (2, *shape), (0, *shape)):
            yield target(wanted), [real(shape)]
        yield target([0] * len(shape)), [real([1] * len(shape))]


def gather_elements(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        for axis in range(len(shape)):
            for count in (0, 2) if shape[axis] else (0,):
                yield {"axis": axis}, [real(shape), places(*shape[:axis], count, *shape[axis + 1 :])]


def gather_nd(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        for count, depth in itertools.product((0, 2), (1, 2)):
            if not count or all(shape[:depth]):
                yield {}, [real(shape), places(count, depth)]
        if len(shape) > 1 and (shape[1] or not shape[0]):
            yield {"batch_dims": 1}, [real(shape), places(shape[0], 1)]


def scatter_elements(extent: Extent) -> Iterator[Row]:
    for reduction, dtype, shape in itertools.product(ScatterReduction, ELEMENTS, shapes(extent, 2, 3)):
        for axis in range(len(shape)):
            for count in (0, 2) if shape[axis] else (0,):
                part = (*shape[:axis], count, *shape[axis + 1 :])
                operands = [array(dtype, shape), places(*part), array(dtype, part)]
                yield {"axis": axis, "reduction": reduction}, operands


def scatter_nd(extent: Extent) -> Iterator[Row]:
    for reduction, dtype, shape in itertools.product(ScatterReduction, ELEMENTS, shapes(extent, 2, 3)):
        for count, depth in itertools.product((0, 2), (1, 2)):
            if len(shape) >= depth and (not count or all(shape[:depth])):
                updates = array(dtype, (count, *shape[depth:]))
                yield {"reduction": reduction}, [array(dtype, shape), places(count, depth), updates]


def determinant(extent: Extent) -> Iterator[Row]:
    for batch, size in shapes(extent, 2, 3) if extent is not None else ():
        yield {}, [real((batch, size, size))]


def conv_transpose(extent: Extent) -> Iterator[Row]:
    for (batch, channels, size), filters, kernel, movement in windows(extent):
        w = real((channels, filters, kernel))
        yield {"group": 1, **movement}, [real((batch, channels, size)), w, real((filters,))]


def resize(extent: Extent) -> Iterator[Row]:
    for mode, shape in itertools.product(Interpolation, shapes(extent, 2, 3)):
        wanted = [size * 2 for size in shape]
        yield (
            {"mode": mode, "cubic": -0.75, "extents": filled(wanted), "scales": [2.0] * len(shape) + [0.0] * 6},
            [real(shape)],
        )


def matmul_integer(extent: Extent) -> Iterator[Row]:
    for m, k, n in shapes(extent, 2, 3, 4):
        zeros = [np.ones((), np.int8), np.ones((n,), np.int8)]
        yield {}, [array(WireType.INT8, (m, k)), array(WireType.INT8, (k, n)), *zeros]


def conv_integer(extent: Extent) -> Iterator[Row]:
    for shape, filters, kernel, movement in windows(extent):
        w = array(WireType.INT8, (filters, shape[1], kernel))
        yield {"group": 1, **movement}, [array(WireType.UINT8, shape), w, np.ones((), np.uint8)]


def dynamic_quantize(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        yield {}, [real(shape)]


def qbinary(extent: Extent) -> Iterator[Row]:
    scales: list[Array] = [np.full((), 0.5, F32), np.ones((), np.int8)] * 3
    for function, shape in itertools.product(QBinaryFunction, shapes(extent, 2, 3)):
        yield {"function": function}, [array(WireType.INT8, shape), array(WireType.INT8, shape[1:]), *scales]


def qpool(extent: Extent) -> Iterator[Row]:
    scales: list[Array] = [np.full((), 0.5, F32), np.ones((), np.int8)] * 2
    for shape, _, kernel, movement in windows(extent):
        yield {"kernel": [kernel, 1, 1], **movement}, [array(WireType.INT8, shape), *scales]


def lookup(extent: Extent) -> Iterator[Row]:
    for dtype, shape in itertools.product((WireType.INT8, WireType.UINT8), shapes(extent, 2, 3)):
        yield {}, [array(dtype, shape), array(WireType.INT8, (256,))]


def matmul_nbits(extent: Extent) -> Iterator[Row]:
    for m, k, n in shapes(extent, 2, 32, 4):
        blocks = -(-k // 16)
        for bits, zeros in itertools.product((4, 8), ([], [real((n, blocks))])):
            packed = array(WireType.UINT8, (n, blocks, 2 * bits))
            yield {"bits": bits, "block": 16}, [real((m, k)), packed, real((n, blocks)), *zeros]


def recurrent(extent: Extent) -> Iterator[Row]:
    fields = {"cell": Cell.RNN, "activations": [CellActivation.TANH, *[0] * 5], "alphas": [0.0] * 6, "betas": [0.0] * 6}
    for steps, batch, features, hidden in shapes(extent, 2, 3, 4, 5):
        yield fields, [real((steps, batch, features)), real((1, hidden, features)), real((1, hidden, hidden))]


def attention(extent: Extent) -> Iterator[Row]:
    fields = {"scale": 1.0, "left_window": -1, "right_window": -1}
    for batch, heads, queries, keys, size in shapes(extent, 2, 3, 4, 5, 6):
        yield fields, [real((batch, heads, queries, size)), *[real((batch, heads, keys, size))] * 2]


def layer_norm(extent: Extent) -> Iterator[Row]:
    for shape, axes in itertools.product(shapes(extent, 2, 3), (0b01, 0b10, 0b11)):
        yield {"axes": axes, "epsilon": 1e-5}, [real(shape), real(shape[-1:])]


def rotary(extent: Extent) -> Iterator[Row]:
    for batch, heads, steps, size in shapes(extent, 2, 3, 4, 6):
        turns = real((batch, steps, size // 2))
        yield {}, [real((batch, heads, steps, size)), turns, turns]


def unpool(extent: Extent) -> Iterator[Row]:
    for shape in shapes(extent, 2, 3):
        yield target((2, *shape)), [real(shape), np.arange(int(np.prod(shape))).reshape(shape)]


def grid_sample(extent: Extent) -> Iterator[Row]:
    for batch, channels, size, samples in shapes(extent, 2, 3, 4, 5):
        for mode in Interpolation:
            yield {"mode": mode}, [real((batch, channels, size)), real((batch, samples, 1)) / 2]


def roi_align(extent: Extent) -> Iterator[Row]:
    size = {"output_height": 2, "output_width": 2, "spatial_scale": 1.0, "function": PoolFunction.AVERAGE}
    for batch, channels, side, regions in shapes(extent, 2, 3, 4, 5):
        if batch or not regions:
            yield size, [real((batch, channels, side, side)), real((regions, 4)), places(regions)]


def roi_pool(extent: Extent) -> Iterator[Row]:
    size = {"output_height": 2, "output_width": 2, "spatial_scale": 1.0}
    for batch, channels, side, regions in shapes(extent, 2, 3, 4, 5):
        if batch or not regions:
            yield size, [real((batch, channels, side, side)), np.zeros((regions, 5), F32)]


def deform_conv(extent: Extent) -> Iterator[Row]:
    for batch, channels, filters, size in shapes(extent, 2, 3, 4, 5):
        kept = max(0, size - 1)
        operands = [real((batch, channels, size, 5)), real((filters, channels, 2, 1)), real((batch, 4, kept, 5))]
        yield {"group": 1, "offset_group": 1, **window()}, operands


def tensor_scatter(extent: Extent) -> Iterator[Row]:
    for batch, size, features in shapes(extent, 2, 3, 4):
        for mode, written in itertools.product(ScatterMode, {min(1, size), size}):
            operands = [real((batch, size, features)), real((batch, written, features)), places(batch)]
            yield {"axis": 1, "mode": mode}, operands


def linear_attention(extent: Extent) -> Iterator[Row]:
    for batch, length, size in shapes(extent, 2, 3, 4):
        yield {"query_heads": 2, "key_heads": 2, "scale": 1.0}, [real((batch, length, 2 * size))] * 3


def in_slots(batch: int, past: int, count: int) -> list[Array]:
    """Tables of three blocks of two tokens, and a row for each of the batch."""
    tables = np.arange(3 * (batch + 1), dtype=np.int32).reshape(-1, 3)[::-1] % 4
    return [tables.copy(), np.array([(slot, past, count) for slot in range(batch)], np.int32).reshape(batch, 3)]


def cache_append(extent: Extent) -> Iterator[Row]:
    for batch, heads, tokens, size in shapes(extent, 2, 3, 4, 5):
        for dtype, ring in itertools.product((WireType.FLOAT32, WireType.FLOAT16), (0, 4)):
            operands = [array(dtype, (2, 4, 2, heads, size)), array(dtype, (batch, heads, tokens, size))]
            for count in {0, tokens}:
                yield {"plane": 1, "ring": ring}, [*operands, *in_slots(batch, 2, count)]


def cache_attention(extent: Extent) -> Iterator[Row]:
    for batch, groups, tokens, size in shapes(extent, 2, 3, 4, 5):
        options: list[Fields] = [{"causal": 1}, {"ring": 6, "left_window": 2}, {"softcap": 1.0}]
        for dtype, option in itertools.product((WireType.FLOAT32, WireType.BFLOAT16), options):
            cache = array(dtype, (2, 4, 2, 2, size))
            query = array(dtype, (batch, 2 * groups, tokens, size))
            for count in {0, tokens}:
                fields = {"scale": 1.0, "left_window": -1, "value_plane": 1, **option}
                yield fields, [query, cache, cache, *in_slots(batch, 2, count)]


ROWS: dict[CommandKind, Callable[[Extent], Iterator[Row]]] = {
    CommandKind.MATMUL: matmul,
    CommandKind.CONV: conv,
    CommandKind.POOL: pool,
    CommandKind.QMATMUL: qmatmul,
    CommandKind.QCONV: qconv,
    CommandKind.QUANTIZE: quantize,
    CommandKind.DEQUANTIZE: dequantize,
    CommandKind.UNARY: unary,
    CommandKind.BINARY: binary,
    CommandKind.WHERE: where,
    CommandKind.CAST: cast,
    CommandKind.REDUCE: reduce,
    CommandKind.ARGUMENT: along_an_axis(function=list(ArgumentFunction), select_last=(0, 1), keep=(0, 1)),
    CommandKind.SOFTMAX: along_an_axis(logarithm=(0, 1)),
    CommandKind.COPY: copy,
    CommandKind.TRANSPOSE: transpose,
    CommandKind.SLICE: slice_,
    CommandKind.CONCAT: concat,
    CommandKind.GATHER: gather,
    CommandKind.PAD: pad,
    CommandKind.EXPAND: expand,
    CommandKind.GATHER_ELEMENTS: gather_elements,
    CommandKind.GATHER_ND: gather_nd,
    CommandKind.SCATTER_ELEMENTS: scatter_elements,
    CommandKind.SCATTER_ND: scatter_nd,
    CommandKind.TOP_K: along_an_axis(k=(0, 1), largest=(0, 1)),
    CommandKind.CUMULATE: along_an_axis(function=list(CumulateFunction), exclusive=(0, 1), reverse=(0, 1)),
    CommandKind.DETERMINANT: determinant,
    CommandKind.BITCAST: cast,
    CommandKind.CONV_TRANSPOSE: conv_transpose,
    CommandKind.RESIZE: resize,
    CommandKind.MATMUL_INTEGER: matmul_integer,
    CommandKind.CONV_INTEGER: conv_integer,
    CommandKind.DYNAMIC_QUANTIZE: dynamic_quantize,
    CommandKind.QBINARY: qbinary,
    CommandKind.LOOKUP: lookup,
    CommandKind.QPOOL: qpool,
    CommandKind.MATMUL_NBITS: matmul_nbits,
    CommandKind.RECURRENT: recurrent,
    CommandKind.ATTENTION: attention,
    CommandKind.LAYER_NORM: layer_norm,
    CommandKind.ROTARY: rotary,
    CommandKind.TENSOR_SCATTER: tensor_scatter,
    CommandKind.LINEAR_ATTENTION: linear_attention,
    CommandKind.CACHE_APPEND: cache_append,
    CommandKind.CACHE_ATTENTION: cache_attention,
    CommandKind.UNPOOL: unpool,
    CommandKind.GRID_SAMPLE: grid_sample,
    CommandKind.ROI_ALIGN: roi_align,
    CommandKind.ROI_POOL: roi_pool,
    CommandKind.DEFORM_CONV: deform_conv,
}
SCALARS = frozenset(
    {
        *(CommandKind.UNARY, CommandKind.BINARY, CommandKind.WHERE, CommandKind.CAST, CommandKind.BITCAST),
        *(CommandKind.REDUCE, CommandKind.COPY, CommandKind.TRANSPOSE, CommandKind.SLICE, CommandKind.PAD),
        *(CommandKind.EXPAND, CommandKind.QUANTIZE, CommandKind.DEQUANTIZE, CommandKind.DYNAMIC_QUANTIZE),
        *(CommandKind.QBINARY, CommandKind.LOOKUP),
    }
)
"""Kinds that take operands of rank 0."""


# --- the test -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extent", [None, 1, 0], ids=["scalar", "one", "none"])
@pytest.mark.parametrize("kind", CommandKind, ids=lambda kind: kind.name.lower())
def test_every_kernel_gives_what_golden_gives(kind: CommandKind, extent: Extent) -> None:
    ran = [ran_alike(kind, fields, operands) for fields, operands in rows_of(kind, extent)]
    assert any(ran) == (extent is not None or kind in SCALARS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", CommandKind, ids=lambda kind: kind.name.lower())
def test_every_kernel_makes_of_special_values_what_golden_makes(kind: CommandKind, value: float) -> None:
    for fields, operands in rows_of(kind, 1):
        first = operands[0]
        if first is not None and first.size and first.dtype.kind not in "iub":
            changed = first.copy()
            changed.reshape(-1)[changed.size // 2] = value
            ran_alike(kind, fields, [changed, *operands[1:]])


def rows_of(kind: CommandKind, extent: Extent) -> Iterator[Row]:
    if extent is None and kind not in SCALARS:
        return iter(())
    return ROWS[kind](extent)


def ran_alike(kind: CommandKind, fields: Fields, operands: Sequence[Array | None]) -> bool:
    """Run one command on all kernels and compare; False when the command is not defined for its operands."""
    attributes = make_attributes(kind, **fields)
    types = tuple(TensorType(wire_type_of(a.dtype), a.shape) if a is not None else None for a in operands)
    try:
        given = tuple(OPERATORS[kind].infer(attributes, types))
    except SemanticError:
        return False
    if not any(output.elements for output in given):
        return True
    request = KernelRequest(kind, attributes, types, given, (None, *operands[1:]))
    golden = outcome("golden", request, operands)
    for kernels in ("numpy", "auto"):
        found = outcome(kernels, request, operands)
        assert alike(found, golden), f"{kind.name} {fields} of {types} with {kernels} kernels: {found}, golden {golden}"
    return True


def outcome(kernels: str, request: KernelRequest, operands: Sequence[Array | None]) -> list[Array] | Status:
    """What one kernel gives, or how it fails."""
    outputs = [np.full(one.shape, 1, one.dtype.dtype) for one in request.outputs]
    try:
        with np.errstate(all="ignore"):
            prepare(kernels, request).run(operands, outputs)
    except KernelFault as fault:
        return fault.status
    return outputs


def alike(found: list[Array] | Status, golden: list[Array] | Status) -> bool:
    if isinstance(found, Status) or isinstance(golden, Status):
        return found is golden
    pairs = [(a.astype(F32), b.astype(F32)) for a, b in zip(found, golden, strict=True)]
    return all(np.allclose(a, b, rtol=1e-2, atol=1e-4, equal_nan=True) for a, b in pairs)


def test_onnxruntime_is_among_the_kernels_compared() -> None:
    module_of_extra("onnxruntime", "models")
    attributes = make_attributes(CommandKind.SOFTMAX)
    x = TensorType(WireType.FLOAT32, (4,))
    kernel = prepare("auto", KernelRequest(CommandKind.SOFTMAX, attributes, (x,), (x,), (None,)))
    assert kernel.name == "onnxruntime.softmax"


def test_every_kind_has_rows() -> None:
    assert set(ROWS) == set(CommandKind)
