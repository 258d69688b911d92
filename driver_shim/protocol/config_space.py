"""PCI configuration space of the function: 4 KiB, a type-0 header, capabilities and extended capabilities.

Facts from the PCI Express Base Specification 4.0 (chapter 7; resets in 6.6.2) and the PCI Local Bus Specification 3.0
(6.2.5.1: base address registers). A `Block` is a structure at its offset with, for each field that is not plainly
read-only, which bits software may change and how. What a block does not name is read-only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from driver_shim.protocol.layout import Layout, array, reserved, u8, u16, u32, u64
from driver_shim.protocol.registers import MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET

CONFIG_BYTES = 4096

VENDOR_ID = 0xB7C4
"""Assigned to nobody: absent from the PCI ID Repository of 2026-08-22, no neighbour within 0x400, and far from 0x20FF,
where PCI-SIG's assignments have arrived. (0x1AF4:0x10F0 to 0x10FF is for experiments, not for products, and makes a
guest's virtio driver probe the function.)"""
DEVICE_ID = 0x4E50
NO_ID = 0xFFFF
"""Read in place of either ID from a function that is not there (any more)."""
SUBSYSTEM_VENDOR_ID = VENDOR_ID
SUBSYSTEM_ID = 0x0001
REVISION_ID = 0x00
BASE_CLASS = 0x12
"""Processing accelerators (PCI Code and ID Assignment Specification 1.11, 1.19); subclass and interface 0."""

COMMAND_OFFSET = 0x04
COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
COMMAND_PARITY_RESPONSE = 1 << 6
COMMAND_SERR = 1 << 8
COMMAND_INTERRUPT_DISABLE = 1 << 10
STATUS_CAPABILITIES = 1 << 4
STATUS_ERRORS = 0xF900
"""Master data parity error, signalled/received aborts, signalled system error, detected parity error."""

CAPABILITIES_OFFSET = 0x34
EXTENDED_OFFSET = 0x100
PM_OFFSET, MSIX_OFFSET, EXPRESS_OFFSET = 0x40, 0x50, 0x60
AER_OFFSET, SERIAL_OFFSET = 0x100, 0x150
"""The first extended capability must begin at 0x100 (7.6)."""

PM_CAPABILITY, EXPRESS_CAPABILITY, MSIX_CAPABILITY = 0x01, 0x10, 0x11
AER_CAPABILITY, SERIAL_CAPABILITY = 0x0001, 0x0003

BAR_MEMORY_32 = 0x0
BAR_MEMORY_64_PREFETCHABLE = 0xC
BAR_KINDS = {0: BAR_MEMORY_32, 2: BAR_MEMORY_32, 4: BAR_MEMORY_64_PREFETCHABLE}
"""Low bits of each base address register: registers, doorbells, aperture."""
_BAR_FLAGS = 0xF
MIN_BAR_BYTES = 16
_MAX_BAR_32_BYTES = 1 << 31
_DWORD = 0xFFFF_FFFF
_DWORD_ALIGNED = ~0x3
_HEADER_BYTES = 0x40

PM_VERSION = 3
PM_NO_SOFT_RESET = 1 << 3
PM_CONTROL_OFFSET = 4
"""Of the control word, within the capability."""
PM_POWER_STATE = 0b11
D0, D3_HOT = 0, 3

MSIX_FUNCTION_MASK = 1 << 14
MSIX_ENABLE = 1 << 15
MSIX_MAX_VECTORS = 2048

EXPRESS_VERSION_ENDPOINT = 0x0002
"""Capability version 2, device type 0: PCI Express endpoint."""
DEVICE_EXTENDED_TAGS = 1 << 5
DEVICE_ROLE_BASED_ERRORS = 1 << 15
DEVICE_FUNCTION_LEVEL_RESET = 1 << 28
MAX_PAYLOAD_256 = 1
DEVICE_CONTROL_WRITABLE = 0x79FF
"""Error reporting, relaxed ordering, payload size, extended tags, no snoop, read request size."""
DEVICE_CONTROL_DEFAULT = 0x2810
"""Relaxed ordering, no snoop, reads of up to 512 bytes (7.5.3.4)."""
DEVICE_CONTROL_PAYLOAD = 0x00E0
DEVICE_CONTROL_INITIATE_FLR = 1 << 15
DEVICE_ERRORS_DETECTED = 0x000F
LINK = 0x0102
"""16 lanes at 5 GT/s. There is no link; faster ones would oblige us to have capabilities of their physical layer."""
LINK_ASPM_OPTIONALITY = 1 << 22
LINK_CONTROL_WRITABLE = 0x02CB
"""ASPM control, read completion boundary, common clock, extended synch, autonomous width disable."""
LINK_SLOT_CLOCK = 1 << 12
COMPLETION_TIMEOUT_DISABLE = 1 << 4
LINK_SPEEDS = 0x06
"""2.5 and 5 GT/s."""
LINK_CONTROL_2_WRITABLE = 0x003F
LINK_CONTROL_2_DEFAULT = 0x0002
"""Target speed 5 GT/s."""
LINK_STATUS_2_DE_EMPHASIS = 0x0001

