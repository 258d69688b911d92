"""Channels in blocks: the layout that intermediate results take among commands whose kernels are quickest with it.

A tensor [N, C, H, W] in blocks of B lies in memory as [N, C/B, H, W, B]. Convolutions of onnxruntime compute in this
layout, and reorder what comes and goes otherwise; so what one gives and another takes stays in it. Commands that treat
every element, or every channel, alike pass it on. Only intermediates do: nobody else sees them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import Activation, CommandKind, PoolFunction
from driver_shim.protocol.types import WireType
from emulator.engines.kernels.provider import Blocks, KernelRequest

CHANNELS = 1
_IMAGE_RANK = 4
_X, _WEIGHTS, _BIAS, _ADDEND = range(4)
_PACKED = (_WEIGHTS, _BIAS)
KINDS = frozenset({CommandKind.CONV, CommandKind.POOL})
"""Commands whose kernels have to know of blocks; to others that pass them on it is all one."""
ACTIVATIONS = frozenset({Activation.NONE, Activation.RELU, Activation.CLIP})


class PlacedRequest(NamedTuple):
    """A command, and which tensors its operands and outputs are."""

    request: KernelRequest
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]


def with_blocks(commands: Sequence[PlacedRequest], private: Collection[int], size: int) -> list[KernelRequest]:
    """The commands' requests, in execution order, with the tensors in blocks named. `private` are intermediates."""
    blocked = _blocked(commands, private, size)
    return [_with_blocks(command, blocked, size) for command in commands]


def _with_blocks(command: PlacedRequest, blocked: Collection[int], size: int) -> KernelRequest:
    if command.request.kind not in KINDS:
        return command.request
    inputs = frozenset(at for at, tensor in enumerate(command.inputs) if tensor in blocked)
    output = command.outputs[0] in blocked
    if not inputs and not output:
        return command.request
    return dataclasses.replace(command.request, blocks=Blocks(size, inputs, output))


def _blocked(commands: Sequence[PlacedRequest], private: Collection[int], size: int) -> set[int]:
    """Intermediates that only commands which can do so give and take in blocks, some convolution among them."""
    plain: set[int] = set()
    given: set[int] = set()
    passing: list[set[int]] = []
    for command in commands:
        operands = {tensor for tensor in command.inputs if tensor is not None}
        if is_convolution(command.request, size):
            plain |= {tensor for at, tensor in enumerate(command.inputs) if tensor is not None and at in _PACKED}
            if not _is_image(command.request.inputs[_X], size):
                plain |= operands
            given.add(command.outputs[0])
        elif passes_blocks(command.request, size):
            passing.append(operands | {command.outputs[0]})
            given.add(command.outputs[0])
        else:
            plain |= operands | set(command.outputs)
    blocked = (given & set(private)) - plain
    while mixed := [tensors for tensors in passing if not tensors <= blocked and tensors & blocked]:
        blocked = blocked.difference(*mixed)
    return blocked


def is_convolution(request: KernelRequest, size: int) -> bool:
    """Whether a command is a convolution that can take and give blocks."""
    x, y = request.inputs[0] if request.inputs else None, request.outputs[0]
    weights = request.constant(_WEIGHTS)
    if request.kind is not CommandKind.CONV or not _is_image(x, 1) or not _is_image(y, size) or weights is None:
        return False
    bias, addend = ((*request.inputs, None, None)[at] for at in (_BIAS, _ADDEND))
    if (bias is not None and request.constant(_BIAS) is None) or (addend is not None and addend.shape != y.shape):
        return False
    if Activation(request.attributes.activation) not in ACTIVATIONS:
        return False
    return filter_is_blocked(weights.shape, request.attributes.group, size) is not None


def filter_is_blocked(shape: Sequence[int], group: int, size: int) -> bool | None:
    """Whether weights [M, C/group, …] lie in blocks of both channels, else in those of M; None if in neither."""
    outputs, inputs = shape[:2]
    if inputs == 1 and group == outputs and outputs % size == 0:
        return False
    if group == 1 and inputs < size and outputs % size == 0:
        return False
    return True if inputs % size == 0 and (outputs // group) % size == 0 else None


def passes_blocks(request: KernelRequest, size: int) -> bool:
    """Whether a command computes the same in blocks as without, all of its tensors being images."""
    tensors = (*request.inputs, request.outputs[0])
    if len(request.outputs) > 1 or not all(_is_image(tensor, size) for tensor in tensors):
        return False
    kind, attributes = request.kind, request.attributes
    if kind is CommandKind.UNARY:
        return True
    if kind is CommandKind.BINARY:
        return len({tensor.shape for tensor in tensors if tensor is not None}) == 1
    if kind is CommandKind.CONCAT:
        return bool(attributes.axis == CHANNELS)
    return kind is CommandKind.POOL and attributes.function == PoolFunction.MAX


def _is_image(tensor: TensorType | None, size: int) -> bool:
    return (
        tensor is not None
        and tensor.dtype is WireType.FLOAT32
        and len(tensor.shape) == _IMAGE_RANK
        and tensor.elements > 0
        and tensor.shape[CHANNELS] % size == 0
    )
