"""`npuctl regs`: read registers by name, or write one."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from driver_shim.protocol.register_kinds import Access, Register
from driver_shim.protocol.registers import REGISTERS
from sdk.cli.device_selection import OPENED_WITH_RESET, changed, device_option, open_named, queried, require_unheld
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame
from sdk.cli.verb import verb
from sdk.errors import NpuError
from sdk.opening.listing import DeviceInfo

SAFE_TO_WRITE = frozenset({"scratch", "scratch_wide"})


@verb("regs")
@click.argument("registers", nargs=-1, metavar="[NAME | NAME=VALUE]...")
@device_option
@click.option("--unsafe", is_flag=True, help="Allow writes to registers other than scratch.")
@click.option("--no-open", is_flag=True, help="Refuse to open (opening resets a device, except as sysfs:ADDRESS).")
def command(frame: Frame, registers: tuple[str, ...], wanted: tuple[str, ...], unsafe: bool, no_open: bool) -> None:
    """Read all registers, the named ones, or write NAME=VALUE.

    Opening the device resets it, except as sysfs:ADDRESS (as root). Writes go to scratch registers only, unless
    --unsafe is given: they can stop the device until its next reset. A card that somebody holds is not written to.
    """
    names, writes = _parse(registers, unsafe)
    if no_open:
        raise click.UsageError(
            "registers cannot be read without opening the device; -d sysfs:ADDRESS opens a card without resetting it"
        )
    for device in changed(wanted) if writes else queried(wanted, frame):
        try:
            _one_device(frame, device, names, writes)
        except (NpuError, Failure) as error:
            frame.fail(error, device.address)


def _parse(arguments: tuple[str, ...], unsafe: bool) -> tuple[list[Register], dict[str, int]]:
    """(registers to show, values to write first). Raises click.UsageError."""
    shown, writes = [], {}
    for argument in arguments:
        name, assigns, text = argument.partition("=")
        register = _declared(name)
        shown.append(register)
        if assigns:
            writes[name] = _value(register, text)
            if name not in SAFE_TO_WRITE and not unsafe:
                raise click.UsageError(f"writing {name} may stop the device; say --unsafe if that is meant")
            if not register.mask_of(Access.RW, Access.RW1C, Access.W1S, Access.WO):
                raise click.UsageError(f"{name} is read-only")
    return shown or list(REGISTERS), writes


def _declared(name: str) -> Register:
    if name not in REGISTERS.by_name:
        import difflib

        close = difflib.get_close_matches(name, REGISTERS.by_name, n=3)
        raise click.UsageError(f"no register {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    return REGISTERS[name]


def _value(register: Register, text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise click.UsageError(f"{register.name}={text}: give a number, e.g. 0x10") from None
    if value < 0 or value >> 8 * register.size:
        raise click.UsageError(f"{register.name}={text}: does not fit {8 * register.size} bits")
    return value


def _one_device(frame: Frame, device: DeviceInfo, shown: list[Register], writes: dict[str, int]) -> None:
    if writes:
        require_unheld(device.address)
    with open_named(device.address) as opened:
        access = opened.registers
        for name, value in writes.items():
            access[name].write_value(value)
        entries = [_entry(register, access[register.name].read()) for register in shown]
        with_reset = opened._function.transport.resets_on_open
    frame.add({"address": device.address, "opened_with_reset": with_reset, "registers": entries})
    frame.say(device.address)
    if with_reset:
        frame.say(OPENED_WITH_RESET)
    table = Table("offset", "register", "value", "fields", box=None, pad_edge=False)
    for entry in entries:
        fields = " ".join(f"{name}={value}" for name, value in entry["fields"].items())
        table.add_row(entry["offset"], entry["name"], entry["value"], fields)
    frame.console.print(table)


def _entry(register: Register, value: int) -> dict[str, Any]:
    digits = 2 * register.size
    fields = {name: f"{field:#x}" for name, field in register.decode(value).items()}
    return {
        "name": register.name,
        "offset": f"{register.offset:#06x}",
        "value": f"{value:#0{digits + 2}x}",
        "fields": fields,
    }
