"""One RV32IMAC hart with M-mode only, on unicorn.

Unicorn runs the program in its user mode, so every instruction that touches the privileged state stops as illegal and
is done here: CSRs, mret, traps and interrupts never depend on what unicorn makes of them, and none of them is missed.
What unicorn does by itself and must not, reading the cycle and instruction counters and running what RV32IMAC lacks, is
found when it translates the block and intercepted there. Loads, stores, atomics and self-modifying code are unicorn's.

An instruction takes one cycle, and so does one that traps. Time is counted in cycles and goes on in `pass_cycles` too.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from dataclasses import dataclass

import unicorn
from unicorn import riscv_const, unicorn_const

from emulator.management.riscv import instructions
from emulator.management.riscv.csr import (
    INTERRUPT_BIT,
    TIME_REGISTERS,
    WORD_MASK,
    ControlRegisters,
    IllegalCsr,
    Interrupt,
)
from emulator.management.riscv.engine_registers import EngineRegisters
from emulator.management.riscv.instruction_counter import InstructionCounter, find_counter
from emulator.management.riscv.memory import NO_MEMORY, PAGE_BYTES, Memories

_NOWHERE = 0xFFFFFFFF
"""No instruction begins at an odd address, so unicorn never sees its end address."""

_USER_MODE = 0
_INSTRUCTION_BYTES_MAX = 4

_TRANSLATION_BUFFER_BYTES = 64 << 20
"""Unicorn would let translated code grow to a gigabyte before it starts again."""

_SCRATCH = 0x0
_LOOP = bytes.fromhex("13000000 6ff0dfff")  # nop; j -4
_PRIMING_INSTRUCTIONS = 16

_FETCH_ERRORS = frozenset([unicorn_const.UC_ERR_FETCH_UNMAPPED, unicorn_const.UC_ERR_FETCH_PROT])
_PROTECTION_ERRORS = frozenset([unicorn_const.UC_ERR_WRITE_PROT, unicorn_const.UC_ERR_READ_PROT])
_DATA_ERRORS = _PROTECTION_ERRORS | {unicorn_const.UC_ERR_READ_UNMAPPED, unicorn_const.UC_ERR_WRITE_UNMAPPED}

_BREAKPOINT_ERRORS = frozenset([unicorn_const.UC_ERR_INSN_INVALID, unicorn_const.UC_ERR_EXCEPTION])
"""Unicorn keeps ebreak to itself; every other exception comes to a hook."""

_UNICORN_ILLEGAL = 2
_UNICORN_MISALIGNED = (4, 6)
_UNICORN_ECALL = 8
"""From user mode; the program's own mode is M."""


class Cause(enum.IntEnum):
    """Exception codes of mcause."""

    INSTRUCTION_MISALIGNED = 0
    INSTRUCTION_ACCESS_FAULT = 1
    ILLEGAL_INSTRUCTION = 2
    BREAKPOINT = 3
    LOAD_MISALIGNED = 4
    LOAD_ACCESS_FAULT = 5
    STORE_MISALIGNED = 6
    STORE_ACCESS_FAULT = 7
    ECALL_FROM_M = 11


class Halt(enum.Enum):
    """Why `Hart.run` came back."""

    ENDED = enum.auto()
    """The limit was reached, or something happened that the caller must look at."""
    WAIT = enum.auto()
    """wfi."""
    FAULT = enum.auto()
    """An access that no memory and no peripheral answers; `Hart.fault` tells. The instruction has not been run."""


class Access(enum.Enum):
    """What an instruction wanted of an address."""

    FETCH = "fetch"
    LOAD = "load"
    STORE = "store"


@dataclass(frozen=True)
class BusFault:
    """An access that failed."""

    access: Access
    address: int
    pc: int
    read_only: bool
    """There is a memory, but the core cannot store into it."""

    @property
    def cause(self) -> Cause:
        """Its exception."""
        match self.access:
            case Access.FETCH:
                return Cause.INSTRUCTION_ACCESS_FAULT
            case Access.LOAD:
                return Cause.LOAD_ACCESS_FAULT
            case Access.STORE:
                return Cause.STORE_ACCESS_FAULT


