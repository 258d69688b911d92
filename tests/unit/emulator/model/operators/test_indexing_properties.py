"""Gathers, scatters, TopK, running sums and reductions of any shape, along any axis, against loops and each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from driver_shim.protocol.program import TensorType, make_attributes
from driver_shim.protocol.program_commands import (
    BinaryFunction,
    CommandKind,
    CumulateFunction,
    ReduceFunction,
    ScatterReduction,
)
from driver_shim.protocol.types import wire_type_of
from emulator.model.operators import OPERATORS

Array = NDArray[Any]
seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)
dtypes = st.sampled_from([np.int8, np.int32, np.int64, np.float32])
_COMBINE: dict[ScatterReduction, Callable[[Any, Any], Any]] = {
    ScatterReduction.NONE: lambda old, new: new,
    ScatterReduction.ADD: lambda old, new: old + new,
    ScatterReduction.MUL: lambda old, new: old * new,
    ScatterReduction.MAX: max,
    ScatterReduction.MIN: min,
}


def run(kind: CommandKind, inputs: list[Array], **fields: Any) -> list[Array]:
    """All outputs of a command."""
    attributes = make_attributes(kind, **fields)
    types = OPERATORS[kind].infer(attributes, [TensorType(wire_type_of(a.dtype), a.shape) for a in inputs])
    results = [np.zeros(one.shape, one.dtype.dtype) for one in types]
    if any(result.size for result in results):
        OPERATORS[kind].run(attributes, inputs, results)
    return results


def numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Small whole numbers, so that no order of additions matters."""
    return random.integers(-3, 4, shape).astype(dtype)


@settings(max_examples=60)
@given(shapes, seeds, st.data())
def test_gather_elements_is_a_loop(shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    random, axis = np.random.default_rng(seed), data.draw(st.integers(0, len(shape) - 1))
    wanted = [data.draw(st.integers(0, extent)) for extent in shape]
    wanted[axis] = data.draw(st.integers(0, 5)) if shape[axis] else 0
    x = numbers(random, shape, np.int32)
    indices = random.integers(-max(shape[axis], 1), max(shape[axis], 1), wanted)
    (found,) = run(CommandKind.GATHER_ELEMENTS, [x, indices], axis=axis)
    for place in np.ndindex(*wanted):
        assert found[place] == x[(*place[:axis], indices[place], *place[axis + 1 :])]


@settings(max_examples=60)
@given(shapes, seeds, dtypes, st.sampled_from(ScatterReduction), st.data())
def test_scatter_elements_is_a_loop(
    shape: tuple[int, ...], seed: int, dtype: Any, reduction: ScatterReduction, data: st.DataObject
) -> None:
    random, axis = np.random.default_rng(seed), data.draw(st.integers(0, len(shape) - 1))
    wanted = [data.draw(st.integers(0, extent)) for extent in shape]
    wanted[axis] = data.draw(st.integers(0, 3)) if shape[axis] else 0
    x, updates = numbers(random, shape, dtype), numbers(random, tuple(wanted), dtype)
    indices = random.integers(-max(shape[axis], 1), max(shape[axis], 1), wanted)
    (found,) = run(CommandKind.SCATTER_ELEMENTS, [x, indices, updates], axis=axis, reduction=reduction)
    expected = x.copy()
    for place in np.ndindex(*wanted):
        at = (*place[:axis], indices[place], *place[axis + 1 :])
        expected[at] = _COMBINE[reduction](expected[at], updates[place])
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=60)
@given(shapes.filter(all), seeds, st.sampled_from(ScatterReduction), st.data())
def test_gather_nd_and_scatter_nd_are_loops(
    shape: tuple[int, ...], seed: int, reduction: ScatterReduction, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    rows, depth = data.draw(st.integers(0, 4)), data.draw(st.integers(1, len(shape)))
    limits = np.array(shape[:depth])
    indices = random.integers(-limits, limits, (rows, depth))
    x, updates = numbers(random, shape, np.int64), numbers(random, (rows, *shape[depth:]), np.int64)
    (gathered,) = run(CommandKind.GATHER_ND, [x, indices])
    (scattered,) = run(CommandKind.SCATTER_ND, [x, indices, updates], reduction=reduction)
    expected = x.copy()
    for row, place in enumerate(map(tuple, indices)):
        np.testing.assert_array_equal(gathered[row], x[place])
        for rest in np.ndindex(*shape[depth:]):
            at = (*place, *rest)
            expected[at] = _COMBINE[reduction](expected[at], updates[(row, *rest)])
    np.testing.assert_array_equal(scattered, expected)


@settings(max_examples=60)
@given(shapes, seeds, dtypes, st.booleans(), st.data())
def test_topk_is_a_stable_sort(
    shape: tuple[int, ...], seed: int, dtype: Any, largest: bool, data: st.DataObject
) -> None:
    x, axis = numbers(np.random.default_rng(seed), shape, dtype), data.draw(st.integers(0, len(shape) - 1))
    k = data.draw(st.integers(0, shape[axis]))
    values, indices = run(CommandKind.TOP_K, [x], axis=axis, k=k, largest=int(largest))
    rest = [range(extent) if i != axis else [0] for i, extent in enumerate(shape)]
    for place in itertools.product(*rest):
        line: Any = tuple(slice(None) if i == axis else at for i, at in enumerate(place))
        row = x[line].tolist()
        order = sorted(range(len(row)), key=lambda i: (-row[i] if largest else row[i], i))[:k]
        assert indices[line].tolist() == order
        assert values[line].tolist() == [row[i] for i in order]


@settings(max_examples=60)
@given(shapes, seeds, dtypes, st.sampled_from(CumulateFunction), st.data())
def test_running_sums_and_products_of_one_direction_give_those_of_the_other(
    shape: tuple[int, ...], seed: int, dtype: Any, function: CumulateFunction, data: st.DataObject
) -> None:
    x, axis = numbers(np.random.default_rng(seed), shape, dtype), data.draw(st.integers(0, len(shape) - 1))
    fields = {"function": function, "axis": axis}
    (onwards,) = run(CommandKind.CUMULATE, [x], **fields)
    (backwards,) = run(CommandKind.CUMULATE, [np.flip(x, axis).copy()], reverse=1, **fields)
    np.testing.assert_array_equal(np.flip(backwards, axis), onwards)
    (before,) = run(CommandKind.CUMULATE, [x], exclusive=1, **fields)
    combine = BinaryFunction.ADD if function is CumulateFunction.SUM else BinaryFunction.MUL
    (again,) = run(CommandKind.BINARY, [before, x], function=combine)
    np.testing.assert_array_equal(again, onwards)


@settings(max_examples=60)
@given(shapes, seeds, st.sampled_from([np.int8, np.int32, np.int64, np.float32]), st.data())
def test_reducing_all_at_once_is_reducing_one_after_the_other(
    shape: tuple[int, ...], seed: int, dtype: Any, data: st.DataObject
) -> None:
    x = numbers(np.random.default_rng(seed), shape, dtype)
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    for function in (ReduceFunction.SUM, ReduceFunction.PROD, ReduceFunction.MAX, ReduceFunction.MIN):
        (once,) = run(CommandKind.REDUCE, [x], function=function, keep=1, axes=sum(1 << axis for axis in axes))
        stepwise = x
        for axis in sorted(axes):
            (stepwise,) = run(CommandKind.REDUCE, [stepwise], function=function, keep=1, axes=1 << axis)
        np.testing.assert_array_equal(once, stepwise)
