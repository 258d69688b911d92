"""One loaded program and the buffers of its runs: staging in host memory, operands and workspace in device memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.protocol.commands import BINDING
from sdk.buffers import DeviceBuffer, HostBuffer
from sdk.compiler import CompiledProgram
from sdk.events import Event
from sdk.queues import Queue

if TYPE_CHECKING:
    from sdk.device import Device

Outputs = dict[str, NDArray[Any]]


class RunEvent(Event[Outputs]):
    """The end of a model's run: its last copy, failed if any command before it failed."""

    __slots__ = ("earlier",)
    earlier: list[Event[Any]]

    def finish(self, status: int, start_tick: int, end_tick: int) -> None:
        """The last command completed; those before it had already, queues being in order."""
        for event in self.earlier:
            failure = event.take_failure()
            if failure is not None:
                self.fail(failure)
                return
        super().finish(status, self.earlier[0].start_tick or start_tick, end_tick)


class RunBuffers:
    """What one run in flight needs; reused by the next one."""

    def __init__(self, device: Device, program: CompiledProgram) -> None:
        self.host_inputs = [device.host_buffer(t.shape, t.dtype) for t in program.inputs]
        self.host_outputs = [device.host_buffer(t.shape, t.dtype) for t in program.outputs]
        self.device_inputs = [device.buffer(t.shape, t.dtype) for t in program.inputs]
        self.device_outputs = [device.buffer(t.shape, t.dtype) for t in program.outputs]
        self.workspace: DeviceBuffer = device.buffer(program.workspace_bytes, "uint8")
        bound = self.device_inputs + self.device_outputs
        self.bindings: HostBuffer = device.host_buffer(len(bound) * BINDING.size, "uint8")
        table = BINDING.view(self.bindings.array, count=len(bound))
        table["address"] = [buffer.address for buffer in bound]
        table["size"] = [buffer.nbytes for buffer in bound]

    def all(self) -> list[Any]:
        """Every buffer, to be kept while the run is in flight."""
        device = [*self.device_inputs, *self.device_outputs, self.workspace, self.bindings]
        return [*self.host_inputs, *self.host_outputs, *device]


class LoadedProgram:
    """A compiled program on the device."""

    def __init__(self, device: Device, program: CompiledProgram) -> None:
        self.program = program
        self._reset_count = device.reset_count
        self.constants = device.buffer(program.constants_bytes, "uint8")
        """Weights in device memory, laid out as the container's constants section."""
        self.handle = device.load_program(program.image, self.constants)
        self._device = device
        self._lock = threading.Lock()
        self._idle: list[RunBuffers] = []

    def start(self, queue: Queue, arrays: list[NDArray[Any]]) -> Event[Outputs]:
        """Submit one run: inputs in, exec, outputs back. The arrays were checked and may be reused on return."""
        with self._lock:
            buffers = self._idle.pop() if self._idle else None
        if buffers is None:
            buffers = RunBuffers(self._device, self.program)
        for staging, array in zip(buffers.host_inputs, arrays, strict=True):
            np.copyto(staging.array, array)
        with queue.batch() as batch:
            for to, source in zip(buffers.device_inputs, buffers.host_inputs, strict=True):
                batch.copy(to, source)
            batch.exec(self.handle, buffers.bindings, buffers.workspace, buffers.all())
            for to_host, result in zip(buffers.host_outputs, buffers.device_outputs, strict=True):
                batch.copy(to_host, result)
            event = RunEvent(queue, "model run", buffers.all(), self._outputs_of(buffers))
            event.earlier = batch.events()
            batch.conclude(event)
        return event

    def _outputs_of(self, buffers: RunBuffers) -> Callable[[], Outputs]:
        def convert() -> Outputs:
            outputs = {
                info.name: staging.array.copy()
                for info, staging in zip(self.program.outputs, buffers.host_outputs, strict=True)
            }
            with self._lock:
                self._idle.append(buffers)
            return outputs

        return convert

    def unload(self) -> None:
        """Take it off the device."""
        self._device.unload_program(self.handle, self._reset_count)
