"""The PCI function that a host sees: configuration space, BARs, DMA, interrupts, resets.

A state machine without thread or socket. Nothing a host does makes it raise: wrong accesses read as zeros (or ones)
and leave a record in the error log. Whoever serves it calls `step` while there is work and `arm` before sleeping.
"""

from __future__ import annotations

from functools import partial

from driver_shim.protocol.commands import MAX_IO_QUEUES, FaultSource, ResetCause
from driver_shim.protocol.config_space import D0
from driver_shim.protocol.register_kinds import ResetDomain
from driver_shim.protocol.registers import (
    BAR0,
    BAR2,
    BAR4,
    CONSOLE_WINDOW_BYTES,
    CONSOLE_WINDOW_OFFSET,
    MSIX_PBA_OFFSET,
    MSIX_TABLE_OFFSET,
    REGISTERS,
)
from emulator.chip.black_box import encode_black_box
from emulator.chip.chip import Chip
from emulator.function.admin import AdminCommands
from emulator.function.aperture import Aperture
from emulator.function.blocks.behaviours import behaviours
from emulator.function.blocks.config_space import ConfigSpace
from emulator.function.blocks.interrupt_registers import InterruptRegisters
from emulator.function.blocks.interrupts import Interrupts
from emulator.function.blocks.registers import RegisterBlock, initial_values
from emulator.function.blocks.resets import ResetRecord
from emulator.function.control import Control
from emulator.function.controller import Controller
from emulator.function.doorbells import Doorbells
from emulator.function.programs import Programs
from emulator.function.queue_table import QueueTable
from emulator.function.records import Records
from emulator.function.regions import CONFIG_REGION, bar_sizes, regions_of
from emulator.host_memory.address_space import AddressSpace
from emulator.model import timing

VECTORS = MAX_IO_QUEUES + 1
CONSOLE_WIDTHS = (4, 8)
STEPS_PER_MANAGEMENT_STEP = 8
"""The management core is slow and rarely wants anything; commands must not pay for looking."""


