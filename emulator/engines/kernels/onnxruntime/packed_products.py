"""Products with packed weights, by the one product of onnxruntime's that is fast and sums in float32.

That is MatMulNBits of 4 bits whose zero points are whole numbers. Weights of 8 bits are two of 4, since
q − 128 = 16 · (high − 8) + low. Other zero points go separately: (q − zero) · s is (q − centre) · s and an offset of
the block, (centre − zero) · s, which is multiplied with the sum of the data that the block meets. Many rows of data are
worth unpacking 8 bits for, which onnxruntime's own product of 8 bits does.
"""

from __future__ import annotations

import math

import numpy as np

from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType
from emulator.engines.kernels.onnxruntime.graph import CONTRIB, FLOAT32, Build, CommandGraph
from emulator.engines.kernels.provider import KernelRequest
from emulator.model.operators.arrays import Array, widen
from emulator.model.operators.packed_products import zero_points

_BLOCKS = (16, 32, 64, 128, 256)
"""Sizes of blocks that onnxruntime knows."""
_ROWS_TO_UNPACK_FOR = 64
"""Rows of data from which on unpacking weights of 8 bits costs less than two products."""
_DATA = (FLOAT32, WireType.FLOAT16)


def _matmul_nbits(request: KernelRequest) -> CommandGraph | None:
    a, packed, scales = request.inputs[0], request.constant(1), request.constant(2)
    if a is None or a.dtype not in _DATA or request.attributes.block not in _BLOCKS or not a.elements:
        return None
    zeros_type = request.inputs[3] if len(request.inputs) > 3 else None
    zeros = request.constant(3)
    if packed is None or scales is None or (zeros_type is not None and zeros is None):
        return None
    return _Product(request, packed, widen(scales), zeros).graph()


class _Product:
    """The model of one product."""

    def __init__(self, request: KernelRequest, packed: Array, scales: Array, zeros: Array | None) -> None:
        self._request = request
        self._packed, self._scales, self._zeros = packed, scales, zeros
        self._graph = CommandGraph()
        self._block, self._bits = request.attributes.block, request.attributes.bits
        self._shape = request.inputs[0].shape if request.inputs[0] is not None else ()
        self._scaled = self._stored(2, scales)
        centre = np.float32(1 << (self._bits - 1))
        self._offsets = (centre - zero_points(zeros, self._bits, packed.shape[1])) * scales
        """What zero points come to, beside the middle of all codes: [rows, blocks]."""

    def graph(self) -> CommandGraph | None:
        graph, request = self._graph, self._request
        x = "i0" if request.outputs[0].dtype is FLOAT32 else graph.add("Cast", ["i0"], to=WireType.FLOAT32)
        by_itself = self._takes_zeros_itself()
        if not by_itself and (self._shape[-1] % self._block or not np.isfinite(self._offsets).all()):
            return None
        result = self._integers(x, by_itself)
        if not by_itself:
            result = graph.add("Add", [result, self._offset(x)])
            graph.finite = True
        if len(request.inputs) > 4 and request.inputs[4] is not None:
            result = graph.add("Add", [result, self._stored(4, request.constant(4))])
        if request.outputs[0].dtype is not FLOAT32:
            graph.add("Cast", [result], to=request.outputs[0].dtype)
        return graph

    def _stored(self, position: int, values: Array | None) -> str:
        """An operand in float32."""
        operand = self._request.inputs[position]
        if operand is not None and operand.dtype is FLOAT32:
            return f"i{position}"
        if values is None:
            return self._graph.add("Cast", [f"i{position}"], to=WireType.FLOAT32)
        return self._graph.given(widen(values))

    def _takes_zeros_itself(self) -> bool:
        """Whether onnxruntime's product takes the zero points as they are."""
        if self._zeros is None:
            return True
        return self._zeros.dtype == np.uint8 and (self._bits == 4 or self._is_large())

    def _is_large(self) -> bool:
        return math.prod(self._shape[:-1]) >= _ROWS_TO_UNPACK_FOR

    def _integers(self, x: str, with_zeros: bool) -> str:
        """x · ((q − centre) · s)ᵀ, or with zero points where it takes them."""
        if self._bits == 4 or self._is_large():
            zeros = ["i3"] if with_zeros and self._zeros is not None else []
            return self._add(x, ["i1", self._scaled, *zeros], self._bits)
        graph = self._graph
        high, low = (graph.given(_halved(self._packed, shift)) for shift in (4, 0))
        none = graph.given(np.zeros((self._packed.shape[0], -(-self._packed.shape[1] // 2)), np.uint8))
        graph.finite = True
        upper = graph.add("Mul", [self._add(x, [high, self._scaled], 4), graph.constant(16.0)])
        return graph.add("Add", [upper, self._add(x, [low, self._scaled, none], 4)])

    def _add(self, x: str, operands: list[str], bits: int) -> str:
        sizes = {"N": self._packed.shape[0], "K": self._shape[-1], "block_size": self._block, "bits": bits}
        return self._graph.add("MatMulNBits", [x, *operands], CONTRIB, **sizes)

    def _offset(self, x: str) -> str:
        """The sums of x by blocks times the blocks' offsets."""
        graph = self._graph
        shape = graph.constant([*self._shape[:-1], self._packed.shape[1], self._block], np.int64)
        blocks = graph.add("Reshape", [x, shape])
        axes = graph.constant([len(self._shape)], np.int64)
        sums = graph.add("ReduceSum", [blocks, axes], keepdims=0)
        return graph.add("MatMul", [sums, graph.given(self._offsets.T)])


def _halved(packed: Array, shift: int) -> Array:
    """The high or the low halves of bytes, two to a byte, the first in the low bits."""
    halves = packed >> shift & 0x0F
    return np.asarray(halves[..., ::2] | halves[..., 1::2] << 4, np.uint8)


BUILD: dict[CommandKind, Build] = {CommandKind.MATMUL_NBITS: _matmul_nbits}
"""The command as nodes of ONNX; None where onnxruntime has nothing equal."""