class Hart:
    """Registers, traps and time, with memories on its bus and whatever `map_device` puts there."""

    def __init__(self, memories: Memories, time: Callable[[], int]) -> None:
        """`time` gives `mtime`, the value of the `time` register."""
        self._memories = memories
        self._engine = unicorn.Uc(unicorn_const.UC_ARCH_RISCV, unicorn_const.UC_MODE_RISCV32)
        self._engine.ctl_set_cpu_model(riscv_const.UC_CPU_RISCV32_SIFIVE_E31)
        self._engine.ctl_set_tcg_buffer_size(_TRANSLATION_BUFFER_BYTES)
        self._counter: InstructionCounter = find_counter(self._engine)
        self._registers = EngineRegisters(self._engine)
        self._code = next(iter(memories), NO_MEMORY)
        self._running = False
        self._cycle = 0
        self._retired = 0
        self._fault_address = 0
        self._until = _NOWHERE
        self._stale_block: tuple[int, int] | None = None
        self._intercepted: set[int] = set()
        self.fault: BusFault | None = None
        self.time_read_cycles = 0
        """What a read of `time` takes on top of its instruction: the value lies in a peripheral."""
        self.exception_cycles = 0
        """What an exception takes on top of its instruction."""
        self.lost = False
        """The handler of exceptions begins with one: they follow each other for ever, interrupts are off, and only a
        reset ends it."""
        self.pc = 0
        self.csrs = ControlRegisters(lambda: self.cycle, lambda: self.retired, time)
        self._prime()
        self._map_memories()
        self._engine.hook_add(unicorn_const.UC_HOOK_INTR, self._on_exception)
        self._engine.hook_add(unicorn_const.UC_HOOK_MEM_INVALID, self._on_bad_access)
        self._engine.hook_add(unicorn_const.UC_HOOK_EDGE_GENERATED, self._on_block)
        self.reset()

    def close(self) -> None:
        """Give unicorn's memory back; the hart is of no use afterwards."""
        # The hooks refer to the engine and to this object, so without this only the garbage collector would free it.
        release = getattr(self._engine, "_Uc__finalizer", None)
        if release is not None:
            release()

    def reset(self) -> None:
        """Registers as after power-on, time goes on."""
        for register in range(1, 32):
            self.write_register(register, 0)
        self._engine.reg_write(riscv_const.UC_RISCV_REG_PRIV, _USER_MODE)
        self._engine.ctl_flush_tb()
        self.csrs.reset()
        self.pc = 0
        self.lost = False

    def _prime(self) -> None:
        """Unicorn tells of a block that it translated only when another has run to its end before."""
        self._engine.mem_map(_SCRATCH, PAGE_BYTES)
        self._engine.mem_write(_SCRATCH, _LOOP)
        self._engine.emu_start(_SCRATCH, _NOWHERE, 0, self._counter.begin(_PRIMING_INSTRUCTIONS))
        self._engine.ctl_flush_tb()
        self._engine.mem_unmap(_SCRATCH, PAGE_BYTES)

    # --- bus

    def _map_memories(self) -> None:
        for memory in self._memories:
            first = ctypes.c_char.from_buffer(memory.buffer)
            rights = unicorn_const.UC_PROT_READ | unicorn_const.UC_PROT_EXEC
            if memory.writable:
                rights |= unicorn_const.UC_PROT_WRITE
            self._engine.mem_map_ptr(memory.base, memory.size, rights, ctypes.addressof(first))

    def map_device(
        self, base: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Answer accesses with `read(offset, size)` and `write(offset, size, value)`."""
        self._engine.mmio_map(
            base,
            size,
            lambda _engine, offset, width, _data: read(offset, width),
            None,
            lambda _engine, offset, width, value, _data: write(offset, width, value),
            None,
        )

    def code_changed(self, address: int, size: int) -> None:
        """Somebody else than the hart stored there: forget what was translated of it."""
        if size:
            self._engine.ctl_remove_cache(address, address + size)

    # --- registers

    def read_register(self, number: int) -> int:
        """x0 to x31."""
        return self._registers.read(number)

    def write_register(self, number: int, value: int) -> None:
        """x0 stays zero."""
        self._registers.write(number, value & WORD_MASK)

    # --- time

    @property
    def cycle(self) -> int:
        """Cycles before the current instruction."""
        return self._cycle + self._counter.value() - 1 if self._running else self._cycle

    @property
    def current_pc(self) -> int:
        """Address of the current instruction, also during its access to a device."""
        return self._registers.read_pc() if self._running else self.pc

    @property
    def retired(self) -> int:
        """Instructions retired before the current one."""
        return self._retired + self._counter.value() - 1 if self._running else self._retired

    @property
    def slice_end(self) -> int:
        """The cycle at which the current run ends at the latest."""
        return self._cycle + self._counter.limit() if self._running else self._cycle

    def pass_cycles(self, cycles: int) -> None:
        """Time goes on without instructions. Within a run it ends that run, for deadlines may have come."""
        self._cycle += cycles
        self.end_slice()

    def delay(self, cycles: int) -> None:
        """What the current instruction does takes so much longer; the run still ends at `slice_end`."""
        self._cycle += cycles
        if self._running:
            self._counter.shorten(cycles)

    def end_slice(self) -> None:
        """End the current run behind the current instruction."""
        if self._running:
            self._counter.end_now()

    # --- traps

    def set_pending(self, interrupt: Interrupt, level: bool) -> None:
        """Drive an interrupt line: a bit of `mip`."""
        bit = 1 << interrupt
        self.csrs.pending = self.csrs.pending | bit if level else self.csrs.pending & ~bit
        if self._running and self.csrs.deliverable() is not None:
            self._counter.end_now()

    def take_interrupt(self) -> None:
        """Enter the handler of the interrupt that must be taken now, if any."""
        interrupt = self.csrs.deliverable()
        if interrupt is not None:
            self.pc = self.csrs.enter_trap(INTERRUPT_BIT | interrupt, 0, self.pc)

    def trap(self, cause: Cause, value: int) -> None:
        """Enter the handler of an exception of the instruction at `pc`."""
        handler = self.csrs.enter_trap(cause, value, self.pc)
        self.lost = handler == self.pc
        self.pc = handler
        self.delay(self.exception_cycles)
        if self.lost:
            self.end_slice()

    def skip_access(self) -> None:
        """Finish the instruction that faulted as if it had read zeros and stored nowhere."""
        instruction = self._fetch(self.pc)
        access = instructions.decode_access(instruction)
        if access is not None and access.destination is not None:
            self.write_register(access.destination, 0)
        self.pc = self.pc + instructions.length_bytes(instruction) & WORD_MASK
        self._retired += 1

    # --- running

    def run(self, limit: int) -> Halt:
        """Run at most so many cycles. May come back early for no visible reason."""
        until, self._until = self._until, _NOWHERE
        self._running = True
        try:
            self._engine.emu_start(self.pc, until, 0, self._counter.begin(limit))
        except unicorn.UcError as stopped:
            self._running = False
            return self._end_with_error(stopped)
        finally:
            self._running = False
        begun = self._counter.value()
        self.pc = self._registers.read_pc()
        if self._stale_block is not None:
            self._account(begun, begun)
            self._retranslate()
        elif begun <= self._counter.limit():
            # Nothing but wfi and the end that was asked for ends a run before its limit.
            self._account(begun, begun)
            return Halt.ENDED if self.pc == until else Halt.WAIT
        else:
            self._account(begun - 1, begun - 1)
        return Halt.ENDED

    def _account(self, cycles: int, retired: int) -> None:
        self._cycle += cycles
        self._retired += retired

    def _end_with_error(self, stopped: unicorn.UcError) -> Halt:
        begun = self._counter.value()
        self.pc = self._registers.read_pc()
        if stopped.errno in _FETCH_ERRORS and self._fault_address - self.pc >= _INSTRUCTION_BYTES_MAX:
            # The last instruction of a block lacks its second half, and none of the block has run: run up to it.
            self._account(begun, begun)
            self._until = self._fault_address - 2
            return Halt.ENDED
        if stopped.errno in _FETCH_ERRORS:
            self._account(begun + 1, begun)
            self.fault = BusFault(Access.FETCH, self._fault_address, self.pc, read_only=False)
            return Halt.FAULT
        self._account(begun, begun - 1)
        if stopped.errno in _BREAKPOINT_ERRORS:
            self.trap(Cause.BREAKPOINT, self.pc)
            return Halt.ENDED
        if stopped.errno in _DATA_ERRORS:
            access = instructions.decode_access(self._fetch(self.pc))
            stores = access is not None and access.store
            self.fault = BusFault(
                Access.STORE if stores else Access.LOAD,
                self._fault_address,
                self.pc,
                read_only=stopped.errno in _PROTECTION_ERRORS,
            )
            return Halt.FAULT
        raise stopped

    def _fetch(self, pc: int) -> int:
        """The 16 or 32 bits of the instruction at `pc`."""
        code = self._code
        if not code.base <= pc <= code.end - 4:
            code = self._memories.holding(pc, 2)
            self._code = code
        offset = pc - code.base
        instruction = int.from_bytes(code.buffer[offset : offset + 4], "little")
        return instruction & 0xFFFF if instructions.is_compressed(instruction) else instruction

    # --- what unicorn calls

    def _on_bad_access(self, _engine: object, _kind: int, address: int, _size: int, _value: int, _data: object) -> bool:
        self._fault_address = address
        return False

    def _on_exception(self, _engine: object, number: int, _data: object) -> None:
        """Unicorn has moved its pc on by four bytes, whatever the length of the instruction."""
        pc = self._registers.read_pc() - 4 & WORD_MASK
        instruction = self._fetch(pc)
        if number == _UNICORN_ILLEGAL:
            self._run_privileged(instruction, pc)
        elif number in _UNICORN_MISALIGNED:
            access = instructions.decode_access(instruction)
            stores = access is not None and access.store
            address = self.read_register(access.base) if access is not None and access.base is not None else 0
            self._raise(Cause.STORE_MISALIGNED if stores else Cause.LOAD_MISALIGNED, address, pc)
        elif number == _UNICORN_ECALL:
            self._raise(Cause.ECALL_FROM_M, 0, pc)
        else:
            raise RuntimeError(f"unicorn stopped at {pc:#x} with exception {number}, which no instruction here raises")

    def _run_privileged(self, instruction: int, pc: int) -> bool:
        """Whether the program goes on elsewhere than behind the instruction."""
        csr = instructions.decode_csr(instruction)
        if csr is not None:
            try:
                self._run_csr(csr)
            except IllegalCsr:
                self._raise(Cause.ILLEGAL_INSTRUCTION, instruction, pc)
                return True
            if self.csrs.deliverable() is None:
                return False
            self._go_on_at(pc + 4)
        elif instruction == instructions.MRET:
            self._go_on_at(self.csrs.leave_trap())
        elif instructions.is_address_fence(instruction):
            return False  # nothing is translated here; start-up code that clears satp has one behind it
        else:
            self._raise(Cause.ILLEGAL_INSTRUCTION, instruction, pc)
        return True

    def _go_on_at(self, pc: int) -> None:
        """The program goes on there, or in the handler of an interrupt that comes before it."""
        self.pc = pc & WORD_MASK
        self.take_interrupt()
        self._registers.write_pc(self.pc)

    def _raise(self, cause: Cause, value: int, pc: int) -> None:
        self._retired -= 1
        self.pc = pc
        self.trap(cause, value)
        self._go_on_at(self.pc)

    def _run_csr(self, csr: instructions.CsrInstruction) -> None:
        source = csr.source if csr.immediate else self.read_register(csr.source)
        reads = csr.destination != 0 or csr.operation is not instructions.CsrOperation.WRITE
        old = self.csrs.read(csr.number) if reads else 0
        if csr.number in TIME_REGISTERS:
            self.delay(self.time_read_cycles)
        if csr.writes:
            match csr.operation:
                case instructions.CsrOperation.WRITE:
                    self.csrs.write(csr.number, source)
                case instructions.CsrOperation.SET:
                    self.csrs.write(csr.number, old | source)
                case instructions.CsrOperation.CLEAR:
                    self.csrs.write(csr.number, old & ~source)
        self.write_register(csr.destination, old)

    def _on_block(self, engine: unicorn.Uc, block: object, _previous: object, _data: object) -> None:
        """A block was translated and is about to run."""
        start, size = block.pc, block.size  # type: ignore[attr-defined]
        fresh = [
            start + offset
            for offset in instructions.intercepted_places(self._memories.read(start, size))
            if start + offset not in self._intercepted
        ]
        if not fresh:
            return
        for address in fresh:
            self._intercepted.add(address)
            engine.hook_add(unicorn_const.UC_HOOK_CODE, self._on_intercepted, None, address, address)
        self._stale_block = (start, size)
        engine.emu_stop()

    def _retranslate(self) -> None:
        """The block was translated before its hooks were set."""
        if self._stale_block is None:
            return
        start, size = self._stale_block
        self._stale_block = None
        self._engine.ctl_remove_cache(start, start + size)

    def _on_intercepted(self, _engine: object, address: int, _size: int, _data: object) -> None:
        instruction = self._fetch(address)
        # Other code may have taken its place since.
        if instructions.is_foreign(instruction):
            self._raise(Cause.ILLEGAL_INSTRUCTION, instruction, address)
        elif instructions.reads_cycle_counter(instruction) and not self._run_privileged(instruction, address):
            self._go_on_at(address + 4)
