"""Products with packed weights, which are unpacked once where memory allows that."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import numpy as np

from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array, optional, required, widen
from emulator.model.operators.packed_products import unpacked_rows

HELD_BYTES = 1 << 30
"""Floats that all kernels of a process may hold together."""


class _Room:
    """What is left of the memory for floats."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Take some, if there is as much."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        """Return what was taken."""
        with self._lock:
            self._left += size


_room = _Room(HELD_BYTES)


class _Product:
    """A product with weights [rows, depth] that are held as floats."""

    def __init__(self, weights: Array) -> None:
        self._weights = weights

    def run(self, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        sums = widen(required(inputs, 0)) @ self._weights.T
        bias = optional(inputs, 4)
        if bias is not None:
            sums += widen(bias)
        outputs[0][...] = sums


def prepare_matmul_nbits(request: KernelRequest) -> Kernel | None:
    """MATMUL_NBITS over floats; None where the weights are not known, or their floats have no room."""
    x, rows = request.inputs[0], request.outputs[0].shape[-1]
    unknown = any(kind is not None and request.constant(i) is None for i, kind in enumerate(request.inputs[:4]) if i)
    if x is None or unknown:
        return None
    weights_bytes = rows * x.shape[-1] * np.dtype(np.float32).itemsize
    if not _room.take(weights_bytes):
        return None
    weights = np.empty((rows, x.shape[-1]), np.float32)
    for part, unpacked in unpacked_rows(request.attributes, x.shape[-1], request.constants):
        weights[part] = unpacked
    product = _Product(weights)
    weakref.finalize(product, _room.give_back, weights_bytes)
    return product.run
