"""The form of a firmware image: its header, and where the TLV areas and their entries lie."""

from __future__ import annotations

from typing import NamedTuple

from driver_shim.protocol.image_layout import (
    ADDRESS_FLAGS,
    COMPRESSED_FLAGS,
    ENCRYPTED_FLAGS,
    IMAGE_HEADER,
    IMAGE_MAGIC,
    PROTECTED_INFO_MAGIC,
    TLV_ENTRY,
    TLV_INFO,
    UNPROTECTED_INFO_MAGIC,
    ImageFlag,
    ImageVersion,
)
from driver_shim.protocol.image_model import Defect, ImageError, Tlv, tlv_name


class Header(NamedTuple):
    """The header of an image whose payload is there."""

    version: ImageVersion
    load_address: int
    header_size: int
    protected_size: int
    image_size: int
    flags: ImageFlag

    @property
    def payload_end(self) -> int:
        return self.header_size + self.image_size


class Areas(NamedTuple):
    """Where the protected TLVs end, and where the image does."""

    signed_size: int
    end: int


def parse_header(data: bytes) -> Header:
    """Read and check the header, and that payload and padding are as it says."""
    if len(data) < IMAGE_HEADER.size:
        raise ImageError(Defect.TRUNCATED, f"{len(data)} bytes, an image header alone is {IMAGE_HEADER.size}")
    magic, load_address, header_size, protected_size, image_size, flags, *version = IMAGE_HEADER.unpack_from(data)
    if magic != IMAGE_MAGIC:
        raise _wrong_magic(data, magic)
    if not IMAGE_HEADER.reserved_clear(data[: IMAGE_HEADER.size]):
        raise ImageError(Defect.RESERVED_FIELD, "the header's last four bytes are reserved and not zero")
    _check_flags(flags, load_address)
    if header_size < IMAGE_HEADER.size:
        raise ImageError(Defect.HEADER_SIZE, f"header_size is {header_size}, at least {IMAGE_HEADER.size} is allowed")
    if image_size == 0:
        raise ImageError(Defect.EMPTY, "the image has no payload")
    header = Header(ImageVersion(*version), load_address, header_size, protected_size, image_size, ImageFlag(flags))
    if header.payload_end > len(data):
        raise ImageError(
            Defect.TRUNCATED, f"header and payload are {header.payload_end} bytes, there are only {len(data)}"
        )
    padding = data[IMAGE_HEADER.size : header_size]
    if padding.strip(b"\0") and padding.strip(b"\xff"):
        raise ImageError(Defect.HEADER_PADDING, "the bytes between header and payload are neither all 00 nor all ff")
    return header


def _wrong_magic(data: bytes, magic: int) -> ImageError:
    if magic == int.from_bytes(IMAGE_MAGIC.to_bytes(4, "big"), "little"):
        return ImageError(Defect.BIG_ENDIAN, "a big-endian image; this device takes little-endian ones")
    return ImageError(
        Defect.NOT_AN_IMAGE,
        f"not a firmware image: it begins with {data[:4].hex()}, not {IMAGE_MAGIC.to_bytes(4, 'little').hex()}",
    )


def _check_flags(flags: int, load_address: int) -> None:
    if flags & ENCRYPTED_FLAGS:
        raise ImageError(Defect.ENCRYPTED, "the image is encrypted; this device takes plain ones")
    if flags & COMPRESSED_FLAGS:
        raise ImageError(Defect.COMPRESSED, "the image is compressed; this device takes plain ones")
    allowed = ADDRESS_FLAGS | ImageFlag.NON_BOOTABLE
    if flags & ~int(allowed):
        raise ImageError(Defect.UNSUPPORTED_FLAG, f"flags {flags:#x}; only {int(allowed):#x} are supported")
    if flags & ADDRESS_FLAGS == ADDRESS_FLAGS:
        raise ImageError(Defect.UNSUPPORTED_FLAG, "an image cannot both run from flash and be loaded into RAM")
    if load_address and not flags & ADDRESS_FLAGS:
        raise ImageError(
            Defect.LOAD_ADDRESS,
            f"load address {load_address:#x}, without the flag RAM load or ROM fixed",
        )


