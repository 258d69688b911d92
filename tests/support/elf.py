"""ELF files made by hand (System V ABI, gABI chapter 4 and 5), so that every field can be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = struct.Struct("<4sBBBBB7xHHIIIIIHHHHHH")
SEGMENT = struct.Struct("<8I")
SECTION = struct.Struct("<10I")
SYMBOL = struct.Struct("<IIIBBH")


@dataclass
class ElfFile:
    """The fields of a small executable with one or more segments and a symbol table."""

    segments: tuple[tuple[int, bytes, int], ...]
    """Physical address, bytes, size in memory."""
    symbols: tuple[tuple[str, int], ...] = ()
    entry: int = 0x8000_0000
    elf_class: int = 1
    data: int = 1
    kind: int = 2
    machine: int = 243
    segment_entry_bytes: int = SEGMENT.size

    def build(self) -> bytes:
        """The file."""
        position = HEADER.size + SEGMENT.size * len(self.segments)
        headers, contents = b"", b""
        for address, content, size in self.segments:
            offset = position + len(contents)
            headers += SEGMENT.pack(1, offset, address, address, len(content), size, 7, 4)
            contents += content
        names, table = b"\0", SYMBOL.pack(0, 0, 0, 0, 0, 0)
        for name, value in self.symbols:
            table += SYMBOL.pack(len(names), value, 0, 0x12, 0, 1)
            names += name.encode() + b"\0"
        at = position + len(contents)
        sections = SECTION.pack(*[0] * 10)
        sections += SECTION.pack(0, 2, 0, 0, at, len(table), 2, 1, 4, SYMBOL.size)
        sections += SECTION.pack(0, 3, 0, 0, at + len(table), len(names), 0, 0, 1, 0)
        header = HEADER.pack(
            b"\x7fELF",
            self.elf_class,
            self.data,
            1,
            0,
            0,
            self.kind,
            self.machine,
            1,
            self.entry,
            HEADER.size,
            at + len(table) + len(names),
            0,
            HEADER.size,
            self.segment_entry_bytes,
            len(self.segments),
            SECTION.size,
            3,
            0,
        )
        return header + headers + contents + table + names + sections
