"""Products with packed weights, which are unpacked once where memory allows that."""

from __future__ import annotations

import threading
import weakref
from collections import deque
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
        self._returned: deque[int] = deque()

    def take(self, size: int) -> bool:
        """Take some, if there is as much."""
        with self._lock:
            while self._returned:
                self._left += self._returned.popleft()
            if size > self._left:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        """Return what was taken. Without the lock, since finalisers do: the next who takes some counts it."""
        self._returned.append(size)


_room = _Room(HELD_BYTES)


class _Product:
    """A product with weights [rows, depth] that are held as floats, in room that was taken."""

    def __init__(self, rows: int, depth: int) -> None:
        weakref.finalize(self, _room.give_back, _bytes_of(rows, depth))
        self.weights = np.empty((rows, depth), np.float32)

    def run(self, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        sums = widen(required(inputs, 0)) @ self.weights.T
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
    depth = x.shape[-1]
    if not _room.take(_bytes_of(rows, depth)):
        return None
    product = _Product(rows, depth)
    for part, unpacked in unpacked_rows(request.attributes, depth, request.constants):
        product.weights[part] = unpacked
    return product.run


def _bytes_of(rows: int, depth: int) -> int:
    return rows * depth * np.dtype(np.float32).itemsize
