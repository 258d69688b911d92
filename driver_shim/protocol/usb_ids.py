"""USB IDs of the debug port: what udev's rules and the USB transport look for."""

from __future__ import annotations

from driver_shim.protocol import config_space

VENDOR_ID = config_space.VENDOR_ID
"""The same number as on PCI. USB-IF assigns numbers of its own, and this one to nobody: a product needs its maker's."""
DEBUG_PORT_ID = 0x4E51
