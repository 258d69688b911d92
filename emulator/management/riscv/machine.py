"""The management core as a machine: a hart, its memories and peripherals, and time.

`run` runs the hart for a while and tells why it came back. Nothing here sleeps: when the hart waits, the caller learns
the tick until which nothing happens, sleeps as long as it likes, and tells with `advance_to` how far time went. The
same inputs at the same ticks give the same run, instruction for instruction.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from driver_shim.protocol.registers import CoreReset
from emulator.management.riscv.board import Board, BoardError, MemoryEntry, PeripheralEntry, Unmapped, bus_sizes
from emulator.management.riscv.clint import Clint
from emulator.management.riscv.csr import Interrupt
from emulator.management.riscv.hart import Access, BusFault, Halt, Hart
from emulator.management.riscv.memory import Memories, Memory, zeroed_buffer
from emulator.management.riscv.peripheral import Peripheral
from emulator.management.riscv.plic import Plic
from emulator.management.riscv.power_off import PowerOff
from emulator.management.riscv.uart16550 import Uart16550

log = logging.getLogger("npu.emulator.management")

CYCLES_PER_TICK = 10
"""The core runs at a nominal 100 MHz, `mtime` at 10 MHz."""

ACCESS_CYCLES = 400
"""An access to a peripheral: 4 us, as on a slow bus behind bridges. It is about what one costs here too, so a program
that polls a device or `mtime` sees time pass as the wall does, and the same at each run. Exceptions take it as well."""

_TIMEOUT_ACCESSES = 10
"""An access to nothing takes as long as so many accesses: until the bus gives it up."""

_SLICE_CYCLES = 100_000
"""Of one run of unicorn: half a millisecond of the host's time."""

_REPORTS_MAX = 64
"""Places in the program whose accesses to nothing, or wrong ones to a peripheral, are reported, each once."""

ModelFactory = Callable[["Machine", int], Peripheral]
"""Makes a peripheral for a machine and an interrupt source."""


class StopReason(enum.Enum):
    """Why `Machine.run` came back."""

    RUNNING = "running"
    """The instructions asked for have been run."""
    WAITING = "waiting"
    """The hart waits for an interrupt."""
    POWER_OFF = "power-off"
    RESET = "reset"
    """Something asked for a reset of the core: `Machine.reset` is the caller's to call."""
    FAULT = "fault"
    """An access to nothing, on a board that stops there."""


@dataclass(frozen=True)
class Stop:
    """Why `Machine.run` came back, with what belongs to it."""

    reason: StopReason
    until: int | None = None
    """WAITING: the tick at which something will happen by itself; None when only the outside can end the wait."""
    exit_code: int | None = None
    """POWER_OFF: what the program gave."""
    reset: CoreReset | None = None
    """RESET: why."""
    fault: BusFault | None = None
    """FAULT: the access."""
    symbol: str = ""
    """FAULT: the place of its pc, as far as known."""


_RUNNING = Stop(StopReason.RUNNING)


