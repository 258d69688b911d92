"""The one table of register maps to export, each the view that somebody has of the device."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from driver_shim.protocol import firmware_slots, mailbox, management_registers, registers
from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.mailbox import MailboxResult, MailboxState
from driver_shim.protocol.management_registers import MANAGEMENT_BLOCKS, Block
from driver_shim.protocol.register_kinds import RegisterMap
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR, REGISTERS, CoreReset, Feature, Post

CONTRACT = f"{CONTRACT_MAJOR}.{CONTRACT_MINOR}"
Enumeration = type[enum.IntEnum] | type[enum.IntFlag]


class ExportedBlock(NamedTuple):
    """Registers that lie together at `base` of a map."""

    name: str
    base: int
    registers: RegisterMap
    title: str
    interrupt: int | None
    """The block's input of the interrupt controller."""
    values: Mapping[str, Enumeration]
    """"register.field" → the names of the field's values, or of its bits."""

    def values_of(self, register: str, field: str) -> Enumeration | None:
        """What the values of a field are called; None when they are plain numbers."""
        return self.values.get(f"{register}.{field}")


class ExportedMap(NamedTuple):
    """One address space."""

    name: str
    title: str
    blocks: tuple[ExportedBlock, ...]
    constants: Mapping[str, int]
    """What else has a place or a size in it."""
    enumerations: tuple[Enumeration, ...] = ()
    """Numbers that are spoken through registers without being a field of one."""


_HOST_VALUES: dict[str, Enumeration] = {
    "features.bits": Feature,
    "boot_progress.post_code": Post,
    "boot_progress.boot_reason": CoreReset,
    "reset_cause.cause": ResetCause,
    "black_box.cause": ResetCause,
    "mailbox_status.state": MailboxState,
    "mailbox_status.result": MailboxResult,
}
_HOST_CONSTANTS = {
    "msix_table_offset": registers.MSIX_TABLE_OFFSET,
    "msix_pba_offset": registers.MSIX_PBA_OFFSET,
    "console_window_offset": registers.CONSOLE_WINDOW_OFFSET,
    "console_window_bytes": registers.CONSOLE_WINDOW_BYTES,
}
_MANAGEMENT_VALUES: dict[str, dict[str, Enumeration]] = {
    "boot": {"post_code.code": Post, "boot_status.reason": CoreReset},
    "mailbox": {"answer.result": MailboxResult},
    "dma": {"status.state": management_registers.DmaStatus},
    "flash": {"command.operation": management_registers.FlashCommand},
    "crypto": {"command.operation": management_registers.CryptoOperation},
}
_MANAGEMENT_CONSTANTS = {
    "ram_base": management_registers.RAM_BASE,
    "flash_memory_base": management_registers.FLASH_BASE,
    "power_off_base": management_registers.POWER_OFF_BASE,
    "clint_base": management_registers.CLINT_BASE,
    "plic_base": management_registers.PLIC_BASE,
    "uart_base": management_registers.UART_BASE,
    "uart_interrupt": management_registers.UART_INTERRUPT,
    "mtime_hertz": management_registers.MTIME_HERTZ,
    "core_hertz": management_registers.CORE_HERTZ,
    "watchdog_feed": management_registers.WATCHDOG_FEED,
    "flash_bytes": firmware_slots.FLASH_BYTES,
    "flash_sector_bytes": firmware_slots.SECTOR_BYTES,
    "flash_page_bytes": firmware_slots.PAGE_BYTES,
    "boot_state_offset": firmware_slots.BOOT_STATE_OFFSETS[0],
    "boot_state_copy_offset": firmware_slots.BOOT_STATE_OFFSETS[1],
    "slot_a_offset": firmware_slots.SLOT_OFFSETS[firmware_slots.Slot.A],
    "slot_b_offset": firmware_slots.SLOT_OFFSETS[firmware_slots.Slot.B],
    "slot_bytes": firmware_slots.SLOT_BYTES,
    "load_address": firmware_slots.LOAD_ADDRESS,
    "staging_address": firmware_slots.STAGING_ADDRESS,
    "staging_bytes": firmware_slots.STAGING_BYTES,
    "retained_address": firmware_slots.RETAINED_ADDRESS,
    "retained_bytes": firmware_slots.RETAINED_BYTES,
    "mailbox_version": mailbox.MAILBOX_VERSION,
    "mailbox_bytes": mailbox.MAILBOX_BYTES,
}
_SPOKEN = (mailbox.MailboxCommand, mailbox.UpdateState, mailbox.UpdateFlag, mailbox.LogLevel, firmware_slots.Slot)


def _management(block: Block) -> ExportedBlock:
    interrupt = block.interrupt or None
    values = _MANAGEMENT_VALUES.get(block.name, {})
    return ExportedBlock(block.name, block.base, block.registers, block.doc, interrupt, values)


_ALL = (
    ExportedMap(
        "host",
        "Registers that the host sees in BAR0",
        (ExportedBlock("bar0", 0, REGISTERS, "Offsets are relative to wherever BAR0 is mapped.", None, _HOST_VALUES),),
        _HOST_CONSTANTS,
    ),
    ExportedMap(
        "management",
        "Registers on the management core's own bus",
        tuple(map(_management, MANAGEMENT_BLOCKS)),
        _MANAGEMENT_CONSTANTS,
        _SPOKEN,
    ),
)
MAPS: dict[str, ExportedMap] = {each.name: each for each in _ALL}


def named_maps(names: Sequence[str]) -> list[ExportedMap]:
    """These maps, each once; all when none is named. Raises KeyError."""
    return [MAPS[name] for name in dict.fromkeys(names or MAPS)]


def enumerations(maps: Sequence[ExportedMap]) -> Iterator[Enumeration]:
    """The enumerations of these maps, each once: those of fields, then the others."""
    of_fields = [kind for each in maps for block in each.blocks for kind in block.values.values()]
    yield from dict.fromkeys([*of_fields, *(kind for each in maps for kind in each.enumerations)])
