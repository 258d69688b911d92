"""Registers of BAR0 that show the management core."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from driver_shim.protocol.register_kinds import Access, Register
from driver_shim.protocol.registers import CORE_REGISTERS
from emulator.function.blocks.registers import Behaviour
from emulator.management.port import ManagementPort


def management_behaviours(core: ManagementPort, report_busy: Callable[[], None]) -> dict[str, Behaviour]:
    """One entry a register. `report_busy` records a ring of a mailbox that is busy."""

    def behaviour(register: Register) -> Behaviour:
        name = register.name

        def write(value: int) -> None:
            if not core.write(name, value):
                report_busy()

        commands = register.mask_of(Access.W1S, Access.WO)
        return Behaviour(
            read=None if commands else partial(core.read, name),  # what the host wrote beside commands is stored
            write=write if commands or register.mask_of(Access.RW) else None,
        )

    return {register.name: behaviour(register) for register in CORE_REGISTERS}
