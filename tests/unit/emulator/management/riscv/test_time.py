"""Interrupts, counters, waiting and reproducibility of the management core."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from driver_shim.protocol.registers import CoreReset
from emulator.management.riscv import hart as hart_module
from emulator.management.riscv.instruction_counter import HookCounter, NativeCounter
from emulator.management.riscv.machine import CYCLES_PER_TICK, Machine, StopReason
from emulator.management.riscv.peripheral import Peripheral
from tests.support.riscv import (
    CLINT,
    CYCLE,
    CYCLEH,
    ECALL,
    FENCE_I,
    HANDLER,
    HERE,
    INSTRET,
    MCAUSE,
    MCYCLE,
    MCYCLEH,
    MEPC,
    MIE,
    MINSTRET,
    MINSTRETH,
    MIP,
    MRET,
    MSTATUS,
    MTVEC,
    NOP,
    PLIC,
    POWER_OFF,
    RAM,
    TIME,
    UART,
    WFI,
    Rig,
    addi,
    code,
    csrr,
    csrrsi,
    csrw,
    j,
    jr,
    li,
    lw,
    sb,
    sw,
)

MSI, MTI, MEI = 1 << 3, 1 << 7, 1 << 11
MIE_BIT, MPIE_BIT, MPP_M = 1 << 3, 1 << 7, 0b11 << 11
MSIP, MTIMECMP, MTIME = 0x0, 0x4000, 0xBFF8
COUNTER_KINDS = ["native", "hook"]


@pytest.fixture(params=COUNTER_KINDS)
def counter_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of counting instructions must give the same results."""
    if request.param == "hook":
        monkeypatch.setattr(hart_module, "find_counter", HookCounter)
    return str(request.param)


def test_unicorns_counter_is_found() -> None:
    with Rig(NOP) as rig:
        assert isinstance(rig.hart._counter, NativeCounter)


def enable(rig: Rig, interrupts: int) -> None:
    rig.write(MIE, interrupts)
    rig.write(MSTATUS, MIE_BIT)


# --- counters


@pytest.mark.usefixtures("counter_kind")
def test_counters_are_exact() -> None:
    program = (
        csrr(5, MCYCLE),
        csrr(6, MINSTRET),
        NOP,
        csrr(7, CYCLE),
        csrr(8, INSTRET),
        csrr(9, MCYCLE),
        ECALL,
    )
    with Rig(*program, handler=(csrr(10, MINSTRET), csrr(11, MCYCLE), csrr(12, CYCLE), HERE)) as rig:
        rig.run(50)
        assert [rig.x(register) for register in range(5, 13)] == [0, 1, 3, 4, 5, 6, 8, 9]
        assert rig.hart.cycle == 50
        assert rig.hart.retired == 49


@pytest.mark.usefixtures("counter_kind")
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_counts_do_not_depend_on_the_slices(step: int) -> None:
    program = (csrr(5, MCYCLE), csrr(6, CYCLE), lw(7, 20), sw(7, 20), ECALL)
    back = (csrr(9, MEPC), addi(9, 9, 4), csrw(MEPC, 9), MRET)
    with Rig(*li(20, CLINT), *program, csrr(8, INSTRET), handler=back) as rig:
        for _ in range(0, 1000, step):
            rig.run(step)
        assert [rig.x(register) for register in (5, 6, 8)] == [2, 3, 10]


@pytest.mark.parametrize(("low", "high"), [(MCYCLE, MCYCLEH), (MINSTRET, MINSTRETH)])
def test_counters_can_be_written(low: int, high: int) -> None:
    program = (*li(5, 1000), csrw(low, 5), csrr(6, low), NOP, csrr(7, low), csrw(high, 5), csrr(8, high), csrr(9, low))
    with Rig(*program) as rig:
        rig.run(len(program))
        assert [rig.x(register) for register in (6, 7, 8, 9)] == [1000, 1002, 1000, 1005]


def test_counter_carries_into_its_upper_half() -> None:
    program = (*li(5, 0xFFFFFFFF), csrw(MCYCLE, 5), NOP, csrr(6, MCYCLEH), csrr(7, CYCLEH), csrr(8, MCYCLE))
    with Rig(*program) as rig:
        rig.run(len(program))
        assert [rig.x(register) for register in (6, 7, 8)] == [1, 1, 2]


