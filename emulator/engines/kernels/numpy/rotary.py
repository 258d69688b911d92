"""ROTARY with the caches joined once: neighbours are one complex number, which a product turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators import OPERATORS
from emulator.model.operators.arrays import Array, required
from emulator.model.operators.attention import by_head
from emulator.model.operators.rotary import POSITIONS, rows_of_places


def prepare_rotary(request: KernelRequest) -> Kernel | None:
    """A kernel for neighbours or halves of whole heads of float32, by constant caches and positions."""
    x, cosines, sines = request.inputs[0], request.constant(1), request.constant(2)
    has_positions = len(request.inputs) > POSITIONS and request.inputs[POSITIONS] is not None
    if x is None or x.dtype is not WireType.FLOAT32 or cosines is None or sines is None or not has_positions:
        return None
    size = x.shape[-1] // max(1, request.attributes.heads)
    if 2 * cosines.shape[-1] != size or not x.elements:
        return None
    return _Turn(request.attributes, cosines, sines).run


class _Turn:
    """The command with its caches."""

    def __init__(self, attributes: Any, cosines: Array, sines: Array) -> None:
        self._attributes = attributes
        self._turns = np.empty(cosines.shape, np.complex64)
        self._turns.real, self._turns.imag = cosines, sines

    def run(self, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Fill the output."""
        x, y, heads = required(inputs, 0), outputs[0], self._attributes.heads
        if heads:
            x, y = by_head(x, heads), by_head(y, heads)
        turns = rows_of_places(self._turns, required(inputs, POSITIONS))
        if self._attributes.interleaved:
            if x.strides[-1] == y.strides[-1] == x.itemsize:
                np.multiply(x.view(np.complex64), turns, out=y.view(np.complex64))
                return
            OPERATORS[CommandKind.ROTARY].run(self._attributes, inputs, outputs)
            return
        half = turns.shape[-1]
        low, high, cosines, sines = x[..., :half], x[..., half:], turns.real, turns.imag
        np.subtract(low * cosines, high * sines, out=y[..., :half])
        np.add(low * sines, high * cosines, out=y[..., half:])
