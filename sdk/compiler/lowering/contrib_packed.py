"""Operators of onnxruntime's own whose weights are packed, 4 or 8 bits each, with a scale for each block."""

from __future__ import annotations

import math
from collections.abc import Sequence

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from driver_shim.protocol.types import WireType
from emulator.model.operators.packed_products import WIDTHS
from sdk.compiler.context import Lowering, NodeContext, trimmed
from sdk.compiler.contrib import qualified
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.elementwise import binary
from sdk.compiler.lowering.movement import cut

_BITS_DEFAULT = 4
_GATHERED_BLOCK_DEFAULT = 128
_LOW_BITS = 0x0F


def _matmul_nbits(node: NodeContext) -> Sequence[Value]:
    a, b, builder = node.value(0), node.value(1), node.builder
    if node.optional(4) is not None:
        raise Refused("a g_idx (weights in another order) is not supported")
    if node.attribute("weight_prepacked", 0):
        raise Refused("weights that are packed for one processor are not supported")
    bits, block = node.attribute("bits", _BITS_DEFAULT), node.attribute("block_size")
    rows, depth = node.attribute("N"), node.attribute("K")
    if min(bits, block, rows, depth) < 1 or not a.shape or a.shape[-1] != depth:
        raise Refused(f"data {a.type} for K {depth}, N {rows}, blocks of {block}, {bits} bits")
    blocks = -(-depth // block)
    scales = _shaped(builder, node.value(2), (rows, blocks))
    zeros = node.optional(3)
    if zeros is not None:
        packed = zeros.dtype is WireType.UINT8
        zeros = _shaped(builder, zeros, (rows, -(-blocks * bits // 8) if packed else blocks))
    weights = _shaped(builder, b, (rows, blocks, -(-block * bits // 8)))
    operands = trimmed([a, weights, scales, zeros, node.optional(5)])
    return [builder.emit(CommandKind.MATMUL_NBITS, operands, block=block, bits=bits)]


def _shaped(builder: Builder, value: Value, shape: tuple[int, ...]) -> Value:
    if value.type.elements != math.prod(shape):
        raise Refused(f"an operand {value.type}, must be {list(shape)}")
    return builder.reshape(value, shape)


def _gather_block_quantized(node: NodeContext) -> Sequence[Value]:
    """GatherBlockQuantized: the rows are taken as they are stored, with their scales, and dequantised then."""
    data, indices, scales, builder = node.value(0), node.value(1), node.value(2), node.builder
    rank, bits = len(data.shape), node.attribute("bits", _BITS_DEFAULT)
    axis = node.axis(node.attribute("gather_axis", 0), rank)
    if data.dtype is not WireType.UINT8 or bits not in WIDTHS:
        raise Refused(f"data {data.type} of {bits} bits; uint8 of {' or '.join(map(str, WIDTHS))} bits are supported")
    if node.axis(node.attribute("quantize_axis", 1), rank) != rank - 1 or axis == rank - 1:
        raise Refused("its blocks must lie along the last axis, and what it gathers along another")
    block, last = node.attribute("block_size", _GATHERED_BLOCK_DEFAULT), data.shape[-1] * 8 // bits
    blocks = -(-last // max(1, block))
    if block < 1 or scales.shape != (*data.shape[:-1], blocks):
        raise Refused(f"scales {scales.type} for rows of {last} in blocks of {block}")

    def taken(value: Value) -> Value:
        return builder.emit(CommandKind.GATHER, [value, indices], axis=axis)

    codes, scale, zeros = _unpacked(builder, taken(data), bits), taken(scales), node.optional(3)
    if zeros is None:
        centre = builder.scalar(1 << (bits - 1), WireType.UINT8)
        zero = builder.expand(centre, scale.shape)
    else:
        if zeros.shape != (*data.shape[:-1], -(-blocks * bits // 8)) or zeros.dtype is not WireType.UINT8:
            raise Refused(f"zero points {zeros.type} for {blocks} blocks of {bits} bits")
        zero = _cut(builder, _unpacked(builder, taken(zeros), bits), blocks)
    operands, fields = [codes, scale, zero], {"axis": len(codes.shape) - 1, "block": min(block, max(1, last))}
    return [builder.emit(CommandKind.DEQUANTIZE, operands, **fields)]


def _unpacked(builder: Builder, packed: Value, bits: int) -> Value:
    """Bytes as codes, a byte each, those in the low bits first."""
    if bits == 8:
        return packed
    low = binary(builder, BinaryFunction.BITWISE_AND, packed, builder.scalar(_LOW_BITS, WireType.UINT8))
    high = binary(builder, BinaryFunction.SHIFT_RIGHT, packed, builder.scalar(bits, WireType.UINT8))
    rank = len(packed.shape)
    halves = [builder.reshape(half, (*packed.shape, 1)) for half in (low, high)]
    pairs = builder.emit(CommandKind.CONCAT, halves, axis=rank)
    return builder.reshape(pairs, (*packed.shape[:-1], 2 * packed.shape[-1]))


def _cut(builder: Builder, value: Value, length: int) -> Value:
    """The first elements along the last axis."""
    if value.shape[-1] == length:
        return value
    return cut(builder, value, [0] * len(value.shape), [1] * len(value.shape), (*value.shape[:-1], length))


LOWERINGS: dict[str, Lowering] = {
    qualified("GatherBlockQuantized"): _gather_block_quantized,
    qualified("MatMulNBits"): _matmul_nbits,
}
