"""A board: the management core's memory map as a table, read from TOML.

`boards/npu.toml` is the default. A board file overlays it: a table `[memory.NAME]` or `[peripheral.NAME]` changes the
keys it states, adds the entry when it is new, and removes it with `present = false`.
"""

from __future__ import annotations

import enum
import itertools
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from emulator.management.riscv.memory import ADDRESS_LIMIT, PAGE_BYTES
from emulator.management.riscv.plic import SOURCES

DEFAULT_BOARD_FILE = Path(__file__).parents[1] / "boards" / "npu.toml"

BUILT_IN_MODELS: Mapping[str, int] = {
    "clint": 0x10000,
    "plic": 0x400000,
    "power-off": 0x1000,
    "uart16550": 0x1000,
}
"""Peripherals that every machine can have, with the bytes of bus each takes."""

_T = TypeVar("_T")

_SINGLE_MODELS = ("clint", "plic")
_SHOWN_CHARACTERS = 60
_FILE_BYTES_MAX = 1 << 20
"""Of a board file: two orders of magnitude above any real one."""
_MEMORY_BYTES_MAX = 1 << 30
_INTERRUPTS = f"a number from 1 to {SOURCES}, or 0 for none"


class BoardError(ValueError):
    """A board file, or a board made in code, cannot be used."""

    def __init__(self, file: str, key: str, found: str, allowed: str) -> None:
        """Where it is, what is there, what may be there."""
        super().__init__(f"{file}: {key}: {found}; allowed: {allowed}")
        self.file = file
        self.key = key


class Unmapped(enum.Enum):
    """What happens at an access to nothing, after it was reported."""

    ZERO = "zero"
    """Loads read zeros, stores go nowhere; there is still no instruction to fetch."""
    FAULT = "fault"
    """An access fault exception."""
    STOP = "stop"
    """The run ends."""


@dataclass(frozen=True)
class MemoryEntry:
    """One memory of a board."""

    name: str
    base: int
    size: int
    writable: bool = True
    file: Path | None = None
    """What it holds at first, from its first byte on."""


@dataclass(frozen=True)
class PeripheralEntry:
    """One peripheral of a board."""

    name: str
    model: str
    base: int
    interrupt: int = 0
    """Source of the PLIC; 0 is none."""


@dataclass(frozen=True)
class Board:
    """A memory map whose entries do not overlap."""

    memories: tuple[MemoryEntry, ...]
    peripherals: tuple[PeripheralEntry, ...]
    reset_vector: int
    unmapped: Unmapped = Unmapped.FAULT
    source: str = field(default="board", compare=False)
    """The file, for messages."""

    def with_memory(self, entry: MemoryEntry) -> Board:
        """This board with one memory more, or one replaced by name."""
        return replace(self, memories=(*(m for m in self.memories if m.name != entry.name), entry))

    def with_peripheral(self, entry: PeripheralEntry) -> Board:
        """This board with one peripheral more, or one replaced by name."""
        return replace(self, peripherals=(*(p for p in self.peripherals if p.name != entry.name), entry))

    def check(self, model_sizes: Mapping[str, int]) -> None:
        """Raises BoardError unless every entry has a place of its own and a model that exists."""
        places = [(f"memory.{m.name}", m.base, m.size) for m in self.memories]
        for entry in self.peripherals:
            key = f"peripheral.{entry.name}"
            size = model_sizes.get(entry.model)
            if size is None:
                raise BoardError(self.source, f"{key}.model", f"no model {_shown(entry.model)}", _choices(model_sizes))
            places.append((key, entry.base, size))
            if not 0 <= entry.interrupt <= SOURCES:
                raise BoardError(self.source, f"{key}.interrupt", _shown(entry.interrupt), _INTERRUPTS)
        for model in _SINGLE_MODELS:
            named = [entry.name for entry in self.peripherals if entry.model == model]
            if len(named) > 1:
                raise BoardError(self.source, f"peripheral.{named[1]}.model", f"a second {model}", "one")
        for key, base, size in places:
            self._check_place(key, base, size)
        places.sort(key=lambda place: place[1])
        for (low, low_base, low_size), (key, base, _) in itertools.pairwise(places):
            if low_base + low_size > base:
                found = f"{base:#x} lies in {low}, {low_base:#x}..{low_base + low_size:#x}"
                raise BoardError(self.source, f"{key}.base", found, "places that do not overlap")

    def _check_place(self, key: str, base: int, size: int) -> None:
        pages = f"a multiple of {PAGE_BYTES:#x}"
        if base % PAGE_BYTES or base < 0:
            raise BoardError(self.source, f"{key}.base", _shown(base), pages)
        if size % PAGE_BYTES or not 0 < size <= _MEMORY_BYTES_MAX:
            raise BoardError(self.source, f"{key}.size", _shown(size), f"{pages}, at most {_MEMORY_BYTES_MAX:#x}")
        if base + size > ADDRESS_LIMIT:
            raise BoardError(
                self.source, f"{key}.base", f"{_shown(base)} ends at {_shown(base + size)}", "32-bit addresses"
            )


def bus_sizes(models: Collection[str]) -> dict[str, int]:
    """The bytes of bus that each model takes; of those that are not built in, the least that they can take."""
    return {**dict.fromkeys(models, PAGE_BYTES), **BUILT_IN_MODELS}


