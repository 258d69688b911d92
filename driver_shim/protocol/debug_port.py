"""The USB debug port: its interfaces, and the vendor's requests that reach BAR0 (protocol 1).

Everything that registers can do is done with PEEK and POKE: the UART is `console_input` and the console window, a core
is held, reset or sent into recovery by `core_control`, and `boot_progress` tells how far it came. Requests go to
INTERFACE_REGISTERS, whose number is the low byte of wIndex.
"""

from __future__ import annotations

import enum

from driver_shim.protocol import config_space
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.layout import Layout, reserved, u8, u16, u32

VENDOR_ID = config_space.VENDOR_ID
"""The same number as on PCI. USB-IF assigns numbers of its own, and this one to nobody: a product needs its maker's."""
DEBUG_PORT_ID = 0x4E51
DEBUG_PORT_VERSION = 1
INTERFACE_REGISTERS = 0
INTERFACE_DFU = 1
CONFIGURATION = 1
SLOTS = (Slot.A, Slot.B)
"""Slot of each alternate setting of the DFU interface in recovery mode."""
WIDTHS = (4, 8)
"""Bytes that PEEK and POKE move: one register access."""


class Request(enum.IntEnum):
    """bRequest."""

    INFO = 0
    """IN: INFO."""
    PEEK = 1
    """IN: wValue is the offset in BAR0, wLength the width. Works whatever PCI's COMMAND says."""
    POKE = 2
    """OUT: the same. Refused while PCI has an owner, unless Flag.FORCE is set."""
    REASON = 3
    """IN: REASON, why the last request but this was stalled."""


class Flag(enum.IntFlag):
    """High byte of wIndex."""

    FORCE = 1 << 0
    """POKE though a PCI client has the device."""


class Mode(enum.IntEnum):
    """What the management core does, as the descriptors show it."""

    RUN_TIME = 0
    RECOVERY = 1
    """The DFU interface takes images."""


class Refusal(enum.IntEnum):
    """Why a request was stalled."""

    NONE = 0
    UNKNOWN_REQUEST = 1
    BAD_LENGTH = 2
    """Neither 4 nor 8 bytes."""
    OUT_OF_RANGE = 3
    """Not aligned, or not within BAR0."""
    OWNED = 4
    """A PCI client has the device."""


INFO = Layout(
    "debug_port_info",
    32,
    "version" / u16,
    "mode" / u8,
    "owned" / u8,
    "emulated" / u8,
    reserved(3),
    "pci_vendor" / u16,
    "pci_device" / u16,
    "bar0_bytes" / u32,
    reserved(16),
)
"""`owned` is 1 while a PCI client has the device."""
REASON = Layout("debug_port_reason", 4, "reason" / u8, reserved(3))
