"""Exceptions of the management core against the privileged specification 1.12, section 3.1 and 3.3."""

from __future__ import annotations

import dataclasses

import pytest

from emulator.management.riscv.board import MemoryEntry, Unmapped, default_board
from emulator.management.riscv.machine import StopReason
from tests.support.riscv import (
    CYCLE,
    EBREAK,
    ECALL,
    HANDLER,
    HERE,
    MCAUSE,
    MEPC,
    MIE,
    MISA,
    MRET,
    MSCRATCH,
    MSTATUS,
    MTVAL,
    MTVEC,
    NOP,
    NOTHING,
    RAM,
    Rig,
    addi,
    amoadd,
    code,
    csrr,
    csrrc,
    csrrs,
    csrrsi,
    csrrw,
    csrrwi,
    csrw,
    jr,
    lbu,
    li,
    lr,
    lw,
    pair,
    sb,
    sc,
    sw,
)

MIE_BIT, MPIE_BIT, MPP_M = 1 << 3, 1 << 7, 0b11 << 11
C_EBREAK, C_NOP, C_ILLEGAL = 0x9002, 0x0001, 0x0000
C_LW_X8_X15, C_SW_X8_X15, C_LWSP_X8, C_SWSP_X8 = 0x4380, 0xC380, 0x4402, 0xC022
MRET_IS_FOR_S = 0x10200073  # sret

AT = RAM + 8
"""Where the instruction under test stands, behind the two that set x5."""


@pytest.mark.parametrize(
    ("instruction", "x5", "cause", "value"),
    [
        pytest.param(0xFFFFFFFF, 0, 2, 0xFFFFFFFF, id="illegal"),
        pytest.param(pair(C_ILLEGAL, C_NOP), 0, 2, 0, id="compressed illegal"),
        pytest.param(csrr(1, 0x5C0), 0, 2, csrr(1, 0x5C0), id="csr that does not exist"),
        pytest.param(csrr(1, 0x100), 0, 2, csrr(1, 0x100), id="sstatus, which belongs to supervisor mode"),
        pytest.param(csrr(1, 0x001), 0, 2, csrr(1, 0x001), id="fflags, which belongs to F"),
        pytest.param(csrw(0xF14, 5), 0, 2, csrw(0xF14, 5), id="write to mhartid"),
        pytest.param(csrrs(1, 0xF14, 5), 0, 2, csrrs(1, 0xF14, 5), id="set bits of mhartid, even none"),
        pytest.param(csrw(CYCLE, 5), 0, 2, csrw(CYCLE, 5), id="write to cycle"),
        pytest.param(csrw(0xC01, 5), 0, 2, csrw(0xC01, 5), id="write to time"),
        pytest.param(MRET_IS_FOR_S, 0, 2, MRET_IS_FOR_S, id="sret"),
        pytest.param(ECALL, 0, 11, 0, id="ecall"),
        pytest.param(EBREAK, 0, 3, AT, id="ebreak"),
        pytest.param(pair(C_EBREAK, C_NOP), 0, 3, AT, id="compressed ebreak"),
        pytest.param(lw(1, 5), NOTHING, 5, NOTHING, id="load fault"),
        pytest.param(lbu(1, 5, 3), NOTHING, 5, NOTHING + 3, id="byte load fault"),
        pytest.param(lw(1, 5), RAM + 0x800_0000 - 2, 5, RAM + 0x800_0000, id="load that leaves the memory"),
        pytest.param(sw(1, 5), NOTHING, 7, NOTHING, id="store fault"),
        pytest.param(sb(1, 5, -1), NOTHING, 7, NOTHING - 1, id="byte store fault"),
        pytest.param(amoadd(1, 2, 5), NOTHING, 7, NOTHING, id="atomic fault"),
        pytest.param(lr(1, 5), NOTHING, 5, NOTHING, id="lr fault"),
        pytest.param(amoadd(1, 2, 5), RAM + 0x102, 6, RAM + 0x102, id="misaligned atomic"),
        pytest.param(lr(1, 5), RAM + 0x101, 4, RAM + 0x101, id="misaligned lr"),
    ],
)
def test_exception(instruction: int, x5: int, cause: int, value: int) -> None:
    with Rig(*li(5, x5), instruction) as rig:
        rig.write(MSTATUS, MIE_BIT)
        assert rig.run_to_trap() == (cause, AT, value)
        assert rig.read(MSTATUS) == MPP_M | MPIE_BIT
        assert rig.x(1) == 0


