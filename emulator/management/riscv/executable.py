"""A stranger's bare-metal program: what of its ELF file goes into which memory, and names for places in it."""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from driver_shim.protocol.elf import (
    SYMBOL_TABLE,
    BadSegment,
    ElfError,
    ElfFile,
    ElfTooLarge,
    WrongTarget,
    parse_elf,
    text_at,
)
from emulator.management.riscv.memory import Memories

ELF_BYTES_MAX = 256 << 20
"""Twice the default board's memory: debug information comes on top of what is loaded."""

_SYMBOLS_MAX = 200_000
_SYMBOL_NAME_BYTES_MAX = 200
_SYMBOL = struct.Struct("<IIIBBH")
_TYPES_OF_PLACES = (0, 2)
"""Symbols without a type, as assembly has them, and functions."""
_UNDEFINED, _RESERVED_SECTIONS = 0, 0xFF00


@dataclass(frozen=True)
class Segment:
    """What goes into one memory: bytes, then zeros."""

    address: int
    """Physical: where it is loaded."""
    data: bytes | memoryview
    size: int
    """With the zeros behind the data."""
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
class Executable:
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
                yield start, bytes(segment.data[start - segment.address :]).ljust(end - start, b"\0")
                return
        places = ", ".join(f"{m.name} {m.base:#x}..{m.end:#x}" for m in memories) or "none"
        raise BadSegment(f"segment {segment.address:#x}..{end:#x} lies in no memory; memories: {places}")


def read_executable(path: Path) -> Executable:
    """An executable from a file. Raises ElfError that names it, or OSError when the file cannot be read."""
    with path.open("rb") as file:
        data = file.read(ELF_BYTES_MAX + 1)
    try:
        return parse_executable(data)
    except ElfError as error:
        raise type(error)(f"{path}: {error}") from error


def parse_executable(data: bytes) -> Executable:
    """An executable from its bytes. Raises ElfError."""
    if len(data) > ELF_BYTES_MAX:
        raise ElfTooLarge(f"the file is longer than {ELF_BYTES_MAX} bytes")
    file = parse_elf(data)
    if file.entry % 2:
        raise WrongTarget(f"the entry {file.entry:#x} is odd; instructions begin at even addresses")
    return Executable(file.entry, _read_segments(file), _read_symbols(file))


def _read_segments(file: ElfFile) -> tuple[Segment, ...]:
    segments = sorted(
        (Segment(s.address, s.data, s.size, s.offset == 0) for s in file.segments), key=attrgetter("address")
    )
    if not segments:
        raise BadSegment("the file has no segment that is to be loaded")
    for low, high in itertools.pairwise(segments):
        if low.address + low.size > high.address:
            raise BadSegment(
                f"segments overlap: {low.address:#x}..{low.address + low.size:#x} and one at {high.address:#x}"
            )
    return tuple(segments)


def _read_symbols(file: ElfFile) -> Symbols:
    table = next((section for section in file.sections if section.kind == SYMBOL_TABLE), None)
    if table is None:
        return Symbols()
    names = file.linked(table.link, "symbols' names")
    return _parse_symbols(file.content(table, "symbols"), names)


def _parse_symbols(table: memoryview, names: memoryview) -> Symbols:
    if len(table) > _SYMBOLS_MAX * _SYMBOL.size:
        raise ElfTooLarge(f"the file has {len(table) // _SYMBOL.size} symbols; at most {_SYMBOLS_MAX} are read")
    found: dict[int, str] = {}
    whole = len(table) - len(table) % _SYMBOL.size
    for name_at, value, _, info, _, section in _SYMBOL.iter_unpack(table[:whole]):
        if section == _UNDEFINED or section >= _RESERVED_SECTIONS or info & 0xF not in _TYPES_OF_PLACES:
            continue
        name = text_at(names, name_at, _SYMBOL_NAME_BYTES_MAX)
        # The compiler's mapping symbols ($x, $d) and local labels name nothing that a reader knows.
        if name and name[0] not in "$.":
            found.setdefault(value, name)
    addresses = tuple(sorted(found))
    return Symbols(addresses, tuple(found[address] for address in addresses))
