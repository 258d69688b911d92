"""Offsets of the blocks of packed weights, added as a product of their own, become zero points of the packed product.

`x · (s · (q − centre))ᵀ + sums of x by blocks · offsetsᵀ` is `x · (s · (q − zero))ᵀ` with zero = centre − offset / s:
one command in place of four. Models have it in parts because not every runtime multiplies with zero points that are no
whole numbers.
"""

from __future__ import annotations

import numpy as np

from driver_shim.protocol.program_commands import Activation, BinaryFunction, CommandKind, ReduceFunction
from sdk.compiler.ir import Array, Operation, Value, constant, fields_of
from sdk.compiler.passes.rewriting import Rewriting

_OPERANDS = 3
"""Of a packed product without zero points and bias: data, weights, scales."""


def fuse_block_offsets(program: Rewriting) -> None:
    """Give packed products without zero points those that offsets of their blocks come to."""
    for position, operation in enumerate(program.operations):
        if operation.kind is CommandKind.BINARY and operation.attributes.function == BinaryFunction.ADD:
            a, b = operation.inputs
            if not _fuse(program, position, a, b):
                _fuse(program, position, b, a)


def _fuse(program: Rewriting, position: int, scaled: Value | None, offset: Value | None) -> bool:
    packed, product = program.sole(scaled), program.sole(offset)
    if packed is None or product is None or packed.kind is not CommandKind.MATMUL_NBITS:
        return False
    if len(packed.inputs) != _OPERANDS or program.operations[position].outputs[0].type != packed.outputs[0].type:
        return False
    offsets = _offsets(product, packed)
    operands = None if offsets is None else _operands(packed, offsets)
    if operands is None:
        return False
    program.replace(position, CommandKind.MATMUL_NBITS, operands, fields_of(packed), [packed, product])
    return True


def _offsets(product: Operation, packed: Operation) -> Array | None:
    """The offsets [rows, blocks] that a product multiplies the sums of the packed product's blocks with."""
    fields = product.attributes
    if product.kind is not CommandKind.MATMUL or len(product.inputs) != 2 or fields.activation != Activation.NONE:
        return None
    sums, offsets = product.inputs
    if sums is None or offsets is None or offsets.constant is None or fields.transpose_a or fields.alpha != 1:
        return None
    array = offsets.constant if fields.transpose_b else offsets.constant.T
    scales = packed.inputs[2]
    fits = scales is not None and array.ndim == 2 and array.shape == scales.shape and array.dtype == scales.dtype.dtype
    return array if fits and _are_sums_of_blocks(sums, packed) else None


def _are_sums_of_blocks(sums: Value, packed: Operation) -> bool:
    """Whether a value is the packed product's data, added up block by block."""
    x, reduced = packed.inputs[0], sums.producer
    if x is None or reduced is None or reduced.kind is not CommandKind.REDUCE:
        return False
    blocks, block = reduced.inputs[0], packed.attributes.block
    if blocks is None or reduced.attributes.function != ReduceFunction.SUM or blocks.producer is None:
        return False
    whole = (*x.shape[:-1], x.shape[-1] // block, block)
    return (
        blocks.producer.kind is CommandKind.COPY
        and blocks.producer.inputs[0] is x
        and blocks.shape == whole
        and sums.shape == whole[:-1]
    )


def _operands(packed: Operation, offsets: Array) -> list[Value | None] | None:
    """Data, weights, scales and zero points; None where a zero point would be beyond all numbers.

    A block without a scale is its offset everywhere: it gets that for a scale, and codes that are one above their zero.
    """
    x, codes, scales = packed.inputs[:_OPERANDS]
    if codes is None or scales is None or codes.constant is None or scales.constant is None:
        return None
    stored, scale, offset = codes.constant, scales.constant.astype(np.float32), offsets.astype(np.float32)
    flat = scale == 0
    if flat.any():
        scale = np.where(flat, offset, scale)
        stored = np.where(flat[..., None], np.uint8(0), stored)
    centre = np.float32(1 << (packed.attributes.bits - 1))
    with np.errstate(all="ignore"):
        zero = np.where(flat, np.float32(-1), centre - offset / scale).astype(offsets.dtype)
    if not np.isfinite(zero).all():
        return None
    if not flat.any():
        return [x, codes, scales, constant(zero)]
    return [x, constant(stored), constant(scale.astype(offsets.dtype)), constant(zero)]
