"""The texts of a firmware's log, which stay behind in its ELF file: build id, and token → format string.

A token is where a format string lies in the section `.log_strings`. The build id is the first four bytes of the
linker's note, little-endian: log records carry it too, so that each is read with the texts of whoever wrote it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driver_shim.protocol import elf
from firmware_tools.errors import LogStringsError
from firmware_tools.files import read_bounded

SECTION = ".log_strings"
BUILD_ID_SECTION = ".note.gnu.build-id"
BUILD_ID_BYTES = 4
MAX_ELF_BYTES = 64 << 20
MAX_SECTION_BYTES = 4 << 20
MAX_TEXT_BYTES = 1024
FILE_VERSION = 1
SHIPPED = Path(__file__).parent / "reference_firmware" / "log_strings.json"
"""Texts of the firmware that comes with the emulator, of every build that was ever shipped."""
_NOTE_HEAD = struct.Struct("<III")
_NOTE_NAME = b"GNU\0"
_NT_GNU_BUILD_ID = 3


@dataclass(frozen=True)
class LogStrings:
    """The texts of one build."""

    build_id: int
    texts: Mapping[int, str]
    """Token → format string."""
    source: str
    """Where they are from, for people."""


def read_elf(path: Path) -> LogStrings:
    """Take the texts out of an ELF file. Raises LogStringsError, OSError, FileTooLarge."""
    return parse_elf(read_bounded(path, MAX_ELF_BYTES), str(path))


def parse_elf(data: bytes, source: str) -> LogStrings:
    """As `read_elf`, of bytes. Time and memory are bounded by their number."""
    try:
        sections = _sections(elf.parse_elf(data), source)
    except elf.ElfError as error:
        raise LogStringsError(f"{source} is no ELF file of a firmware, or a damaged one: {error}") from error
    if SECTION not in sections:
        raise LogStringsError(f"{source} has no section {SECTION}: it is no firmware with a log of ours")
    if BUILD_ID_SECTION not in sections:
        raise LogStringsError(f"{source} has no build id", remedy="link the firmware with --build-id")
    return LogStrings(_build_id(sections[BUILD_ID_SECTION], source), split_texts(sections[SECTION]), source)


def _sections(file: elf.ElfFile, source: str) -> dict[str, bytes]:
    """The two sections that count, as far as they are there."""
    found: dict[str, bytes] = {}
    for name, section in file.named_sections():
        if name not in (SECTION, BUILD_ID_SECTION) or name in found:
            continue
        if section.flags & elf.COMPRESSED or section.kind == elf.NO_BITS or section.size > MAX_SECTION_BYTES:
            raise LogStringsError(f"{source}: section {name} is compressed, empty or too large")
        found[name] = bytes(file.content(section, f"bytes of {name}"))
    return found


def _build_id(note: bytes, source: str) -> int:
    """The first bytes of the note's description."""
    begin = _NOTE_HEAD.size + len(_NOTE_NAME)
    if len(note) < begin + BUILD_ID_BYTES:
        raise LogStringsError(f"{source}: its build id is shorter than {BUILD_ID_BYTES} bytes")
    name_bytes, description_bytes, kind = _NOTE_HEAD.unpack_from(note)
    named = note[_NOTE_HEAD.size : begin]
    if (name_bytes, named, kind) != (len(_NOTE_NAME), _NOTE_NAME, _NT_GNU_BUILD_ID):
        raise LogStringsError(f"{source}: the note in {BUILD_ID_SECTION} is no build id")
    if description_bytes < BUILD_ID_BYTES:
        raise LogStringsError(f"{source}: its build id is shorter than {BUILD_ID_BYTES} bytes")
    return int.from_bytes(note[begin : begin + BUILD_ID_BYTES], "little")


def split_texts(section: bytes) -> dict[int, str]:
    """The NUL-terminated texts of the section by their place; whatever is too long or not terminated is left out."""
    texts = {}
    at = 0
    while at < len(section):
        end = section.find(b"\0", at)
        if end < 0:
            break
        if 0 < end - at <= MAX_TEXT_BYTES:
            texts[at] = section[at:end].decode("utf-8", "replace")
        at = end + 1
    return texts


# --- files of texts -------------------------------------------------------------------------------------------------


def dump(builds: Iterable[LogStrings]) -> str:
    """A file of texts; the same builds give the same bytes."""
    texts = {
        f"{build.build_id:08x}": {str(token): text for token, text in sorted(build.texts.items())}
        for build in sorted(builds, key=lambda build: build.build_id)
    }
    return json.dumps({"version": FILE_VERSION, "builds": texts}, ensure_ascii=True, indent=1) + "\n"


def load(path: Path) -> list[LogStrings]:
    """Read a file of texts. Raises LogStringsError, OSError."""
    try:
        return _builds(json.loads(path.read_text("utf-8")), str(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LogStringsError(f"{path} is no file of log texts: {type(error).__name__}: {error}") from error


def _builds(document: Any, source: str) -> list[LogStrings]:
    if document["version"] != FILE_VERSION:
        raise ValueError(f"version {document['version']}, not {FILE_VERSION}")
    return [
        LogStrings(int(build, 16), {int(token): str(text) for token, text in texts.items()}, source)
        for build, texts in document["builds"].items()
    ]


def shipped() -> list[LogStrings]:
    """The texts of the firmware that comes with the emulator; none in a checkout in which it was not built."""
    return load(SHIPPED) if SHIPPED.exists() else []