AER_UNCORRECTABLE = 0x001F_F010
"""Data link, poisoned, flow control, time-out, completer abort, unexpected, overflow, malformed, ECRC, unsupported."""
AER_UNCORRECTABLE_FATAL = 0x0006_2010
"""Severity after power-on (7.8.4.4), as far as the errors above exist."""
AER_CORRECTABLE = 0x31C1
AER_CORRECTABLE_MASKED = 0x2000
"""Advisory non-fatal errors are masked after power-on (7.8.4.6)."""


class Access(NamedTuple):
    """What software may do to the bits of one field; masks of the field's width."""

    rw: int = 0
    """Takes what is written."""
    rw1c: int = 0
    """Writing 1 clears, writing 0 leaves."""
    kept: int = 0
    """Survives a function level reset: sticky bits and 6.6.2's list of exceptions."""


class Block(NamedTuple):
    """One structure of configuration space."""

    offset: int
    layout: Layout
    access: Mapping[str, Access]


HEADER = Block(
    0x00,
    Layout(
        "TYPE_0_HEADER",
        0x40,
        "vendor_id" / u16,
        "device_id" / u16,
        "command" / u16,
        "status" / u16,
        "revision_id" / u8,
        "interface" / u8,
        "subclass" / u8,
        "base_class" / u8,
        "cache_line_size" / u8,
        "latency_timer" / u8,
        "header_type" / u8,
        "bist" / u8,
        "bars" / array(6, u32),
        "cardbus_cis" / u32,
        "subsystem_vendor_id" / u16,
        "subsystem_id" / u16,
        "expansion_rom" / u32,
        "capabilities" / u8,
        reserved(7),
        "interrupt_line" / u8,
        "interrupt_pin" / u8,
        "min_grant" / u8,
        "max_latency" / u8,
    ),
    {
        "command": Access(
            rw=COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_PARITY_RESPONSE | COMMAND_SERR | COMMAND_INTERRUPT_DISABLE
        ),
        "status": Access(rw1c=STATUS_ERRORS),
        "cache_line_size": Access(rw=0xFF),
        "interrupt_line": Access(rw=0xFF),
    },
)

POWER_MANAGEMENT = Block(
    PM_OFFSET,
    Layout(
        "POWER_MANAGEMENT",
        8,
        "id" / u8,
        "next" / u8,
        "capabilities" / u16,
        "control" / u16,
        "bridge" / u8,
        "data" / u8,
    ),
    {"control": Access(rw=PM_POWER_STATE)},
)

MSIX = Block(
    MSIX_OFFSET,
    Layout("MSIX", 12, "id" / u8, "next" / u8, "control" / u16, "table" / u32, "pending" / u32),
    {"control": Access(rw=MSIX_ENABLE | MSIX_FUNCTION_MASK)},
)

EXPRESS = Block(
    EXPRESS_OFFSET,
    Layout(
        "PCI_EXPRESS",
        60,
        "id" / u8,
        "next" / u8,
        "capabilities" / u16,
        "device_capabilities" / u32,
        "device_control" / u16,
        "device_status" / u16,
        "link_capabilities" / u32,
        "link_control" / u16,
        "link_status" / u16,
        reserved(16),  # slot and root registers: not of an endpoint
        "device_capabilities_2" / u32,
        "device_control_2" / u16,
        "device_status_2" / u16,
        "link_capabilities_2" / u32,
        "link_control_2" / u16,
        "link_status_2" / u16,
        reserved(8),
    ),
    {
        "device_control": Access(rw=DEVICE_CONTROL_WRITABLE, kept=DEVICE_CONTROL_PAYLOAD),
        "device_status": Access(rw1c=DEVICE_ERRORS_DETECTED),
        "link_control": Access(rw=LINK_CONTROL_WRITABLE, kept=LINK_CONTROL_WRITABLE),
        "device_control_2": Access(rw=COMPLETION_TIMEOUT_DISABLE),
        "link_control_2": Access(rw=LINK_CONTROL_2_WRITABLE, kept=LINK_CONTROL_2_WRITABLE),
    },
)

