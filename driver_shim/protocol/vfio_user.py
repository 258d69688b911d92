"""The vfio-user protocol 0.0: every message of the emulator's bus, without I/O.

Follows the "vfio-user Protocol Specification" (docs/interop/vfio-user.rst of QEMU); section names in the docstrings are
its. Structures that it takes from VFIO are those of <linux/vfio.h>. All numbers are little-endian: the specification
says "host order", and the hosts this project runs on are.

A message is a 16-byte header, a payload, and file descriptors beside them (`vfio_user_framing.py`). Here are the
structures; `encode_*` and `decode_*` turn payloads of variable size into values and back. Anything malformed raises
`ProtocolError`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from driver_shim.protocol.layout import Layout, raw, reserved, u16, u32, u64

MAJOR = 0
MINOR = 0

DEFAULT_MAX_FDS = 1
"""`max_msg_fds` of a peer that states none."""
MAX_FDS = 16
"""Descriptors we accept with one message; QEMU refuses servers that state more."""
MAX_TRANSFER_BYTES = 1 << 20
"""Largest `count` of a data transfer, ours and the default of a peer that states none (`max_data_xfer_size`)."""
MAX_DMA_MAPS = 65535
"""`max_dma_maps`: ours, and the default."""
PAGE_SIZES = 4096
"""`pgsizes`: sizes of DMA pages, or'ed together; ours, and the default."""
MAX_MULTI_WRITES = 1024
"""Writes we accept in one REGION_WRITE_MULTI; QEMU sends at most 200."""
MULTI_WRITE_BYTES = 8
"""Data bytes of one write of a REGION_WRITE_MULTI."""
MAX_REGION_AREAS = 64
"""Sparse areas of one region that we believe a server."""


class ProtocolError(ValueError):
    """Bytes that are no vfio-user message, or a message that contradicts itself. The text says what was wrong."""


class Command(enum.IntEnum):
    """Commands ("Commands"); DMA_READ and DMA_WRITE go from server to client, all others the other way."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15


class Flag(enum.IntFlag):
    """Header flags ("Header"); the low four bits are the type, 0 for a command."""

    REPLY = 1 << 0
    NO_REPLY = 1 << 4
    ERROR = 1 << 5


TYPE_MASK = 0xF


class DmaFlag(enum.IntFlag):
    """`flags` of DMA_MAP."""

    READ = 1 << 0
    WRITE = 1 << 1


class UnmapFlag(enum.IntFlag):
    """`flags` of DMA_UNMAP (<linux/vfio.h>)."""

    ALL = 1 << 1
    """Every mapping; address and size are zero."""


class DeviceFlag(enum.IntFlag):
    """`flags` of DEVICE_GET_INFO."""

    RESET = 1 << 0
    PCI = 1 << 1


class RegionFlag(enum.IntFlag):
    """`flags` of DEVICE_GET_REGION_INFO."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class RegionIndex(enum.IntEnum):
    """Regions of a PCI device that are not BARs; BAR n is region n (<linux/vfio.h>)."""

    ROM = 6
    CONFIG = 7
    VGA = 8


NUM_REGIONS = 9


