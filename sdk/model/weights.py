"""A model's weights in device memory: each goes there once, whatever programs name it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import HostMemoryLimit, NpuError
from driver_shim.protocol.program import align_up
from sdk.compiler import Constant
from sdk.memory.buffers import Buffer, DeviceBuffer, HostBuffer, Span
from sdk.model import progress
from sdk.model.port import ModelOwner
from sdk.queue.events import Event
from sdk.queue.queue import Queue

STAGING_BYTES = 4 << 20
"""Of each of the two pieces of host memory that weights go through: large enough for the link, small beside a model."""

LEAST_STAGING_BYTES = 4 << 10


class Placement(NamedTuple):
    """Where the constants of one program go."""

    addresses: list[tuple[int, int]]
    """(device address, bytes) of each."""
    keep: tuple[Span, ...]
    """The same, which holds the memory."""
    missing: list[tuple[Constant, Span]]
    """Those that are not there yet, and their places."""
    known: dict[str, Span]
    """Where the places are noted once something is there. A reset replaces it, whenever it comes."""


class Weights:
    """The constants of all programs of one model, by their keys. The caller serialises."""

    def __init__(self, owner: ModelOwner) -> None:
        self._owner = owner
        self._places: dict[str, Span] = {}

    def reserve(self, constants: Sequence[Constant]) -> Placement:
        """Places for constants; `send` fills those that are not there yet. Raises OutOfDeviceMemory, Closed."""
        known = self._places
        missing = {constant.key: constant for constant in constants if constant.key not in known}
        new = dict(zip(missing, self._allocate(list(missing.values())), strict=True))
        spans = tuple(known[constant.key] if constant.key in known else new[constant.key] for constant in constants)
        return Placement(
            [(span.address, span.nbytes) for span in spans],
            spans,
            [(constant, new[key]) for key, constant in missing.items()],
            known,
        )

    def send(self, placement: Placement, meanwhile: Callable[[], None]) -> None:
        """Send what is not there yet. `meanwhile` is called beside it where that takes long, else not at all.

        Raises HostMemoryLimit, CommandFailed, Timeout, DeviceLost, Closed, and what `meanwhile` does.
        """
        if not placement.missing:
            return
        size = sum(constant.type.size_bytes for constant, _ in placement.missing)
        queue = self._owner.take_queue()
        upload: Upload | None = None
        try:
            upload = Upload(self._owner, queue, min(max(size, 1), STAGING_BYTES))
            with upload, _Beside(meanwhile) if size > STAGING_BYTES else contextlib.nullcontext():
                for constant, span in placement.missing:
                    for sent in upload.send(constant.array, span):
                        progress.current().sending(sent, size)
        except BaseException:
            self._owner.give_queue(queue)  # which ends what is in flight, if it is nobody else's
            _let_go([*(upload.pieces if upload is not None else []), *(span._root for _, span in placement.missing)])
            del upload, queue  # whose memory would else be kept by the error's traceback
            raise
        self._owner.give_queue(queue)
        placement.known.update({constant.key: span for constant, span in placement.missing})

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """What they lie in: a buffer for each program that brought new ones."""
        return tuple({id(span._root): span._root for span in self._places.values()}.values())

    def clear(self) -> None:
        """Let go of them; memory that a run in flight reads goes after it."""
        self._places = {}

    def _allocate(self, constants: Sequence[Constant]) -> list[Span]:
        """Places for constants in a new buffer, each on a cache line of its own."""
        if not constants:
            return []
        offsets, end = [], 0
        for constant in constants:
            offsets.append(end)
            end += align_up(constant.type.size_bytes)
        buffer = self._owner.device_buffer(end, "uint8")
        return [buffer[at : at + each.type.size_bytes] for at, each in zip(offsets, constants, strict=True)]


class _Beside:
    """Something that a thread does while the block is at work; what it raised is raised at the block's end."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._error: NpuError | None = None
        self._thread = threading.Thread(target=self._run, name="npu-load", daemon=True)

    def _run(self) -> None:
        try:
            self._action()
        except NpuError as error:
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error


class Upload:
    """Copies of arrays to device memory through two pieces of host memory in turn. The block's end waits for the last.

    An array is read once and copied once on this side, whatever its strides.
    """

    def __init__(self, owner: ModelOwner, queue: Queue, staging_bytes: int) -> None:
        self._queue = queue
        self.pieces = _pieces(owner, staging_bytes)
        self._size = self.pieces[0].nbytes
        self._sent = 0
        self._busy: list[Event[None] | None] = [None, None]
        self._turn = 0

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            for event in self._busy:
                if event is not None:
                    event.wait()
            for piece in self.pieces:
                piece.free()

    def send(self, array: NDArray[Any], destination: Span) -> Iterator[int]:
        """Have an array's elements, in C order, at `destination`, which has as many bytes; gives all bytes sent so far.

        It is sent as that is asked for.
        """
        done = 0
        for part in _parts(array, self._size):
            sent = self._send_part(part, destination[done : done + part.nbytes])
            done += sent
            self._sent += sent
            yield self._sent

    def _send_part(self, part: NDArray[Any], destination: Span) -> int:
        turn, self._turn = self._turn, 1 - self._turn
        event = self._busy[turn]
        if event is not None:
            event.wait()
        piece = self.pieces[turn][: part.nbytes]
        there = np.asarray(piece).view(part.dtype).reshape(part.shape)
        np.copyto(there, part)
        self._busy[turn] = self._queue.copy(destination, piece)
        return part.nbytes


def _let_go(buffers: Iterable[Buffer]) -> None:
    """Give memory back at once, whatever the traceback of an error holds; what is in use goes after that."""
    for buffer in buffers:
        if isinstance(buffer, HostBuffer | DeviceBuffer):
            with contextlib.suppress(NpuError):
                buffer.free()


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