@pytest.mark.parametrize(("instruction", "cause"), [(C_LW_X8_X15, 5), (C_SW_X8_X15, 7), (C_LWSP_X8, 5), (C_SWSP_X8, 7)])
def test_compressed_access_fault(instruction: int, cause: int) -> None:
    with Rig(*li(15, NOTHING), addi(2, 15, 0), pair(instruction, C_NOP)) as rig:
        assert rig.run_to_trap() == (cause, RAM + 12, NOTHING)


@pytest.mark.parametrize(
    "instruction",
    [
        pytest.param(0x2000, id="c.fld"),
        pytest.param(0x6000, id="c.flw"),
        pytest.param(0xA000, id="c.fsd"),
        pytest.param(0xE000, id="c.fsw"),
        pytest.param(0x2002, id="c.fldsp"),
        pytest.param(0x6002, id="c.flwsp"),
        pytest.param(0xA402, id="c.fsdsp"),
        pytest.param(0xE002, id="c.fswsp"),
        pytest.param(0x8000, id="reserved"),
        pytest.param(0x9101, id="c.srli by 32"),
        pytest.param(0x9501, id="c.srai by 32"),
        pytest.param(0x9C09, id="c.subw"),
        pytest.param(0x9C29, id="c.addw"),
        pytest.param(0x9C41, id="reserved behind c.addw"),
        pytest.param(0x1502, id="c.slli by 32"),
        pytest.param(0x22730353, id="fsgnj.d"),
    ],
)
@pytest.mark.parametrize("twice", [False, True])
def test_what_the_core_lacks_is_illegal(instruction: int, twice: bool) -> None:
    """Also where the block was translated before."""
    word = instruction if instruction & 0b11 == 0b11 else pair(instruction, C_NOP)
    with Rig(*li(5, RAM), word) as rig:
        if twice:
            rig.run_to_trap()
            rig.machine.start(RAM)
        assert rig.run_to_trap() == (2, AT, instruction)
        assert rig.hart.retired == (4 if twice else 2)


@pytest.mark.parametrize("instruction", [0x8905, 0x9905, 0x8105, 0x0505, 0x0506, 0x1541])
def test_neighbours_of_what_the_core_lacks_are_run(instruction: int) -> None:
    """c.andi with either sign, shifts by 1, c.addi with either sign."""
    with Rig(*li(10, 3), pair(instruction, C_NOP), ECALL) as rig:
        assert rig.run_to_trap()[0] == 11


@pytest.mark.parametrize("target", [NOTHING, 0x1000_0000])
def test_fetch_fault_points_at_the_target(target: int) -> None:
    with Rig(*li(5, target), jr(5)) as rig:
        assert rig.run_to_trap() == (1, target, target)


def test_instruction_whose_second_half_lies_behind_the_memory() -> None:
    end = RAM + 0x800_0000
    with Rig(*li(5, end - 6), jr(5)) as rig:
        rig.machine.load_memory(end - 6, code(addi(6, 0, 5)) + code(NOP)[:2])
        assert rig.run_to_trap() == (1, end - 2, end)
        assert rig.x(6) == 5
        rig.machine.reset()
        rig.write(MTVEC, HANDLER)
        rig.run(100)
        assert (rig.read(MEPC), rig.hart.pc) == (end - 2, HANDLER)


def test_store_to_a_read_only_memory_is_an_access_fault() -> None:
    board = default_board().with_memory(MemoryEntry("flash", 0x2000_0000, 0x1000, writable=False))
    with Rig(*li(5, 0x2000_0000), lw(1, 5, 4), sw(1, 5), board=board) as rig:
        rig.machine.load_memory(0x2000_0000, code(NOP, 0x12345678))
        assert rig.run_to_trap() == (7, RAM + 12, 0x2000_0000)
        assert rig.x(1) == 0x12345678


def test_misaligned_loads_and_stores_work_in_memory() -> None:
    with Rig(*li(5, RAM + 0x101), *li(6, 0x12345678), sw(6, 5), lw(7, 5)) as rig:
        rig.run()
        assert rig.x(7) == 0x12345678
        assert rig.machine.read_memory(RAM + 0x100, 6) == bytes.fromhex("007856341200")


def test_code_can_be_run_from_a_read_only_memory() -> None:
    board = default_board().with_memory(MemoryEntry("flash", 0x2000_0000, 0x1000, writable=False))
    with Rig(*li(5, 0x2000_0000), jr(5), board=board) as rig:
        rig.machine.load_memory(0x2000_0000, code(addi(6, 0, 77), HERE))
        rig.run()
        assert rig.x(6) == 77


def test_exceptions_ignore_the_vectors() -> None:
    with Rig(ECALL) as rig:
        rig.write(MTVEC, HANDLER | 1)
        rig.run(1)
        assert rig.hart.pc == HANDLER