def test_time_goes_by_ten_instructions() -> None:
    program = (*[NOP] * 9, csrr(5, TIME), csrr(6, TIME), *li(7, CLINT + MTIME), lw(8, 7))
    with Rig(*program) as rig:
        rig.run(len(program))
        assert [rig.x(register) for register in (5, 6, 8)] == [0, 1, 1]


def test_counters_in_code_that_is_copied_at_run_time() -> None:
    # Copies `csrr x10, cycle; jr x1` to RAM + 0x800 twice, the second time over `addi`, and calls it.
    target = RAM + 0x800
    program = (
        *li(5, target),
        *li(6, addi(10, 0, 77)),
        *li(7, csrr(10, CYCLE)),
        *li(8, jr(1)),
        sw(6, 5),
        sw(8, 5, 4),
        FENCE_I,
        *li(1, RAM + 4 * 14),
        jr(5),
        addi(11, 10, 0),  # RAM + 4 * 14
        sw(7, 5),
        FENCE_I,
        *li(1, RAM + 4 * 20),
        jr(5),
        addi(12, 10, 0),  # RAM + 4 * 20
        sw(6, 5),
        FENCE_I,
        *li(1, RAM + 4 * 26),
        jr(5),
        addi(13, 10, 0),  # RAM + 4 * 26
    )
    with Rig(*program) as rig:
        rig.run(100)
        assert (rig.x(11), rig.x(12), rig.x(13)) == (77, 22, 77)


def test_code_that_the_host_stores_is_run() -> None:
    with Rig(addi(5, 5, 1), j(-4)) as rig:
        rig.run(10)
        assert rig.x(5) == 5
        rig.machine.write_memory(RAM, code(addi(5, 5, 100)))
        rig.run(10)
        assert rig.x(5) == 505


# --- timer


@pytest.mark.usefixtures("counter_kind")
def test_timer_interrupt_comes_at_its_very_cycle() -> None:
    with Rig(addi(5, 5, 1), j(-4)) as rig:
        enable(rig, MTI)
        rig.machine.clint.write(MTIMECMP, 4, 7)
        rig.machine.clint.write(MTIMECMP + 4, 4, 0)
        rig.run(69)
        assert (rig.x(5), rig.read(MIP)) == (35, 0)
        rig.run(1)
        assert (rig.hart.pc, rig.read(MIP)) == (RAM, MTI)
        rig.run(1)
        assert rig.hart.pc == HANDLER
        assert (rig.read(MCAUSE), rig.read(MEPC)) == (0x80000007, RAM)
        assert rig.read(MSTATUS) == MPP_M | MPIE_BIT
        assert rig.read(MIP) == MTI


def test_timer_is_pending_while_it_is_masked() -> None:
    with Rig(csrr(5, MIP), j(-4)) as rig:
        rig.machine.clint.write(MTIMECMP, 4, 3)
        rig.machine.clint.write(MTIMECMP + 4, 4, 0)
        rig.run(30)
        assert rig.x(5) == 0
        rig.run(2)
        assert rig.x(5) == MTI


def test_compare_in_the_past_interrupts_at_once_and_moving_it_withdraws() -> None:
    program = (*li(5, CLINT + MTIMECMP), sw(0, 5), sw(0, 5, 4), NOP)
    quiet = (addi(6, 0, -1), sw(6, 5, 4), csrr(7, MIP), HERE)
    with Rig(*program, handler=quiet) as rig:
        enable(rig, MTI)
        rig.run(4)
        assert rig.hart.pc == RAM + 16
        rig.run(4)
        assert (rig.read(MEPC), rig.x(7)) == (RAM + 16, 0)


def test_timer_is_pending_until_the_program_sets_it() -> None:
    with Rig(HERE) as rig:
        rig.machine.reset()
        assert rig.read(MIP) == MTI
        rig.machine.clint.write(MTIMECMP + 4, 4, 1)
        assert rig.read(MIP) == 0