def find_areas(data: bytes, header: Header) -> Areas:
    """Find the TLV areas behind the payload; what follows them is not looked at."""
    magic, total = _area_info(data, header.payload_end)
    if magic == PROTECTED_INFO_MAGIC:
        if total != header.protected_size:
            raise ImageError(
                Defect.TLV_AREA, f"the protected TLVs are {total} bytes, the header says {header.protected_size}"
            )
    elif header.protected_size:
        raise ImageError(
            Defect.TLV_AREA, f"the header says {header.protected_size} bytes of protected TLVs, there are none"
        )
    signed_size = header.payload_end + header.protected_size
    magic, total = _area_info(data, signed_size)
    if magic != UNPROTECTED_INFO_MAGIC:
        raise ImageError(
            Defect.TLV_AREA, f"no TLV area at {signed_size:#x}: {magic:#06x} instead of {UNPROTECTED_INFO_MAGIC:#06x}"
        )
    return Areas(signed_size, signed_size + total)


def _area_info(data: bytes, offset: int) -> tuple[int, int]:
    """Magic and size of the TLV area at `offset`, all of which `data` holds."""
    if offset + TLV_INFO.size > len(data):
        raise ImageError(Defect.TRUNCATED, f"the image ends at {len(data):#x}, a TLV area should begin at {offset:#x}")
    magic, total = TLV_INFO.unpack_from(data, offset)
    if magic not in (PROTECTED_INFO_MAGIC, UNPROTECTED_INFO_MAGIC):
        raise ImageError(Defect.TLV_AREA, f"no TLV area at {offset:#x}: it begins with {magic:#06x}")
    if total < TLV_INFO.size:
        raise ImageError(Defect.TLV_AREA, f"the TLV area at {offset:#x} says it is {total} bytes")
    if offset + total > len(data):
        raise ImageError(
            Defect.TRUNCATED, f"the TLV area at {offset:#x} is {total} bytes, only {len(data) - offset} are there"
        )
    return magic, total


_SLOT_TRAILER_MAGIC = bytes.fromhex("77c295f360d2ef7f3552500f2cb67980")
_SLOT_TRAILER_MAGIC_BIG_ALIGNMENT = bytes.fromhex("2de15d29410b8d77679c110f1f8a")
"""With flash that is written in 16 bytes or more, the alignment (two bytes) takes the place of the first two."""


def trailing(data: bytes, end: int) -> ImageError:
    """What to say of bytes behind the image."""
    extra = len(data) - end
    if data.endswith((_SLOT_TRAILER_MAGIC, _SLOT_TRAILER_MAGIC_BIG_ALIGNMENT)):
        return ImageError(
            Defect.PADDED, f"the image is padded to a slot of {len(data)} bytes; this device takes it without a trailer"
        )
    return ImageError(Defect.TRAILING_BYTES, f"{extra} bytes follow the image, which ends at {end:#x}")


def parse_entries(data: bytes, start: int, end: int, area: str) -> tuple[Tlv, ...]:
    """The entries of the TLV area that fills `start` to `end`; `area` is its name in messages."""
    entries = []
    offset = start + TLV_INFO.size
    while offset < end:
        if offset + TLV_ENTRY.size > end:
            raise ImageError(Defect.TLV_AREA, f"{end - offset} bytes are left over at the end of the {area} TLVs")
        kind, length = TLV_ENTRY.unpack_from(data, offset)
        offset += TLV_ENTRY.size
        if offset + length > end:
            raise ImageError(
                Defect.TLV_AREA, f"TLV {tlv_name(kind)} is {length} bytes, the {area} area ends after {end - offset}"
            )
        entries.append(Tlv(kind, data[offset : offset + length]))
        offset += length
    return tuple(entries)