class Machine:
    """A `MachinePort` with the machine behind it. Close it, or use it as a context manager."""

    def __init__(
        self,
        board: Board,
        *,
        models: Mapping[str, ModelFactory] | None = None,
        buffers: Mapping[str, memoryview] | None = None,
        transmit: Callable[[bytes], None] | None = None,
        access_cycles: int = 0,
    ) -> None:
        """`models` are peripherals beyond the built-in ones, `buffers` the bytes of memories by name, which the machine
        would otherwise allocate; `transmit` takes what the UART sends. An access to a peripheral and an exception take
        `access_cycles` on top of the instruction's own, an access to nothing many times that. Raises BoardError.
        """
        board.check(bus_sizes(tuple(models or ())))
        self.board = board
        self._access_cycles = access_cycles
        self.symbolize: Callable[[int], str] = lambda _pc: ""
        """Names the place of a pc in reports; an ELF file's `Symbols.place`, for example."""
        self._transmit = transmit or (lambda _data: None)
        self._stop: Stop | None = None
        self._waiting = False
        self._reported: set[int] = set()
        self.memories = Memories(_make_memory(entry, buffers or {}, board) for entry in board.memories)
        self.hart = Hart(self.memories, lambda: self.clint.time)
        self.hart.time_read_cycles = self.hart.exception_cycles = access_cycles
        try:
            self.clint = Clint(self, self.hart.set_pending)
            self.plic = Plic(lambda level: self.hart.set_pending(Interrupt.EXTERNAL, level))
            self.peripherals = self._make_peripherals(models or {})
            self.reset()
        except BaseException:
            self.close()
            raise

    def _make_peripherals(self, models: Mapping[str, ModelFactory]) -> dict[str, Peripheral]:
        made = {entry.name: self._make_peripheral(entry, models) for entry in self.board.peripherals}
        self.board.check({entry.model: made[entry.name].size_bytes for entry in self.board.peripherals})
        for entry in self.board.peripherals:
            made[entry.name].report = partial(self._report_misuse, entry.name)
            self._map(entry.base, made[entry.name])
        return made

    def _make_peripheral(self, entry: PeripheralEntry, models: Mapping[str, ModelFactory]) -> Peripheral:
        match entry.model:
            case "clint":
                return self.clint
            case "plic":
                return self.plic
            case "power-off":
                return PowerOff(self, self._power_off)
            case "uart16550":
                return Uart16550(self, entry.interrupt, self._transmit)
        return models[entry.model](self, entry.interrupt)

    def _report_misuse(self, name: str, what: str) -> None:
        self._report(self.hart.current_pc, f"access to {name}", what)

    def _map(self, base: int, peripheral: Peripheral) -> None:
        def read(offset: int, size: int) -> int:
            value = peripheral.read(offset, size)
            self._finish_access(peripheral)
            return value

        def write(offset: int, size: int, value: int) -> None:
            peripheral.write(offset, size, value)
            self._finish_access(peripheral)

        self.hart.map_device(base, peripheral.size_bytes, read, write)

    def _finish_access(self, peripheral: Peripheral) -> None:
        self.hart.delay(self._access_cycles)
        deadline = peripheral.deadline()
        if deadline is not None and deadline * CYCLES_PER_TICK < self.hart.slice_end:
            self.hart.end_slice()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what unicorn holds."""
        self.hart.close()

    # --- what peripherals and the host may ask: `MachinePort`

    @property
    def tick(self) -> int:
        """The core's own time in ticks of 10 MHz since it was made; resets do not touch it."""
        return self.hart.cycle // CYCLES_PER_TICK

    def set_interrupt(self, source: int, level: bool) -> None:
        """Drive an input of the PLIC; source 0 is not connected. Raises ValueError when there is no such input."""
        self.plic.set_level(source, level)

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of a memory. Raises ValueError outside."""
        return self.memories.read(address, size)

    def write_memory(self, address: int, data: bytes) -> None:
        """Store into a memory that the core can write. Raises ValueError outside."""
        memory = self.memories.holding(address, len(data))
        if not memory.writable:
            raise ValueError(f"memory {memory.name} at {address:#x} cannot be written by the core")
        self.load_memory(address, data)

    def load_memory(self, address: int, data: bytes | memoryview) -> None:
        """Store into any memory, as a programmer of flash does. Raises ValueError outside."""
        memory = self.memories.holding(address, len(data))
        offset = address - memory.base
        memory.buffer[offset : offset + len(data)] = data
        self.hart.code_changed(address, len(data))

    def code_changed(self, address: int, size: int) -> None:
        """Somebody stored into a memory's buffer directly: the hart must not run what was there before."""
        self.hart.code_changed(address, size)

    def stall(self, ticks: int) -> None:
        """The core stands still for this long: its time goes on without an instruction."""
        self.hart.pass_cycles(ticks * CYCLES_PER_TICK)

    def request_reset(self, reason: CoreReset) -> None:
        """The run ends behind the current instruction and tells the reason."""
        self._end(Stop(StopReason.RESET, reset=reason))

    def _power_off(self, exit_code: int) -> None:
        self._end(Stop(StopReason.POWER_OFF, exit_code=exit_code))

    def _end(self, stop: Stop) -> None:
        self._stop = stop
        self.hart.end_slice()

    # --- running

    def reset(self) -> None:
        """The hart and all peripherals as after power-on, the pc at the reset vector; memories keep their bytes."""
        self._stop = None
        self._waiting = False
        self.hart.reset()
        self.clint.reset()
        self.plic.reset()
        for peripheral in self.peripherals.values():
            if peripheral not in (self.clint, self.plic):
                peripheral.reset()
        self.hart.pc = self.board.reset_vector

    def start(self, pc: int, a0: int = 0, a1: int = 0) -> None:
        """Let the hart begin there, with these arguments."""
        self.hart.pc = pc
        self.hart.write_register(10, a0)
        self.hart.write_register(11, a1)

    def run(self, max_instructions: int) -> Stop:
        """Run until something ends it, at most for so many instructions (or as much time as these take)."""
        end = self.hart.cycle + max_instructions
        while self._stop is None:
            self._expire()
            if self.hart.lost and self._stop is None:  # as a wait: millions of traps would keep a watchdog waiting
                return Stop(StopReason.WAITING, until=self._next_deadline())
            if self._waiting:
                if not self.hart.csrs.wakes():
                    return Stop(StopReason.WAITING, until=self._next_deadline())
                self._waiting = False
            cycle = self.hart.cycle
            if self._stop is not None or cycle >= end:
                break
            self.hart.take_interrupt()
            limit = min(end - cycle, _SLICE_CYCLES)
            deadline = self._next_deadline()
            if deadline is not None:
                limit = max(min(limit, deadline * CYCLES_PER_TICK - cycle), 1)
            self._handle(self.hart.run(limit))
        return self._stop or _RUNNING

    def advance_to(self, tick: int) -> int:
        """Time went on to `tick` without instructions. Returns the tick that was reached: the first, at most `tick`, at
        which an interrupt ends a wait, so that a late caller delays nothing. Deadlines on the way are kept.
        """
        while self._stop is None:
            self._expire()
            if self._waiting and self.hart.csrs.wakes():
                break
            deadline = self._next_deadline()
            goal = tick if deadline is None or deadline <= self.tick else min(tick, deadline)
            if goal <= self.tick:
                break
            self.hart.pass_cycles(goal * CYCLES_PER_TICK - self.hart.cycle)
        return self.tick

    def _expire(self) -> None:
        """Call every peripheral whose deadline has come."""
        for peripheral in self.peripherals.values():
            deadline = peripheral.deadline()
            if deadline is not None and deadline <= self.tick:
                peripheral.expire()

    def _next_deadline(self) -> int | None:
        deadlines = [peripheral.deadline() for peripheral in self.peripherals.values()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _handle(self, halt: Halt) -> None:
        match halt:
            case Halt.WAIT:
                self._waiting = True
            case Halt.FAULT if self.hart.fault is not None:
                self._handle_fault(self.hart.fault)

    def _handle_fault(self, fault: BusFault) -> None:
        place = self.symbolize(fault.pc)
        what = "cannot be written" if fault.read_only else "nothing is there"
        self._report(fault.pc, f"{fault.access.value} at {fault.address:#010x}", what)
        self.hart.delay(_TIMEOUT_ACCESSES * self._access_cycles)
        if fault.read_only or self.board.unmapped is Unmapped.FAULT:
            self.hart.trap(fault.cause, fault.address)
        elif self.board.unmapped is Unmapped.STOP:
            self._stop = Stop(StopReason.FAULT, fault=fault, symbol=place)
        elif fault.access is Access.FETCH:
            self.hart.trap(fault.cause, fault.address)
        else:
            self.hart.skip_access()

    def _report(self, pc: int, access: str, what: str) -> None:
        if pc in self._reported or len(self._reported) > _REPORTS_MAX:
            return
        self._reported.add(pc)
        if len(self._reported) > _REPORTS_MAX:
            log.warning("wrong accesses at more than %d places: the rest is not reported", _REPORTS_MAX)
            return
        log.warning("%s by pc %s: %s", access, f"{pc:#010x} {self.symbolize(pc)}".rstrip(), what)


def _make_memory(entry: MemoryEntry, buffers: Mapping[str, memoryview], board: Board) -> Memory:
    buffer = buffers.get(entry.name)
    key = f"memory.{entry.name}"
    if buffer is None:
        buffer = zeroed_buffer(entry.size)
    buffer = memoryview(buffer).cast("B")
    if buffer.nbytes != entry.size or buffer.readonly:
        found = f"a {'read-only ' if buffer.readonly else ''}buffer of {buffer.nbytes} bytes"
        raise BoardError(board.source, key, found, f"a writable buffer of {entry.size} bytes")
    if entry.file is not None:
        _fill(buffer, entry.file, key, board)
    return Memory(entry.name, entry.base, entry.writable, buffer)


def _fill(buffer: memoryview, path: Path, key: str, board: Board) -> None:
    allowed = f"a file of at most {buffer.nbytes} bytes"
    try:
        with path.open("rb") as file:
            data = file.read(buffer.nbytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BoardError(board.source, f"{key}.file", f"{path} cannot be read: {error}", allowed) from error
    if len(data) > buffer.nbytes:
        raise BoardError(board.source, f"{key}.file", f"{path} is longer", allowed)
    buffer[: len(data)] = data
