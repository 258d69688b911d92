"""Sums of products in floating point: MatMul, Gemm, Conv, ConvTranspose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import Activation, CommandKind
from driver_shim.protocol.types import FLOATS, WireType
from emulator.model.operators.arrays import (
    Array,
    activate,
    along,
    grouped_sums,
    optional,
    required,
    widen,
)
from emulator.model.operators.operator import Operator, Types, function, given, one_type
from emulator.model.operators.shapes import (
    broadcast,
    canvas_extent,
    conv_shape,
    conv_transpose_shape,
    matmul_shape,
    need,
)
from emulator.model.timing import Product

WHOLE = frozenset({WireType.INT32, WireType.INT64})
"""Integers that MATMUL multiplies too."""
WHOLE_EFFORT = 8
"""Of a product of integers, for which hosts have no library, for each multiplication."""


def need_bias(bias: TensorType | None, channels: int) -> None:
    """Raise SemanticError unless the bias, if any, has one value for each channel."""
    need(bias is None or bias.shape == (channels,), f"bias {bias} for {channels} channels")


def bits_of(tensor: TensorType) -> int:
    """Of an element as it is stored."""
    return 8 * tensor.dtype.stored_bytes(2) // 2


def product_of(y: TensorType, depth: int, a: TensorType, b: TensorType) -> Product:
    """The product of stacks of matrices that gives `y`. All rows meet b at once where that is one matrix."""
    *stack, height, columns = y.shape
    if math.prod(b.shape[:-2]) == 1:
        return Product(math.prod(stack) * height, depth, columns, 1, 1, bits_of(a), bits_of(b))
    return Product(height, depth, columns, math.prod(stack), 1, bits_of(a), bits_of(b))


class MatrixProduct(Operator):
    """The work of a product of matrices whose left operand is operand 0."""

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return outputs[0].elements * given(inputs, 0).shape[-1]

    def products(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> tuple[Product, ...]:
        a, b = given(inputs, 0), given(inputs, 1)
        return (product_of(outputs[0], a.shape[-1], a, b),)


class Convolution(Operator):
    """The work of a convolution whose weights are operand 1."""

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return outputs[0].elements * math.prod(given(inputs, 1).shape[1:])

    def products(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> tuple[Product, ...]:
        x, w, y = given(inputs, 0), given(inputs, 1), outputs[0]
        places, groups = y.shape[0] * math.prod(y.shape[2:]), attributes.group
        depth, columns = math.prod(w.shape[1:]), y.shape[1] // groups
        return (Product(places, depth, columns, groups, 1, bits_of(x), bits_of(w)),)

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return math.prod(given(inputs, 1).shape[2:])


class MatMul(Operator):
    """MATMUL."""

    kind = CommandKind.MATMUL
    flags = ("transpose_a", "transpose_b")

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        dtype = one_type(inputs, FLOATS | WHOLE)
        activation = function(Activation, attributes.activation)
        a, b, bias = list(given(inputs, 0).shape), list(given(inputs, 1).shape), optional(inputs, 2)
        plain = activation is Activation.NONE and attributes.alpha == 1 and (bias is None or attributes.beta == 1)
        need(dtype.is_float or plain, f"a product of {dtype.text} has neither factors nor an activation")
        if attributes.transpose_a:
            a[-2:] = reversed(a[-2:])
        if attributes.transpose_b:
            b[-2:] = reversed(b[-2:])
        shape = matmul_shape(a, b)
        need(bias is None or broadcast(bias.shape, shape) == shape, f"bias {bias} does not broadcast to {list(shape)}")
        return [TensorType(dtype, shape)]

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return outputs[0].elements * given(inputs, 0).shape[-2 if attributes.transpose_a else -1]

    def products(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> tuple[Product, ...]:
        a, b = given(inputs, 0), given(inputs, 1)
        depth = a.shape[-2 if attributes.transpose_a else -1]
        return (product_of(outputs[0], depth, a, b),)

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        slow = 1 if outputs[0].dtype.is_float else WHOLE_EFFORT
        return super().effort(attributes, inputs, outputs) + (slow - 1) * self.macs(attributes, inputs, outputs)

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """MatMul (opset 13), Gemm (opset 13): activation(alpha · A' B' + beta · bias).

        A' and B' are transposed in their last two dimensions on request; leading dimensions broadcast. Sums of
        integers wrap.
        """
        a, b = widen(required(inputs, 0)), widen(required(inputs, 1))
        bias = optional(inputs, 2)
        if attributes.transpose_a:
            a = a.swapaxes(-1, -2)
        if attributes.transpose_b:
            b = b.swapaxes(-1, -2)
        sums = a @ b
        if attributes.alpha != 1:
            sums *= np.float32(attributes.alpha)
        if bias is not None:
            sums += widen(bias) if attributes.beta == 1 else np.float32(attributes.beta) * widen(bias)
        outputs[0][...] = activate(sums, attributes)


class Conv(Convolution):
    """CONV."""

    kind = CommandKind.CONV

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        dtype = one_type(inputs, FLOATS)
        function(Activation, attributes.activation)
        shape = conv_shape(given(inputs, 0), given(inputs, 1), attributes)
        need_bias(optional(inputs, 2), shape[1])
        addend = optional(inputs, 3)
        need(addend is None or addend.shape == shape, f"addend {addend} for a result of {list(shape)}")
        return [TensorType(dtype, shape)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Conv (opset 11): activation(conv(X, W) + B + addend), zero padding, grouped, strided, dilated."""
        x, w = widen(required(inputs, 0)), widen(required(inputs, 1))
        bias, addend = optional(inputs, 2), optional(inputs, 3)
        sums = grouped_sums(x, w, outputs[0].shape[2:], attributes)
        if bias is not None:
            sums += along(widen(bias), 1, sums.ndim)
        if addend is not None:
            sums += widen(addend)
        outputs[0][...] = activate(sums, attributes)


