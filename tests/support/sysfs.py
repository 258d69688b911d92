"""A sysfs tree of PCI functions, made of ordinary files."""

from __future__ import annotations

from pathlib import Path

from driver_shim.protocol.config_space import COMMAND_MEMORY, COMMAND_OFFSET, DEVICE_ID, VENDOR_ID, config_image
from driver_shim.protocol.registers import BAR0, BAR0_BYTES, BAR2, BAR4, REGISTERS

BAR_SIZES = {BAR0: BAR0_BYTES, BAR2: 0x4000, BAR4: 0x2_0000}
MEMORY_BYTES = 0x1_8000
TICK_HZ = 700_000_000
_MEMORY_32, _MEMORY_64_PREFETCHABLE = 0x0004_0200, 0x0014_220C
"""Flags of the kernel's resources (linux/ioport.h)."""


def add_function(root: Path, bus_address: str = "0000:03:00.0", **files: str) -> Path:
    """A function of ours, unless `files` says otherwise: its attributes, by name."""
    folder = root / bus_address
    folder.mkdir(parents=True)
    for name, text in {"vendor": f"{VENDOR_ID:#06x}", "device": f"{DEVICE_ID:#06x}", **files}.items():
        (folder / name).write_text(text + "\n", "ascii")
    return folder


def link(folder: Path, name: str, target: str) -> None:
    """What sysfs has as a symbolic link: `driver`, `iommu_group`."""
    there = folder.parent.parent / name / target
    there.mkdir(parents=True, exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(there)


def config_space(serial: str, command: int = COMMAND_MEMORY) -> bytearray:
    """Configuration space of a function with this serial number."""
    image = config_image(BAR_SIZES, int.from_bytes(serial.encode()[-8:], "big"), vectors=4)
    space = bytearray(image.reset)
    space[COMMAND_OFFSET : COMMAND_OFFSET + 2] = command.to_bytes(2, "little")
    return space


def registers(**values: int) -> bytearray:
    """BAR0 after power-on, with these registers' values instead."""
    content = bytearray(BAR0_BYTES)
    known = {"device_memory_bytes": MEMORY_BYTES, "tick_hertz": TICK_HZ, **values}
    for register in REGISTERS:
        value = known.get(register.name, register.reset_value)
        content[register.offset : register.offset + register.size] = value.to_bytes(register.size, "little")
    return content


def add_card(root: Path, bus_address: str = "0000:03:00.0", serial: str = "NPU-12345678", **values: int) -> Path:
    """A function of ours whose regions and configuration space can be read; `values` are registers'."""
    folder = add_function(root, bus_address)
    (folder / "config").write_bytes(config_space(serial))
    lines = []
    for bar in range(6):
        size = BAR_SIZES.get(bar, 0)
        start = 0xF000_0000 + bar * 0x10_0000
        flags = _MEMORY_64_PREFETCHABLE if bar == BAR4 else _MEMORY_32
        lines.append(
            f"{start:#018x} {start + size - 1:#018x} {flags:#018x}" if size else f"{0:#018x} " * 2 + f"{0:#018x}"
        )
        if size:
            (folder / f"resource{bar}").write_bytes(registers(**values) if bar == BAR0 else bytes(size))
    (folder / "resource").write_text("\n".join(lines) + "\n", "ascii")
    return folder
