"""`MixedModel`: a network of which the host runs what the device has no command for."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import Closed, CommandFailed, NpuError, Timeout
from sdk.compiler import CompiledProgram
from sdk.compiler.compile import NeedsValues
from sdk.compiler.graph import Graph
from sdk.compiler.placement import NodePlacement
from sdk.memory.buffers import Span, as_dtype
from sdk.model.device_model import DeviceModel
from sdk.model.inputs import Call, requested_shapes
from sdk.model.model import Model
from sdk.model.parts import Parts
from sdk.model.pipeline import DeviceRegion, Pipeline
from sdk.model.port import ModelOwner
from sdk.model.programs import CommandRun
from sdk.model.progress import current, expected
from sdk.model.runs import Outputs
from sdk.queue.events import Event

if TYPE_CHECKING:
    import asyncio

_log = logging.getLogger("npu")
THREADS = 4
"""Runs of one model that are under way at the same time; further ones wait for a thread."""


class MixedModel(Model):
    """A model whose regions run on the device and in onnxruntime on the host, as `report` says.

    It is called like any other. Its regions run one after the other; between them tensors are in host memory.
    """

    def __init__(self, owner: ModelOwner, graph: Graph, load: Callable[[Graph], DeviceModel]) -> None:
        """Use `Device.load(..., fallback="cpu")`. `load` puts a region on the device."""
        super().__init__(owner, graph, graph.signature, Parts())
        self._load = load
        self._regions: weakref.WeakSet[DeviceModel] = weakref.WeakSet()
        self._overridden: dict[tuple[str, ...], Pipeline] = {}
        self._ran: Pipeline | None = None
        """Of the newest run."""
        self._lock = threading.Lock()
        self._pipeline = Pipeline(graph, self._region)
        self._pipeline.check()
        self._threads = ThreadPoolExecutor(THREADS, "npu-host-region")
        weakref.finalize(self, self._threads.shutdown, wait=False).atexit = False

    @property
    def report(self) -> tuple[NodePlacement, ...]:
        """Where each node runs, why not on the device, and what crosses the bus because of that."""
        return self._pipeline.report

    def command_runs(self) -> tuple[CommandRun, ...]:
        """The device's commands of the newest run that succeeded, region by region; empty before one."""
        self._parts.check_open()
        regions = self._ran.on_device() if self._ran is not None else []
        return tuple(run for region in regions if isinstance(region, _OnDevice) for run in region.command_runs())

    def _compile_for(self, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Run once for each set of shapes, on zeros: what does not fit the device shows, and programs are compiled."""
        for key in expected(requested_shapes(self.inputs, shapes), self._pipeline.device_regions):
            arrays = [np.zeros(shape, as_dtype(info.dtype)) for info, shape in zip(self.inputs, key, strict=True)]
            try:
                self._run(Call(arrays))
            except CommandFailed as error:
                _log.debug("zeros are no input for the model, which compiles when it is run: %s", error)

    def _latest(self) -> CompiledProgram | None:
        """The one program, where the device turned out to run all of the model."""
        regions = list(self._regions)
        return regions[0]._latest() if len(regions) == 1 and self._pipeline.is_whole else None

    def _submit(self, call: Call, into: Mapping[str, Span]) -> Event[Outputs]:
        """Have a thread run it, on copies of the arguments: it may begin after this returns."""
        self._parts.check_open()
        copied = Call([np.array(value) for value in call.values], call.optional)
        return _HostQueue(self._owner, self._threads.submit(self._run, copied)).event

    async def _run_async(self, call: Call, into: Mapping[str, Span]) -> Outputs:
        return await self._submit(call, into)

    def _end(self, error: Closed) -> None:
        self._parts.end(error)
        self._threads.shutdown(wait=False)
        for region in list(self._regions):
            region.close()

    def _checked_out(self, out: Mapping[str, Span]) -> Mapping[str, Span]:
        raise TypeError("out is not possible where nodes run on the host: take the arrays that the run returns")

    def _run(self, call: Call) -> Outputs:
        self._parts.check_open()
        pipeline = self._pipeline_for(call.optional)
        outputs = pipeline.run(self._inputs.named(call))
        self._ran = pipeline
        return outputs

    def _pipeline_for(self, optional: tuple[str, ...]) -> Pipeline:
        """The pipeline for calls that name these inputs instead of taking their defaults."""
        if not optional:
            return self._pipeline
        with self._lock:
            found = self._overridden.get(optional)
            if found is None:
                found = self._overridden[optional] = Pipeline(self._graph.without_defaults(optional), self._region)
            return found

    def _region(self, graph: Graph) -> DeviceRegion:
        model = self._load(graph)
        model._keep_quiet_about_shapes()
        self._regions.add(model)
        return _OnDevice(model)


class _OnDevice:
    """A region that is a model of its own on the device."""

    def __init__(self, model: DeviceModel) -> None:
        self._model = model

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Outputs:
        """What it gives for these."""
        outputs = self._model(dict(arrays))
        current().loaded()  # if this is a run by which the model is loaded
        return outputs

    def command_runs(self) -> tuple[CommandRun, ...]:
        """The commands of its newest run."""
        return self._model.command_runs()

    def check(self) -> None:
        """Compile it for the shapes that it declares, and keep that for when it is loaded."""
        try:
            _ = self._model.plan
        except NeedsValues:
            return  # the first run gives them


class _HostQueue:
    """What an event waits on where no queue of the device's ends it: a thread of this process."""

    def __init__(self, owner: ModelOwner, future: Future[Outputs]) -> None:
        self._owner = owner
        self._future = future
        self._lock = threading.Lock()
        self.convert_lock = threading.Lock()
        self.event: Event[Outputs] = Event(self, "model run", convert=future.result)

    @property
    def address(self) -> str:
        """The device's."""
        return self._owner.address

    def reap(self) -> None:
        """Settle the event if the run has ended. Never blocks."""
        if self._future.done():
            self._settle()

    def wait_for(self, event: Any, timeout: float | None) -> None:
        """Wait until the run has ended. Raises Timeout."""
        limit = self._owner.timeout if timeout is None else timeout
        try:
            self._future.exception(None if limit == float("inf") else limit)
        except TimeoutError:
            raise Timeout(f"the model run did not end within {limit:g} s", device=self.address) from None
        self._settle()

    def notify(self, event: Any, future: asyncio.Future[None]) -> None:
        """Resolve `future` in its loop when the run has ended."""
        loop = future.get_loop()
        self._future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._resolve, future))

    def command_error(self, what: str, status: int) -> Any:
        """No command of a queue's is behind the event."""
        raise ValueError(f"{what} ended with the status {status}, which nobody reported")

    def _resolve(self, future: asyncio.Future[None]) -> None:
        self._settle()
        if not future.done():
            future.set_result(None)

    def _settle(self) -> None:
        with self._lock:
            error = self._future.exception()
            if error is None:
                self.event._finish(0, 0, 0)
            elif isinstance(error, NpuError):
                self.event._fail(error)
            else:
                self.event._fail(NpuError(f"the model run failed: {error}", device=self.address, cause=repr(error)))
