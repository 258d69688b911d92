"""The behaviour of every register of BAR0, beyond storing."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from driver_shim.protocol.commands import BLACK_BOX, FaultSource
from driver_shim.protocol.registers import REGISTERS
from emulator.chip.chip import Chip
from emulator.function.blocks.interrupt_registers import InterruptRegisters
from emulator.function.blocks.management import management_behaviours
from emulator.function.blocks.registers import CONSTANT, STORAGE, Behaviour
from emulator.function.blocks.resets import ResetRecord
from emulator.function.blocks.snapshots import Snapshots

_BLACK_BOX_BYTES_MASK = (1 << REGISTERS["black_box"].fields["bytes"].width) - 1
_FAULT_COUNT_MASK = REGISTERS["fault_count"].fields["count"].mask
_MAILBOX_CONTROL = REGISTERS["mailbox_control"].offset


class ControlPort(Protocol):
    """The switch of the controller."""

    def read_status(self) -> int:
        """The status register."""

    def write_control(self, value: int) -> None:
        """A write to the control register."""


def behaviours(
    chip: Chip, control: ControlPort, interrupts: InterruptRegisters, resets: ResetRecord
) -> dict[str, Behaviour]:
    """One entry a register; a register without one is a programming error."""
    errors, snapshots = chip.errors, Snapshots(chip.clock, chip.counters)

    def clear_faults(value: int) -> None:
        errors.fault_bits &= ~value

    report_busy = partial(errors.fault, FaultSource.REGISTER, _MAILBOX_CONTROL, "the mailbox was rung while it is busy")
    return {
        "identity": CONSTANT,
        "contract": CONSTANT,
        "features": CONSTANT,
        "revision": CONSTANT,
        "capabilities": CONSTANT,
        "control": Behaviour(write=control.write_control),
        "status": Behaviour(read=control.read_status),
        "reset_cause": Behaviour(read=resets.read_cause),
        "admin_queue_size": STORAGE,
        "admin_submission_base": STORAGE,
        "admin_completion_base": STORAGE,
        "interrupt_status": STORAGE,
        "interrupt_mask": Behaviour(write=interrupts.write_mask),
        "fault_status": Behaviour(read=lambda: errors.fault_bits, write=clear_faults),
        "fault_count": Behaviour(read=lambda: errors.total & _FAULT_COUNT_MASK),
        "fault_address": Behaviour(read=lambda: errors.fault_address),
        "device_memory_bytes": Behaviour(read=lambda: chip.memory.size),
        "tick_hertz": Behaviour(read=lambda: chip.profile.tick_hz),
        "clock_snapshot": Behaviour(write=snapshots.take_clocks),
        "tick_snapshot": Behaviour(read=lambda: snapshots.tick),
        "wall_snapshot": Behaviour(read=lambda: snapshots.wall_nanoseconds),
        "scratch": STORAGE,
        "scratch_wide": STORAGE,
        "reset_history": Behaviour(read=resets.read_history),
        "black_box": Behaviour(read=lambda: _black_box(chip.black_box)),
        "counter_snapshot": Behaviour(write=snapshots.take_counters),
        "commands_completed": Behaviour(read=lambda: snapshots.commands),
        "bytes_moved": Behaviour(read=lambda: snapshots.bytes_moved),
        "busy_ticks": Behaviour(read=lambda: snapshots.busy_ticks),
        **management_behaviours(chip.management, report_busy),
    }


def _black_box(page: bytes) -> int:
    """The black_box register for this log page."""
    header = BLACK_BOX.parse(page[: BLACK_BOX.size])
    size = min(len(page), _BLACK_BOX_BYTES_MASK) if header.present else 0
    return REGISTERS["black_box"].encode(bytes=size, cause=header.cause)
