"""What each register of the function does beyond storing: the table, and the two snapshots that registers show."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from driver_shim.protocol.commands import BLACK_BOX
from driver_shim.protocol.registers import REGISTERS
from emulator.function.blocks.management import management_behaviours
from emulator.function.blocks.registers import CONSTANT, STORAGE, Behaviour
from emulator.function.jobs import Activity
from emulator.model.clock import TickClock

if TYPE_CHECKING:
    from emulator.function.function import PciFunction

LAST_COUNT = (1 << 64) - 1
"""Counters are 64 bits on the bus; there they stop."""
_BLACK_BOX_BYTES_MASK = (1 << REGISTERS["black_box"].fields["bytes"].width) - 1
_RESET_COUNT_MASK = (1 << REGISTERS["reset_cause"].fields["count"].width) - 1
_FAULT_COUNT_MASK = REGISTERS["fault_count"].fields["count"].mask


class Snapshots:
    """Values that belong together, taken at one moment: both clocks, and the counters."""

    def __init__(self, clock: TickClock, activity: Activity) -> None:
        self._clock = clock
        self._activity = activity
        self.tick, self.wall_nanoseconds = 0, 0
        self.commands, self.bytes_moved, self.busy_ticks = 0, 0, 0

    def take_clocks(self, value: int) -> None:
        """A write to clock_snapshot."""
        if REGISTERS["clock_snapshot"].extract(value, "take"):
            self.tick, self.wall_nanoseconds = self._clock.snapshot()

    def take_counters(self, value: int) -> None:
        """A write to counter_snapshot."""
        if REGISTERS["counter_snapshot"].extract(value, "take"):
            counts = bus_counts(self._activity)
            self.commands, self.busy_ticks = counts["commands"], counts["busy_ticks"]
            self.bytes_moved = min(counts["bytes_copied"] + counts["bytes_filled"], LAST_COUNT)


def bus_counts(activity: Activity) -> dict[str, int]:
    """The activity counters as they fit the bus."""
    return {name: min(value, LAST_COUNT) for name, value in dataclasses.asdict(activity).items()}


def behaviours(function: PciFunction) -> dict[str, Behaviour]:
    """One entry a register; a register without one is a programming error."""
    errors, snapshots = function.errors, function.snapshots

    def clear_faults(value: int) -> None:
        errors.fault_bits &= ~value

    def reset_cause() -> int:
        count = function.activity.resets & _RESET_COUNT_MASK
        return REGISTERS["reset_cause"].encode(cause=int(function.reset_cause), count=count)

    def black_box() -> int:
        page = function.black_box
        header = BLACK_BOX.parse(page[: BLACK_BOX.size])
        size = min(len(page), _BLACK_BOX_BYTES_MASK) if header.present else 0
        return REGISTERS["black_box"].encode(bytes=size, cause=header.cause)

    return {
        "identity": CONSTANT,
        "contract": CONSTANT,
        "features": CONSTANT,
        "revision": CONSTANT,
        "capabilities": CONSTANT,
        "control": Behaviour(write=function.write_control),
        "status": Behaviour(read=function.read_status),
        "reset_cause": Behaviour(read=reset_cause),
        "admin_queue_size": STORAGE,
        "admin_submission_base": STORAGE,
        "admin_completion_base": STORAGE,
        "interrupt_status": STORAGE,
        "interrupt_mask": Behaviour(write=function.write_interrupt_mask),
        "fault_status": Behaviour(read=lambda: errors.fault_bits, write=clear_faults),
        "fault_count": Behaviour(read=lambda: errors.total & _FAULT_COUNT_MASK),
        "fault_address": Behaviour(read=lambda: errors.fault_address),
        "device_memory_bytes": Behaviour(read=lambda: function.memory.size),
        "tick_hertz": Behaviour(read=lambda: function.profile.tick_hz),
        "clock_snapshot": Behaviour(write=snapshots.take_clocks),
        "tick_snapshot": Behaviour(read=lambda: snapshots.tick),
        "wall_snapshot": Behaviour(read=lambda: snapshots.wall_nanoseconds),
        "scratch": STORAGE,
        "scratch_wide": STORAGE,
        "reset_history": Behaviour(read=lambda: function.reset_history),
        "black_box": Behaviour(read=black_box),
        "counter_snapshot": Behaviour(write=snapshots.take_counters),
        "commands_completed": Behaviour(read=lambda: snapshots.commands),
        "bytes_moved": Behaviour(read=lambda: snapshots.bytes_moved),
        "busy_ticks": Behaviour(read=lambda: snapshots.busy_ticks),
        **management_behaviours(function.management, function.mailbox_busy),
    }