def test_mret_goes_back_and_restores_the_interrupt_enable() -> None:
    skip = (csrr(6, MEPC), addi(6, 6, 4), csrw(MEPC, 6), MRET)
    with Rig(ECALL, addi(7, 0, 1), handler=skip) as rig:
        rig.write(MSTATUS, MIE_BIT)
        rig.run(1)
        assert rig.read(MSTATUS) == MPP_M | MPIE_BIT
        rig.run(len(skip) + 1)
        assert rig.read(MSTATUS) == MPP_M | MPIE_BIT | MIE_BIT
        assert rig.x(7) == 1


def test_trap_inside_a_trap_loses_the_interrupt_enable() -> None:
    with Rig(ECALL, handler=(EBREAK, HERE)) as rig:
        rig.write(MSTATUS, MIE_BIT)
        rig.run(2)
        assert rig.read(MSTATUS) == MPP_M
        assert (rig.read(MCAUSE), rig.read(MEPC)) == (3, HANDLER)


def test_handler_that_traps_for_ever_still_ends_the_run() -> None:
    with Rig(ECALL, handler=(NOP, ECALL)) as rig:
        assert rig.run(500).reason is StopReason.RUNNING
        assert (rig.hart.cycle, rig.hart.retired) == (500, 250)


@pytest.mark.parametrize(
    ("program", "vector", "handler"),
    [
        pytest.param((*li(5, NOTHING), jr(5)), NOTHING, HERE, id="nowhere"),
        pytest.param((ECALL,), HANDLER, 0, id="no code"),
        pytest.param((ECALL,), HANDLER, ECALL, id="calls itself"),
        pytest.param((*li(5, NOTHING), ECALL), HANDLER, sw(1, 5), id="stores to nothing"),
    ],
)
def test_traps_for_ever_pass_the_time_as_a_wait_does(program: tuple[int, ...], vector: int, handler: int) -> None:
    """Each trap is a cycle that takes thousands of times as long: a watchdog would not bark within hours."""
    with Rig(*program, handler=(handler,)) as rig:
        rig.write(MTVEC, vector)
        rig.write(MIE, 1 << 7)
        rig.machine.clint.write(0x4000, 4, 1000)
        rig.machine.clint.write(0x4004, 4, 0)
        stop = rig.run(500)
        assert (stop.reason, stop.until) == (StopReason.WAITING, 1000)
        assert rig.machine.advance_to(5000) == 5000, "interrupts are off: nothing but a reset ends it"
        assert rig.run(500).reason is StopReason.WAITING
        rig.machine.reset()
        assert not rig.hart.lost


@pytest.mark.parametrize(
    ("program", "unmapped", "cycles"),
    [
        pytest.param((NOP, NOP, ECALL), Unmapped.FAULT, 3 + 400, id="exception"),
        pytest.param((*li(5, NOTHING), lw(1, 5)), Unmapped.FAULT, 3 + 4000 + 400, id="fault"),
        pytest.param((*li(5, NOTHING), lw(1, 5)), Unmapped.ZERO, 3 + 4000, id="nothing"),
    ],
)
def test_what_the_emulator_comes_in_for_takes_its_time(
    program: tuple[int, ...], unmapped: Unmapped, cycles: int
) -> None:
    """A handler that goes astray by two or more instructions must not keep a watchdog from its time either."""
    board = dataclasses.replace(default_board(), unmapped=unmapped)
    with Rig(*program, board=board, access_cycles=400) as rig:
        rig.run(len(program))
        assert rig.hart.cycle == cycles


@pytest.mark.parametrize(
    ("csr", "written", "read"),
    [
        (MSTATUS, 0xFFFFFFFF, MPP_M | MPIE_BIT | MIE_BIT),
        (MSTATUS, 0, MPP_M),
        (MISA, 0, 1 << 30 | 1 << 12 | 1 << 8 | 1 << 2 | 1 << 0),
        (MIE, 0xFFFFFFFF, 0x888),
        (MTVEC, 0x80001001, 0x80001001),
        (MTVEC, 0x80001002, 0x80001000),
        (MSCRATCH, 0xDEADBEEF, 0xDEADBEEF),
        (MEPC, 0xFFFFFFFF, 0xFFFFFFFE),
        (MCAUSE, 0x8000000B, 0x8000000B),
        (MTVAL, 0xFFFFFFFF, 0xFFFFFFFF),
        (0x344, 0xFFFFFFFF, 0),
        (0x320, 0xFFFFFFFF, 0),
        (0x323, 1, 0),
        (0x3A0, 0x1F, 0),
        (0x3B0, 0xFFFFFFFF, 0),
        (0xB03, 7, 0),
        (0x180, 0x80000001, 0),
        (0x302, 0xFFFFFFFF, 0),
        (0x303, 0xFFFFFFFF, 0),
        (0x306, 7, 0),
        (0x30A, 1, 0),
        (0x31A, 1, 0),
    ],
)
def test_bits_that_a_register_holds(csr: int, written: int, read: int) -> None:
    with Rig(*li(5, written), csrw(csr, 5), csrr(6, csr)) as rig:
        rig.run(4)
        assert rig.x(6) == read


