"""An open function as the parts of the SDK share it: bring-up, memory, queues, loss, reset and close.

Nothing here is for applications: they hold a `Device`, which is a face of this. Buffers, queues and models know it by
what they need of it (`memory/port.py`, `queue/port.py`, `model/port.py`).
"""

from __future__ import annotations

import gc
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import DTypeLike

from driver_shim.cards.holder import canonical_address
from driver_shim.errors import Closed, CommandFailed, DeviceLost, NpuError
from driver_shim.function.allocator import OutOfSpace
from driver_shim.function.controller import Controller, OpenQueue
from driver_shim.function.dma import HostMemory
from driver_shim.function.pre_open import save_pre_open
from driver_shim.function.register_window import RegisterWindow
from driver_shim.shared.weak_callback import weak_callback
from sdk.memory.buffers import DEVICE_ALIGNMENT, Buffer, DeviceBuffer, HostBuffer, as_dtype, as_shape
from sdk.memory.device_memory import DeviceMemory, out_of_memory
from sdk.model.programs import ModelProgram, ResidentPrograms
from sdk.model.queue_pool import QueuePool
from sdk.model.staging_pools import StagingPools
from sdk.opening.addresses import Opened
from sdk.queue.queue import Queue, ring_entries

_open_functions: weakref.WeakSet[OpenFunction] = weakref.WeakSet()


class LoadedModel(Protocol):
    """What the function tells of its end."""

    def invalidate(self, error: NpuError) -> None:
        """The device was reset or closed, and holds nothing of the model any more."""

    def abandon_in_child(self, error: NpuError) -> None:
        """In a forked child; locks may be held by threads that do not exist here."""