class IrqIndex(enum.IntEnum):
    """Interrupt types of a PCI device (<linux/vfio.h>)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


NUM_IRQS = 5


class IrqFlag(enum.IntFlag):
    """`flags` of DEVICE_GET_IRQ_INFO."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqSet(enum.IntFlag):
    """`flags` of DEVICE_SET_IRQS: one kind of data and one action."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


IRQ_DATA = IrqSet.DATA_NONE | IrqSet.DATA_BOOL | IrqSet.DATA_EVENTFD
IRQ_ACTION = IrqSet.ACTION_MASK | IrqSet.ACTION_UNMASK | IrqSet.ACTION_TRIGGER
SPARSE_MMAP_CAPABILITY = 1
"""VFIO_REGION_INFO_CAP_SPARSE_MMAP; its version is 1."""
SPARSE_MMAP_VERSION = 1

_HEADER_FIELDS = ("id" / u16, "command" / u16, "size" / u32, "flags" / u32, "error" / u32)
_ACCESS_FIELDS = ("offset" / u64, "region" / u32, "count" / u32)

HEADER = Layout("vfio_user_header", 16, *_HEADER_FIELDS)
VERSION = Layout("vfio_user_version", 4, "major" / u16, "minor" / u16)
DMA_MAP = Layout("vfio_user_dma_map", 32, "argsz" / u32, "flags" / u32, "offset" / u64, "address" / u64, "size" / u64)
DMA_UNMAP = Layout("vfio_user_dma_unmap", 24, "argsz" / u32, "flags" / u32, "address" / u64, "size" / u64)
DEVICE_INFO = Layout("vfio_user_device_info", 16, "argsz" / u32, "flags" / u32, "num_regions" / u32, "num_irqs" / u32)
REGION_INFO = Layout(
    "vfio_region_info",
    32,
    "argsz" / u32,
    "flags" / u32,
    "index" / u32,
    "cap_offset" / u32,
    "size" / u64,
    "offset" / u64,
)
CAPABILITY = Layout("vfio_info_cap_header", 8, "id" / u16, "version" / u16, "next" / u32)
SPARSE_MMAP = Layout(
    "vfio_region_info_cap_sparse_mmap",
    16,
    "id" / u16,
    "version" / u16,
    "next" / u32,
    "nr_areas" / u32,
    reserved(4),
)
SPARSE_AREA = Layout("vfio_region_sparse_mmap_area", 16, "offset" / u64, "size" / u64)
REGION_IO_FDS = Layout("vfio_user_region_io_fds", 16, "argsz" / u32, "flags" / u32, "index" / u32, "count" / u32)
IRQ_INFO = Layout("vfio_irq_info", 16, "argsz" / u32, "flags" / u32, "index" / u32, "count" / u32)
IRQ_SET = Layout("vfio_irq_set", 20, "argsz" / u32, "flags" / u32, "index" / u32, "start" / u32, "count" / u32)
REGION_ACCESS = Layout("vfio_user_region_access", 16, *_ACCESS_FIELDS)
DMA_ACCESS = Layout("vfio_user_dma_access", 16, "address" / u64, "count" / u64)
WRITE_MULTI = Layout("vfio_user_write_multi", 8, "wr_cnt" / u64)
WRITE_ONE = Layout("vfio_user_write_one", 24, *_ACCESS_FIELDS, "data" / raw(MULTI_WRITE_BYTES))
REGION_MESSAGE = Layout("vfio_user_region_message", 32, *_HEADER_FIELDS, *_ACCESS_FIELDS)
"""Header and fixed part of REGION_READ, REGION_WRITE and their replies in one: the hot path's form."""

MAX_MESSAGE_BYTES = HEADER.size + REGION_ACCESS.size + MAX_TRANSFER_BYTES
MAX_VERSION_BYTES = 4096
"""Largest VERSION message we accept; ours is below 200 bytes."""

# --- VERSION -----------------------------------------------------------------------------------------------------


class Capabilities(NamedTuple):
    """Capabilities of one side ("VFIO_USER_VERSION"); the defaults are what an absent one means."""

    max_msg_fds: int = DEFAULT_MAX_FDS
    max_data_xfer_size: int = MAX_TRANSFER_BYTES
    max_dma_maps: int = MAX_DMA_MAPS
    pgsizes: int = PAGE_SIZES
    write_multiple: bool = False


OURS = Capabilities(max_msg_fds=MAX_FDS, write_multiple=True)
"""What both our sides can do."""
_LARGEST_CAPABILITY = (1 << 63) - 1


class Version(NamedTuple):
    """A VERSION request or reply."""

    major: int
    minor: int
    capabilities: Capabilities = Capabilities()
    stated: frozenset[str] = frozenset()
    """Names of the capabilities that were there; a server's reply holds only what the client proposed."""


def encode_version(major: int, minor: int, capabilities: Capabilities, names: Sequence[str] | None = None) -> bytes:
    """Payload of a VERSION message that states the capabilities of these names, all by default."""
    stated = {name: value for name, value in capabilities._asdict().items() if names is None or name in names}
    text = json.dumps({"capabilities": stated}, separators=(",", ":"))
    return VERSION.pack(major, minor) + text.encode() + b"\0"


def decode_version(payload: bytes) -> Version:
    """Read a VERSION payload; unknown capabilities are ignored. Raises ProtocolError."""
    if len(payload) < VERSION.size:
        raise ProtocolError(f"VERSION of {len(payload)} bytes; it has at least {VERSION.size}")
    major, minor = VERSION.unpack_from(payload)
    data = payload[VERSION.size :]
    if not data:
        return Version(major, minor)
    if data[-1] != 0:
        raise ProtocolError("VERSION: its JSON does not end in a NUL byte")
    try:
        document = json.loads(data.rstrip(b"\0").decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"VERSION: its data is no JSON: {error}") from error
    stated = document.get("capabilities", {}) if isinstance(document, dict) else None
    if not isinstance(stated, dict):
        raise ProtocolError("VERSION: its JSON is no object with an object of capabilities")
    known = {name: _capability(name, stated[name]) for name in Capabilities._fields if name in stated}
    return Version(major, minor, Capabilities(**known), frozenset(known))


def _capability(name: str, value: object) -> Any:
    if name == "write_multiple":
        if not isinstance(value, bool):
            raise ProtocolError(f"VERSION: capability {name} is {value!r}, no boolean")
    elif isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_CAPABILITY:
        raise ProtocolError(f"VERSION: capability {name} is {value!r}, no sensible number")
    return value


