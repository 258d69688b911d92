"""The PCI function that a host sees: configuration space, BARs, DMA, interrupts, resets.

A state machine without thread or socket. Nothing a host does makes it raise: wrong accesses read as zeros (or ones)
and leave a record in the error log. Whoever serves it calls `step` while there is work and `arm` before sleeping.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from driver_shim.protocol.commands import (
    ACTIVITY_LOG,
    ADMIN_QUEUE_ID,
    IDENTIFY_DATA,
    MAX_BINDINGS,
    MAX_IO_QUEUES,
    MAX_QUEUE_ENTRIES,
    FaultSource,
    LogPage,
    ResetCause,
)
from driver_shim.protocol.image_layout import ImageVersion
from driver_shim.protocol.register_kinds import ResetDomain
from driver_shim.protocol.registers import (
    BAR0,
    BAR0_BYTES,
    BAR2,
    BAR4,
    CONSOLE_WINDOW_BYTES,
    CONSOLE_WINDOW_OFFSET,
    CONTRACT_MAJOR,
    CONTRACT_MINOR,
    CQ_HEAD_DOORBELL,
    DOORBELL_PAGE_BYTES,
    MSIX_PBA_OFFSET,
    MSIX_TABLE_OFFSET,
    REGISTERS,
    SQ_TAIL_DOORBELL,
)
from emulator.chip.black_box import EMPTY, encode_black_box
from emulator.chip.device_memory import DeviceMemory
from emulator.chip.error_log import ErrorLog, ErrorRecord
from emulator.chip.state import KeptState, StateFolder, new_serial
from emulator.chip.state_error import StateError
from emulator.engines import executor
from emulator.engines.inline import InlineEngines
from emulator.engines.job import Engines
from emulator.engines.pool import EnginePool
from emulator.function.admin import open_rings
from emulator.function.blocks.behaviours import Snapshots, behaviours, bus_counts
from emulator.function.blocks.config_space import ConfigSpace
from emulator.function.blocks.interrupts import Interrupts
from emulator.function.blocks.registers import RegisterBlock
from emulator.function.controller import Controller
from emulator.function.exec_job import MAX_PROGRAM_BYTES, MAX_PROGRAMS, Programs
from emulator.function.jobs import Activity, CommandError, Machine
from emulator.host_memory.address_space import AddressSpace
from emulator.management.port import AbsentCore, ManagementPort
from emulator.management.process.options import CoreOptions, start_core
from emulator.model.clock import TickClock
from emulator.model.profile import Profile, load_profile

_logger = logging.getLogger("npu.emulator")

CONFIG_REGION = 7
"""VFIO's number of configuration space."""
VECTORS = MAX_IO_QUEUES + 1
CONFIG_BYTES = 4096
CONSOLE_WIDTHS = (4, 8)
STEPS_PER_MANAGEMENT_STEP = 8
"""The management core is slow and rarely wants anything; commands must not pay for looking."""
_RESET_HISTORY_MASK = (1 << 8 * REGISTERS["reset_history"].size) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """One region of the function, numbered as VFIO does."""

    index: int
    size_bytes: int
    readable: bool
    writable: bool
    mappable: tuple[tuple[int, int], ...] = ()
    fd: int | None = None
    """File to hand out for the mappable areas."""


