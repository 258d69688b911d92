"""Bare-metal ELF files: 32-bit little-endian RISC-V executables, checked as files that strangers send.

Whatever decides how much is read, stored or walked is checked before it is used, so a hostile file costs no more than
its own length and the core's own memories.
"""

from __future__ import annotations

import bisect
import io
import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from emulator.management.riscv.elf_errors import BadSegment, ElfError, ElfTooLarge, NotAnElf, TruncatedElf, WrongTarget
from emulator.management.riscv.memory import ADDRESS_LIMIT, Memories

ELF_BYTES_MAX = 256 << 20
"""Twice the default board's memory: debug information comes on top of what is loaded."""

_SEGMENTS_MAX = 128
_SECTIONS_MAX = 4096
_SYMBOLS_MAX = 200_000
_SYMBOL_NAME_BYTES_MAX = 200

_HEADER_BYTES = 52
_SEGMENT_HEADER = struct.Struct("<8I")
_SECTION_HEADER = struct.Struct("<10I")
_SYMBOL = struct.Struct("<IIIBBH")

_LOADED = 1
"""Of p_type."""
_SYMBOL_TABLE = 2
"""Of sh_type."""
_TYPES_OF_PLACES = (0, 2)
"""Symbols without a type, as assembly has them, and functions."""
_UNDEFINED, _RESERVED_SECTIONS = 0, 0xFF00


@dataclass(frozen=True)
class Segment:
    """What goes into one memory: bytes, then noughts."""

    address: int
    """Physical: where it is loaded."""
    data: bytes
    size: int
    """With the noughts behind the data."""
    holds_headers: bool = False
    """Whether it begins with the ELF file's own headers."""


@dataclass(frozen=True)
class Symbols:
    """Names of places in a program, in the order of their addresses."""

    addresses: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def place(self, pc: int) -> str:
        """The nearest symbol at or before, as `name+0x12`; nothing when there is none."""
        index = bisect.bisect_right(self.addresses, pc) - 1
        if index < 0:
            return ""
        offset = pc - self.addresses[index]
        return f"{self.names[index]}+{offset:#x}" if offset else self.names[index]


@dataclass(frozen=True)
class Program:
    """An executable."""

    entry: int
    segments: tuple[Segment, ...]
    symbols: Symbols

    def load(self, memories: Memories, store: Callable[[int, bytes], None]) -> None:
        """Put every segment where it belongs. Raises BadSegment, before the first store, when one has no memory.

        Linkers like to put the file's own headers into the page before the code: what lies below a memory then is left
        out, as QEMU does.
        """
        pieces = [piece for segment in self.segments for piece in self._pieces(segment, memories)]
        for address, data in pieces:
            store(address, data)

    def _pieces(self, segment: Segment, memories: Memories) -> Iterator[tuple[int, bytes]]:
        """What of a segment goes where. Raises BadSegment when a part of it has no memory."""
        end = segment.address + segment.size
        for memory in memories:
            start = max(segment.address, memory.base) if segment.holds_headers else segment.address
            if memory.base <= start < end <= memory.end or (start == end and memory.base <= start <= memory.end):
                yield start, segment.data[start - segment.address :].ljust(end - start, b"\0")
                return
        places = ", ".join(f"{m.name} {m.base:#x}..{m.end:#x}" for m in memories) or "none"
        raise BadSegment(f"segment {segment.address:#x}..{end:#x} lies in no memory; memories: {places}")


def read_program(path: Path) -> Program:
    """An executable from a file. Raises ElfError that names it, or OSError when the file cannot be read."""
    with path.open("rb") as file:
        data = file.read(ELF_BYTES_MAX + 1)
    try:
        return parse_program(data)
    except ElfError as error:
        raise type(error)(f"{path}: {error}") from error


def parse_program(data: bytes) -> Program:
    """An executable from its bytes. Raises ElfError."""
    if len(data) > ELF_BYTES_MAX:
        raise ElfTooLarge(f"the file is longer than {ELF_BYTES_MAX} bytes")
    if not data.startswith(b"\x7fELF"):
        raise NotAnElf(f"the file begins with {data[:4].hex(' ') or 'nothing'}; an ELF file with 7f 45 4c 46")
    if len(data) < _HEADER_BYTES:
        raise TruncatedElf(f"the file has {len(data)} bytes; an ELF header alone has {_HEADER_BYTES}")
    try:
        elf = ELFFile(io.BytesIO(data))
    except ELFError as error:
        raise NotAnElf(f"the header cannot be read: {error}") from error
    _check_target(elf)
    entry = int(elf["e_entry"])
    if entry % 2:
        raise WrongTarget(f"the entry {entry:#x} is odd; instructions begin at even addresses")
    return Program(entry, _read_segments(elf, data), _read_symbols(elf, data))