# --- regions -----------------------------------------------------------------------------------------------------


class RegionDescription(NamedTuple):
    """What a DEVICE_GET_REGION_INFO reply says."""

    number: int
    size: int
    flags: int
    offset: int = 0
    """Where the region starts in the file that is handed out with it."""
    areas: tuple[tuple[int, int], ...] = ()
    """(offset, size) of what can be mapped when that is not all of it."""


def encode_region_info(region: RegionDescription, argsz: int) -> tuple[bytes, bool]:
    """Reply payload for a client that has room for `argsz` bytes; False when only the fixed part fits.

    The sparse areas follow as a capability ("VFIO region capabilities"). A client with too little room learns the size
    from `argsz` and asks again.
    """
    caps = b""
    if region.areas:
        caps = SPARSE_MMAP.pack(SPARSE_MMAP_CAPABILITY, SPARSE_MMAP_VERSION, 0, len(region.areas))
        caps += b"".join(SPARSE_AREA.pack(*area) for area in region.areas)
    needed = REGION_INFO.size + len(caps)
    fits = argsz >= needed
    flags, cap_offset = region.flags, 0
    if caps and fits:
        flags |= RegionFlag.CAPS
        cap_offset = REGION_INFO.size
    fixed = REGION_INFO.pack(needed, flags, region.number, cap_offset, region.size, region.offset)
    return (fixed + caps if fits else fixed), fits


def decode_region_info(payload: bytes) -> tuple[RegionDescription, int]:
    """The description and the `argsz` that a complete reply takes. Raises ProtocolError.

    Areas are checked to lie inside the region, in whole pages, without overlap.
    """
    if len(payload) < REGION_INFO.size:
        raise ProtocolError(f"region info of {len(payload)} bytes; it has at least {REGION_INFO.size}")
    argsz, flags, index, at, size, offset = REGION_INFO.unpack_from(payload)
    areas: tuple[tuple[int, int], ...] = ()
    if flags & RegionFlag.CAPS:
        previous = 0
        while at:
            if at <= previous or at < REGION_INFO.size or at + CAPABILITY.size > len(payload):
                raise ProtocolError(f"region {index}: a capability at offset {at} of {len(payload)} bytes")
            kind, _, following = CAPABILITY.unpack_from(payload, at)
            if kind == SPARSE_MMAP_CAPABILITY:
                areas = _decode_areas(payload, at, index, size)
            previous, at = at, following
    return RegionDescription(index, size, flags, offset, areas), argsz


def _decode_areas(payload: bytes, at: int, index: int, size: int) -> tuple[tuple[int, int], ...]:
    if at + SPARSE_MMAP.size > len(payload):
        raise ProtocolError(f"region {index}: its sparse areas are cut off")
    *_, count = SPARSE_MMAP.unpack_from(payload, at)
    start = at + SPARSE_MMAP.size
    if count > MAX_REGION_AREAS or start + count * SPARSE_AREA.size > len(payload):
        raise ProtocolError(f"region {index}: {count} sparse areas in a reply of {len(payload)} bytes")
    areas = sorted(SPARSE_AREA.unpack_from(payload, start + number * SPARSE_AREA.size) for number in range(count))
    end = 0
    for offset, length in areas:
        if offset < end or length == 0 or offset + length > size or (offset | length) % PAGE_SIZES:
            raise ProtocolError(f"region {index} of {size:#x} bytes: a sparse area of {length:#x} at {offset:#x}")
        end = offset + length
    return tuple((offset, length) for offset, length in areas)


class RegionWrite(NamedTuple):
    """One write of a REGION_WRITE or REGION_WRITE_MULTI."""

    offset: int
    region: int
    data: bytes


def decode_writes(payload: bytes) -> list[RegionWrite]:
    """The writes of a REGION_WRITE_MULTI, in order. Raises ProtocolError."""
    if len(payload) < WRITE_MULTI.size:
        raise ProtocolError(f"REGION_WRITE_MULTI of {len(payload)} bytes; it has at least {WRITE_MULTI.size}")
    (count,) = WRITE_MULTI.unpack_from(payload)
    if count > MAX_MULTI_WRITES or len(payload) != WRITE_MULTI.size + count * WRITE_ONE.size:
        raise ProtocolError(f"REGION_WRITE_MULTI of {len(payload)} bytes says that it holds {count} writes")
    writes = []
    for number in range(count):
        offset, region, length, data = WRITE_ONE.unpack_from(payload, WRITE_MULTI.size + number * WRITE_ONE.size)
        if length > MULTI_WRITE_BYTES:
            raise ProtocolError(f"REGION_WRITE_MULTI: write {number} of {length} bytes; at most {MULTI_WRITE_BYTES}")
        writes.append(RegionWrite(offset, region, data[:length]))
    return writes
