"""A model's weights in device memory: each goes there once, whatever programs name it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import HostMemoryLimit
from driver_shim.protocol.program import align_up
from sdk.compiler import Constant
from sdk.memory.buffers import DeviceBuffer, HostBuffer, Span
from sdk.model.port import ModelOwner
from sdk.queue.events import Event
from sdk.queue.queue import Queue

STAGING_BYTES = 4 << 20
"""Of each of the two pieces of host memory that weights go through: large enough for the link, small beside a model."""

LEAST_STAGING_BYTES = 4 << 10


class Weights:
    """The constants of all programs of one model, by their keys. The caller serialises."""

    def __init__(self, owner: ModelOwner) -> None:
        self._owner = owner
        self._places: dict[str, Span] = {}
        self.buffers: list[DeviceBuffer] = []
        """What they lie in: a buffer for each program that brought new ones."""

    def place(self, constants: Sequence[Constant]) -> list[tuple[int, int]]:
        """(device address, bytes) of each constant; those that are not there yet are sent first.

        Raises OutOfDeviceMemory, HostMemoryLimit, CommandFailed, Timeout, DeviceLost, Closed.
        """
        places, buffers = self._places, self.buffers  # which a reset replaces, whenever it comes
        missing = {constant.key: constant for constant in constants if constant.key not in places}
        if missing:
            queue = self._owner.take_queue()
            try:
                buffer, spans = self._send(list(missing.values()), queue)
            finally:
                self._owner.give_queue(queue)
            places.update(zip(missing, spans, strict=True))
            buffers.append(buffer)
        spans = [places[constant.key] for constant in constants]
        return [(span.address, span.nbytes) for span in spans]

    def clear(self) -> None:
        """Let go of them; memory that a run in flight reads goes after it."""
        self._places = {}
        self.buffers = []

    def _send(self, constants: Sequence[Constant], queue: Queue) -> tuple[DeviceBuffer, list[Span]]:
        """Constants in a new buffer, each on a cache line of its own; returns it and their places."""
        offsets, end = [], 0
        for constant in constants:
            offsets.append(end)
            end += align_up(constant.type.size_bytes)
        buffer = self._owner.device_buffer(end, "uint8")
        spans = [buffer[at : at + each.type.size_bytes] for at, each in zip(offsets, constants, strict=True)]
        with Upload(self._owner, queue, min(max(end, 1), STAGING_BYTES)) as upload:
            for constant, span in zip(constants, spans, strict=True):
                upload.send(constant.array, span)
        return buffer, spans


class Upload:
    """Copies of arrays to device memory through two pieces of host memory in turn. The block's end waits for the last.

    An array is read once and copied once on this side, whatever its strides.
    """

    def __init__(self, owner: ModelOwner, queue: Queue, staging_bytes: int) -> None:
        self._queue = queue
        self._pieces = _pieces(owner, staging_bytes)
        self._size = self._pieces[0].nbytes
        self._busy: list[Event[None] | None] = [None, None]
        self._turn = 0

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            for event in self._busy:
                if event is not None:
                    event.wait()
            for piece in self._pieces:
                piece.free()

    def send(self, array: NDArray[Any], destination: Span) -> None:
        """Have an array's elements, in C order, at `destination`, which has as many bytes."""
        done = 0
        for part in _parts(array, self._size):
            done += self._send_part(part, destination[done : done + part.nbytes])

    def _send_part(self, part: NDArray[Any], destination: Span) -> int:
        turn, self._turn = self._turn, 1 - self._turn
        event = self._busy[turn]
        if event is not None:
            event.wait()
        piece = self._pieces[turn][: part.nbytes]
        there = np.asarray(piece).view(part.dtype).reshape(part.shape)
        np.copyto(there, part)
        self._busy[turn] = self._queue.copy(destination, piece)
        return part.nbytes


def _pieces(owner: ModelOwner, size: int) -> list[HostBuffer]:
    """Two pieces of host memory of this size, or of less where a limit forbids it. Raises HostMemoryLimit."""
    while True:
        try:
            return [owner.host_buffer(size, "uint8") for _ in range(2)]
        except HostMemoryLimit:
            if size <= LEAST_STAGING_BYTES:
                raise
            size = max(size // 4, LEAST_STAGING_BYTES)


def _parts(array: NDArray[Any], most_bytes: int) -> Iterator[NDArray[Any]]:
    """Views of an array, at most so many bytes each, whose elements one after the other are the array's in C order."""
    if array.nbytes <= most_bytes:
        if array.size:
            yield array
    elif array.flags.c_contiguous:
        flat, count = array.reshape(-1), most_bytes // array.itemsize
        for start in range(0, len(flat), count):
            yield flat[start : start + count]
    else:
        for row in array:
            yield from _parts(row, most_bytes)
