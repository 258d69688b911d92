"""ELF files of the management core: 32-bit little-endian RISC-V executables, checked as files that strangers send.

Whatever decides how much is read or walked is checked before it is used, and nothing is copied, so a hostile file costs
no more than its own length. Numbers are those of the System V ABI, chapter 4 ("Object Files").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

ELF_MAGIC = b"\x7fELF"
SYMBOL_TABLE, NO_BITS = 2, 8
"""Of sh_type."""
ALLOCATED, COMPRESSED = 0x2, 0x800
"""Of sh_flags."""

_HEADER = struct.Struct("<16sHHIIIIIHHHHHH")
_SEGMENT_HEADER = struct.Struct("<8I")
_SECTION_HEADER = struct.Struct("<10I")
_SEGMENTS_MAX = 128
_SECTIONS_MAX = 4096
_NAME_BYTES_MAX = 64
_LOADED = 1
"""Of p_type."""
_ADDRESS_LIMIT = 1 << 32

_CLASSES = {1: 32, 2: 64}
_ORDERS = {1: "little-endian", 2: "big-endian"}
_EXECUTABLE, _RISCV = 2, 243
_TYPES = {0: "ET_NONE", 1: "ET_REL", _EXECUTABLE: "ET_EXEC", 3: "ET_DYN", 4: "ET_CORE"}
_MACHINES = {3: "EM_386", 8: "EM_MIPS", 40: "EM_ARM", 62: "EM_X86_64", 183: "EM_AARCH64", _RISCV: "EM_RISCV"}


class ElfError(ValueError):
    """An ELF file cannot be run on the management core."""


class NotAnElf(ElfError):
    """It is no ELF file at all."""


class WrongTarget(ElfError):
    """It is for another machine, or no executable."""


class TruncatedElf(ElfError):
    """Something lies behind the end of the file."""


class BadSegment(ElfError):
    """What is to be loaded does not fit the core's memories."""


class ElfTooLarge(ElfError):
    """It has more of something than is read."""


class ElfSegment(NamedTuple):
    """A segment that is to be loaded."""

    offset: int
    """Where its bytes begin in the file."""
    address: int
    """Physical: where it is loaded."""
    data: memoryview
    size: int
    """In memory; behind the data come zeros."""


class ElfSection(NamedTuple):
    """A section's header."""

    name: int
    """Where its name begins among the names."""
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    information: int
    alignment: int
    entry_bytes: int


@dataclass(frozen=True)
class ElfFile:
    """An executable's segments and sections."""

    entry: int
    segments: tuple[ElfSegment, ...]
    sections: tuple[ElfSection, ...]
    data: memoryview
    """The whole file."""
    names: int
    """Which section holds the sections' names."""

    def content(self, section: ElfSection, what: str) -> memoryview:
        """A section's bytes, `what` they are. Raises TruncatedElf."""
        end = section.offset + section.size
        if end > len(self.data):
            raise TruncatedElf(f"the {what} end at {end:#x}, the file at {len(self.data):#x}")
        return self.data[section.offset : end]

    def linked(self, section: int, what: str) -> memoryview:
        """The bytes of a section that another one names by its number. Raises TruncatedElf."""
        if section >= len(self.sections):
            raise TruncatedElf(f"the {what} are in section {section}; the file has {len(self.sections)}")
        return self.content(self.sections[section], what)

    def named_sections(self) -> Iterator[tuple[str, ElfSection]]:
        """All sections with their names. Raises TruncatedElf."""
        names = self.linked(self.names, "sections' names") if self.sections else self.data[:0]
        for section in self.sections:
            yield text_at(names, section.name, _NAME_BYTES_MAX), section


def text_at(names: memoryview, offset: int, bytes_max: int) -> str:
    """The NUL-terminated name at a place of a section of names, cut off at so many bytes."""
    window = bytes(names[offset : offset + bytes_max])
    return window.partition(b"\0")[0].decode("ascii", "backslashreplace")


def parse_elf(data: bytes) -> ElfFile:
    """An executable for the core. Raises ElfError."""
    if not data.startswith(ELF_MAGIC):
        raise NotAnElf(f"the file begins with {data[:4].hex(' ') or 'nothing'}; an ELF file with 7f 45 4c 46")
    if len(data) < _HEADER.size:
        raise TruncatedElf(f"the file has {len(data)} bytes; an ELF header alone has {_HEADER.size}")
    _check_target(data)
    _, _, _, _, entry, segments_at, sections_at, *counts = _HEADER.unpack_from(data)
    _, _, segment_bytes, segments, section_bytes, sections, names = counts
    view = memoryview(data)
    return ElfFile(
        entry,
        tuple(_segments(view, _table(view, "segment", _SEGMENT_HEADER, segments_at, segments, segment_bytes))),
        tuple(map(ElfSection._make, _table(view, "section", _SECTION_HEADER, sections_at, sections, section_bytes))),
        view,
        names,
    )


def _check_target(data: bytes) -> None:
    bits, order = _CLASSES.get(data[4]), _ORDERS.get(data[5])
    if bits is None:
        raise NotAnElf(f"EI_CLASS is {data[4]}; there are {', '.join(map(str, _CLASSES))}")
    if order is None:
        raise NotAnElf(f"EI_DATA is {data[5]}; there are {', '.join(map(str, _ORDERS))}")
    if bits != 32:
        raise WrongTarget(f"the file is for {bits}-bit machines; the core has 32 bits")
    if order != _ORDERS[1]:
        raise WrongTarget(f"the file is {order}; the core is little-endian")
    _, kind, machine, *_ = _HEADER.unpack_from(data)
    if machine != _RISCV:
        raise WrongTarget(f"the file is for machine {_MACHINES.get(machine, machine)}; the core is EM_RISCV")
    if kind != _EXECUTABLE:
        raise WrongTarget(
            f"the file's type is {_TYPES.get(kind, kind)}; only ET_EXEC, linked to fixed addresses, runs bare-metal"
        )


def _table(
    data: memoryview, what: str, header: struct.Struct, start: int, count: int, entry_bytes: int
) -> Iterator[tuple[int, ...]]:
    """A table of headers that lies in the file."""
    if not count:
        return iter(())
    most = _SEGMENTS_MAX if header is _SEGMENT_HEADER else _SECTIONS_MAX
    if count > most:
        raise ElfTooLarge(f"the file has {count} {what}s; at most {most} are read")
    if entry_bytes != header.size:
        raise WrongTarget(f"a {what} header has {entry_bytes} bytes; allowed: {header.size}")
    end = start + count * entry_bytes
    if end > len(data):
        raise TruncatedElf(f"the {what} headers end at {end:#x}, the file at {len(data):#x}")
    return header.iter_unpack(data[start:end])


def _segments(data: memoryview, headers: Iterator[tuple[int, ...]]) -> Iterator[ElfSegment]:
    for index, (kind, start, _, address, held, size, _, _) in enumerate(headers):
        if kind != _LOADED or not size:
            continue
        if held > size:
            raise BadSegment(f"segment {index} has {held:#x} bytes in the file, more than its {size:#x} in memory")
        if start + held > len(data):
            raise TruncatedElf(f"segment {index} ends at {start + held:#x}, the file at {len(data):#x}")
        if address + size > _ADDRESS_LIMIT:
            raise BadSegment(f"segment {index} ends at {address + size:#x}, behind the 32-bit addresses")
        yield ElfSegment(start, address, data[start : start + held], size)
