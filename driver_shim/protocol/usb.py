"""Standard requests and descriptors of USB (Universal Serial Bus Specification 2.0, chapter 9)."""

from __future__ import annotations

import dataclasses
import enum

from driver_shim.protocol.layout import Layout, u8, u16

USB_2_0 = 0x0200
"""bcdUSB."""
CONTROL_PACKET_BYTES = 64
"""bMaxPacketSize0 at high speed (5.5.3)."""
LANGUAGE_ENGLISH_US = 0x0409
VENDOR_SPECIFIC = 0xFF
"""Class, subclass or protocol that is the vendor's own."""
MAX_STRING_CHARACTERS = 126
"""A string descriptor has room for this many UTF-16 units."""
SELF_POWERED = 0xC0
"""bmAttributes of a configuration: bit 7 is always one, bit 6 says that the device has power of its own."""
STATUS_SELF_POWERED = 1
"""First bit of a device's GET_STATUS."""


class Direction(enum.IntEnum):
    """Bit 7 of bmRequestType."""

    OUT = 0x00
    """Host to device."""
    IN = 0x80


class RequestType(enum.IntEnum):
    """Bits 5 and 6 of bmRequestType: who defines the request."""

    STANDARD = 0x00
    CLASS = 0x20
    VENDOR = 0x40


class Recipient(enum.IntEnum):
    """Bits 0 to 4 of bmRequestType."""

    DEVICE = 0
    INTERFACE = 1
    ENDPOINT = 2


class StandardRequest(enum.IntEnum):
    """bRequest (table 9-4)."""

    GET_STATUS = 0
    CLEAR_FEATURE = 1
    SET_FEATURE = 3
    SET_ADDRESS = 5
    GET_DESCRIPTOR = 6
    SET_DESCRIPTOR = 7
    GET_CONFIGURATION = 8
    SET_CONFIGURATION = 9
    GET_INTERFACE = 10
    SET_INTERFACE = 11


class DescriptorType(enum.IntEnum):
    """bDescriptorType (table 9-5); the high byte of wValue in GET_DESCRIPTOR."""

    DEVICE = 1
    CONFIGURATION = 2
    STRING = 3
    INTERFACE = 4
    ENDPOINT = 5
    DEVICE_QUALIFIER = 6
    OTHER_SPEED_CONFIGURATION = 7


SETUP = Layout("usb_setup", 8, "bmRequestType" / u8, "bRequest" / u8, "wValue" / u16, "wIndex" / u16, "wLength" / u16)
"""First packet of every control transfer (table 9-2)."""
DEVICE_DESCRIPTOR = Layout(
    "usb_device_descriptor",
    18,
    "bLength" / u8,
    "bDescriptorType" / u8,
    "bcdUSB" / u16,
    "bDeviceClass" / u8,
    "bDeviceSubClass" / u8,
    "bDeviceProtocol" / u8,
    "bMaxPacketSize0" / u8,
    "idVendor" / u16,
    "idProduct" / u16,
    "bcdDevice" / u16,
    "iManufacturer" / u8,
    "iProduct" / u8,
    "iSerialNumber" / u8,
    "bNumConfigurations" / u8,
)
DEVICE_QUALIFIER = Layout(
    "usb_device_qualifier",
    10,
    "bLength" / u8,
    "bDescriptorType" / u8,
    "bcdUSB" / u16,
    "bDeviceClass" / u8,
    "bDeviceSubClass" / u8,
    "bDeviceProtocol" / u8,
    "bMaxPacketSize0" / u8,
    "bNumConfigurations" / u8,
    "bReserved" / u8,
)
CONFIGURATION_DESCRIPTOR = Layout(
    "usb_configuration_descriptor",
    9,
    "bLength" / u8,
    "bDescriptorType" / u8,
    "wTotalLength" / u16,
    "bNumInterfaces" / u8,
    "bConfigurationValue" / u8,
    "iConfiguration" / u8,
    "bmAttributes" / u8,
    "bMaxPower" / u8,
)
INTERFACE_DESCRIPTOR = Layout(
    "usb_interface_descriptor",
    9,
    "bLength" / u8,
    "bDescriptorType" / u8,
    "bInterfaceNumber" / u8,
    "bAlternateSetting" / u8,
    "bNumEndpoints" / u8,
    "bInterfaceClass" / u8,
    "bInterfaceSubClass" / u8,
    "bInterfaceProtocol" / u8,
    "iInterface" / u8,
)
DESCRIPTOR_HEADER = Layout("usb_descriptor_header", 2, "bLength" / u8, "bDescriptorType" / u8)
"""Every descriptor begins with it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """A setup packet."""

    request_type: int
    request: int
    value: int
    index: int
    length: int

    @classmethod
    def parse(cls, data: bytes) -> Setup:
        """From the eight bytes. Raises FieldError for another number of them."""
        SETUP.parse(data)
        return cls(*SETUP.unpack_from(data))

    def build(self) -> bytes:
        """The eight bytes."""
        return SETUP.pack(self.request_type, self.request, self.value, self.index, self.length)

    @property
    def is_in(self) -> bool:
        """Whether the device sends the data; without data this bit means nothing."""
        return bool(self.request_type & Direction.IN)

    @property
    def kind(self) -> int:
        """Who defines the request, see RequestType."""
        return self.request_type & 0x60

    @property
    def recipient(self) -> int:
        """See Recipient."""
        return self.request_type & 0x1F


def string_descriptor(text: str) -> bytes:
    """A text as UNICODE string descriptor (9.6.7), shortened to what fits."""
    return _string(text.encode("utf-16-le")[: 2 * MAX_STRING_CHARACTERS])


def language_descriptor(*languages: int) -> bytes:
    """String descriptor zero: the languages that texts are in."""
    return _string(b"".join(language.to_bytes(2, "little") for language in languages))


def _string(content: bytes) -> bytes:
    size = DESCRIPTOR_HEADER.size + len(content)
    return DESCRIPTOR_HEADER.build(bLength=size, bDescriptorType=DescriptorType.STRING) + content
