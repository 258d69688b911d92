"""Convolutions between tensors in blocks of channels, with the operators that onnxruntime itself rewrites them to."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from driver_shim.protocol.program import ALIGNMENT, TensorType, make_attributes
from driver_shim.protocol.program_commands import Activation, CommandKind
from driver_shim.protocol.types import WireType
from emulator.engines.kernels.blocks import filter_is_blocked
from emulator.engines.kernels.onnxruntime.graph import BLOCKED, CommandGraph, window_fields
from emulator.engines.kernels.onnxruntime.session import session_kernel
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array

_SIZES = (16, 8)
"""Channels of a block: as many floats as a register of the processor holds."""
_X, _WEIGHTS, _BIAS, _ADDEND = range(4)
_RANK = 2


def prepare(request: KernelRequest) -> Kernel | None:
    """CONV with some of its images in blocks; None for others."""
    weights, blocks, attributes = request.constant(_WEIGHTS), request.blocks, request.attributes
    if request.kind is not CommandKind.CONV or blocks is None or weights is None:
        return None
    graph = CommandGraph()

    def image(at: int) -> str:
        if at >= len(request.inputs) or request.inputs[at] is None:
            return ""
        narrow = at == _X and weights.shape[1] < blocks.size and attributes.group == 1
        return f"i{at}" if at in blocks.inputs or narrow else graph.add("ReorderInput", [f"i{at}"], BLOCKED)

    bias = f"i{_BIAS}" if len(request.inputs) > _BIAS and request.inputs[_BIAS] is not None else ""
    activation = Activation(attributes.activation)
    more = {} if activation is Activation.NONE else {"activation": activation.name.capitalize()}
    limits = {"activation_params": [attributes.low, attributes.high]} if activation is Activation.CLIP else {}
    product = graph.add(
        "Conv",
        [image(_X), f"i{_WEIGHTS}", bias, image(_ADDEND)],
        BLOCKED,
        group=attributes.group,
        kernel_shape=weights.shape[2:],
        **window_fields(attributes, _RANK),
        **more,
        **limits,
    )
    if not blocks.output:
        graph.add("ReorderOutput", [product], BLOCKED, channels=weights.shape[0], channels_last=0)
    constants = list(request.constants)
    constants[_WEIGHTS] = _filter(weights, attributes.group, blocks.size)
    return session_kernel(dataclasses.replace(request, constants=tuple(constants)), graph)


def _filter(weights: Array, group: int, size: int) -> Array:
    """Weights [M, C, H, W] as [M/size, C, H, W, size], or as [M/size, C/size, H, W, size of C, size of M]."""
    outputs, inputs, *window = weights.shape
    if filter_is_blocked(weights.shape, group, size):
        split = weights.reshape(outputs // size, size, inputs // size, size, *window).transpose(0, 2, 4, 5, 3, 1)
    else:
        split = weights.reshape(outputs // size, size, inputs, *window).transpose(0, 2, 3, 4, 1)
    filled = _aligned(weights.shape)
    filled.reshape(split.shape)[...] = split
    return filled


def _aligned(shape: tuple[int, ...]) -> Array:
    """Room for float32 that begins a cache line, as registers' worth of it is read; numpy's own begins anywhere."""
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    return room[begin : begin + size].view(np.float32).reshape(shape)


@functools.cache
def block_size() -> int:
    """Channels of the blocks that this onnxruntime has on this processor; 0 where it has none, or others."""
    channels = max(_SIZES)
    image = TensorType(WireType.FLOAT32, (1, channels, 1, 2))
    request = KernelRequest(CommandKind.COPY, make_attributes(CommandKind.COPY), (image,), (image,), (None,))
    graph = CommandGraph()
    graph.add("ReorderInput", ["i0"], BLOCKED)
    kernel = session_kernel(request, graph)
    if kernel is None:
        return 0
    x, y = np.arange(2 * channels, dtype=np.float32).reshape(image.shape), np.empty(image.shape, np.float32)
    kernel([x], [y])
    return next((size for size in _SIZES if np.array_equal(y, in_blocks(x, size))), 0)


def in_blocks(image: Array, size: int) -> Array:
    """The same elements of [N, C, H, W], lying as [N, C/size, H, W, size]."""
    n, c, h, w = image.shape
    return np.ascontiguousarray(image.reshape(n, c // size, size, h, w).transpose(0, 1, 3, 4, 2)).reshape(image.shape)