def test_a_deadline_after_time_began_anew_has_not_come() -> None:
    with Rig(NOP) as rig:
        clint = rig.machine.clint
        clint.write(MTIMECMP + 4, 4, 0x80000000)
        clint.write(MTIMECMP, 4, 0)
        clint.write(MTIME, 4, 0xFFFFFF9C)
        clint.write(MTIME + 4, 4, 0xFFFFFFFF)
        rig.machine.advance_to(150)
        clint.expire()
        assert (clint.time, clint.deadline()) == (50, 100 + (1 << 63))


def test_mtime_can_be_written() -> None:
    program = (*li(5, CLINT + MTIME), *li(6, 5000), sw(6, 5), sw(6, 5, 4), lw(7, 5), lw(8, 5, 4))
    with Rig(*program) as rig:
        rig.machine.clint.write(MTIMECMP, 4, 5001)
        rig.machine.clint.write(MTIMECMP + 4, 4, 5000)
        rig.run(8)
        assert (rig.x(7), rig.x(8)) == (5000, 5000)
        assert rig.machine.clint.deadline() == 1
        rig.run(20)
        assert rig.read(MIP) == MTI


@pytest.mark.parametrize("size", [1, 2])
def test_clint_has_narrow_accesses(size: int) -> None:
    with Rig(NOP) as rig:
        clint = rig.machine.clint
        for offset in range(0, 8, size):
            clint.write(MTIMECMP + offset, size, 0x0807060504030201 >> 8 * offset & (1 << 8 * size) - 1)
        assert (clint.read(MTIMECMP, 4), clint.read(MTIMECMP + 4, 4)) == (0x04030201, 0x08070605)
        assert clint.read(MTIMECMP + 4, size) == 0x08070605 & (1 << 8 * size) - 1
        assert clint.read(0x20, 4) == 0


# --- software and external interrupts


def test_software_interrupt_is_taken_behind_the_store() -> None:
    with Rig(*li(5, CLINT), addi(6, 0, 1), sw(6, 5), addi(7, 7, 1)) as rig:
        enable(rig, MSI)
        rig.run(4)
        rig.run(1)
        assert (rig.read(MCAUSE), rig.read(MEPC), rig.x(7)) == (0x80000003, RAM + 16, 0)


@pytest.mark.parametrize("unmask", [csrrsi(0, MSTATUS, 8), csrw(MIE, 6), MRET], ids=["mstatus.MIE", "mie", "mret"])
def test_pending_interrupt_is_taken_behind_what_unmasks_it(unmask: int) -> None:
    with Rig(unmask, addi(7, 7, 1)) as rig:
        rig.machine.clint.write(MSIP, 4, 1)
        rig.hart.write_register(6, MSI)
        rig.write(MIE, 0 if unmask == csrw(MIE, 6) else MSI)
        rig.write(MSTATUS, MIE_BIT if unmask == csrw(MIE, 6) else MPIE_BIT)
        rig.write(MEPC, RAM + 4)
        rig.run(100)
        assert (rig.read(MCAUSE), rig.read(MEPC), rig.x(7)) == (0x80000003, RAM + 4, 0)


def test_interrupts_have_an_order_and_vectors() -> None:
    with Rig(NOP) as rig:
        rig.put(HANDLER, *[HERE] * 16)
        rig.write(MTVEC, HANDLER | 1)
        rig.machine.clint.write(MSIP, 4, 1)
        rig.machine.clint.write(MTIMECMP, 4, 0)
        rig.machine.clint.write(MTIMECMP + 4, 4, 0)
        rig.machine.plic.write(4 * 9, 4, 1)
        rig.machine.plic.write(0x2000, 4, 1 << 9)
        rig.machine.set_interrupt(9, True)
        assert rig.read(MIP) == MEI | MSI | MTI
        order: list[int] = []
        for _ in range(3):
            enable(rig, MEI | MSI | MTI if not order else rig.read(MIE) & ~(1 << order[-1]))
            rig.run(1)
            order.append(rig.read(MCAUSE) & 0xFF)
            assert rig.hart.pc == HANDLER + 4 * order[-1]
        assert order == [11, 3, 7]


def test_interrupt_from_a_peripheral_is_taken_behind_the_access() -> None:
    with Rig(*li(5, UART), addi(6, 0, 2), sb(6, 5, 1), addi(7, 7, 1)) as rig:
        enable(rig, MEI)
        rig.machine.plic.write(4 * 10, 4, 1)
        rig.machine.plic.write(0x2000, 4, 1 << 10)
        rig.run(100)
        assert (rig.read(MCAUSE), rig.read(MEPC), rig.x(7)) == (0x8000000B, RAM + 16, 0)


