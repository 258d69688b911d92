"""A factor and an offset for each channel, as normalisation by batches leaves them, go into the convolution before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from sdk.compiler.derived import Array, Derived, Source
from sdk.compiler.ir import Operation, Value, constant, fields_of
from sdk.compiler.passes.products import CONVOLUTIONS, by_channel, is_plain
from sdk.compiler.passes.rewriting import Rewriting
from sdk.compiler.passes.scanning import absorb_each

DERIVED_BYTES = 16 << 10
"""Larger weights are not kept a second time, but multiplied again whenever they are asked for."""
_FOLDED = {BinaryFunction.MUL, BinaryFunction.ADD}


def fuse_batch_normalisation(program: Rewriting) -> None:
    """Scale weights and bias instead of the result, and add to the bias instead of to the result."""
    absorb_each(program, _FOLDED, _fuse)


def _fuse(program: Rewriting, position: int, result: Value | None, by: Value | None) -> bool:
    convolution = program.sole(result)
    if convolution is None or by is None or not is_plain(convolution) or convolution.kind not in CONVOLUTIONS:
        return False
    vector = by_channel(by, convolution)
    data, weights, bias, addend = (*convolution.inputs, None, None)[:4]
    if vector is None or weights is None or not weights.is_constant or addend is not None:
        return False
    if bias is not None and not bias.is_constant:
        return False
    if program.operations[position].attributes.function == BinaryFunction.MUL:
        operands = _scaled(convolution, weights, bias, vector)
    else:
        operands = _moved(weights, bias, vector)
    program.replace(position, convolution.kind, [data, *operands], fields_of(convolution), [convolution])
    return True


def _scaled(convolution: Operation, weights: Value, bias: Value | None, factor: Value) -> list[Value]:
    """Weights and bias with every output channel multiplied, in float32."""
    # Weights are [M, C/G, …], those of a transposed convolution [C, M/G, …].
    first, second, *kernel = weights.shape
    if convolution.kind is CommandKind.CONV_TRANSPOSE:
        group = convolution.attributes.group
        apart, by_output = (group, first // group, second, *kernel), (group, 1, second)
    else:
        apart, by_output = (1, *weights.shape), (1, first, 1)
    factors = _wide(factor).reshape(*by_output, *[1] * len(kernel))
    scaled = Value(weights.type, _times(weights, apart, factors))
    return [scaled] if bias is None else [scaled, _like(bias, _wide(bias) * _wide(factor))]


def _times(weights: Value, apart: tuple[int, ...], factors: Array) -> Source:
    """Weights, seen in the shape `apart`, times factors; large ones are multiplied when they are sent."""
    shape, dtype = weights.shape, weights.dtype.dtype

    def make(parts: Sequence[Array]) -> Array:
        wide = parts[0].astype(np.float32, copy=False).reshape(apart)
        return (wide * parts[1]).reshape(shape).astype(dtype, copy=False)

    if weights.source is None:
        raise ValueError("weights that are no constant are not scaled")
    recipe = f"{dtype} {shape} as {apart} times {factors.shape}"
    derived = Derived(recipe, (weights.source, factors), make)
    return derived if weights.type.size_bytes > DERIVED_BYTES else derived.array()


def _moved(weights: Value, bias: Value | None, offset: Value) -> list[Value]:
    return [weights, offset if bias is None else _like(bias, _wide(bias) + _wide(offset))]


def _wide(value: Value) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.asarray(value.constant).astype(np.float32, copy=False)


def _like(value: Value, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Value:
    return constant(array.astype(value.dtype.dtype, copy=False))
