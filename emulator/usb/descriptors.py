"""Descriptors of the debug port: two interfaces without endpoints, all through endpoint 0."""

from __future__ import annotations

import enum

from driver_shim.protocol import dfu
from driver_shim.protocol.debug_port import (
    CONFIGURATION,
    DEBUG_PORT_ID,
    INTERFACE_DFU,
    INTERFACE_REGISTERS,
    SLOTS,
    VENDOR_ID,
    Mode,
)
from driver_shim.protocol.dfu import Attribute
from driver_shim.protocol.usb import (
    CONFIGURATION_DESCRIPTOR,
    CONTROL_PACKET_BYTES,
    DEVICE_DESCRIPTOR,
    DEVICE_QUALIFIER,
    INTERFACE_DESCRIPTOR,
    SELF_POWERED,
    USB_2_0,
    VENDOR_SPECIFIC,
    DescriptorType,
)

DEVICE_RELEASE = 0x0100
"""bcdDevice."""
INTERFACES = 2


class Text(enum.IntEnum):
    """Numbers of the string descriptors."""

    LANGUAGES = 0
    MANUFACTURER = 1
    PRODUCT = 2
    SERIAL = 3
    REGISTERS = 4
    DFU = 5
    SLOT_A = 6
    SLOT_B = 7
    DFU_STATUS = 8
    """Why the last download failed."""


FIXED_TEXTS: dict[int, str] = {
    Text.MANUFACTURER: "NPU",
    Text.PRODUCT: "NPU debug port",
    Text.REGISTERS: "registers",
    Text.DFU: "firmware",
    Text.SLOT_A: "slot A",
    Text.SLOT_B: "slot B",
}
ATTRIBUTES = {
    Mode.RUN_TIME: Attribute.CAN_DOWNLOAD | Attribute.CAN_UPLOAD | Attribute.MANIFESTATION_TOLERANT
    | Attribute.WILL_DETACH,
    Mode.RECOVERY: Attribute.CAN_DOWNLOAD | Attribute.CAN_UPLOAD | Attribute.MANIFESTATION_TOLERANT,
}  # fmt: skip


def device_descriptor() -> bytes:
    """The device descriptor, the same in both modes: a host tells them apart by the DFU interface's protocol."""
    return DEVICE_DESCRIPTOR.build(
        bLength=DEVICE_DESCRIPTOR.size,
        bDescriptorType=DescriptorType.DEVICE,
        bcdUSB=USB_2_0,
        bMaxPacketSize0=CONTROL_PACKET_BYTES,
        idVendor=VENDOR_ID,
        idProduct=DEBUG_PORT_ID,
        bcdDevice=DEVICE_RELEASE,
        iManufacturer=Text.MANUFACTURER,
        iProduct=Text.PRODUCT,
        iSerialNumber=Text.SERIAL,
        bNumConfigurations=1,
    )


def device_qualifier() -> bytes:
    """How it would look at full speed: the same."""
    return DEVICE_QUALIFIER.build(
        bLength=DEVICE_QUALIFIER.size,
        bDescriptorType=DescriptorType.DEVICE_QUALIFIER,
        bcdUSB=USB_2_0,
        bMaxPacketSize0=CONTROL_PACKET_BYTES,
        bNumConfigurations=1,
    )


def configuration(mode: Mode, kind: DescriptorType = DescriptorType.CONFIGURATION) -> bytes:
    """The configuration with its interfaces; `kind` may be OTHER_SPEED_CONFIGURATION, for it looks the same there."""
    parts = [_interface(INTERFACE_REGISTERS, 0, VENDOR_SPECIFIC, 0, 0, Text.REGISTERS)]
    parts += [
        _interface(INTERFACE_DFU, alternate, dfu.INTERFACE_CLASS, dfu.INTERFACE_SUBCLASS, protocol, text)
        for alternate, protocol, text in _dfu_settings(mode)
    ]
    body = b"".join(parts) + _functional(mode)
    head = CONFIGURATION_DESCRIPTOR.build(
        bLength=CONFIGURATION_DESCRIPTOR.size,
        bDescriptorType=kind,
        wTotalLength=CONFIGURATION_DESCRIPTOR.size + len(body),
        bNumInterfaces=INTERFACES,
        bConfigurationValue=CONFIGURATION,
        bmAttributes=SELF_POWERED,
    )
    return head + body


def interface_kinds(mode: Mode) -> list[tuple[int, int, int]]:
    """Class, subclass and protocol of each interface."""
    _, protocol, _ = _dfu_settings(mode)[0]
    return [(VENDOR_SPECIFIC, 0, 0), (dfu.INTERFACE_CLASS, dfu.INTERFACE_SUBCLASS, protocol)]


def alternate_settings(mode: Mode, interface: int) -> int:
    """How many alternate settings an interface has; 0 for one that is not there."""
    return {INTERFACE_REGISTERS: 1, INTERFACE_DFU: len(_dfu_settings(mode))}.get(interface, 0)


def _dfu_settings(mode: Mode) -> list[tuple[int, int, Text]]:
    if mode is Mode.RUN_TIME:
        return [(0, dfu.PROTOCOL_RUN_TIME, Text.DFU)]
    texts = (Text.SLOT_A, Text.SLOT_B)
    return [(alternate, dfu.PROTOCOL_DFU_MODE, texts[alternate]) for alternate in range(len(SLOTS))]


def _interface(number: int, alternate: int, kind: int, subclass: int, protocol: int, text: Text) -> bytes:
    return INTERFACE_DESCRIPTOR.build(
        bLength=INTERFACE_DESCRIPTOR.size,
        bDescriptorType=DescriptorType.INTERFACE,
        bInterfaceNumber=number,
        bAlternateSetting=alternate,
        bInterfaceClass=kind,
        bInterfaceSubClass=subclass,
        bInterfaceProtocol=protocol,
        iInterface=text,
    )


def _functional(mode: Mode) -> bytes:
    return dfu.FUNCTIONAL_DESCRIPTOR.build(
        bLength=dfu.FUNCTIONAL_DESCRIPTOR.size,
        bDescriptorType=dfu.FUNCTIONAL_DESCRIPTOR_TYPE,
        bmAttributes=ATTRIBUTES[mode],
        wDetachTimeOut=dfu.DETACH_TIMEOUT_MS,
        wTransferSize=dfu.TRANSFER_BYTES,
        bcdDFUVersion=dfu.DFU_VERSION,
    )