class ConvTranspose(Convolution):
    """CONV_TRANSPOSE."""

    kind = CommandKind.CONV_TRANSPOSE

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        dtype = one_type(inputs, FLOATS)
        function(Activation, attributes.activation)
        shape = conv_transpose_shape(given(inputs, 0), given(inputs, 1), attributes)
        need_bias(optional(inputs, 2), shape[1])
        return [TensorType(dtype, shape)]

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        return given(inputs, 0).elements * math.prod(given(inputs, 1).shape[1:])

    def products(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> tuple[Product, ...]:
        x, w = given(inputs, 0), given(inputs, 1)
        places, groups = x.shape[0] * math.prod(x.shape[2:]), attributes.group
        depth, columns = x.shape[1] // groups, math.prod(w.shape[1:])
        return (Product(places, depth, columns, groups, 1, bits_of(x), bits_of(w)),)

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        padding = (math.prod(self._canvas(attributes, inputs, outputs)) - outputs[0].elements) * 4
        return super().effort(attributes, inputs, outputs) + padding

    def _canvas(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> list[int]:
        margins = zip(outputs[0].shape[2:], attributes.pads_begin, attributes.pads_end, strict=False)
        return [*outputs[0].shape[:2], *(sum(extents) for extents in margins)]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """ConvTranspose (opset 11): activation(sums + B).

        Y[n, m, i·stride + tap·dilation − pads_begin] is the sum of W[c, m, tap] · X[n, c, i] over the channels c of the
        group; `output_padding` adds elements at the end, before `pads_end` takes some away.
        """
        x, w = widen(required(inputs, 0)), widen(required(inputs, 1))
        bias = optional(inputs, 2)
        group, per_group = attributes.group, w.shape[1]
        n, channels, *spatial = x.shape
        extents = [
            canvas_extent(*sizes)
            for sizes in zip(
                spatial, w.shape[2:], attributes.strides, attributes.dilations, attributes.output_padding, strict=False
            )
        ]
        canvas = np.zeros((n, group * per_group, *extents), np.float32)
        data = x.reshape(n, group, channels // group, math.prod(spatial))
        for tap in np.ndindex(*w.shape[2:]):
            cut: tuple[Any, ...] = (..., *tap)
            weights = w[cut].reshape(group, channels // group, per_group)
            part = weights.swapaxes(1, 2) @ data
            canvas[reach(tap, spatial, attributes)] += part.reshape(n, group * per_group, *spatial)
        sums = canvas[inside(outputs[0].shape[2:], attributes)]
        if bias is not None:
            sums = sums + along(widen(bias), 1, sums.ndim)
        outputs[0][...] = activate(sums, attributes)


def reach(tap: Sequence[int], spatial: Sequence[int], attributes: Any) -> tuple[Any, ...]:
    """Where on the canvas [N, M, *extents] of a transposed convolution one tap puts data [N, C, *spatial]."""
    cuts: list[Any] = [slice(None), slice(None)]
    for i, extent in enumerate(spatial):
        start, stride = tap[i] * attributes.dilations[i], attributes.strides[i]
        cuts.append(slice(start, start + (extent - 1) * stride + 1, stride))
    return tuple(cuts)


def inside(output: Sequence[int], attributes: Any) -> tuple[Any, ...]:
    """The canvas of a transposed convolution without its padding."""
    return (..., *(slice(begin, begin + extent) for begin, extent in zip(attributes.pads_begin, output, strict=False)))


OPERATORS: tuple[Operator, ...] = (MatMul(), Conv(), ConvTranspose())
