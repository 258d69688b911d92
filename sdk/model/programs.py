"""One loaded program: operands and workspace in device memory, staging in host memory for each run in flight."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import QueueFull
from driver_shim.protocol.commands import BINDING
from sdk.compiler import CompiledProgram
from sdk.memory.buffers import HostBuffer
from sdk.model.port import ModelOwner
from sdk.model.weights import Weights
from sdk.queue.batch import Batch
from sdk.queue.events import Event
from sdk.queue.queue import Queue

Outputs = dict[str, NDArray[Any]]


class RunEvent(Event[Outputs]):
    """The end of a model's run: its last copy, failed if any command before it failed."""

    __slots__ = ("earlier",)
    earlier: list[Event[Any]]

    def follows(self, earlier: list[Event[Any]]) -> None:
        """It answers for these commands of the run, too."""
        self.earlier = earlier
        for event in earlier:
            event._answered = True

    def _finish(self, status: int, start_tick: int, end_tick: int) -> None:
        """The last command completed; those before it had already, queues being in order."""
        for event in self.earlier:
            failure = event._take_failure()
            if failure is not None:
                self._fail(failure)
                return
        super()._finish(status, self.earlier[0].start_tick or start_tick, end_tick)


class Staging:
    """Host memory of one run in flight; reused by a later one."""

    def __init__(self, owner: ModelOwner, program: CompiledProgram) -> None:
        self.inputs = [owner.host_buffer(t.shape, t.dtype) for t in program.inputs]
        self.outputs = [owner.host_buffer(t.shape, t.dtype) for t in program.outputs]


class LoadedProgram:
    """A compiled program on the device, with its operands.

    All runs go through one queue, which is in order, so they share operands and workspace in device memory: the next
    run's inputs are copied in after this one's outputs were copied out.
    """

    def __init__(self, owner: ModelOwner, program: CompiledProgram, weights: Weights, queue: Queue) -> None:
        self._owner = owner
        self._reset_count = owner.reset_count
        constants = weights.place(program.constants, queue)
        self.program = dataclasses.replace(program, constants=())
        """Without its constants, which are on the device now."""
        self._inputs = [owner.device_buffer(t.shape, t.dtype) for t in program.inputs]
        self._outputs = [owner.device_buffer(t.shape, t.dtype) for t in program.outputs]
        self._workspace = owner.device_buffer(program.workspace_bytes, "uint8")
        self._bindings = self._binding_table(owner)
        self._operands = (*self._inputs, *self._outputs, self._workspace, self._bindings, *weights.buffers)
        self._lock = threading.Lock()
        self._idle: list[Staging] = []
        self.handle = owner.load_program(program.image, constants)

    def start(self, queue: Queue, arrays: list[NDArray[Any]], *, may_wait: bool = True) -> Event[Outputs]:
        """Submit one run: inputs in, exec, outputs back. The arrays were checked and may be reused on return.

        Raises QueueFull where `may_wait` is False and the queue has no room for the run.
        """
        with self._lock:
            staging = self._idle.pop() if self._idle else None
        if staging is None:
            staging = Staging(self._owner, self.program)
        for host, array in zip(staging.inputs, arrays, strict=True):
            np.copyto(host.array, array)
        try:
            return self._submit(queue.batch() if may_wait else queue._batch_that_never_waits(), queue, staging)
        except QueueFull:  # nothing of it was submitted
            with self._lock:
                self._idle.append(staging)
            raise

    def _submit(self, recording: Batch, queue: Queue, staging: Staging) -> Event[Outputs]:
        with recording as batch:
            for operand, host in zip(self._inputs, staging.inputs, strict=True):
                batch.copy(operand, host)
            batch._exec(self.handle, self._bindings, self._workspace, self._operands)
            for host, operand in zip(staging.outputs, self._outputs, strict=True):
                batch.copy(host, operand)
            event = RunEvent(queue._completions, "model run", staging.outputs, self._outputs_of(staging))
            event.follows(batch._events())
            batch._conclude(event)
        return event

    def _binding_table(self, owner: ModelOwner) -> HostBuffer:
        """Addresses and sizes of inputs and outputs, as exec reads them."""
        operands = self._inputs + self._outputs
        bindings = owner.host_buffer(len(operands) * BINDING.size, "uint8")
        table = BINDING.view(bindings.array, count=len(operands))
        table["address"] = [operand.address for operand in operands]
        table["size"] = [operand.nbytes for operand in operands]
        return bindings

    def _outputs_of(self, staging: Staging) -> Callable[[], Outputs]:
        def convert() -> Outputs:
            outputs = {
                info.name: host.array.copy() for info, host in zip(self.program.outputs, staging.outputs, strict=True)
            }
            with self._lock:
                self._idle.append(staging)
            return outputs

        return convert

    def unload(self) -> None:
        """Take it off the device."""
        self._owner.unload_program(self.handle, self._reset_count)
