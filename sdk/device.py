"""`Device`: what applications hold of an open function. What is behind it is in `open_function.py`."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Never

from numpy.typing import DTypeLike

from driver_shim.errors import NpuError
from driver_shim.firmware.core_state import SensorReadings, read_boot_progress, read_firmware_version, read_sensors
from driver_shim.function.registers import Registers
from driver_shim.protocol.commands import LogPage
from driver_shim.transport.base import Transport
from sdk import environment
from sdk.compiler import read_model
from sdk.compiler.program import Program
from sdk.here_only import HereOnly
from sdk.log_pages import Activity, ErrorLogEntry, decode_activity, decode_error_log
from sdk.memory.buffers import DeviceBuffer, HostBuffer
from sdk.model.not_built import refuse
from sdk.model.programs import ProgramCounts
from sdk.model.progress import told
from sdk.open_function import OpenFunction
from sdk.opening.addresses import Opened, open_address
from sdk.opening.listing import DeviceInfo, bus_facts
from sdk.queue.queue import MAX_DEPTH, MIN_DEPTH, Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sdk.compiler.graph import Graph
    from sdk.model.device_model import DeviceModel
    from sdk.model.model import Model
    from sdk.model.stateful import StateOptions


class Device(HereOnly):
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
        seconds = _checked_timeout(timeout)
        memory_limit = environment.host_memory_bytes()
        self._start(OpenFunction(open_address(address, strict, seconds, when_busy), seconds, memory_limit))

    def _start(self, function: OpenFunction) -> None:
        self._function = function
        try:
            self._info = self._describe()
        except BaseException:
            function.close()
            raise

    # --- facts -------------------------------------------------------------------------------------------------

    @property
    def info(self) -> DeviceInfo:
        """What the device said of itself at open, and of its firmware once that had started. Readable after close."""
        boot = self._info.boot
        if self._function.closed is None and boot is not None and not boot.runs_image:
            with contextlib.suppress(NpuError):  # whether it is there still is not the question
                self._info = dataclasses.replace(self._info, **_firmware_facts(self._function.controller.registers))
        return self._info

    @property
    def address(self) -> str:
        """How a user names it: "pci:0000:03:00.0"."""
        return self._function.address

    @property
    def timeout(self) -> float:
        """Seconds that bound every wait without a limit of its own."""
        return self._function.timeout

    @property
    def registers(self) -> Registers:
        """Typed access to the registers: `dev.registers.status.ready`."""
        self._function.check_open()
        return self._function.controller.registers

    @property
    def closed(self) -> bool:
        """Whether it was closed or lost."""
        return self._function.closed is not None

    @property
    def programs(self) -> ProgramCounts:
        """How many compiled programs the device holds, how many it takes, and how many gave way to others so far."""
        return self._function.programs.counts

    def sensors(self) -> SensorReadings | None:
        """What the management core last measured; None without one, or when it has not measured for a second."""
        return read_sensors(self.registers)

    def errors(self) -> list[ErrorLogEntry]:
        """The device's error log, newest first."""
        return decode_error_log(self._log_page(LogPage.ERRORS))

    def activity(self) -> Activity:
        """What the device has done since power-on."""
        return decode_activity(self._log_page(LogPage.ACTIVITY))

    def black_box(self) -> bytes:
        """The BLACK_BOX log page: what the last loss of a client or fatal error saved (`present` 0 when nothing)."""
        return self._log_page(LogPage.BLACK_BOX)

    def _log_page(self, page: LogPage) -> bytes:
        self._function.check_operable()
        return self._function.controller.log_page(page)

    def _describe(self) -> DeviceInfo:
        function = self._function
        data = function.controller.identity
        profile = _text(data.profile) or None
        emulator = function.opened.emulator
        revision = function.controller.registers.revision.declaration.decode(data.silicon_revision)
        return DeviceInfo(
            name="NPU" + (f" {profile}" if profile else "") + (" (emulator)" if data.emulated else ""),
            address=self.address,
            profile=profile,
            serial=_text(data.serial) or None,
            emulated=None if data.emulated is None else bool(data.emulated),
            **_firmware_facts(function.controller.registers),
            kernels=_text(data.kernels) or None,
            memory_bytes=data.memory_bytes,
            tick_hz=data.tick_hertz,
            engines=data.engines,
            contract=f"{data.contract_major}.{data.contract_minor}",
            revision=f"{revision['major']}.{revision['minor']}",
            max_queues=data.max_io_queues,
            driver=function.transport.name,
            pid=emulator.pid if emulator else None,
            pre_open=function.controller.pre_open,
            **bus_facts(self.address),
        )

    # --- buffers, queues and models ----------------------------------------------------------------------------

    def host_buffer(self, shape: Any, dtype: DTypeLike) -> HostBuffer:
        """Zeroed DMA-able host memory of this shape and dtype. Raises HostMemoryLimit, TypeError, ValueError."""
        return self._function.host_buffer(shape, dtype)

    def buffer(self, shape: Any, dtype: DTypeLike) -> DeviceBuffer:
        """Device memory of this shape and dtype, contents unspecified.

        Raises OutOfDeviceMemory, TypeError, ValueError.
        """
        return self._function.device_buffer(shape, dtype)

    def queue(self, *, depth: int = 256, when_full: str = "wait") -> Queue:
        """A new queue for up to `depth` (2–4096) submitted, uncompleted commands.

        `when_full`: "wait" makes a submission wait for room, "raise" makes it raise QueueFull.
        """
        self._function.check_operable()
        if isinstance(depth, bool) or not isinstance(depth, int) or not MIN_DEPTH <= depth <= MAX_DEPTH:
            raise ValueError(f"depth must be an int from {MIN_DEPTH} to {MAX_DEPTH}, got {depth!r}")
        if when_full not in ("wait", "raise"):
            raise ValueError(f'when_full must be "wait" or "raise", got {when_full!r}')
        return self._function.create_queue(depth, when_full)

    def load(
        self,
        model: Any,
        example_inputs: Any = None,
        *,
        shapes: Mapping[str, Sequence[Sequence[int]]] | None = None,
        fallback: str | None = None,
        state_memory: int | str | None = None,
        states: Mapping[str, str] | None = None,
        idle_rows: bool = False,
        progress: Callable[[int, int], object] | None = None,
        **not_built: Never,
    ) -> Model:
        """Load a model: an ONNX path, bytes, ModelProto or what `sdk.compile` made.

        Checks every operator now, compiles when first called. `shapes` maps an input to the shapes to compile now:
        {"data": [(1, 3, 224, 224)]}. `example_inputs` go with a torch.nn.Module, which is traced on them: tensors by
        place, or a dict by name. Nodes that the device has no command for are an error, unless `fallback` is "cpu":
        they then run in onnxruntime on the host, which is told once by a warning and in `model.report`.

        Of a model that remembers (`model.states`), shapes that name no past are those of runs with a state. States get
        `state_memory`, bytes or a text as "256MiB"; `states` names the output that is the next value of an input where
        neither names nor nodes tell. With `idle_rows` a run with fewer states takes the next larger program.

        `progress(done, of)` is told how much is compiled and sent, for which a model that declares all its shapes need
        not be given `shapes`. What it raises, as Ctrl-C does, ends the load and leaves nothing of it on the device.

        Raises UnsupportedModel (node, operator, reason), FileNotFoundError, OutOfDeviceMemory. Of keywords that other
        runtimes have and this one has not, as `tensor_parallel`, a TypeError says why.
        """
        from sdk.compiler import torch_export
        from sdk.model.inputs import declared_shapes
        from sdk.model.stateful import StateOptions

        if not_built:
            refuse(not_built)
        self._function.check_operable()
        if torch_export.comes_from_torch(model):
            model = torch_export.to_onnx(model, example_inputs)
        elif example_inputs is not None:
            raise TypeError(f"example_inputs go with a torch.nn.Module, not with a {type(model).__name__}")
        if isinstance(model, Program):
            fallback = fallback or model.fallback
        if fallback not in (None, "error", "cpu"):
            raise ValueError(f'fallback={fallback!r}: use "error" or "cpu"')
        options = StateOptions(state_memory, states, idle_rows)
        if fallback == "cpu" and options.any:
            raise TypeError(
                'states, state_memory and idle_rows do not go with fallback="cpu": the host keeps no states'
            )
        with told(progress):
            loaded = self._load_mixed(model) if fallback == "cpu" else self._load_whole(model, options)
            try:
                if shapes is None and progress is not None:
                    shapes = declared_shapes(loaded.inputs)
                loaded._compile_for(shapes or {})
            except BaseException:
                loaded.close()
                raise
        return loaded

    def _load_whole(self, source: Any, options: StateOptions | None = None) -> DeviceModel:
        from sdk.model.device_model import DeviceModel  # it imports the compiler, which not every program needs

        ahead = source._compiled if isinstance(source, Program) else None
        loaded = DeviceModel(self._function, _graph_of(source), ahead, options)
        self._function.add_model(loaded._parts)
        return loaded

    def _load_mixed(self, source: Any) -> Model:
        from sdk.model.mixed import MixedModel

        loaded = MixedModel(self._function, _graph_of(source), self._load_whole)
        self._function.add_model(loaded._parts)
        return loaded

    # --- life cycle --------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the device; it is ready again when this returns.

        Outstanding commands end with CommandFailed (code "device-reset"); queues, device buffers and models are Closed;
        host buffers stay.
        """
        self._function.reset()

    def close(self) -> None:
        """Let the device go; a private emulator ends. Outstanding commands end with CommandFailed. Idempotent."""
        self._function.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None and not self.closed:
                for queue in list(self._function.queues):
                    queue.drain()
        finally:
            self.close()

    def __repr__(self) -> str:
        return repr(self._function)


def on_transport(transport: Transport, *, timeout: float | None = None) -> Device:
    """A device over a transport that is already open (tests and tools)."""
    device = Device.__new__(Device)
    device._start(OpenFunction(Opened(transport), _checked_timeout(timeout), environment.host_memory_bytes()))
    return device


def _graph_of(source: Any) -> Graph:
    """A model that was read before, or is now."""
    return source._graph if isinstance(source, Program) else read_model(source)


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