class OpenFunction:
    """One open function. Thread-safe."""

    def __init__(self, opened: Opened, timeout: float, memory_limit: int | None) -> None:
        """Bring it up; `opened` is let go if that fails. `timeout` in seconds bounds every wait without its own limit.

        Raises DeviceLost, ContractMismatch, Timeout, HostMemoryLimit.
        """
        self.opened = opened
        self.transport = opened.transport
        self.address = opened.transport.address
        self.timeout = timeout
        self.may_spin = len(os.sched_getaffinity(0)) > 1
        self.reset_count = 0
        """Resets done through this object."""
        self.closed: NpuError | None = None
        """Why it can no longer be used."""
        self.queues: list[Queue] = []
        self._models: weakref.WeakSet[LoadedModel] = weakref.WeakSet()
        self._buffers: weakref.WeakSet[Buffer] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._interrupts: list[int] = []
        self._left: deque[tuple[Callable[[], bool], Callable[[], None], int]] = deque()
        """What is to be cleaned up once it is idle, with the reset it belongs to."""
        self.transport.on_unplug = weak_callback(self.lost)
        self.host_memory = HostMemory(self.transport, memory_limit)
        kind = Controller if self.transport.has_dma else RegisterWindow
        self.controller = kind(self.transport, self.host_memory, timeout)
        try:
            try:
                self.controller.bring_up()
            finally:
                self._keep_pre_open()
            self._connect_interrupts()
            self.device_memory = DeviceMemory(self.controller.device_memory(DEVICE_ALIGNMENT))
        except BaseException:
            self._release_everything()
            raise
        self.engines = max(1, self.controller.identity.engines or 1)
        self.profile = bytes(self.controller.identity.profile).rstrip(b"\0").decode("utf-8", "replace")
        """The chip, by name; empty where the device does not say."""
        self.programs = ResidentPrograms(self.controller.identity.max_programs or 1)
        self.stagings = StagingPools()
        self._model_queues = QueuePool(self.engines)
        self._finalizer = weakref.finalize(self, _let_go, opened, self._interrupts, os.getpid())
        _open_functions.add(self)

    def _keep_pre_open(self) -> None:
        """What a device that others can open too showed at first is theirs to see, above all if it did not come up."""
        record = self.controller.pre_open
        if self.opened.claim is not None and record is not None:
            save_pre_open(canonical_address(self.address), record)

    def check_open(self) -> None:
        """Raise what the function ended with, if it has."""
        if self.closed is not None:
            raise self.closed.again()

    def check_operable(self) -> None:
        """Raise unless the function is open, and in a way that has DMA."""
        self.check_open()
        self.controller.check_operable()

    def __repr__(self) -> str:
        return f"<Device {self.address}{' closed' if self.closed else ''}>"

    # --- memory ------------------------------------------------------------------------------------------------

    def host_buffer(self, shape: Any, dtype: DTypeLike) -> HostBuffer:
        """Zeroed DMA-able host memory of this shape and dtype. Raises HostMemoryLimit, TypeError, ValueError."""
        self.check_operable()
        extents, kind = as_shape(shape), as_dtype(dtype)
        size = math.prod(extents) * kind.itemsize
        buffer = HostBuffer(self, extents, kind, self.host_memory.allocate(size, alignment=DEVICE_ALIGNMENT))
        with self._lock:
            self.check_open()
            self._buffers.add(buffer)
        return buffer

    def device_buffer(self, shape: Any, dtype: DTypeLike) -> DeviceBuffer:
        """Device memory of this shape and dtype, contents unspecified.

        Raises OutOfDeviceMemory, TypeError, ValueError.
        """
        self.check_operable()
        extents, kind = as_shape(shape), as_dtype(dtype)
        size = math.prod(extents) * kind.itemsize
        with self._lock:
            self.check_open()
            try:
                address = self._allocate(size)
            except OutOfSpace as space:
                raise out_of_memory(space, self.address) from None
            buffer = DeviceBuffer(self, extents, kind, address)
            self._buffers.add(buffer)
        return buffer

    @property
    def free_bytes(self) -> int:
        """Device memory that nobody has, in pieces."""
        with self._lock:
            self.check_open()
            self._clean_up()
            return self.device_memory.free_bytes

    def _allocate(self, size: int) -> int:
        """Device memory; called with the lock held. Raises OutOfSpace."""
        self._clean_up()
        try:
            return self.device_memory.allocate(size)
        except OutOfSpace:
            gc.collect()  # buffers and models that were let go may still hang in cycles
            self._clean_up()
            return self.device_memory.allocate(size)

    def uses(self, buffer: object) -> bool:
        """Whether a command in flight on any queue uses the buffer."""
        return any(queue._completions.uses(buffer) for queue in list(self.queues))

    # --- queues and models -------------------------------------------------------------------------------------

    def create_queue(self, depth: int, when_full: str) -> Queue:
        """A new queue. Raises CommandFailed when all are taken."""
        self.check_operable()
        with self._lock:
            self.check_open()
            self._clean_up()
            entries = ring_entries(depth)
            opened = self.controller.create_queue(entries, entries)
            queue = Queue(self, opened, depth, when_full, self._interrupts[opened.pair.queue_id])
            self.queues.append(queue)
            return queue

    def delete_queue(self, queue: object, opened: OpenQueue) -> None:
        """A queue closes: delete it on the device, unless that is gone."""
        with self._lock:
            if queue in self.queues:
                self.queues.remove(queue)
                if self.closed is None:
                    self.controller.delete_queue(opened)

    def add_model(self, model: LoadedModel) -> None:
        """Tell the model of the function's reset and end from now on."""
        with self._lock:
            self.check_open()
            self._clean_up()
            self._models.add(model)

    def load_program(self, image: bytes, constants: Sequence[tuple[int, int]]) -> int:
        """Load a compiled container whose constants lie at these (device address, bytes); returns its handle."""
        with self._lock:
            self.check_open()
            return self.controller.load_program(image, constants)

    def unload_program(self, handle: int, reset_count: int) -> None:
        """Forget a program, unless a reset (they are counted) did so already."""
        with self._lock:
            if self.closed is None and reset_count == self.reset_count:
                self.controller.unload_program(handle)

    def program_report(self, program: ModelProgram) -> list[tuple[str, int]]:
        """(kernel, nanoseconds) of each command of a program's newest run; empty when the device has it not."""
        with self._lock:
            self.check_open()
            return self.controller.program_report(program.handle) if program.handle is not None else []

    def make_resident(self, program: ModelProgram) -> None:
        """Put a program on the device, in place of others if need be."""
        while program.handle is None:
            with self._lock:
                self.check_open()
                if program.reset_count != self.reset_count:
                    raise Closed("the device was reset", device=self.address, remedy="load the model again")
                self._clean_up()
                run = self.programs.load(program, self)
            if run is not None:
                run._await_end()  # without the lock, which a reset needs

    def drop_program(self, program: ModelProgram) -> None:
        """Take a program off the device for good, unless a reset did so already."""
        self.programs.drop(program, self)

    def take_queue(self) -> Queue:
        """A queue for a lane of a model, which other lanes may use, too. Raises CommandFailed."""
        with self._lock:
            return self._model_queues.take(self.create_queue)

    def give_queue(self, queue: Queue) -> None:
        """A lane needs its queue no more; the last one closes it."""
        with self._lock:
            unused = self._model_queues.give(queue)
        if unused is not None:
            unused.close()

    def when_idle(self, idle: Callable[[], bool], clean_up: Callable[[], None], reset_count: int) -> None:
        """Have `clean_up` called once `idle` says so. Runs inside finalisers: it only notes it."""
        self._left.append((idle, clean_up, reset_count))

    def _clean_up(self) -> None:
        """Clean up what was let go and is idle now; called with the lock held."""
        for _ in range(len(self._left)):
            idle, clean_up, reset_count = self._left.popleft()
            if reset_count != self.reset_count:
                continue
            if idle():
                clean_up()
            else:
                self._left.append((idle, clean_up, reset_count))
        self.device_memory.reclaim()

    # --- life cycle --------------------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raise DeviceLost (and mark the device lost) unless it answers."""
        self.check_open()
        try:
            self.controller.check_alive()
        except DeviceLost:
            # A reset has it not ready for a moment, and holds the lock: once it has ended the device tells the truth.
            with self._lock:
                self.check_open()
                try:
                    self.controller.check_alive()
                except DeviceLost as error:
                    self.lost(error)
                    raise

    def lost(self, error: NpuError) -> None:
        """The device is gone: everything outstanding ends with `error`."""
        with self._lock:
            if self.closed is None:
                self.closed = error
        for queue in list(self.queues):
            queue._completions.fail_all(error, error)
        if self.opened.claim is not None and not self.transport.alive():
            self.opened.claim.release()  # nobody should wait for us to close what is gone

    def reset(self) -> None:
        """Reset the device; see `Device.reset`."""
        self.check_operable()
        gone = self._was_reset("create it again from the device")
        failed = CommandFailed(
            "the device was reset before the command ended", code="device-reset", device=self.address
        )
        try:
            self.controller.interrupt_waits()
            with self._lock:
                self.check_open()
                self._reset_locked(failed, gone)
        finally:
            self.controller.resume()

    def _was_reset(self, remedy: str) -> Closed:
        return Closed("the device was reset", device=self.address, remedy=remedy)

    def _reset_locked(self, failed: CommandFailed, gone: Closed) -> None:
        queues = self.queues
        try:
            self.reset_count += 1
            self.queues = []
            for queue in queues:
                queue._completions.shut(gone)
            self._reset_controller()
        except DeviceLost as error:
            self.lost(error)
            raise
        finally:
            for queue in queues:
                queue._completions.fail_all(failed, gone)
            for buffer in list(self._buffers):
                if isinstance(buffer, DeviceBuffer):
                    buffer._invalidate()
            for model in list(self._models):
                model.invalidate(self._was_reset("load it again"))
            self.programs.forget_all()
            self._model_queues.forget_all()
            self._left.clear()
            self.device_memory = DeviceMemory(self.controller.device_memory(DEVICE_ALIGNMENT))

    def _reset_controller(self) -> None:
        try:
            self.controller.reset()
        except NpuError:
            raise
        except BaseException:  # Ctrl-C half way: go all the way, so that the device can be used
            self.controller.reset()
            self._connect_interrupts()
            raise
        self._connect_interrupts()

    def close(self) -> None:
        """Let the function go; a private emulator ends. Outstanding commands end with CommandFailed. Idempotent."""
        if not self._finalizer.alive:
            return
        self.controller.interrupt_waits()
        with self._lock:
            if not self._finalizer.alive:
                return
            if self.closed is None:
                self.closed = Closed("the device is closed", device=self.address, remedy="open it again")
            closed = self.closed
            unfinished = CommandFailed(
                "the device was closed before the command ended", code="device-closed", device=self.address
            )
            queues = list(self.queues)
            for queue in queues:
                queue._completions.shut(closed)
            self._release_everything()
            for queue in queues:
                queue._completions.fail_all(unfinished, closed)
            self.queues = []
            for model in list(self._models):
                model.invalidate(closed)
            self.programs.forget_all()
            self._model_queues.forget_all()
            self._left.clear()
            for buffer in list(self._buffers):
                buffer._invalidate()
            self._finalizer.detach()  # last: what Ctrl-C cuts short, the next call or the end of the process completes

    def _release_everything(self) -> None:
        try:
            self.controller.shut_down()
        except NpuError:
            pass  # it is gone already, or never came up: what is left to do is local
        self.controller.let_go()
        self.host_memory.close()
        _let_go(self.opened, self._interrupts, os.getpid())

    def _connect_interrupts(self) -> None:
        if not self._interrupts:
            count = self.transport.interrupt_count()
            self._interrupts += [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        self.transport.set_interrupts(self._interrupts)

    def abandon_in_child(self) -> None:
        """In a forked child: everything is Closed, and nothing here touches the device.

        Locks may be held by threads that do not exist here.
        """
        gone = Closed(
            "the device belongs to the parent process", device=self.address, remedy="open a device after forking"
        )
        self.closed = gone
        self._finalizer.detach()
        self.transport.abandon_in_child()
        self._lock = threading.RLock()
        for queue in self.queues:
            queue._completions.shut_in_child(gone)
        for model in list(self._models):
            model.abandon_in_child(gone)
        self.programs.abandon_in_child()
        self._model_queues.forget_all()
        for buffer in list(self._buffers):
            buffer._invalidate()


def _let_go(opened: Opened, interrupts: list[int], owner: int) -> None:
    """Close what the operating system holds; in a forked child nothing, it belongs to the parent."""
    if os.getpid() != owner:
        return
    opened.transport.close()
    while interrupts:
        os.close(interrupts.pop())
    opened.let_go()


def _after_fork_in_child() -> None:
    for function in list(_open_functions):
        function.abandon_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
