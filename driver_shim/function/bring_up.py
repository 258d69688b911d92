"""The first steps with any function that can do DMA, whatever is wanted of it."""

from __future__ import annotations

from driver_shim.errors import ContractMismatch
from driver_shim.protocol import config_space
from driver_shim.protocol.registers import BAR0, BAR0_BYTES
from driver_shim.transport.base import Transport


def check_function(transport: Transport) -> None:
    """Raise ContractMismatch for somebody else's PCI function, before anything is written to it."""
    vendor, device = (int.from_bytes(transport.config_read(at, 2), "little") for at in (0, 2))
    gone = (vendor, device) == (config_space.NO_ID, config_space.NO_ID)  # its registers will say so
    bar0 = transport.regions().get(BAR0)
    size = 0 if bar0 is None else bar0.size_bytes
    ours = (vendor, device) == (config_space.VENDOR_ID, config_space.DEVICE_ID) and size >= BAR0_BYTES
    if not (gone or ours):
        raise ContractMismatch(
            f"{transport.address} is PCI function {vendor:04x}:{device:04x} with {size} bytes of registers,"
            f" not {config_space.VENDOR_ID:04x}:{config_space.DEVICE_ID:04x} with {BAR0_BYTES}",
            device=transport.address,
            subsystem="contract",
            remedy="name another device; npuctl list shows those there are",
        )


def enable_function(transport: Transport) -> None:
    """Memory decoding and bus mastering by config write, on every transport."""
    offset = config_space.COMMAND_OFFSET
    command = int.from_bytes(transport.config_read(offset, 2), "little")
    wanted = command | config_space.COMMAND_MEMORY | config_space.COMMAND_BUS_MASTER
    transport.config_write(offset, wanted.to_bytes(2, "little"))
