"""`Model`: a network on a device. Operators are checked at load, shapes are compiled when first used."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import Closed, NpuError, QueueFull
from driver_shim.protocol.commands import MAX_BINDINGS
from sdk.compiler import TensorInfo, compile_model, model_signature, read_model
from sdk.here_only import HereOnly
from sdk.memory.buffers import HostBuffer
from sdk.model.port import ModelOwner
from sdk.model.programs import LoadedProgram, Outputs
from sdk.model.weights import Weights
from sdk.queue.events import Event
from sdk.queue.queue import Queue

Shape = tuple[int, ...]
ShapeKey = tuple[Shape, ...]
_log = logging.getLogger("npu")
QUEUE_DEPTH = 2 * MAX_BINDINGS
"""More than the commands of one run, so that each run goes into the queue whole."""


class _Parts:
    """What a model has on the device. Outlives it in its finaliser."""

    def __init__(self, weights: Weights) -> None:
        self.lock = threading.Lock()
        self.weights = weights
        self.closed: NpuError | None = None
        """Why the model cannot be used any more."""
        self.loaded: dict[ShapeKey, LoadedProgram] = {}
        self.queue: Queue | None = None

    def take(self) -> tuple[list[LoadedProgram], Queue | None]:
        """All of it, which the caller disposes of. Emptied, not replaced: the finaliser knows this object."""
        loaded, queue = list(self.loaded.values()), self.queue
        self.loaded, self.queue = {}, None
        self.weights.clear()
        return loaded, queue

    def invalidate(self, error: NpuError) -> None:
        """The device was reset or closed, and holds nothing of the model any more."""
        if self.closed is None:
            self.closed = error
        self.take()

    def abandon_in_child(self, error: NpuError) -> None:
        """In a forked child; the lock may be held by a thread that does not exist here."""
        self.lock = threading.Lock()
        self.invalidate(error)


class Model(HereOnly):
    """A loaded network. Call it with arrays, by name or in the order of `inputs`. Thread-safe.

    Locks are taken in the order model, device; a reset holds the device's and therefore never takes a model's.
    """

    def __init__(self, owner: ModelOwner, source: Any) -> None:
        """Use `Device.load`."""
        self._owner = owner
        self._proto = read_model(source)
        self._signature = model_signature(self._proto)
        self._parts = _Parts(Weights(owner))
        weakref.finalize(self, _abandon, owner, self._parts, owner.reset_count).atexit = False

    def _compile_for(self, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Compile and load for input shapes that are known beforehand."""
        for key in _requested_shapes(self.inputs, shapes):
            self._program(key, expected=True)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape (symbolic extents by name) and dtype of every input."""
        return self._signature.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape and dtype of every output, in graph order."""
        return self._signature.outputs

    def __call__(self, *arrays: Any, timeout: float | None = None, **named: Any) -> Outputs:
        """Run and wait: `model({"data": x})`, `model(x)` or `model(data=x)`; returns {output name: array}.

        Raises TypeError or ValueError for wrong inputs, CommandFailed, Timeout, DeviceLost, Closed.
        """
        return self.submit(*arrays, **named).result(timeout)

    def submit(self, *arrays: Any, **named: Any) -> Event[Outputs]:
        """Start a run. The input arrays may be reused when this returns."""
        return self._start(self._in_order(arrays, named))

    async def run_async(self, *arrays: Any, **named: Any) -> Outputs:
        """Run without holding up the event loop: what waits, for a compilation or for room, does so in a thread.

        The input arrays may be reused when this returns.
        """
        inputs = self._in_order(arrays, named)
        event = self._start_at_once(inputs)
        if event is None:
            import asyncio  # whoever awaits has it; nobody else should pay for it

            event = await asyncio.to_thread(self._start, inputs)
        return await event

    def _start(self, inputs: list[NDArray[Any]]) -> Event[Outputs]:
        """Start a run, when its program is compiled and the queue has room."""
        program = self._program(tuple(array.shape for array in inputs))
        return program.start(self._open_queue(), inputs)

    def _start_at_once(self, inputs: list[NDArray[Any]]) -> Event[Outputs] | None:
        """Start a run if that takes no waiting."""
        parts = self._parts
        program, queue = parts.loaded.get(tuple(array.shape for array in inputs)), parts.queue
        if program is None or queue is None:
            return None
        try:
            return program.start(queue, inputs, may_wait=False)
        except QueueFull:
            return None

    def close(self) -> None:
        """Take the model off the device; runs in flight end with CommandFailed. Idempotent."""
        with self._parts.lock:
            loaded, queue = self._parts.take()
            if self._parts.closed is None:
                self._parts.closed = Closed("the model is closed", device=self._owner.address, remedy="load it again")
        if queue is not None:
            queue.close()
        _unload(loaded)

    def __repr__(self) -> str:
        return f"<Model {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}>"

    # --- inputs ------------------------------------------------------------------------------------------------

    def _in_order(self, arrays: tuple[Any, ...], named: dict[str, Any]) -> list[NDArray[Any]]:
        """The arrays of one run, checked, in the order of the model's inputs. Raises TypeError, ValueError."""
        values = self._by_name(arrays, named)
        checked = [_checked(info, values[info.name]) for info in self.inputs]
        _agree_on_symbols(self.inputs, checked)
        return checked

    def _by_name(self, arrays: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        names = [info.name for info in self.inputs]
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            values = {**arrays[0], **named}
        else:
            if len(arrays) > len(names):
                raise TypeError(f"{len(arrays)} arrays given; the model takes {len(names)}: {', '.join(names)}")
            values = {**dict(zip(names, arrays, strict=False)), **named}
        missing = [name for name in names if name not in values]
        unknown = [name for name in values if name not in names]
        if missing or unknown:
            wrong = f"input {unknown[0]!r} is unknown" if unknown else f"input {missing[0]!r} is missing"
            raise TypeError(f"{wrong}; the model takes: {', '.join(map(str, self.inputs))}")
        return values

    # --- programs ----------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._parts.closed is not None:
            raise self._parts.closed.again()

    def _program(self, key: ShapeKey, *, expected: bool = False) -> LoadedProgram:
        """The program for these input shapes, compiled and loaded if there is none yet."""
        with self._parts.lock:
            self._check_open()
            program = self._parts.loaded.get(key)
            if program is None:
                program = self._compile(key, expected)
                if self._parts.closed is not None:  # a reset came meanwhile
                    program.unload()
                    self._check_open()
                self._parts.loaded[key] = program
            return program

    def _compile(self, key: ShapeKey, expected: bool) -> LoadedProgram:
        began = time.monotonic()
        shapes = {info.name: shape for info, shape in zip(self.inputs, key, strict=True)}
        compiled = compile_model(self._proto, shapes)
        program = LoadedProgram(self._owner, compiled, self._parts.weights, self._queue_locked())
        dynamic = any(not isinstance(extent, int) for info in self.inputs for extent in info.shape)
        if dynamic and not expected:
            _log.warning(
                "compiled for new input shapes %s in %.2f s; name them in load(shapes=...) to do it there",
                shapes,
                time.monotonic() - began,
            )
        return program

    def _open_queue(self) -> Queue:
        with self._parts.lock:
            self._check_open()
            return self._queue_locked()

    def _queue_locked(self) -> Queue:
        queue = self._parts.queue
        if queue is None:
            queue = self._owner.create_queue(QUEUE_DEPTH, "wait")
            if self._parts.closed is not None:
                queue.close()
                self._check_open()
            self._parts.queue = queue
        return queue


def _abandon(owner: ModelOwner, parts: _Parts, reset_count: int) -> None:
    """A model was let go: it is unloaded once its last run has ended."""
    loaded, queue = parts.take()
    if loaded or queue is not None:
        owner.when_idle(queue, partial(_unload, loaded), reset_count)


def _unload(programs: list[LoadedProgram]) -> None:
    for program in programs:
        program.unload()


def _checked(info: TensorInfo, value: Any) -> NDArray[Any]:
    """The value as an array of exactly the declared dtype and a shape that fits. Raises TypeError, ValueError."""
    array = value.array if isinstance(value, HostBuffer) else value
    dtype = np.dtype(info.dtype)
    if not isinstance(array, (np.ndarray, np.generic)):
        raise TypeError(
            f"input {info.name!r}: expected an array {info}, got {type(value).__name__};"
            f" use np.asarray(x, dtype={dtype.name!r})"
        )
    array = np.asarray(array)
    if array.dtype != dtype:
        got = array.dtype.name if array.dtype.name != dtype.name else f"{dtype.name} of foreign byte order"
        raise TypeError(f"input {info.name!r}: expected {dtype.name}, got {got}; use x.astype({dtype.name!r})")
    fits = len(array.shape) == len(info.shape) and all(
        not isinstance(wanted, int) or wanted == got for wanted, got in zip(info.shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"input {info.name!r}: expected shape {_show(info.shape)}, got {array.shape}; reshape it")
    return array


def _agree_on_symbols(inputs: Sequence[TensorInfo], arrays: list[NDArray[Any]]) -> None:
    """Raise ValueError when one symbolic extent has two values."""
    seen: dict[str, tuple[int, str]] = {}
    for info, array in zip(inputs, arrays, strict=True):
        for wanted, got in zip(info.shape, array.shape, strict=True):
            if isinstance(wanted, str):
                value, where = seen.setdefault(wanted, (got, info.name))
                if value != got:
                    raise ValueError(f"extent {wanted!r} is {value} in input {where!r} and {got} in {info.name!r}")


def _show(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(str(extent) for extent in shape) + ("," if len(shape) == 1 else "") + ")"


def _requested_shapes(inputs: Sequence[TensorInfo], shapes: Mapping[str, Sequence[Sequence[int]]]) -> list[ShapeKey]:
    """The combinations to compile at load: the i-th shape of every input together. Raises TypeError, ValueError."""
    if not isinstance(shapes, Mapping) or not all(
        isinstance(listed, Sequence) and not isinstance(listed, str) for listed in shapes.values()
    ):
        raise TypeError(f'shapes takes lists of shapes by input: {{"{inputs[0].name}": [(1, 3, 224, 224)]}}')
    if not shapes:
        return []
    names = [info.name for info in inputs]
    for name in shapes:
        if name not in names:
            raise ValueError(f"shapes names input {name!r}; the model takes: {', '.join(names)}")
    counts = {len(listed) for listed in shapes.values()}
    if len(counts) != 1:
        raise ValueError(f"shapes lists different numbers of shapes: { {n: len(s) for n, s in shapes.items()} }")
    keys = []
    for index in range(counts.pop()):
        key = []
        for info in inputs:
            listed = shapes.get(info.name)
            if listed is None and not all(isinstance(extent, int) for extent in info.shape):
                raise ValueError(f"shapes must name input {info.name!r} too: its shape {_show(info.shape)} is symbolic")
            chosen = info.shape if listed is None else listed[index]
            if not isinstance(chosen, Sequence) or isinstance(chosen, str):
                raise TypeError(f'shapes takes lists of shapes: {{"{info.name}": [(1, 3, 224, 224)]}}')
            key.append(_checked_shape(info, tuple(chosen)))
        keys.append(tuple(key))
    return keys


def _checked_shape(info: TensorInfo, shape: tuple[Any, ...]) -> Shape:
    fits = len(shape) == len(info.shape) and all(
        isinstance(got, int) and got >= 0 and (not isinstance(wanted, int) or wanted == got)
        for wanted, got in zip(info.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"shapes: {shape} does not fit input {info.name!r} of shape {_show(info.shape)}")
    return shape