def test_plic_gives_the_highest_priority_first() -> None:
    with Rig(NOP) as rig:
        plic = rig.machine.plic
        for source, priority in ((3, 1), (40, 5), (5, 5)):
            plic.write(4 * source, 4, priority)
            rig.machine.set_interrupt(source, True)
        plic.write(0x2000, 4, 1 << 3 | 1 << 5)
        plic.write(0x2004, 4, 1 << 8)
        claimed = [plic.read(0x200004, 4) for _ in range(4)]
        assert claimed == [5, 40, 3, 0]
        plic.write(0x200004, 4, 40)
        assert plic.read(0x1004, 4) == 1 << 8, "the level still stands"
        rig.machine.set_interrupt(40, False)
        assert plic.read(0x200004, 4) == 40, "a request stays until it is claimed"
        plic.write(0x200004, 4, 40)
        assert plic.read(0x200004, 4) == 0


def test_plic_threshold_hides_lower_priorities() -> None:
    with Rig(NOP) as rig:
        plic = rig.machine.plic
        plic.write(4 * 3, 4, 2)
        plic.write(0x2000, 4, 1 << 3)
        plic.write(0x200000, 4, 2)
        rig.machine.set_interrupt(3, True)
        assert rig.read(MIP) == 0
        plic.write(0x200000, 4, 1)
        assert rig.read(MIP) == MEI
        assert [plic.read(offset, 4) for offset in (12, 0x2000, 0x200000)] == [2, 8, 1]


def test_interrupt_source_that_does_not_exist() -> None:
    with Rig(NOP) as rig:
        rig.machine.set_interrupt(0, True)
        with pytest.raises(ValueError, match=r"source 128 does not exist; allowed: 0 \(not connected\) to 127"):
            rig.machine.set_interrupt(128, True)


# --- waiting


@pytest.mark.usefixtures("counter_kind")
def test_wait_tells_the_tick_of_the_timer_and_goes_on_there() -> None:
    with Rig(WFI, addi(5, 0, 1)) as rig:
        rig.write(MIE, MTI)
        rig.machine.clint.write(MTIMECMP, 4, 1000)
        rig.machine.clint.write(MTIMECMP + 4, 4, 0)
        stop = rig.run()
        assert (stop.reason, stop.until) == (StopReason.WAITING, 1000)
        assert rig.machine.advance_to(400) == 400
        assert rig.run().reason is StopReason.WAITING
        assert rig.machine.advance_to(5000) == 1000, "a late caller delays nothing"
        assert rig.run(3).reason is StopReason.RUNNING
        assert (rig.x(5), rig.hart.cycle) == (1, 10_003)


def test_wait_without_a_deadline_ends_from_outside() -> None:
    with Rig(WFI, addi(5, 0, 1)) as rig:
        enable(rig, MEI)
        rig.machine.plic.write(4 * 2, 4, 1)
        rig.machine.plic.write(0x2000, 4, 1 << 2)
        assert rig.run().until is None
        assert rig.machine.advance_to(123) == 123
        assert rig.run().reason is StopReason.WAITING
        rig.machine.set_interrupt(2, True)
        rig.run(1)
        assert (rig.hart.pc, rig.read(MEPC)) == (HANDLER, RAM + 4)


def test_wait_is_over_at_once_when_an_interrupt_is_pending() -> None:
    with Rig(WFI, addi(5, 0, 1)) as rig:
        rig.write(MIE, MSI)
        rig.machine.clint.write(MSIP, 4, 1)
        assert rig.run(10).reason is StopReason.RUNNING
        assert rig.x(5) == 1


@pytest.mark.usefixtures("counter_kind")
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_wait_at_the_end_of_a_slice(budget: int) -> None:
    with Rig(*[NOP] * (budget - 1), WFI) as rig:
        rig.run(budget)
        assert rig.run(1).reason is StopReason.WAITING
        assert rig.hart.cycle == budget


# --- peripherals