ADVANCED_ERRORS = Block(
    AER_OFFSET,
    Layout(
        "ADVANCED_ERROR_REPORTING",
        0x48,
        "header" / u32,
        "uncorrectable_status" / u32,
        "uncorrectable_mask" / u32,
        "uncorrectable_severity" / u32,
        "correctable_status" / u32,
        "correctable_mask" / u32,
        "control" / u32,
        "header_log" / array(4, u32),
        reserved(12),  # root error registers: not of an endpoint
        "prefix_log" / array(4, u32),
    ),
    {
        "uncorrectable_status": Access(rw1c=AER_UNCORRECTABLE, kept=AER_UNCORRECTABLE),
        "uncorrectable_mask": Access(rw=AER_UNCORRECTABLE, kept=AER_UNCORRECTABLE),
        "uncorrectable_severity": Access(rw=AER_UNCORRECTABLE, kept=AER_UNCORRECTABLE),
        "correctable_status": Access(rw1c=AER_CORRECTABLE, kept=AER_CORRECTABLE),
        "correctable_mask": Access(rw=AER_CORRECTABLE, kept=AER_CORRECTABLE),
    },
)

SERIAL_NUMBER = Block(SERIAL_OFFSET, Layout("DEVICE_SERIAL_NUMBER", 12, "header" / u32, "serial" / u64), {})

BLOCKS = (HEADER, POWER_MANAGEMENT, MSIX, EXPRESS, ADVANCED_ERRORS, SERIAL_NUMBER)


class ConfigImage(NamedTuple):
    """Configuration space after power-on and what may be done to it: four times `CONFIG_BYTES` bytes."""

    reset: bytes
    rw: bytes
    rw1c: bytes
    kept: bytes


def find_capability(config: bytes, capability: int) -> int | None:
    """Offset of a capability in what was read of configuration space; None where it is not there."""
    at = config[CAPABILITIES_OFFSET] if len(config) > CAPABILITIES_OFFSET else 0
    seen = set()
    while _HEADER_BYTES <= (at := at & _DWORD_ALIGNED) <= len(config) - 4 and at not in seen:
        seen.add(at)
        if config[at] == capability:
            return at
        at = config[at + 1]
    return None


def find_extended_capability(config: bytes, capability: int) -> int | None:
    """Offset of an extended capability; None where it is not there, or was not read."""
    at, seen = EXTENDED_OFFSET, set()
    while EXTENDED_OFFSET <= (at := at & _DWORD_ALIGNED) <= len(config) - 4 and at not in seen:
        seen.add(at)
        header = int.from_bytes(config[at : at + 4], "little")
        if header & 0xFFFF == capability:
            return at
        at = header >> 20
    return None


def serial_text(config: bytes) -> str | None:
    """The serial number in the Device Serial Number capability; None where there is none, or was not read.

    Ours holds the last 8 characters of the serial. What is not printable is shown as lspci does: 00-11-22-…-77.
    """
    at = find_extended_capability(config, SERIAL_CAPABILITY)
    if at is None or at + SERIAL_NUMBER.layout.size > len(config):
        return None
    number = SERIAL_NUMBER.layout.parse(config[at : at + SERIAL_NUMBER.layout.size]).serial
    octets: bytes = number.to_bytes(8, "big")
    if number in (0, (1 << 64) - 1):  # never programmed, or read from a card that is gone
        return None
    characters = octets.lstrip(b"\0")
    if all(0x20 < character < 0x7F for character in characters):
        return characters.decode("ascii")
    return octets.hex("-")


def extended_header(capability: int, version: int, next_offset: int) -> int:
    """First dword of an extended capability (7.6.3)."""
    return capability | version << 16 | next_offset << 20


