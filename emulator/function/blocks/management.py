"""The registers of BAR0 that show the management core."""

from __future__ import annotations

from collections.abc import Callable

from driver_shim.protocol.registers import MAILBOX_DATA_REGISTERS, REGISTERS
from emulator.function.blocks.registers import Behaviour
from emulator.management.port import ManagementPort

SENSORS = ("temperature", "power", "voltage", "age")


def management_behaviours(core: ManagementPort, report_busy: Callable[[], None]) -> dict[str, Behaviour]:
    """One entry a register. `report_busy` records a ring of a mailbox that is busy."""

    def mailbox_control(value: int) -> None:
        asked = REGISTERS["mailbox_control"].decode(value)
        if asked["withdraw"]:
            core.mailbox_withdraw()
        if asked["ring"] and not core.mailbox_ring():
            report_busy()

    def reading(name: str) -> Behaviour:
        return Behaviour(read=lambda: core.reading(name))

    def mailbox_data(index: int) -> Behaviour:
        return Behaviour(read=lambda: core.mailbox_read(index), write=lambda value: core.mailbox_write(index, value))

    return {
        "boot_progress": Behaviour(read=core.boot_progress),
        "firmware_version": Behaviour(read=core.firmware_version),
        "firmware_build_id": Behaviour(read=core.firmware_build_id),
        "core_control": Behaviour(write=core.control),
        **{f"sensor_{name}": reading(name) for name in SENSORS},
        "throttle": reading("throttle"),
        "console_written": Behaviour(read=core.console_written),
        "console_input": Behaviour(write=core.console_input),
        "console_room": Behaviour(read=core.console_room),
        "mailbox_control": Behaviour(write=mailbox_control),
        "mailbox_status": Behaviour(read=core.mailbox_status),
        **{f"mailbox_data_{index}": mailbox_data(index) for index in range(MAILBOX_DATA_REGISTERS)},
    }
