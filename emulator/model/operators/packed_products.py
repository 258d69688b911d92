"""Products with weights of 4 or 8 bits, packed, with a scale for each block: onnxruntime's MatMulNBits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import FLOATS, WireType
from emulator.model.operators.arrays import Array, optional, required, widen
from emulator.model.operators.operator import Operator, Types, given
from emulator.model.operators.products import MatrixProduct, bits_of, need_bias
from emulator.model.operators.shapes import need
from emulator.model.timing import Product

WIDTHS = (4, 8)
"""Bits of a weight."""
_UNPACKED_ELEMENTS = 1 << 22
"""Weights that are unpacked at a time, so that a host never holds them all as floats."""
_UNPACKING_EFFORT = 16
"""Bytes moved for each weight."""


class MatMulNBits(MatrixProduct):
    """MATMUL_NBITS: a [.., K], b [N, blocks, bytes], scales [N, blocks], zero_points, bias [N]."""

    kind = CommandKind.MATMUL_NBITS

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        a, b, scales, zeros = given(inputs, 0), given(inputs, 1), given(inputs, 2), optional(inputs, 3)
        bits, block = attributes.bits, attributes.block
        need(a.dtype in FLOATS and len(a.shape) >= 1, f"data {a}, must be floating-point, of rank 1 at least")
        need(bits in WIDTHS, f"weights of {bits} bits; {' or '.join(map(str, WIDTHS))} are possible")
        need(block > 0 and block * bits % 8 == 0, f"blocks of {block} weights, which fill no bytes")
        depth = a.shape[-1]
        blocks = -(-depth // block)
        need(b.dtype is WireType.UINT8 and len(b.shape) == 3, f"weights {b}, must be uint8 of rank 3")
        rows = b.shape[0]
        need(b.shape[1:] == (blocks, block * bits // 8), f"weights {b} for {depth} inputs in blocks of {block}")
        need(scales == TensorType(a.dtype, (rows, blocks)), f"scales {scales}, must be {[rows, blocks]} like the data")
        packed = TensorType(WireType.UINT8, (rows, -(-blocks * bits // 8)))
        need(zeros is None or zeros in (packed, scales), f"zero points {zeros}, must be {packed} or {scales}")
        bias = optional(inputs, 4)
        need_bias(bias, rows)
        need(bias is None or bias.dtype is a.dtype, f"bias {bias} for data {a}")
        return [TensorType(a.dtype, (*a.shape[:-1], rows))]

    def products(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> tuple[Product, ...]:
        a, y = given(inputs, 0), outputs[0]
        columns = y.shape[-1]
        rows = y.elements // columns if columns else 0
        return (Product(rows, a.shape[-1], columns, 1, 1, bits_of(a), attributes.bits),)

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        unpacked: int = given(inputs, 1).elements * 8 // attributes.bits
        return super().effort(attributes, inputs, outputs) + unpacked * _UNPACKING_EFFORT

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """MatMulNBits: a · ((b − zero_point) · scale)ᵀ + bias, sums in float32."""
        a, bias, y = widen(required(inputs, 0)), optional(inputs, 4), outputs[0]
        for rows, weights in unpacked_rows(attributes, a.shape[-1], inputs):
            sums = a @ weights.T
            if bias is not None:
                sums += widen(bias[rows])
            y[..., rows] = sums


def unpacked_rows(attributes: Any, depth: int, inputs: Sequence[Array | None]) -> Iterator[tuple[slice, Array]]:
    """(rows, their weights [rows, depth] as float32), a part at a time."""
    packed, scales, zeros = required(inputs, 1), widen(required(inputs, 2)), optional(inputs, 3)
    step = max(1, _UNPACKED_ELEMENTS // max(1, packed.shape[1] * attributes.block))
    for start in range(0, packed.shape[0], step):
        rows = slice(start, start + step)
        yield rows, _weights(attributes, packed[rows], scales[rows], None if zeros is None else zeros[rows])[:, :depth]


def _weights(attributes: Any, packed: Array, scales: Array, zeros: Array | None) -> Array:
    """(b − zero_point) · scale of some rows, [rows, blocks · block]."""
    count, blocks = scales.shape
    integers = unpack(packed.reshape(count, -1), attributes.bits).reshape(count, blocks, attributes.block)
    zero = zero_points(zeros, attributes.bits, blocks)
    return ((integers - zero[..., None]) * scales[..., None]).reshape(count, -1)


def zero_points(zeros: Array | None, bits: int, blocks: int) -> Array:
    """Zero points as float32 [rows, blocks], [1, 1] where they are left out and the middle of all codes is meant."""
    if zeros is None:
        return np.full((1, 1), 1 << (bits - 1), np.float32)
    if zeros.dtype == np.uint8:
        return unpack(zeros, bits)[:, :blocks].astype(np.float32)
    return widen(zeros)


def unpack(packed: Array, bits: int) -> Array:
    """Unsigned elements of 4 or 8 bits out of bytes [rows, bytes], those in the low bits first."""
    if bits == 8:
        return packed
    return np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


OPERATORS: tuple[Operator, ...] = (MatMulNBits(),)