def _check_target(elf: ELFFile) -> None:
    if elf.elfclass != 32:
        raise WrongTarget(f"the file is for {elf.elfclass}-bit machines; the core has 32 bits")
    if not elf.little_endian:
        raise WrongTarget("the file is big-endian; the core is little-endian")
    if elf["e_machine"] != "EM_RISCV":
        raise WrongTarget(f"the file is for machine {elf['e_machine']}; the core is EM_RISCV")
    if elf["e_type"] != "ET_EXEC":
        raise WrongTarget(
            f"the file's type is {elf['e_type']}; only ET_EXEC, linked to fixed addresses, runs bare-metal"
        )


def _check_table(elf: ELFFile, data: bytes, what: str, prefix: str, entry_bytes: int, most: int) -> int:
    """The number of entries of a table of headers that lies in the file."""
    count = int(elf[f"e_{prefix}num"])
    if not count:
        return 0
    if count > most:
        raise ElfTooLarge(f"the file has {count} {what}s; at most {most} are read")
    size = int(elf[f"e_{prefix}entsize"])
    if size != entry_bytes:
        raise WrongTarget(f"a {what} header has {size} bytes; allowed: {entry_bytes}")
    end = int(elf[f"e_{prefix}off"]) + count * entry_bytes
    if end > len(data):
        raise TruncatedElf(f"the {what} headers end at {end:#x}, the file at {len(data):#x}")
    return count


def _read_segments(elf: ELFFile, data: bytes) -> tuple[Segment, ...]:
    segments = []
    first = int(elf["e_phoff"])
    for index in range(_check_table(elf, data, "segment", "ph", _SEGMENT_HEADER.size, _SEGMENTS_MAX)):
        header = _SEGMENT_HEADER.unpack_from(data, first + index * _SEGMENT_HEADER.size)
        kind, start, _, address, held, size, _, _ = header
        if kind != _LOADED or not size:
            continue
        if held > size:
            raise BadSegment(f"segment {index} has {held:#x} bytes in the file, more than its {size:#x} in memory")
        if start + held > len(data):
            raise TruncatedElf(f"segment {index} ends at {start + held:#x}, the file at {len(data):#x}")
        if address + size > ADDRESS_LIMIT:
            raise BadSegment(f"segment {index} ends at {address + size:#x}, behind the 32-bit addresses")
        segments.append(Segment(address, data[start : start + held], size, holds_headers=start == 0))
    if not segments:
        raise BadSegment("the file has no segment that is to be loaded")
    segments.sort(key=lambda segment: segment.address)
    for low, high in itertools.pairwise(segments):
        if low.address + low.size > high.address:
            raise BadSegment(
                f"segments overlap: {low.address:#x}..{low.address + low.size:#x} and one at {high.address:#x}"
            )
    return tuple(segments)


def _read_symbols(elf: ELFFile, data: bytes) -> Symbols:
    count = _check_table(elf, data, "section", "sh", _SECTION_HEADER.size, _SECTIONS_MAX)
    start = int(elf["e_shoff"])
    headers = [_SECTION_HEADER.unpack_from(data, start + index * _SECTION_HEADER.size) for index in range(count)]
    for _, kind, _, _, offset, size, link, _, _, _ in headers:
        if kind == _SYMBOL_TABLE:
            if link >= count:
                raise TruncatedElf(f"the symbols' names are in section {link}; the file has {count}")
            table = _section(data, "symbols", offset, size)
            names = _section(data, "symbols' names", headers[link][4], headers[link][5])
            return _parse_symbols(table, names)
    return Symbols()


def _section(data: bytes, what: str, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise TruncatedElf(f"the {what} end at {offset + size:#x}, the file at {len(data):#x}")
    return data[offset : offset + size]


def _parse_symbols(table: bytes, names: bytes) -> Symbols:
    if len(table) > _SYMBOLS_MAX * _SYMBOL.size:
        raise ElfTooLarge(f"the file has {len(table) // _SYMBOL.size} symbols; at most {_SYMBOLS_MAX} are read")
    found: dict[int, str] = {}
    whole = len(table) - len(table) % _SYMBOL.size
    for name_at, value, _, info, _, section in _SYMBOL.iter_unpack(table[:whole]):
        if section == _UNDEFINED or section >= _RESERVED_SECTIONS or info & 0xF not in _TYPES_OF_PLACES:
            continue
        window = names[name_at : name_at + _SYMBOL_NAME_BYTES_MAX]
        name = window.partition(b"\0")[0].decode("ascii", "backslashreplace")
        # The compiler's mapping symbols ($x, $d) and local labels name nothing that a reader knows.
        if name and name[0] not in "$.":
            found.setdefault(value, name)
    addresses = tuple(sorted(found))
    return Symbols(addresses, tuple(found[address] for address in addresses))
