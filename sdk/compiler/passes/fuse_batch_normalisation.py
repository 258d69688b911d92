"""A factor and an offset for each channel, as normalisation by batches leaves them, go into the convolution before."""

from __future__ import annotations

import numpy as np

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from sdk.compiler.ir import Operation, Value, constant, fields_of
from sdk.compiler.passes.products import by_channel, is_plain
from sdk.compiler.passes.rewriting import Rewriting

_FOLDED = {BinaryFunction.MUL, BinaryFunction.ADD}
_CONVOLUTIONS = (CommandKind.CONV, CommandKind.CONV_TRANSPOSE)


def fuse_batch_normalisation(program: Rewriting) -> None:
    """Scale weights and bias instead of the result, and add to the bias instead of to the result."""
    for position, operation in enumerate(program.operations):
        if operation.kind is CommandKind.BINARY and operation.attributes.function in _FOLDED:
            a, b = operation.inputs
            if not _fuse(program, position, a, b):
                _fuse(program, position, b, a)


def _fuse(program: Rewriting, position: int, result: Value | None, by: Value | None) -> bool:
    convolution = program.sole(result)
    if convolution is None or by is None or not is_plain(convolution) or convolution.kind not in _CONVOLUTIONS:
        return False
    vector = by_channel(by, convolution)
    data, weights, bias, addend = (*convolution.inputs, None, None)[:4]
    if vector is None or weights is None or weights.constant is None or addend is not None:
        return False
    if bias is not None and bias.constant is None:
        return False
    if program.operations[position].attributes.function == BinaryFunction.MUL:
        operands = _scaled(convolution, weights, bias, vector)
    else:
        operands = _moved(weights, bias, vector)
    program.replace(position, convolution.kind, [data, *operands], fields_of(convolution), [convolution])
    return True


def _scaled(convolution: Operation, weights: Value, bias: Value | None, factor: Value) -> list[Value]:
    """Weights, [M, C/G, …] or transposed [C, M/G, …], and bias with each of M channels multiplied, in float32."""
    kernel = (1,) * (len(weights.shape) - 2)
    if convolution.kind is CommandKind.CONV:
        scaled = _like(weights, _wide(weights) * _wide(factor).reshape(-1, 1, *kernel))
    else:
        group, outputs = convolution.attributes.group, weights.shape[1]
        apart = _wide(weights).reshape(group, -1, *weights.shape[1:])
        by_output = _wide(factor).reshape(group, 1, outputs, *kernel)
        scaled = _like(weights, (apart * by_output).reshape(weights.shape))
    return [scaled] if bias is None else [scaled, _like(bias, _wide(bias) * _wide(factor))]


def _moved(weights: Value, bias: Value | None, offset: Value) -> list[Value]:
    return [weights, offset if bias is None else _like(bias, _wide(bias) + _wide(offset))]


def _wide(value: Value) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.asarray(value.constant).astype(np.float32, copy=False)


def _like(value: Value, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Value:
    return constant(array.astype(value.dtype.dtype, copy=False))