def default_board() -> Board:
    """QEMU's `virt` board."""
    return load_board(DEFAULT_BOARD_FILE)


def load_board(path: Path, models: Collection[str] = ()) -> Board:
    """The default board with the file's overlay. `models` are those beyond the built-in ones. Raises BoardError."""
    return parse_board(_read_file(path), str(path), path.parent, models)


def parse_board(data: bytes, source: str, folder: Path, models: Collection[str] = ()) -> Board:
    """`load_board` of a text that is at hand; `folder` is where the files that it names are looked for."""
    overlay = _parse_toml(data, source)
    _check_shape(overlay, source)
    board = _build(
        _merge(_parse_toml(_read_file(DEFAULT_BOARD_FILE), str(DEFAULT_BOARD_FILE)), overlay), source, folder
    )
    board.check(bus_sizes(models))
    return board


def _read_file(path: Path) -> bytes:
    allowed = f"a TOML file of at most {_FILE_BYTES_MAX} bytes"
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BoardError(str(path), "file", f"cannot be read: {error.strerror}", allowed) from error
    if len(data) > _FILE_BYTES_MAX:
        raise BoardError(str(path), "file", "is longer", allowed)
    return data


def _parse_toml(data: bytes, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BoardError(source, "file", f"is not TOML: {error}", "TOML 1.0 in UTF-8") from error


_SECTIONS = ("memory", "peripheral")
_TOP_KEYS = ("reset_vector", "unmapped", *_SECTIONS)


def _check_shape(table: Mapping[str, Any], source: str) -> None:
    _check_keys(table, "file", _TOP_KEYS, source)
    for section in _SECTIONS:
        entries = table.get(section, {})
        if not isinstance(entries, dict):
            raise BoardError(source, section, f"is {_shown(entries)}", f"tables [{section}.NAME]")
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                raise BoardError(source, f"{section}.{name}", f"is {_shown(entry)}", f"a table [{section}.NAME]")


def _merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **overlay}
    for section in _SECTIONS:
        entries = dict(base.get(section, {}))
        for name, entry in overlay.get(section, {}).items():
            entries[name] = {**entries.get(name, {}), **entry}
        merged[section] = entries
    return merged


def _build(table: Mapping[str, Any], source: str, folder: Path) -> Board:
    memories = []
    for name, entry in _present(table["memory"], "memory", source):
        reader = _Entry(entry, f"memory.{name}", source)
        reader.check_keys(("present", "base", "size", "writable", "file"))
        file = reader.take("file", str, "a path", default="")
        memories.append(
            MemoryEntry(
                name,
                base=reader.take("base", int, "an address"),
                size=reader.take("size", int, "a number of bytes"),
                writable=reader.take("writable", bool, "true or false", default=True),
                file=folder / file if file else None,
            )
        )
    peripherals = []
    for name, entry in _present(table["peripheral"], "peripheral", source):
        reader = _Entry(entry, f"peripheral.{name}", source)
        reader.check_keys(("present", "model", "base", "interrupt"))
        peripherals.append(
            PeripheralEntry(
                name,
                model=reader.take("model", str, "the name of a model"),
                base=reader.take("base", int, "an address"),
                interrupt=reader.take("interrupt", int, _INTERRUPTS, default=0),
            )
        )
    top = _Entry(table, "", source)
    vector = top.take("reset_vector", int, "an even address")
    if vector % 2 or not 0 <= vector < ADDRESS_LIMIT:
        raise BoardError(source, "reset_vector", _shown(vector), "an even 32-bit address")
    policies = [policy.value for policy in Unmapped]
    unmapped = top.take("unmapped", str, _choices(policies))
    if unmapped not in policies:
        raise BoardError(source, "unmapped", _shown(unmapped), _choices(policies))
    return Board(tuple(memories), tuple(peripherals), vector, Unmapped(unmapped), source)


def _present(entries: Mapping[str, Any], section: str, source: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for name, entry in entries.items():
        if _Entry(entry, f"{section}.{name}", source).take("present", bool, "true or false", default=True):
            yield name, entry


@dataclass(frozen=True)
class _Entry:
    """One table of a board file, read key by key."""

    table: Mapping[str, Any]
    key: str
    source: str

    def check_keys(self, allowed: Collection[str]) -> None:
        _check_keys(self.table, self.key, allowed, self.source)

    def take(self, name: str, kind: type[_T], allowed: str, default: _T | None = None) -> _T:
        key = f"{self.key}.{name}" if self.key else name
        if name not in self.table:
            if default is None:
                raise BoardError(self.source, key, "is missing", allowed)
            return default
        value = self.table[name]
        # True is an int to Python, and is no address.
        if type(value) is not kind:
            raise BoardError(self.source, key, f"is {_shown(value)}", allowed)
        return value


def _check_keys(table: Mapping[str, Any], key: str, allowed: Collection[str], source: str) -> None:
    for name in table:
        if name not in allowed:
            raise BoardError(source, f"{key}.{name}", "no such key", ", ".join(allowed))


def _shown(value: object) -> str:
    """A value of a file for a message, whatever its length."""
    text = (
        f"{value:#x}"
        if type(value) is int
        else repr(value)
        if isinstance(value, str | float | bool)
        else type(value).__name__
    )
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _choices(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
