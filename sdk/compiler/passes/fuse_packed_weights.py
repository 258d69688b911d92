"""A product with dequantised constants of 4 or 8 bits by blocks keeps them packed: it becomes MATMUL_NBITS."""

from __future__ import annotations

import numpy as np

from driver_shim.protocol.program_commands import Activation, CommandKind
from driver_shim.protocol.types import FLOATS, WireType, pack
from sdk.compiler.ir import Array, Operation, Value, constant
from sdk.compiler.passes.rewriting import Rewriting

_BITS = {WireType.INT4: 4, WireType.UINT4: 4, WireType.INT8: 8, WireType.UINT8: 8}
_OFFSET = {WireType.INT4: 8, WireType.INT8: 128}
"""What makes signed integers unsigned."""


def fuse_packed_weights(program: Rewriting) -> None:
    """Multiply by weights as they are stored, where each block of them is dequantised for one output."""
    for position, operation in enumerate(program.operations):
        if operation.kind is not CommandKind.MATMUL or not _is_plain(operation):
            continue
        weights = program.sole(operation.inputs[1])
        operands = _operands(operation, weights) if weights is not None else None
        if operands is None or weights is None:
            continue
        integers = weights.inputs[0]
        bits = _BITS[integers.dtype] if integers is not None else 0
        fields = {"block": weights.attributes.block, "bits": bits}
        program.replace(position, CommandKind.MATMUL_NBITS, operands, fields, [weights])


def _is_plain(product: Operation) -> bool:
    """Whether a product does nothing that MATMUL_NBITS does not."""
    fields, bias = product.attributes, product.inputs[2] if len(product.inputs) > 2 else None
    columns = product.outputs[0].shape[-1:]
    if fields.activation != Activation.NONE or fields.transpose_a or fields.alpha != 1:
        return False
    return bias is None or (fields.beta == 1 and bias.shape == columns)


def _operands(product: Operation, weights: Operation) -> list[Value | None] | None:
    """Data, packed weights, scales, zero points and bias; None where the weights are none that can be packed so."""
    if weights.kind is not CommandKind.DEQUANTIZE or not weights.attributes.block or len(weights.inputs) < 3:
        return None
    integers, scale, zero = weights.inputs[:3]
    if integers is None or scale is None or zero is None or integers.dtype not in _BITS or scale.dtype not in FLOATS:
        return None
    values, scales, zeros = integers.constant, scale.constant, zero.constant
    depth_axis = 1 if product.attributes.transpose_b else 0
    if values is None or scales is None or zeros is None or values.ndim != 2 or weights.attributes.axis != depth_axis:
        return None
    bits, block = _BITS[integers.dtype], weights.attributes.block
    if block * bits % 8:
        return None
    if not depth_axis:
        values, scales, zeros = values.T, scales.T, zeros.T
    offset = _OFFSET.get(integers.dtype, 0)
    rows, blocks = scales.shape
    padded = np.zeros((rows, blocks * block), np.uint8)
    padded[:, : values.shape[1]] = _unsigned(values, offset)
    packed = _bytes(padded, bits).reshape(rows, blocks, -1)
    operands = [
        constant(packed),
        constant(np.ascontiguousarray(scales)),
        constant(_bytes(_unsigned(zeros, offset), bits)),
    ]
    return [product.inputs[0], *operands, *product.inputs[2:]]


def _unsigned(integers: Array, offset: int) -> Array:
    return np.asarray(integers.astype(np.int16) + offset, np.uint8)


def _bytes(integers: Array, bits: int) -> Array:
    """Unsigned integers [rows, n] packed row by row."""
    if bits == 8:
        return np.ascontiguousarray(integers)
    even = np.pad(integers, ((0, 0), (0, integers.shape[1] % 2)))
    return pack(even).reshape(len(integers), -1)