@pytest.mark.parametrize("csr", [0xF11, 0xF12, 0xF13, 0xF14, 0xF15])
def test_identity_is_zero(csr: int) -> None:
    with Rig(addi(6, 0, 1), csrr(6, csr)) as rig:
        rig.run(2)
        assert rig.x(6) == 0


def test_csr_instructions_return_the_old_value() -> None:
    program = (
        *li(5, 0b1100),
        csrrw(0, MSCRATCH, 5),
        csrrsi(6, MSCRATCH, 0b0011),
        csrrc(7, MSCRATCH, 5),
        csrrwi(8, MSCRATCH, 31),
        csrr(9, MSCRATCH),
    )
    with Rig(*program) as rig:
        rig.run(len(program))
        assert [rig.x(register) for register in (6, 7, 8, 9)] == [0b1100, 0b1111, 0b0011, 31]


def test_csr_swap_with_itself() -> None:
    with Rig(*li(5, 0x1234), csrw(MSCRATCH, 5), addi(5, 0, 7), csrrw(5, MSCRATCH, 5)) as rig:
        rig.run(5)
        assert (rig.x(5), rig.read(MSCRATCH)) == (0x1234, 7)


def test_atomics_and_reservations() -> None:
    program = (
        *li(5, RAM + 0x100),
        addi(6, 0, 40),
        sw(6, 5),
        addi(7, 0, 2),
        amoadd(8, 7, 5),
        lr(9, 5),
        sc(10, 6, 5),
        sc(11, 7, 5),
        lw(12, 5),
    )
    with Rig(*program) as rig:
        rig.run(len(program))
        assert [rig.x(register) for register in range(8, 13)] == [40, 42, 0, 1, 40]


def test_accesses_to_nothing_read_zeros_where_the_board_says_so(caplog: pytest.LogCaptureFixture) -> None:
    board = default_board()
    board = type(board)(board.memories, board.peripherals, board.reset_vector, Unmapped.ZERO)
    program = (*li(15, NOTHING), addi(6, 0, 1), lw(6, 15), sw(6, 15), pair(C_LW_X8_X15, C_NOP), addi(7, 0, 9))
    with Rig(*program, board=board) as rig:
        rig.hart.write_register(8, 5)
        rig.machine.symbolize = lambda pc: f"main+{pc - RAM:#x}"
        rig.run()
        assert (rig.x(6), rig.x(8), rig.x(7)) == (0, 0, 9)
    assert [record.getMessage() for record in caplog.records] == [
        f"load at {NOTHING:#010x} by pc 0x8000000c main+0xc: nothing is there",
        f"store at {NOTHING:#010x} by pc 0x80000010 main+0x10: nothing is there",
        f"load at {NOTHING:#010x} by pc 0x80000014 main+0x14: nothing is there",
    ]


def test_access_to_nothing_stops_where_the_board_says_so() -> None:
    board = default_board()
    board = type(board)(board.memories, board.peripherals, board.reset_vector, Unmapped.STOP)
    with Rig(*li(5, NOTHING), lw(6, 5), board=board) as rig:
        rig.machine.symbolize = lambda _pc: "probe"
        stop = rig.run()
        assert stop.reason is StopReason.FAULT
        assert stop.symbol == "probe"
        assert stop.fault is not None
        assert (stop.fault.pc, stop.fault.address) == (RAM + 8, NOTHING)
        assert rig.run() is stop


def test_a_loop_over_nothing_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    with Rig(*li(5, NOTHING), lw(6, 5), handler=(MRET,)) as rig:
        rig.run(5000)
    assert len(caplog.records) == 1


def test_many_places_are_not_all_reported(caplog: pytest.LogCaptureFixture) -> None:
    skip = (csrr(6, MEPC), addi(6, 6, 4), csrw(MEPC, 6), MRET)
    with Rig(*li(5, NOTHING), *[lw(7, 5)] * 100, handler=skip) as rig:
        rig.run(2000)
    assert len(caplog.records) == 65
    assert "the rest is not reported" in caplog.records[-1].getMessage()