class PciFunction:
    """One function of the emulated chip."""

    def __init__(
        self,
        profile: Profile,
        open_engines: Callable[[DeviceMemory], Engines],
        kernels: str,
        state: StateFolder | None = None,
        management: ManagementPort | None = None,
        wall_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Power on. What `open_engines` gives runs programs on the device's memory and is closed with the function.

        So is `management`, the management core; without it there is none.
        """
        kept = state.load() if state else KeptState(new_serial(), {})
        self.profile = profile
        self.kernels = kernels
        self.serial = kept.serial
        self._state = state
        self.clock = TickClock(profile.tick_hz, wall_ns)
        self.errors = ErrorLog(self.clock.snapshot)
        self.activity = Activity(**{k: v for k, v in kept.counters.items() if k in ACTIVITY_LOG.fields})
        self.snapshots = Snapshots(self.clock, self.activity)
        if kept.errors:
            self.errors.restore(kept.errors)
        self.black_box = kept.black_box or EMPTY
        self.memory = DeviceMemory(profile.memory_bytes)
        self._engines = open_engines(self.memory)
        self.management = management or AbsentCore()
        self.address_space = AddressSpace()
        self.reset_cause = ResetCause.POWER_ON
        self.reset_history = 0
        self.interrupts = Interrupts(VECTORS, lambda: self.config.bus_master, self._undeliverable)
        aperture = 1 << (profile.memory_bytes - 1).bit_length()
        doorbells = 1 << (DOORBELL_PAGE_BYTES * (MAX_IO_QUEUES + 1) - 1).bit_length()
        self.config = ConfigSpace(
            {BAR0: BAR0_BYTES, BAR2: doorbells, BAR4: aperture},
            serial=int.from_bytes(self.serial.encode()[-8:], "big"),
            vectors=VECTORS,
            on_flr=lambda: self.reset(ResetCause.FLR),
        )
        self.regions = {
            BAR0: Region(BAR0, BAR0_BYTES, True, True),
            BAR2: Region(BAR2, doorbells, True, True),
            BAR4: Region(BAR4, aperture, True, True, ((0, profile.memory_bytes),), self.memory.fd),
            CONFIG_REGION: Region(CONFIG_REGION, CONFIG_BYTES, True, True),
        }
        machine = Machine(
            profile, self.memory, self.address_space, self.activity, lambda: self.management.read("throttle")
        )
        self.programs = Programs(machine, self._engines)
        self.controller = Controller(
            machine,
            self.clock,
            self.errors,
            self.programs,
            self._raise_vector,
            self._identify,
            self._log_page,
        )
        self._steps = 0
        self._held_vectors = 0
        self._config_error = False
        self.registers = RegisterBlock(REGISTERS, behaviours(self), self._register_fault)

    # --- configuration space and regions -----------------------------------------------------------------------

    def config_read(self, offset: int, size: int) -> bytes:
        """Bytes of configuration space."""
        return self.config.read(offset, size)

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space; may reset the function (FLR)."""
        self.config.write(offset, data)
        self.controller.set_bus_master(self.config.bus_master)
        self.interrupts.deliver_pending()

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        """Read a region; the caller has checked that the range lies inside it."""
        if region == CONFIG_REGION:
            return self.config_read(offset, size)
        if not self._memory_decoded():
            return b"\xff" * size
        if region == BAR0:
            return self.bar0_read(offset, size)
        if region == BAR4:
            return self._read_aperture(offset, size)
        return bytes(size)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Write a region; the caller has checked that the range lies inside it."""
        if region == CONFIG_REGION:
            self.config_write(offset, data)
        elif not self._memory_decoded():
            return
        elif region == BAR0:
            self.bar0_write(offset, data)
        elif region == BAR2:
            self._write_doorbell(offset, data)
        elif region == BAR4:
            self._write_aperture(offset, data)

    def _memory_decoded(self) -> bool:
        return self.config.memory_enable and self.config.power_state == 0

    def bar0_read(self, offset: int, size: int) -> bytes:
        """Read BAR0 from inside the chip: whether PCI decodes memory makes no difference."""
        if offset >= MSIX_PBA_OFFSET:
            return self.interrupts.pba_read(offset - MSIX_PBA_OFFSET, size)
        if offset >= MSIX_TABLE_OFFSET:
            return self.interrupts.table_read(offset - MSIX_TABLE_OFFSET, size)
        at = offset - CONSOLE_WINDOW_OFFSET
        if 0 <= at < CONSOLE_WINDOW_BYTES and size in CONSOLE_WIDTHS and at % size == 0:
            return self.management.window(at, size)
        return self.registers.read(offset, size).to_bytes(size, "little")

    def bar0_write(self, offset: int, data: bytes) -> None:
        """Write BAR0 from inside the chip."""
        if offset >= MSIX_PBA_OFFSET:
            self._register_fault(offset, "write to the MSI-X pending bits")
        elif offset >= MSIX_TABLE_OFFSET:
            self.interrupts.table_write(offset - MSIX_TABLE_OFFSET, data)
        else:
            self.registers.write(offset, len(data), int.from_bytes(data, "little"))

    def _write_doorbell(self, offset: int, data: bytes) -> None:
        queue_id, register = divmod(offset, DOORBELL_PAGE_BYTES)
        value = int.from_bytes(data, "little")
        if len(data) != 4 or register not in (SQ_TAIL_DOORBELL, CQ_HEAD_DOORBELL):
            self._fault(FaultSource.REGISTER, offset, f"doorbell write of {len(data)} bytes at {offset:#x}")
        elif register == SQ_TAIL_DOORBELL:
            self.controller.ring_bell(queue_id, value, None)
        else:
            self.controller.ring_bell(queue_id, None, value)

    def _read_aperture(self, offset: int, size: int) -> bytes:
        inside = max(0, min(size, self.memory.size - offset))
        if inside < size:
            self._fault(FaultSource.APERTURE, offset, f"read of {size} bytes beyond device memory")
        return bytes(self.memory.view[offset : offset + inside]) + b"\xff" * (size - inside)

    def _write_aperture(self, offset: int, data: bytes) -> None:
        if offset + len(data) > self.memory.size:
            self._fault(FaultSource.APERTURE, offset, f"write of {len(data)} bytes beyond device memory")
        else:
            self.memory.view[offset : offset + len(data)] = data

    # --- being served ------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do a bounded slice of work; True if anything was done."""
        worked = self.controller.step()
        self._steps += 1
        if not self._steps % STEPS_PER_MANAGEMENT_STEP and self.management.step(
            self.address_space, bus_master=self.config.bus_master, busy_ticks=self.activity.busy_ticks
        ):
            worked = True
        if self.controller.fatal and self.controller.enabled:
            self._save_black_box(ResetCause.FATAL)
            self.controller.disable()
            self.controller.fatal = True
        return worked

    def arm(self) -> bool:
        """True when nothing is pending and a bell or a `wake_fds` event will tell of more."""
        return self.controller.arm()

    def wake_fds(self) -> list[int]:
        """Descriptors whose readability means that `step` has work."""
        return self._engines.fds() + self.management.wake_fds()

    def next_deadline_ns(self) -> int | None:
        """No part of this function needs a timer."""
        return None

    def reset(self, cause: ResetCause) -> None:
        """FLR, DEVICE_RESET or the end of a client: DMA maps and eventfds stay, all else of the function goes."""
        self.address_space.abort_transfers()
        self.controller.disable()
        self.controller.fatal = False
        self.memory.zero()
        self.interrupts.reset()
        self.config.reset()
        self.controller.set_bus_master(self.config.bus_master)
        self.registers.reset({ResetDomain.FUNCTION, ResetDomain.ENGINE, ResetDomain.CONTEXT})
        self._held_vectors = 0
        self._config_error = False
        self.management.device_reset()
        self._note_reset(cause)

    def client_lost(self) -> None:
        """The host is gone: keep a black box if it was working, reset, and forget its memory and eventfds."""
        if self.controller.enabled:
            self._fault(FaultSource.CLIENT, 0, "the host went away without disabling the controller")
            self._save_black_box(ResetCause.CLIENT_LOST)
        self.reset(ResetCause.CLIENT_LOST)
        self.address_space.unmap_all()
        self.interrupts.disconnect_all()
        self.save_state()

    def close(self) -> None:
        """Power off; idempotent."""
        self.controller.disable()
        self._engines.close()
        self.management.close()
        self.save_state()
        if self._state:
            self._state.close()
        self.address_space.unmap_all()
        self.interrupts.close()
        self.memory.close()

    def save_state(self) -> None:
        """Write what outlives this process to the state folder, if there is one."""
        if self._state:
            try:
                self._state.save(KeptState(self.serial, bus_counts(self.activity), self.errors.page(), self.black_box))
            except StateError as error:  # a full disk must not take the device from its clients
                _logger.warning("nothing was kept: %s", error)

    # --- register behaviour ------------------------------------------------------------------------------------

    def read_status(self) -> int:
        """The status register."""
        return REGISTERS["status"].encode(
            ready=int(self.controller.enabled),
            fatal=int(self.controller.fatal),
            config_error=int(self._config_error),
            bus_master=int(self.config.bus_master),
        )

    def write_control(self, value: int) -> None:
        """A write to the control register: enable or disable the controller."""
        enable = bool(REGISTERS["control"].extract(value, "enable"))
        if enable and not self.controller.enabled:
            self._enable()
        elif not enable:
            self._config_error = False
            if self.controller.enabled or self.controller.fatal:
                self.controller.disable()
                self.controller.fatal = False
                self._note_reset(ResetCause.CONTROLLER_DISABLE)

    def _enable(self) -> None:
        """Open the admin queue; a wrong one leaves the controller disabled with status.config_error."""
        self._config_error = True
        size = REGISTERS["admin_queue_size"].decode(self.registers.value("admin_queue_size"))
        entries = (size["submission_entries"], size["completion_entries"])
        bases = (self.registers.value("admin_submission_base"), self.registers.value("admin_completion_base"))
        if not self.config.bus_master:
            self._fault(FaultSource.DMA, bases[0], "enable refused: bus mastering is off (PCI COMMAND bit 2)")
            return
        try:
            queue = open_rings(self.address_space, ADMIN_QUEUE_ID, bases, entries, 0, None)
        except CommandError as error:
            self._fault(error.source, error.address, f"enable refused: {error.message}")
            return
        self._config_error = False
        self.controller.enable(queue)

    def mailbox_busy(self) -> None:
        """The host rang for a request while one is on its way: recorded as a fault, and ignored."""
        self._register_fault(REGISTERS["mailbox_control"].offset, "the mailbox was rung while it is busy")

    def write_interrupt_mask(self, mask: int) -> None:
        """A write to the interrupt mask: vectors held back so far are delivered when it lets them."""
        released = self._held_vectors & ~mask
        self._held_vectors &= mask
        for vector in range(VECTORS):
            if released >> vector & 1:
                self.interrupts.trigger(vector)

    def _raise_vector(self, vector: int) -> None:
        bit = 1 << vector
        self.registers.store("interrupt_status", self.registers.value("interrupt_status") | bit)
        if self.registers.value("interrupt_mask") & bit:
            self._held_vectors |= bit
        else:
            self.interrupts.trigger(vector)

    # --- records -----------------------------------------------------------------------------------------------

    def _identify(self) -> bytes:
        return IDENTIFY_DATA.build(
            contract_major=CONTRACT_MAJOR,
            contract_minor=CONTRACT_MINOR,
            silicon_revision=self.registers.value("revision"),
            features=self.registers.value("features"),
            serial=self.serial.encode(),
            profile=self.profile.name.encode(),
            firmware=self._firmware(),
            kernels=self.kernels.encode(),
            memory_bytes=self.memory.size,
            tick_hertz=self.profile.tick_hz,
            max_queue_entries=MAX_QUEUE_ENTRIES,
            max_io_queues=MAX_IO_QUEUES,
            engines=self.profile.engines,
            max_programs=MAX_PROGRAMS,
            max_bindings=MAX_BINDINGS,
            emulated=1,
            max_program_bytes=MAX_PROGRAM_BYTES,
        )

    def _firmware(self) -> bytes:
        version = REGISTERS["firmware_version"].decode(self.management.read("firmware_version"))
        return str(ImageVersion(**version)).encode() if any(version.values()) else b""

    def _log_page(self, page: int) -> bytes:
        if page == LogPage.ERRORS:
            return self.errors.page()
        if page == LogPage.ACTIVITY:
            return ACTIVITY_LOG.build(**bus_counts(self.activity))
        return self.black_box

    def _save_black_box(self, cause: ResetCause) -> None:
        self.black_box = encode_black_box(
            cause,
            self.clock.snapshot(),
            self.registers.dump(),
            [queue.describe() for queue in self.controller.queues.values()],
            self.controller.recent_descriptors,
            self.controller.recent_completions,
            self.errors.entries(),
        )

    def _note_reset(self, cause: ResetCause) -> None:
        self.reset_cause = cause
        self.reset_history = (self.reset_history << 8 | int(cause)) & _RESET_HISTORY_MASK
        self.activity.resets += 1

    def _register_fault(self, offset: int, message: str) -> None:
        self._fault(FaultSource.REGISTER, offset, message)

    def _undeliverable(self, vector: int) -> None:
        self._fault(FaultSource.DMA, vector, f"interrupt vector {vector} while bus mastering is off")

    def _fault(self, source: FaultSource, address: int, message: str) -> None:
        self.errors.record(ErrorRecord(source, message, address=address))


def build(
    profile_name: str,
    kernels: str,
    state: Path | None = None,
    *,
    in_process: bool = False,
    core: CoreOptions | None = None,
    on_power_off: Callable[[int], None] | None = None,
) -> PciFunction:
    """A powered-on function. Raises ValueError for an unknown profile, StateError for an unusable folder.

    In process, and without `core`, there is no management core; `on_power_off` see `start_core`.
    """
    profile = load_profile(profile_name)

    def open_engines(memory: DeviceMemory) -> Engines:
        if in_process:
            return InlineEngines(memory.view, executor, kernels)
        return EnginePool(memory.fd, profile.engines, kernels)

    with ExitStack() as undo:
        folder = StateFolder(state) if state else None
        if folder:
            undo.callback(folder.close)
        management = None if core is None or in_process else start_core(profile, state, core, on_power_off)
        if management:
            undo.callback(management.close)
        function = PciFunction(profile, open_engines, kernels, folder, management)
        undo.pop_all()
    return function
