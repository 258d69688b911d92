"""Programs as the linker made them, ELF files or flat binaries, flattened to what an image holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from driver_shim.protocol.elf import ALLOCATED, ELF_MAGIC, NO_BITS, ElfError, ElfFile, parse_elf
from driver_shim.protocol.image_layout import IMAGE_MAGIC
from firmware_tools.errors import BuildError
from firmware_tools.files import MAX_FIRMWARE_BYTES, read_bounded

DEFAULT_LOAD_ADDRESS = 0x8000_0000
"""Where the management core's RAM begins."""
MAX_PROGRAM_BYTES = 64 << 20
"""More than any flash slot: load segments further apart are a mistake of the linker script."""


@dataclass(frozen=True)
class FlatProgram:
    """The bytes of a program, from its lowest load address to its highest."""

    payload: bytes
    base_address: int | None
    """Where the program was linked to be; None when the file does not say."""


class _Segment(NamedTuple):
    address: int
    data: memoryview

    @property
    def end(self) -> int:
        return self.address + len(self.data)


def read_program(path: Path) -> FlatProgram:
    """Read an ELF file or, when it is none, a flat binary. Raises BuildError, OSError."""
    data = read_bounded(path, MAX_FIRMWARE_BYTES)
    if not data:
        raise BuildError(f"{path} is empty")
    if data.startswith(ELF_MAGIC):
        return _read_elf(path, data)
    if data.startswith(IMAGE_MAGIC.to_bytes(4, "little")):
        raise BuildError(f"{path} is a firmware image already", remedy="sign it with `npuctl fw sign`")
    if path.suffix.lower() in (".hex", ".ihex"):
        raise BuildError(f"{path} is Intel HEX", remedy="give the ELF file, or a flat binary of objcopy -O binary")
    return FlatProgram(data, None)


def place(program: FlatProgram, header_size: int, load_address: int | None, path: Path) -> int:
    """Where the image is loaded, so that the program behind its header lies where it was linked to be.

    Raises BuildError when the address that was asked for, or the room below the program, does not allow that.
    """
    if program.base_address is None:
        return DEFAULT_LOAD_ADDRESS if load_address is None else load_address
    found = program.base_address - header_size
    if found <= 0:
        raise BuildError(
            f"{path} is linked at {program.base_address:#x}: no room for a header of {header_size:#x} below"
        )
    if load_address is not None and load_address != found:
        raise BuildError(
            f"{path} is linked at {program.base_address:#x}, but loaded at {load_address:#x} with a header of "
            f"{header_size:#x} it would lie at {load_address + header_size:#x}",
            remedy=f"link it there, or use --header-size {program.base_address - load_address:#x}"
            if program.base_address > load_address
            else "link it there",
        )
    return found


def _read_elf(path: Path, data: bytes) -> FlatProgram:
    try:
        file = parse_elf(data)
    except ElfError as error:
        raise BuildError(f"{path} cannot be run on the management core: {error}") from error
    segments = _load_segments(file)
    if not segments:
        raise BuildError(f"{path} has nothing to load")
    return _flatten(path, segments, file.entry)


def _load_segments(file: ElfFile) -> list[_Segment]:
    """What has bytes in the file, by physical address. What has none, as .bss, is for the program to clear."""
    found = []
    for segment in file.segments:
        skipped = _header_bytes(file) if segment.offset == 0 else 0
        if len(segment.data) > skipped:
            found.append(_Segment(segment.address + skipped, segment.data[skipped:]))
    return sorted(found, key=lambda segment: segment.address)


def _header_bytes(file: ElfFile) -> int:
    """Linkers let the first segment begin with the ELF file's own headers if they fit below the first section."""
    allocated = (s.offset for s in file.sections if s.flags & ALLOCATED and s.kind != NO_BITS and s.size)
    return min(allocated, default=0)


def _flatten(path: Path, segments: list[_Segment], entry: int) -> FlatProgram:
    base = segments[0].address
    if segments[-1].end - base > MAX_PROGRAM_BYTES:
        raise BuildError(
            f"{path} loads from {base:#x} to {segments[-1].end:#x}; {MAX_PROGRAM_BYTES >> 20} MiB are the most",
            remedy="let the linker script give all sections load addresses in one memory",
        )
    payload = bytearray()
    for segment in segments:
        if base + len(payload) > segment.address:
            raise BuildError(f"{path} has two load segments at {segment.address:#x}")
        payload += bytes(segment.address - base - len(payload)) + segment.data
    if entry != base:
        raise BuildError(
            f"{path} begins to run at {entry:#x}, but the boot ROM jumps to the first byte behind "
            f"the header, which is at {base:#x}",
            remedy="put the entry point first in the linker script",
        )
    return FlatProgram(bytes(payload), base)
