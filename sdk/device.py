"""`Device`: one open function, its memory, its queues and its models."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from numpy.typing import DTypeLike

from driver_shim.cards.holder import canonical_address
from driver_shim.errors import Closed, CommandFailed, DeviceLost, NpuError, OutOfDeviceMemory
from driver_shim.firmware.core_state import SensorReadings, read_boot_progress, read_firmware_version, read_sensors
from driver_shim.function.allocator import OutOfSpace
from driver_shim.function.controller import Controller, OpenQueue
from driver_shim.function.dma import HostMemory
from driver_shim.function.pre_open import save_pre_open
from driver_shim.function.register_window import RegisterWindow
from driver_shim.function.registers import Registers
from driver_shim.protocol.commands import LogPage
from driver_shim.transport.base import Transport
from sdk import environment
from sdk.log_pages import Activity, ErrorLogEntry, decode_activity, decode_error_log
from sdk.memory.buffers import DEVICE_ALIGNMENT, Buffer, DeviceBuffer, HostBuffer, as_dtype, as_shape
from sdk.opening.addresses import Opened, open_address
from sdk.opening.listing import DeviceInfo, bus_facts
from sdk.queue.queue import MAX_DEPTH, MIN_DEPTH, Queue, ring_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sdk.model.model import Model
    from sdk.model.programs import LoadedProgram

_open_devices: weakref.WeakSet[Device] = weakref.WeakSet()


class Device:
    """An NPU, real or emulated. Thread-safe.

    Args:
        address: "pci:0000:03:00.0", "emulator", "emulator:PROFILE?kernels=auto|numpy|golden", "vfio-user:SOCKET",
            "sysfs:0000:03:00.0" (registers and BARs only, no reset; as root), or "usb:SERIAL" (registers only, through
            the debug port; "usb:SERIAL?force=yes" writes though a program has the device). None takes `NPU_DEVICE`,
            else the first free card (`NPU_VISIBLE_DEVICES` chooses and orders them), else, on a machine without one, a
            private emulator, with a warning.
        strict: make that fall-back an error (None: `NPU_STRICT`).
        when_busy: while another program holds the device, "fail" (DeviceBusy names it) or "wait" for it in line, for up
            to `timeout` seconds. "share" is reserved.
        timeout: seconds that bound bring-up, admin commands and every wait without its own limit (None: `NPU_TIMEOUT`,
            else 60).

    Raises:
        ValueError: the address, `when_busy` or the time-out cannot be read.
        UnsupportedPlatform, DeviceNotFound, DeviceBusy, PermissionDenied, DeviceLost, ContractMismatch, Timeout.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        strict: bool | None = None,
        when_busy: str = "fail",
        timeout: float | None = None,
    ) -> None:
        if address is not None and not isinstance(address, str):
            raise TypeError(f"device address must be a string, got {type(address).__name__}")
        self._timeout = _checked_timeout(timeout)
        memory_limit = environment.host_memory_bytes()
        self._start(open_address(address, strict, self._timeout, when_busy), memory_limit)

    @classmethod
    def over(cls, transport: Transport, *, timeout: float | None = None) -> Device:
        """A device over a transport that is already open (tests and tools)."""
        self = cls.__new__(cls)
        self._timeout = _checked_timeout(timeout)
        self._start(Opened(transport), environment.host_memory_bytes())
        return self

    def _start(self, opened: Opened, memory_limit: int | None) -> None:
        self._opened = opened
        self.transport = opened.transport
        self.address = opened.transport.address
        self.reset_count = 0
        """Resets done through this object."""
        self.may_spin = len(os.sched_getaffinity(0)) > 1
        self._lock = threading.RLock()
        self._closed: NpuError | None = None
        self._queues: list[Queue] = []
        self._models: weakref.WeakSet[Model] = weakref.WeakSet()
        self._buffers: weakref.WeakSet[DeviceBuffer] = weakref.WeakSet()
        self._host_buffers: weakref.WeakSet[HostBuffer] = weakref.WeakSet()
        self._interrupts: list[int] = []
        self.transport.on_unplug = _teller(self)
        self._released: deque[tuple[int, int]] = deque()
        """Device addresses that finalisers gave back, with the reset they belong to."""
        self._unloaded: deque[tuple[Queue | None, list[LoadedProgram], int]] = deque()
        """What models that were let go left on the device, with the reset they belong to."""
        self.memory = HostMemory(self.transport, memory_limit)
        kind = Controller if self.transport.has_dma else RegisterWindow
        self._controller = kind(self.transport, self.memory, self._timeout)
        try:
            try:
                self._controller.bring_up()
            finally:
                self._keep_pre_open()
            self._connect_interrupts()
            self._allocator = self._controller.device_memory(DEVICE_ALIGNMENT)
            self._info = self._describe()
        except BaseException:
            self._release_everything()
            raise
        self._finalizer = weakref.finalize(self, _abandon, opened, self._interrupts, os.getpid())
        _open_devices.add(self)

    def _keep_pre_open(self) -> None:
        """What a device that others can open too showed at first is theirs to see, above all if it did not come up."""
        record = self._controller.pre_open
        if self._opened.claim is not None and record is not None:
            save_pre_open(canonical_address(self.address), record)

    # --- facts -------------------------------------------------------------------------------------------------

    @property
    def info(self) -> DeviceInfo:
        """What the device said of itself at open, and of its firmware once that had started. Readable after close."""
        boot = self._info.boot
        if self._closed is None and boot is not None and not boot.runs_image:
            with contextlib.suppress(NpuError):  # whether it is there still is not the question
                self._info = dataclasses.replace(self._info, **_firmware_facts(self._controller.registers))
        return self._info

    @property
    def timeout(self) -> float:
        """Seconds that bound every wait without a limit of its own."""
        return self._timeout

    @property
    def registers(self) -> Registers:
        """Typed access to the registers: `dev.registers.status.ready`."""
        self._check_open()
        return self._controller.registers

    @property
    def closed(self) -> bool:
        """Whether it was closed or lost."""
        return self._closed is not None

    def sensors(self) -> SensorReadings | None:
        """What the management core last measured; None without one, or when it has not measured for a second."""
        self._check_open()
        return read_sensors(self._controller.registers)

    def errors(self) -> list[ErrorLogEntry]:
        """The device's error log, newest first."""
        self._check_operable()
        return decode_error_log(self._controller.log_page(LogPage.ERRORS))

    def activity(self) -> Activity:
        """What the device has done since power-on."""
        self._check_operable()
        return decode_activity(self._controller.log_page(LogPage.ACTIVITY))

    def black_box(self) -> bytes:
        """The BLACK_BOX log page: what the last loss of a client or fatal error saved (`present` 0 when nothing)."""
        self._check_operable()
        return self._controller.log_page(LogPage.BLACK_BOX)

    def _describe(self) -> DeviceInfo:
        data = self._controller.identity
        profile = _text(data.profile) or None
        emulator = self._opened.emulator
        revision = self._controller.registers.revision.declaration.decode(data.silicon_revision)
        return DeviceInfo(
            name="NPU" + (f" {profile}" if profile else "") + (" (emulator)" if data.emulated else ""),
            address=self.address,
            profile=profile,
            serial=_text(data.serial) or None,
            emulated=None if data.emulated is None else bool(data.emulated),
            **_firmware_facts(self._controller.registers),
            kernels=_text(data.kernels) or None,
            memory_bytes=data.memory_bytes,
            tick_hz=data.tick_hertz,
            engines=data.engines,
            contract=f"{data.contract_major}.{data.contract_minor}",
            revision=f"{revision['major']}.{revision['minor']}",
            max_queues=data.max_io_queues,
            driver=self.transport.name,
            pid=emulator.pid if emulator else None,
            pre_open=self._controller.pre_open,
            **bus_facts(self.address),
        )

    # --- memory ------------------------------------------------------------------------------------------------

    def host_buffer(self, shape: Any, dtype: DTypeLike) -> HostBuffer:
        """Zeroed DMA-able host memory of this shape and dtype. Raises HostMemoryLimit, TypeError, ValueError."""
        self._check_operable()
        extents, kind = as_shape(shape), as_dtype(dtype)
        size = math.prod(extents) * kind.itemsize
        buffer = HostBuffer(self, extents, kind, self.memory.allocate(size, alignment=DEVICE_ALIGNMENT))
        with self._lock:
            self._check_open()
            self._host_buffers.add(buffer)
        return buffer

    def buffer(self, shape: Any, dtype: DTypeLike) -> DeviceBuffer:
        """Device memory of this shape and dtype, contents unspecified.

        Raises OutOfDeviceMemory, TypeError, ValueError.
        """
        self._check_operable()
        extents, kind = as_shape(shape), as_dtype(dtype)
        size = math.prod(extents) * kind.itemsize
        with self._lock:
            self._check_open()
            try:
                address = self._allocate(size)
            except OutOfSpace as space:
                raise self._out_of_memory(space) from None
            buffer = DeviceBuffer(self, extents, kind, address)
            self._buffers.add(buffer)
        return buffer

    def _allocate(self, size: int) -> int:
        """Device memory; called with the lock held. Raises OutOfSpace."""
        self._reclaim()
        try:
            return self._allocator.allocate(size, DEVICE_ALIGNMENT)
        except OutOfSpace:
            gc.collect()  # buffers and models that were let go may still hang in cycles
            self._reclaim()
            return self._allocator.allocate(size, DEVICE_ALIGNMENT)

    def _out_of_memory(self, space: OutOfSpace) -> OutOfDeviceMemory:
        fragmented = space.free >= space.requested
        return OutOfDeviceMemory(
            f"{space.requested} bytes of device memory asked for; {space.free} are free, the largest piece has"
            f" {space.largest} ({'fragmentation' if fragmented else 'exhaustion'})",
            device=self.address,
            subsystem="memory",
            remedy="free buffers or models that are no longer needed",
            requested=space.requested,
            available=space.free,
            largest=space.largest,
        )

    def release_device_memory(self, address: int, reset_count: int) -> None:
        """A device buffer went away; may run inside a finaliser, so it only notes it."""
        self._released.append((address, reset_count))

    def _reclaim(self) -> None:
        """Take back what finalisers released; called with the lock held."""
        for _ in range(len(self._unloaded)):
            self._unload(*self._unloaded.popleft())
        while self._released:
            address, reset_count = self._released.popleft()
            if reset_count == self.reset_count:
                self._allocator.free(address)

    def uses(self, buffer: Buffer) -> bool:
        """Whether a command in flight on any queue uses the buffer."""
        return any(queue.uses(buffer) for queue in list(self._queues))

    # --- queues and models -------------------------------------------------------------------------------------

    def queue(self, *, depth: int = 256, when_full: str = "wait") -> Queue:
        """A new queue for up to `depth` (2–4096) submitted, uncompleted commands.

        `when_full`: "wait" makes a submission wait for room, "raise" makes it raise QueueFull.
        """
        self._check_operable()
        if isinstance(depth, bool) or not isinstance(depth, int) or not MIN_DEPTH <= depth <= MAX_DEPTH:
            raise ValueError(f"depth must be an int from {MIN_DEPTH} to {MAX_DEPTH}, got {depth!r}")
        if when_full not in ("wait", "raise"):
            raise ValueError(f'when_full must be "wait" or "raise", got {when_full!r}')
        with self._lock:
            self._check_open()
            self._reclaim()
            entries = ring_entries(depth)
            opened = self._controller.create_queue(entries, entries)
            queue = Queue(self, opened, depth, when_full, self._interrupts[opened.pair.queue_id])
            self._queues.append(queue)
            return queue

    def forget_queue(self, queue: Queue, opened: OpenQueue) -> None:
        """A queue closes: delete it on the device."""
        with self._lock:
            if queue in self._queues:
                self._queues.remove(queue)
                if self._closed is None:
                    self._controller.delete_queue(opened)

    def load(self, model: Any, *, shapes: Mapping[str, Sequence[Sequence[int]]] | None = None) -> Model:
        """Load a model: an ONNX path, bytes or ModelProto. Checks every operator now, compiles when first called.

        `shapes` maps an input to the shapes to compile now: {"data": [(1, 3, 224, 224)]}.
        Raises UnsupportedModel (node, operator, reason), FileNotFoundError, OutOfDeviceMemory.
        """
        from sdk.model.model import Model

        self._check_operable()
        loaded = Model(self, model)
        with self._lock:
            self._check_open()
            self._reclaim()
            self._models.add(loaded)
        try:
            loaded.compile_for(shapes or {})
        except BaseException:
            loaded.close()
            raise
        return loaded

    def load_program(self, image: bytes, constants: DeviceBuffer) -> int:
        """Load a compiled container, its constants into a buffer; returns its handle. Models call this."""
        with self._lock:
            self._check_open()
            return self._controller.load_program(image, constants.address)

    def unload_program(self, handle: int, reset_count: int) -> None:
        """Forget a program, unless a reset (they are counted) did so already."""
        with self._lock:
            if self._closed is None and reset_count == self.reset_count:
                self._controller.unload_program(handle)

    def abandon_programs(self, queue: Queue | None, programs: list[LoadedProgram], reset_count: int) -> None:
        """A model was let go: unload it by and by. Runs inside a finaliser, so it only notes it."""
        self._unloaded.append((queue, programs, reset_count))

    def _unload(self, queue: Queue | None, programs: list[LoadedProgram], reset_count: int) -> None:
        """Unload what a model left, once its last run has ended; called with the lock held."""
        if reset_count != self.reset_count:
            return
        if queue is not None:
            if not queue.idle():
                self._unloaded.append((queue, programs, reset_count))
                return
            queue.close()
        for program in programs:
            program.unload()

    # --- life cycle --------------------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raise DeviceLost (and mark the device lost) unless it answers."""
        self._check_open()
        try:
            self._controller.check_alive()
        except DeviceLost:
            # A reset has it not ready for a moment, and holds the lock: once it has ended the device tells the truth.
            with self._lock:
                self._check_open()
                try:
                    self._controller.check_alive()
                except DeviceLost as error:
                    self.lost(error)
                    raise

    def lost(self, error: NpuError) -> None:
        """The device is gone: everything outstanding ends with `error`."""
        with self._lock:
            if self._closed is None:
                self._closed = error
        for queue in list(self._queues):
            queue.fail_all(error, error)
        if self._opened.claim is not None and not self.transport.alive():
            self._opened.claim.release()  # nobody should wait for us to close what is gone

    def reset(self) -> None:
        """Reset the device. Outstanding commands end with CommandFailed (code "device-reset"); queues, device buffers

        and models are Closed; host buffers stay; the device is ready again when this returns.
        """
        self._check_operable()
        gone = Closed("the device was reset", device=self.address, remedy="create it again from the device")
        failed = CommandFailed(
            "the device was reset before the command ended", code="device-reset", device=self.address
        )
        try:
            self._controller.give_up()
            with self._lock:
                self._check_open()
                self._reset_locked(failed, gone)
        finally:
            self._controller.carry_on()

    def _reset_locked(self, failed: CommandFailed, gone: Closed) -> None:
        queues = self._queues
        try:
            self.reset_count += 1
            self._queues = []
            for queue in queues:
                queue.shut(gone)
            self._reset_controller()
        except DeviceLost as error:
            self.lost(error)
            raise
        finally:
            for queue in queues:
                queue.fail_all(failed, gone)
            for buffer in list(self._buffers):
                buffer.invalidate()
            for model in list(self._models):
                model.invalidate(gone)
            self._released.clear()
            self._unloaded.clear()
            self._allocator = self._controller.device_memory(DEVICE_ALIGNMENT)

    def _reset_controller(self) -> None:
        try:
            self._controller.reset()
        except NpuError:
            raise
        except BaseException:  # Ctrl-C half way: go all the way, so that the device can be used
            self._controller.reset()
            self._connect_interrupts()
            raise
        self._connect_interrupts()

    def close(self) -> None:
        """Let the device go; a private emulator ends. Outstanding commands end with CommandFailed. Idempotent."""
        if not self._finalizer.alive:
            return
        self._controller.give_up()
        with self._lock:
            if not self._finalizer.alive:
                return
            if self._closed is None:
                self._closed = Closed("the device is closed", device=self.address, remedy="open it again")
            closed = self._closed
            unfinished = CommandFailed(
                "the device was closed before the command ended", code="device-closed", device=self.address
            )
            queues = list(self._queues)
            for queue in queues:
                queue.shut(closed)
            self._release_everything()
            for queue in queues:
                queue.fail_all(unfinished, closed)
            self._queues = []
            for model in list(self._models):
                model.invalidate(closed)
            for buffer in [*self._buffers, *self._host_buffers]:
                buffer.invalidate()
            self._finalizer.detach()  # last: what Ctrl-C cuts short, the next call or the end of the process completes

    def _release_everything(self) -> None:
        try:
            self._controller.shut_down()
        except NpuError:
            pass  # it is gone already, or never came up: what is left to do is local
        self.memory.close()
        _abandon(self._opened, self._interrupts, os.getpid())

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None and self._closed is None:
                for queue in list(self._queues):
                    queue.drain()
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<Device {self.address}{' closed' if self._closed else ''}>"

    def _connect_interrupts(self) -> None:
        if not self._interrupts:
            count = self.transport.interrupt_count()
            self._interrupts += [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        self.transport.set_interrupts(self._interrupts)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed.again()

    def _check_operable(self) -> None:
        """Raise unless the device is open, and in a way that has DMA."""
        self._check_open()
        self._controller.check_operable()

    def abandon_in_child(self) -> None:
        """In a forked child: everything is Closed, and nothing here touches the device.

        Locks may be held by threads that do not exist here.
        """
        gone = Closed(
            "the device belongs to the parent process", device=self.address, remedy="open a device after forking"
        )
        self._closed = gone
        self._finalizer.detach()
        self.transport.abandon_in_child()
        self._lock = threading.RLock()
        for queue in self._queues:
            queue.shut_in_child(gone)
        for model in list(self._models):
            model.abandon_in_child(gone)
        for buffer in [*self._buffers, *self._host_buffers]:
            buffer.invalidate()


def _abandon(opened: Opened, interrupts: list[int], owner: int) -> None:
    """Close what the operating system holds; in a forked child nothing, it belongs to the parent."""
    if os.getpid() != owner:
        return
    opened.transport.close()
    while interrupts:
        os.close(interrupts.pop())
    opened.let_go()


def _teller(device: Device) -> Callable[[DeviceLost], None]:
    """Tells a device that it is lost, if it is there still: its transport, which outlives it, must not keep it."""
    known = weakref.ref(device)

    def tell(error: DeviceLost) -> None:
        there = known()
        if there is not None:
            there.lost(error)

    return tell


def _after_fork_in_child() -> None:
    for device in list(_open_devices):
        device.abandon_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _checked_timeout(timeout: float | None) -> float:
    if timeout is None:
        return environment.timeout_s()
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ValueError(f"timeout must be seconds > 0, math.inf or None, got {timeout!r}")
    return float(timeout)


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("utf-8", "replace")


def _firmware_facts(registers: Registers) -> dict[str, Any]:
    """As fields of `DeviceInfo`."""
    version = read_firmware_version(registers)
    return {"firmware": None if version is None else str(version), "boot": read_boot_progress(registers)}
