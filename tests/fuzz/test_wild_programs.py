"""Programs of chance on the core: whatever instructions do, they end in a trap or a stop of the machine's own."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from hypothesis import strategies as st

from emulator.management.riscv.board import Unmapped, default_board
from emulator.management.riscv.machine import Machine, StopReason
from emulator.management.riscv.uart16550 import Uart16550
from tests.fuzz.device import fuzzed
from tests.support import riscv
from tests.support.riscv import CLINT, PLIC, POWER_OFF, RAM, UART

EXAMPLES = 12
INSTRUCTIONS = 300
RUNS, RUN_INSTRUCTIONS = 4, 2000
PATIENCE_TICKS = 1_000_000
RAM_END = RAM + 0x800_0000
CSRS = [riscv.MSTATUS, riscv.MIE, riscv.MTVEC, riscv.MEPC, riscv.MCAUSE, riscv.MIP, riscv.MCYCLE, riscv.MINSTRET]
CSRS += [riscv.CYCLE, riscv.TIME, riscv.INSTRET, riscv.CYCLEH, 0x180, 0xF14]
PLACES = [RAM, RAM_END - 4, RAM_END - 4 * INSTRUCTIONS + 2, UART, CLINT, CLINT + 0xBFF8, CLINT + 0x4000, PLIC]
PLACES += [PLIC + 0x200004, POWER_OFF, 0]
POINTERS = range(5, 10)
PRIVILEGED = [riscv.WFI, riscv.MRET, riscv.ECALL, riscv.EBREAK, riscv.FENCE_I, 0x12000073, 0x10200073]
ATOMICS = [0, 1, 2, 3, 4, 8, 12, 16, 20, 24, 28]


def _instruction(chance: random.Random) -> int:
    def register() -> int:
        return chance.randrange(32)

    def pointer() -> int:
        return chance.choice(POINTERS)

    csr_operation = chance.choice([riscv.csrrw, riscv.csrrs, riscv.csrrc])
    atomic = chance.choice(ATOMICS) << 27 | 2 << 12 | 0x2F
    kinds: list[Callable[[], int]] = [
        lambda: chance.getrandbits(32),
        lambda: chance.getrandbits(32) | 3,
        lambda: riscv.lw(register(), pointer(), chance.randrange(-64, 64)),
        lambda: riscv.sw(register(), pointer(), chance.randrange(-64, 64)),
        lambda: csr_operation(register(), chance.choice(CSRS), register()),
        lambda: chance.choice(PRIVILEGED),
        lambda: riscv.j(2 * chance.randrange(-40, 40)),
        lambda: riscv.beq(register(), register(), 2 * chance.randrange(-30, 30)),
        lambda: atomic | register() << 20 | pointer() << 15 | register() << 7,
        lambda: riscv.jr(pointer()),
        lambda: riscv.lui(register(), chance.choice(PLACES)),
        lambda: riscv.addi(register(), register(), chance.randrange(-2048, 2048)),
    ]
    return chance.choice(kinds)()


def _machine(chance: random.Random) -> Machine:
    """One with the same program at both ends of RAM."""
    machine = Machine(dataclasses.replace(default_board(), unmapped=chance.choice(list(Unmapped))))
    program = riscv.code(*(_instruction(chance) for _ in range(INSTRUCTIONS)))
    for place in (RAM, RAM_END - len(program)):
        machine.load_memory(place, program)
    for number in range(1, 32):
        machine.hart.write_register(number, chance.choice([*PLACES, chance.getrandbits(32)]))
    machine.hart.csrs.write(riscv.MTVEC, chance.choice([RAM + 400, RAM + 401, RAM_END - 400, 0, UART]))
    machine.hart.pc = chance.choice([RAM, RAM_END - len(program)])
    return machine


@fuzzed(EXAMPLES, seed=st.integers(0, (1 << 32) - 1))
def test_no_program_breaks_the_machine(seed: int) -> None:
    with _machine(random.Random(seed)) as machine:
        uart = machine.peripherals["serial"]
        assert isinstance(uart, Uart16550)
        for _ in range(RUNS):
            uart.receive(b"typed")
            before = machine.hart.cycle
            stop = machine.run(RUN_INSTRUCTIONS)
            if stop.reason is StopReason.WAITING:
                machine.advance_to(machine.tick + PATIENCE_TICKS)
            elif stop.reason is StopReason.RUNNING:
                assert machine.hart.cycle >= before + RUN_INSTRUCTIONS
            else:
                break