class Probe(Peripheral):
    """Logs the tick of every access; a store stalls or sets a deadline."""

    def __init__(self, machine: Machine, interrupt: int) -> None:
        self.machine = machine
        self.interrupt = interrupt
        self.log: list[tuple[str, int]] = []
        self.due: int | None = None

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", self.machine.tick))
        return 0x11223344

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", self.machine.tick))
        match offset:
            case 0:
                self.machine.stall(value)
            case 4:
                self.due = self.machine.tick + value
            case 8:
                self.machine.request_reset(CoreReset(value))
            case 16:
                self.machine.write_memory(RAM + 24, code(addi(7, 7, value)))
            case 12:
                raise RuntimeError("broken peripheral")

    def reset(self) -> None:
        self.log.append(("reset", self.machine.tick))
        self.due = None

    def deadline(self) -> int | None:
        return self.due

    def expire(self) -> None:
        self.log.append(("expire", self.machine.tick))
        self.due = None
        self.machine.set_interrupt(self.interrupt, True)


PROBE = 0x3000_0000


def probe_rig(*program: int) -> tuple[Rig, Probe]:
    from emulator.management.riscv.board import PeripheralEntry, default_board

    board = default_board().with_peripheral(PeripheralEntry("probe", "probe", PROBE, interrupt=20))
    rig = Rig(*li(20, PROBE), *program, board=board, models={"probe": Probe})
    probe = rig.machine.peripherals["probe"]
    assert isinstance(probe, Probe)
    probe.log.clear()
    return rig, probe


@pytest.mark.usefixtures("counter_kind")
def test_tick_is_exact_at_every_access() -> None:
    rig, probe = probe_rig(*[NOP] * 7, lw(5, 20), lw(5, 20), *[NOP] * 9, lw(6, 20))
    with rig:
        rig.run(100)
        assert probe.log == [("read", 0), ("read", 1), ("read", 2)]
        assert rig.x(5) == 0x11223344


@pytest.mark.usefixtures("counter_kind")
def test_stall_takes_time_but_no_instructions() -> None:
    rig, _ = probe_rig(addi(5, 0, 30), sw(5, 20), csrr(6, MCYCLE), csrr(7, MINSTRET), csrr(8, TIME))
    with rig:
        rig.run(1000)
        assert (rig.x(6), rig.x(7), rig.x(8)) == (304, 5, 30)


@pytest.mark.usefixtures("counter_kind")
def test_deadline_that_an_access_sets_is_kept_within_the_run() -> None:
    rig, probe = probe_rig(addi(5, 0, 50), sw(5, 20, 4), addi(6, 6, 1), j(-4))
    with rig:
        rig.run(90_000)
        assert probe.log == [("write", 0), ("expire", 50)]


def test_deadlines_are_kept_while_the_core_waits() -> None:
    rig, probe = probe_rig(addi(5, 0, 50), sw(5, 20, 4), WFI)
    with rig:
        enable(rig, MEI)
        rig.machine.plic.write(4 * 20, 4, 1)
        rig.machine.plic.write(0x2000, 4, 1 << 20)
        assert rig.run().until == 50
        assert rig.machine.advance_to(70) == 50
        rig.run(1)
        assert probe.log[-1] == ("expire", 50)
        assert rig.read(MCAUSE) == 0x8000000B


def test_reset_that_a_peripheral_asks_for_ends_the_run() -> None:
    rig, probe = probe_rig(addi(5, 0, CoreReset.WATCHDOG), sw(5, 20, 8), addi(6, 0, 1))
    with rig:
        stop = rig.run()
        assert (stop.reason, stop.reset, rig.x(6)) == (StopReason.RESET, CoreReset.WATCHDOG, 0)
        assert rig.run() is stop
        rig.machine.reset()
        assert probe.log[-1] == ("reset", 0)
        assert (rig.hart.pc, rig.x(5), rig.read(MTVEC), rig.read(MCYCLE)) == (RAM, 0, 0, 0)


@pytest.mark.usefixtures("counter_kind")
def test_code_that_a_peripheral_stores_is_run() -> None:
    # The peripheral overwrites the instruction behind the fence, which has run before.
    rig, _ = probe_rig(addi(5, 0, 9), addi(6, 6, 1), sw(5, 20, 16), FENCE_I, addi(7, 7, 1), j(-16))
    with rig:
        rig.hart.pc = RAM + 24
        rig.run(1)
        assert rig.x(7) == 1
        rig.hart.pc = RAM
        rig.run(3 + 5 * 10)
        assert (rig.x(6), rig.x(7)) == (10, 91)


