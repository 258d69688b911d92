"""The page docs/registers.md, from the declarations: registers, commands, statuses.

`python -m firmware_tools.export.reference_page > docs/registers.md`
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from driver_shim.protocol import commands
from driver_shim.protocol.command_statuses import STATUSES
from driver_shim.protocol.layout import Layout
from driver_shim.protocol.management_registers import MANAGEMENT_BLOCKS, Block
from driver_shim.protocol.register_kinds import RegisterMap
from driver_shim.protocol.register_runs import runs
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR, FROZEN_BYTES, REGISTERS


def render() -> str:
    """The whole reference as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Registers and commands"
    yield ""
    yield f"Contract {CONTRACT_MAJOR}.{CONTRACT_MINOR}."
    yield "Generated from `driver_shim/protocol/`: edit the declarations, then run"
    yield "`python -m firmware_tools.export.reference_page > docs/registers.md`."
    yield ""
    yield "## BAR0"
    yield ""
    yield "Accesses are 4 or 8 bytes, naturally aligned."
    yield "A 64-bit register may be accessed as two 32-bit halves, low first."
    yield f"The first {FROZEN_BYTES} bytes never change from contract 1.0 on."
    yield ""
    yield from _registers(REGISTERS, level=3)
    yield ""
    yield "## Management core"
    yield ""
    yield "Seen by the firmware only, on the core's own bus; accesses are 32 bits wide."
    yield "What it has of QEMU's `virt` board (UART, timer, interrupt controller, power-off) is specified there."
    yield ""
    yield "| address | block | interrupt | what it is |"
    yield "|---|---|---|---|"
    for block in MANAGEMENT_BLOCKS:
        yield f"| {block.base:#010x} | `{block.name}` | {block.interrupt or '–'} | {block.doc} |"
    for block in MANAGEMENT_BLOCKS:
        yield ""
        yield f"### {_heading(block)}"
        yield ""
        yield block.doc
        yield ""
        yield from _registers(block.registers, level=4)
    yield ""
    yield "## Commands"
    yield ""
    sizes = f"{commands.SUBMISSION_BYTES} bytes, completions {commands.COMPLETION_BYTES}"
    yield f"Submission entries have {sizes}; everything is little-endian."
    yield "Bytes that no field covers are reserved and must be zero."
    for title, table in (("I/O", commands.IO_COMMANDS), ("Admin", commands.ADMIN_COMMANDS)):
        for opcode, layout in table.items():
            yield from _layout(f"{title} {int(opcode):#04x} `{layout.name}`", layout)
    yield ""
    yield "## Other structures"
    others = [layout for layout in commands.ALL_LAYOUTS if layout not in _command_layouts()]
    for layout in others:
        yield from _layout(f"`{layout.name}` ({layout.size} bytes)", layout)
    yield ""
    yield "## Statuses"
    yield ""
    yield "| value | status |"
    yield "|---|---|"
    for status in commands.Status:
        yield f"| {int(status):#04x} | `{status.slug}` |"
    yield ""
    yield "## Which command completes with which status"
    yield ""
    yield "| command | statuses |"
    yield "|---|---|"
    for opcode, statuses in STATUSES.items():
        yield f"| {int(opcode):#04x} `{opcode.name.lower()}` | {', '.join(f'`{status.slug}`' for status in statuses)} |"


def _registers(registers: RegisterMap, *, level: int) -> Iterator[str]:
    """A table of registers, then a heading of this level with the fields of each."""
    yield "| offset | register | bytes | reset domain | valid from | what it is |"
    yield "|---|---|---|---|---|---|"
    for run in runs(registers):
        register = run.first
        yield (
            f"| {register.offset:#06x} | {run.names} | {register.size} | {register.domain.value} |"
            f" {register.valid_from.value} | {register.doc} |"
        )
    for run in runs(registers):
        yield ""
        yield f"{'#' * level} {run.names}"
        yield ""
        yield "| bits | field | access | reset | meaning |"
        yield "|---|---|---|---|---|"
        for field in run.first.fields.values():
            top = field.lsb + field.width - 1
            bits = str(field.lsb) if field.width == 1 else f"{top}:{field.lsb}"
            yield f"| {bits} | `{field.name}` | {field.access.value} | {field.reset:#x} | {field.doc} |"


def _heading(block: Block) -> str:
    interrupt = f", interrupt {block.interrupt}" if block.interrupt else ""
    return f"`{block.name}` at {block.base:#010x}{interrupt}"


def _command_layouts() -> list[Layout]:
    return [*commands.IO_COMMANDS.values(), *commands.ADMIN_COMMANDS.values()]


def _layout(title: str, layout: Layout) -> Iterator[str]:
    yield ""
    yield f"### {title}"
    yield ""
    yield "| offset | field | bytes |"
    yield "|---|---|---|"
    for field in layout.fields.values():
        yield f"| {field.offset} | `{field.name}` | {field.size} |"


if __name__ == "__main__":
    sys.stdout.write(render())