class PciFunction:
    """One function of the emulated chip."""

    def __init__(self, chip: Chip) -> None:
        """The function of a chip that was just powered on; the chip is closed with it."""
        self.chip = chip
        self._errors = chip.errors
        self._counters = chip.counters
        self._management = chip.management
        self.address_space = AddressSpace()
        self.regions = regions_of(chip.memory)
        serial = int.from_bytes(chip.serial.encode()[-8:], "big")
        self._config = ConfigSpace(bar_sizes(chip.memory.size), serial=serial, vectors=VECTORS)
        self.interrupts = Interrupts(VECTORS, lambda: self._config.bus_master, self._undeliverable)
        stored = initial_values(REGISTERS)
        self._interrupt_registers = InterruptRegisters(stored, self.interrupts)
        queues, programs = QueueTable(), Programs(chip)
        admin = AdminCommands(self.address_space, queues, programs, Records(chip), timing.nop_ticks(chip.profile))
        raise_vector = self._interrupt_registers.raise_vector
        self.controller = Controller(chip, self.address_space, queues, programs, admin, raise_vector)
        self._doorbells = Doorbells(self.controller, chip.errors)
        self._aperture = Aperture(chip.memory, chip.errors)
        self._resets = ResetRecord(chip.counters)
        self._control = Control(stored, self._config, self.address_space, self.controller, chip.errors, self._resets)
        table = behaviours(chip, self._control, self._interrupt_registers, self._resets)
        self._registers = RegisterBlock(REGISTERS, stored, table, partial(chip.errors.fault, FaultSource.REGISTER))
        self._steps = 0

    # --- configuration space and regions -----------------------------------------------------------------------

    def config_read(self, offset: int, size: int) -> bytes:
        """Bytes of configuration space."""
        return self._config.read(offset, size)

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space; may reset the function (FLR)."""
        if self._config.write(offset, data):
            self.reset(ResetCause.FLR)
        self.controller.set_bus_master(self._config.bus_master)
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
            return self._aperture.read(offset, size)
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
            self._doorbells.write(offset, data)
        elif region == BAR4:
            self._aperture.write(offset, data)

    def _memory_decoded(self) -> bool:
        return self._config.memory_enable and self._config.power_state == D0

    def bar0_read(self, offset: int, size: int) -> bytes:
        """Read BAR0 from inside the chip: whether PCI decodes memory makes no difference."""
        if offset >= MSIX_PBA_OFFSET:
            return self.interrupts.pba_read(offset - MSIX_PBA_OFFSET, size)
        if offset >= MSIX_TABLE_OFFSET:
            return self.interrupts.table_read(offset - MSIX_TABLE_OFFSET, size)
        at = offset - CONSOLE_WINDOW_OFFSET
        if 0 <= at < CONSOLE_WINDOW_BYTES and size in CONSOLE_WIDTHS and at % size == 0:
            return self._management.window(at, size)
        return self._registers.read(offset, size).to_bytes(size, "little")

    def bar0_write(self, offset: int, data: bytes) -> None:
        """Write BAR0 from inside the chip."""
        if offset >= MSIX_PBA_OFFSET:
            self._errors.fault(FaultSource.REGISTER, offset, "write to the MSI-X pending bits")
        elif offset >= MSIX_TABLE_OFFSET:
            self.interrupts.table_write(offset - MSIX_TABLE_OFFSET, data)
        else:
            self._registers.write(offset, len(data), int.from_bytes(data, "little"))

    # --- being served ------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do a bounded slice of work; True if anything was done."""
        controller = self.controller
        worked = controller.step()
        self._steps += 1
        if not self._steps % STEPS_PER_MANAGEMENT_STEP and self._management.step(
            self.address_space, bus_master=self._config.bus_master, busy_ticks=self._counters.busy_ticks
        ):
            worked = True
        if controller.fatal and controller.enabled:
            self._save_black_box(ResetCause.FATAL)
            controller.disable()
            controller.fatal = True
        return worked

    def arm(self) -> bool:
        """True when nothing is pending and a bell or a `wake_fds` event will tell of more."""
        return self.controller.arm()

    def wake_fds(self) -> list[int]:
        """Descriptors whose readability means that `step` has work."""
        return self.chip.engines.fds() + self.chip.verifier.fds() + self._management.wake_fds()

    def next_deadline_ns(self) -> int | None:
        """When `step` has something to do even if nothing woke it, by the monotonic clock."""
        return self.chip.verifier.next_deadline_ns()

    def reset(self, cause: ResetCause) -> None:
        """FLR, DEVICE_RESET or the end of a client: DMA maps and eventfds stay, all else of the function goes."""
        self.address_space.abort_transfers()
        self._control.disable()
        self.chip.memory.zero()
        self.interrupts.reset()
        self._config.reset()
        self.controller.set_bus_master(self._config.bus_master)
        self._registers.reset({ResetDomain.FUNCTION, ResetDomain.ENGINE, ResetDomain.CONTEXT})
        self._interrupt_registers.reset()
        self._management.device_reset()
        self._resets.note(cause)

    def client_lost(self) -> None:
        """The host is gone: keep a black box if it was working, reset, and forget its memory and eventfds."""
        if self.controller.enabled:
            self._errors.fault(FaultSource.CLIENT, 0, "the host went away without disabling the controller")
            self._save_black_box(ResetCause.CLIENT_LOST)
        self.reset(ResetCause.CLIENT_LOST)
        self.address_space.unmap_all()
        self.interrupts.disconnect_all()
        self.chip.save_state()

    def close(self) -> None:
        """Power off; idempotent."""
        self.controller.disable()
        self.address_space.unmap_all()
        self.interrupts.close()
        self.chip.close()

    # --- records -----------------------------------------------------------------------------------------------

    def _save_black_box(self, cause: ResetCause) -> None:
        self.chip.black_box = encode_black_box(
            cause,
            self.chip.clock.snapshot(),
            self._registers.dump(),
            [queue.describe() for queue in self.controller.queues.turns],
            self.controller.recent_descriptors,
            self.controller.recent_completions,
            self._errors.entries(),
        )

    def _undeliverable(self, vector: int) -> None:
        self._errors.fault(FaultSource.DMA, vector, f"interrupt vector {vector} while bus mastering is off")