def bar_masks(bar_sizes: Mapping[int, int]) -> list[int]:
    """Writable bits of the six base address registers.

    Raises ValueError for a size that is no power of two or does not fit, or a BAR that `BAR_KINDS` does not have.
    """
    masks = [0] * 6
    for bar, size in bar_sizes.items():
        kind = BAR_KINDS.get(bar)
        if kind is None:
            raise ValueError(f"BAR{bar}: there are only BAR{', BAR'.join(map(str, BAR_KINDS))}")
        limit = _MAX_BAR_32_BYTES if kind == BAR_MEMORY_32 else 1 << 63
        if not MIN_BAR_BYTES <= size <= limit or size & (size - 1):
            raise ValueError(f"BAR{bar}: {size} bytes is not a power of two from {MIN_BAR_BYTES} to {limit}")
        address = -size
        masks[bar] = address & _DWORD & ~_BAR_FLAGS
        if kind == BAR_MEMORY_64_PREFETCHABLE:
            masks[bar + 1] = address >> 32 & _DWORD
    return masks


def config_image(bar_sizes: Mapping[int, int], serial: int, vectors: int) -> ConfigImage:
    """The function's configuration space. `bar_sizes` in bytes, `serial` 64 bits, `vectors` MSI-X vectors.

    Raises ValueError (FieldError where a value does not fit its field).
    """
    if not 1 <= vectors <= MSIX_MAX_VECTORS:
        raise ValueError(f"{vectors} MSI-X vectors: 1 to {MSIX_MAX_VECTORS} are possible")
    values = _reset_values(bar_sizes, serial, vectors)
    parts = {name: bytearray(CONFIG_BYTES) for name in ConfigImage._fields}
    for block in BLOCKS:
        area = slice(block.offset, block.offset + block.layout.size)
        parts["reset"][area] = block.layout.build(**values[block.layout.name])
        for kind in Access._fields:
            masks: dict[str, Any] = {name: getattr(access, kind) for name, access in block.access.items()}
            if block is HEADER and kind == "rw":
                masks["bars"] = bar_masks(bar_sizes)
            parts[kind][area] = block.layout.build(**masks)
    return ConfigImage(*(bytes(part) for part in parts.values()))


def _reset_values(bar_sizes: Mapping[int, int], serial: int, vectors: int) -> dict[str, dict[str, Any]]:
    """Values after power-on, by structure and field; what is not named is 0."""
    return {
        HEADER.layout.name: {
            "vendor_id": VENDOR_ID,
            "device_id": DEVICE_ID,
            "status": STATUS_CAPABILITIES,
            "revision_id": REVISION_ID,
            "base_class": BASE_CLASS,
            "bars": [BAR_KINDS.get(bar, 0) if bar in bar_sizes else 0 for bar in range(6)],
            "subsystem_vendor_id": SUBSYSTEM_VENDOR_ID,
            "subsystem_id": SUBSYSTEM_ID,
            "capabilities": PM_OFFSET,
        },
        POWER_MANAGEMENT.layout.name: {
            "id": PM_CAPABILITY,
            "next": MSIX_OFFSET,
            "capabilities": PM_VERSION,
            "control": PM_NO_SOFT_RESET,
        },
        MSIX.layout.name: {
            "id": MSIX_CAPABILITY,
            "next": EXPRESS_OFFSET,
            "control": vectors - 1,
            "table": MSIX_TABLE_OFFSET,
            "pending": MSIX_PBA_OFFSET,
        },
        EXPRESS.layout.name: {
            "id": EXPRESS_CAPABILITY,
            "capabilities": EXPRESS_VERSION_ENDPOINT,
            "device_capabilities": MAX_PAYLOAD_256
            | DEVICE_EXTENDED_TAGS
            | DEVICE_ROLE_BASED_ERRORS
            | DEVICE_FUNCTION_LEVEL_RESET,
            "device_control": DEVICE_CONTROL_DEFAULT,
            "link_capabilities": LINK | LINK_ASPM_OPTIONALITY,
            "link_status": LINK | LINK_SLOT_CLOCK,
            "device_capabilities_2": COMPLETION_TIMEOUT_DISABLE,
            "link_capabilities_2": LINK_SPEEDS,
            "link_control_2": LINK_CONTROL_2_DEFAULT,
            "link_status_2": LINK_STATUS_2_DE_EMPHASIS,
        },
        ADVANCED_ERRORS.layout.name: {
            "header": extended_header(AER_CAPABILITY, 2, SERIAL_OFFSET),
            "uncorrectable_severity": AER_UNCORRECTABLE_FATAL,
            "correctable_mask": AER_CORRECTABLE_MASKED,
        },
        SERIAL_NUMBER.layout.name: {
            "header": extended_header(SERIAL_CAPABILITY, 1, 0),
            "serial": serial,
        },
    }
