"""Device firmware upgrade over USB (USB Device Class Specification for Device Firmware Upgrade 1.1)."""

from __future__ import annotations

import enum

from driver_shim.protocol.layout import Layout, raw, u8, u16

INTERFACE_CLASS = 0xFE
"""Application specific (4.2.1)."""
INTERFACE_SUBCLASS = 0x01
PROTOCOL_RUN_TIME = 1
PROTOCOL_DFU_MODE = 2
FUNCTIONAL_DESCRIPTOR_TYPE = 0x21
DFU_VERSION = 0x0110
TRANSFER_BYTES = 4096
"""wTransferSize: the most that one DNLOAD or UPLOAD carries."""
DETACH_TIMEOUT_MS = 5000
"""wDetachTimeOut. The device detaches itself, well before; hosts that reset the bus all the same have time for it."""
BLOCK_NUMBERS = 1 << 16
"""wBlockNum begins with 0 and wraps here."""


class Attribute(enum.IntFlag):
    """bmAttributes of the functional descriptor (4.1.3)."""

    CAN_DOWNLOAD = 1 << 0
    CAN_UPLOAD = 1 << 1
    MANIFESTATION_TOLERANT = 1 << 2
    """It still answers after manifestation."""
    WILL_DETACH = 1 << 3
    """It leaves the bus by itself after DETACH."""


class Request(enum.IntEnum):
    """bRequest (table 3.2)."""

    DETACH = 0
    DNLOAD = 1
    UPLOAD = 2
    GETSTATUS = 3
    CLRSTATUS = 4
    GETSTATE = 5
    ABORT = 6


class State(enum.IntEnum):
    """bState (6.1.2)."""

    APP_IDLE = 0
    APP_DETACH = 1
    IDLE = 2
    DNLOAD_SYNC = 3
    DNBUSY = 4
    DNLOAD_IDLE = 5
    MANIFEST_SYNC = 6
    MANIFEST = 7
    MANIFEST_WAIT_RESET = 8
    UPLOAD_IDLE = 9
    ERROR = 10


class Status(enum.IntEnum):
    """bStatus (6.1.2)."""

    OK = 0x00
    ERR_TARGET = 0x01
    """The file is not for this device."""
    ERR_FILE = 0x02
    """It is, but fails a check of the vendor's."""
    ERR_WRITE = 0x03
    ERR_ERASE = 0x04
    ERR_CHECK_ERASED = 0x05
    ERR_PROG = 0x06
    ERR_VERIFY = 0x07
    """Memory does not read back as it was programmed."""
    ERR_ADDRESS = 0x08
    """What was received lies out of range."""
    ERR_NOTDONE = 0x09
    """The host says that it is done, and bytes are missing."""
    ERR_FIRMWARE = 0x0A
    """There is no run-time firmware to go back to."""
    ERR_VENDOR = 0x0B
    """iString says what."""
    ERR_USBR = 0x0C
    ERR_POR = 0x0D
    ERR_UNKNOWN = 0x0E
    ERR_STALLEDPKT = 0x0F
    """A request that the state does not allow."""


STATUS_REPLY = Layout("dfu_status", 6, "bStatus" / u8, "bwPollTimeout" / raw(3), "bState" / u8, "iString" / u8)
"""What GETSTATUS answers. bwPollTimeout is little-endian: milliseconds to wait before asking again."""
FUNCTIONAL_DESCRIPTOR = Layout(
    "dfu_functional_descriptor",
    9,
    "bLength" / u8,
    "bDescriptorType" / u8,
    "bmAttributes" / u8,
    "wDetachTimeOut" / u16,
    "wTransferSize" / u16,
    "bcdDFUVersion" / u16,
)
