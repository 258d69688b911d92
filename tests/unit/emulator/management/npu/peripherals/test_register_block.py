"""Accesses to our peripherals that make no sense: they have no effect, and the log says where they are."""

from __future__ import annotations

import pytest

from driver_shim.protocol.management_registers import WATCHDOG
from emulator.management.npu.peripherals.watchdog import Watchdog
from emulator.management.riscv.board import PeripheralEntry, default_board
from emulator.management.riscv.machine import Machine
from tests.support.riscv import RAM, Rig, addi, lbu, li, lw, sw

MODEL = "npu-watchdog"
PERIOD, STATUS = (WATCHDOG.registers[name].offset for name in ("period", "status"))
NO_REGISTER = 0x7F0


def rig(*program: int) -> Rig:
    def made(machine: Machine, interrupt: int) -> Watchdog:
        return Watchdog(machine)

    board = default_board().with_peripheral(PeripheralEntry("watchdog", MODEL, WATCHDOG.base, 0))
    return Rig(*li(5, WATCHDOG.base), *program, board=board, models={MODEL: made})


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ((lbu(6, 5, PERIOD),), "1 bytes, registers have 4"),
        ((lw(6, 5, NO_REGISTER),), f"no register is at {NO_REGISTER:#x}"),
        ((sw(0, 5, NO_REGISTER),), f"no register is at {NO_REGISTER:#x}"),
        ((sw(0, 5, STATUS),), f"the register at {STATUS:#x} is read-only"),
    ],
)
def test_a_wrong_access_is_reported_once_for_each_place(
    program: tuple[int, ...], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with rig(addi(6, 0, 7), *program) as bench:
        for _ in range(3):
            bench.hart.pc = RAM
            bench.run(20)
        assert bench.hart.read_register(6) == (0 if program[0] & 0x7F == 0x03 else 7)
    assert [record.getMessage() for record in caplog.records] == [
        f"access to watchdog by pc {RAM + 0xC:#010x}: {reason}"
    ]


def test_right_accesses_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    with rig(addi(6, 0, 50), sw(6, 5, PERIOD), lw(7, 5, PERIOD), lw(8, 5, STATUS)) as bench:
        bench.run(20)
        assert bench.hart.read_register(7) == 50
    assert not caplog.records