def test_exception_in_a_peripheral_comes_out_of_run() -> None:
    rig, _ = probe_rig(sw(0, 20, 12))
    with rig, pytest.raises(RuntimeError, match="broken peripheral"):
        rig.run()


@pytest.mark.parametrize(
    ("stored", "reason", "exit_code"),
    [
        (0x5555, StopReason.POWER_OFF, 0),
        (0x0007_3333, StopReason.POWER_OFF, 7),
        (0x7777, StopReason.RESET, None),
        (0x1234, StopReason.RUNNING, None),
    ],
)
def test_power_off(stored: int, reason: StopReason, exit_code: int | None) -> None:
    with Rig(*li(5, POWER_OFF), *li(6, stored), sw(6, 5), lw(7, 5), addi(8, 0, 1)) as rig:
        stop = rig.run(100)
        assert (stop.reason, stop.exit_code) == (reason, exit_code)
        assert rig.x(8) == (1 if reason is StopReason.RUNNING else 0)


# --- the host's side


def test_memory_from_the_host() -> None:
    with Rig(NOP) as rig:
        rig.machine.write_memory(RAM + 0x1000, b"abc")
        assert rig.machine.read_memory(RAM + 0xFFF, 5) == b"\0abc\0"
        with pytest.raises(ValueError, match="lie in no memory of the core; memories: ram"):
            rig.machine.read_memory(RAM - 1, 2)
        with pytest.raises(ValueError, match="lie in no memory"):
            rig.machine.write_memory(RAM + 0x800_0000, b"x")


def test_arguments_of_the_program() -> None:
    with Rig(NOP) as rig:
        rig.machine.start(RAM + 4, a0=3, a1=0x1234)
        rig.run(1)
        assert (rig.x(10), rig.x(11), rig.hart.cycle) == (3, 0x1234, 1)


def test_closing_twice_is_harmless() -> None:
    rig = Rig(NOP)
    rig.machine.close()
    rig.machine.close()


def busy_program(rig: Rig) -> None:
    """Counts in a loop, reads every counter, is interrupted by the timer and the serial line."""
    handler = (
        csrr(28, MCYCLE),
        sw(28, 21),
        addi(21, 21, 4),
        lw(29, 22),
        sw(29, 22),
        csrr(30, TIME),
        addi(30, 30, 17),
        sw(30, 23),
        sw(0, 23, 4),
        MRET,
    )
    rig.put(HANDLER, *handler)
    rig.put(
        RAM,
        *li(21, RAM + 0x1000),
        *li(22, PLIC + 0x200004),
        *li(23, CLINT + MTIMECMP),
        addi(5, 5, 1),
        csrr(6, CYCLE),
        csrr(7, INSTRET),
        j(-12),
    )
    enable(rig, MTI | MEI)
    rig.machine.clint.write(MTIMECMP, 4, 5)
    rig.machine.clint.write(MTIMECMP + 4, 4, 0)
    rig.machine.plic.write(4 * 10, 4, 1)
    rig.machine.plic.write(0x2000, 4, 1 << 10)


def trace(rig: Rig, steps: Callable[[int], int]) -> tuple[bytes, list[int], int]:
    """What the program has left after the same inputs, in steps of any size."""
    busy_program(rig)
    done = 0
    while done < 5000:
        goal = min(done + steps(done), 5000, 2500 if done < 2500 else 5000)
        rig.run(goal - done)
        done = goal
        if done == 2500:
            rig.machine.set_interrupt(10, True)
            rig.machine.set_interrupt(10, False)
    return rig.machine.read_memory(RAM + 0x1000, 0x400), [rig.x(n) for n in range(32)], rig.hart.pc


def test_same_inputs_at_the_same_ticks_give_the_same_run() -> None:
    results = []
    for steps in (lambda _done: 5000, lambda _done: 1, lambda done: done % 97 + 1):
        with Rig() as rig:
            results.append(trace(rig, steps))
    assert results[0] == results[1] == results[2]
    assert any(results[0][0])
    assert CYCLES_PER_TICK == 10
