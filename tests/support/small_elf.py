"""Small ELF files, packed by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

HEADER_BYTES = 52
RISCV = 243
EXECUTABLE = 2
_SEGMENT_BYTES = 32
_SECTION_BYTES = 40
_LOAD = 1
_NULL_SECTION = bytes(_SECTION_BYTES)


class Segment(NamedTuple):
    """A load segment; `with_headers` makes it begin with the file's own headers, as linkers do."""

    address: int
    data: bytes
    physical: int | None = None
    memory_size: int | None = None
    with_headers: bool = False


def elf32(
    segments: Sequence[Segment], entry: int, *, machine: int = RISCV, kind: int = EXECUTABLE, order: int = 1
) -> bytes:
    """An ELF32 file with these load segments, and a section for the bytes of each."""
    end = "<" if order == 1 else ">"
    first = HEADER_BYTES + _SEGMENT_BYTES * len(segments)
    programs, sections, body = b"", _NULL_SECTION, b""
    for segment in segments:
        offset = first + len(body)
        physical = segment.address if segment.physical is None else segment.physical
        memory = len(segment.data) if segment.memory_size is None else segment.memory_size
        swept = offset if segment.with_headers else 0
        places = (offset - swept, segment.address - swept, physical - swept)
        programs += struct.pack(f"{end}8I", _LOAD, *places, len(segment.data) + swept, memory + swept, 7, 4)
        sections += struct.pack(f"{end}10I", 0, 1, 2, segment.address, offset, len(segment.data), 0, 0, 4, 0)
        body += segment.data
    identity = b"\x7fELF" + bytes([1, order, 1]) + bytes(9)
    table = first + len(body)
    fields = (kind, machine, 1, entry, HEADER_BYTES, table, 0, HEADER_BYTES, _SEGMENT_BYTES, len(segments))
    header = identity + struct.pack(f"{end}HHIIIIIHHH3H", *fields, _SECTION_BYTES, 1 + len(segments), 0)
    return header + programs + body + sections
