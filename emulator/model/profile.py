"""The figures of one chip, read from `profiles/NAME.toml`.

Each figure is a table `{value, source, assumed}`: nothing here is fitted, and what no public text states is marked
an assumption. `timing.py` turns the figures into ticks.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

PROFILE_FOLDER = Path(__file__).parent / "profiles"

MEMORY_GRANULE_BYTES = 4096
"""Device memory is handed out and mapped in pages."""

_LARGEST_RATE = 1 << 32
_LARGEST_FIXED_TICKS = 1 << 40
_RANGES: dict[str, tuple[int, int]] = {
    "tick_hz": (1_000, 10**12),
    "memory_bytes": (1 << 20, 1 << 42),
    "engines": (1, 256),
    "int8_macs_per_tick": (1, _LARGEST_RATE),
    "fp16_macs_per_tick": (1, _LARGEST_RATE),
    "fp32_macs_per_tick": (1, _LARGEST_RATE),
    "memory_bytes_per_tick": (1, _LARGEST_RATE),
    "link_bytes_per_tick": (1, _LARGEST_RATE),
    "nop_fixed_ticks": (0, _LARGEST_FIXED_TICKS),
    "barrier_fixed_ticks": (0, _LARGEST_FIXED_TICKS),
    "copy_fixed_ticks": (0, _LARGEST_FIXED_TICKS),
    "fill_fixed_ticks": (0, _LARGEST_FIXED_TICKS),
    "exec_fixed_ticks": (0, _LARGEST_FIXED_TICKS),
    "command_fixed_ticks": (0, _LARGEST_FIXED_TICKS),
}
"""Smallest and largest sensible value of every figure; the keys are all figures there are."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a figure comes from."""

    text: str
    assumed: bool
    """True when no public text states the figure."""


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """One chip. Rates are whole numbers per tick, costs whole ticks."""

    name: str
    summary: str
    tick_hz: int
    memory_bytes: int
    """Device memory of one function; a multiple of `MEMORY_GRANULE_BYTES`."""
    engines: int
    """Cores that can each run one program at a time."""
    int8_macs_per_tick: int
    """Peak multiply-accumulates of one engine, 8-bit integers with 32-bit sums."""
    fp16_macs_per_tick: int
    """The same for fp16 and bf16 with fp32 sums."""
    fp32_macs_per_tick: int
    memory_bytes_per_tick: int
    """Device memory, reads and writes together."""
    link_bytes_per_tick: int
    """Host link, each direction."""
    nop_fixed_ticks: int
    barrier_fixed_ticks: int
    copy_fixed_ticks: int
    fill_fixed_ticks: int
    exec_fixed_ticks: int
    """Start of one program, beside the cost of its commands."""
    command_fixed_ticks: int
    """Each command inside a program."""
    sources: Mapping[str, Source]
    """Source of every figure, by field name."""


def profile_names() -> tuple[str, ...]:
    """Names that `load_profile` accepts, sorted."""
    return tuple(sorted(path.stem for path in PROFILE_FOLDER.glob("*.toml")))


def load_profile(name: str) -> Profile:
    """The profile called `name`. Raises ValueError, listing the names, when there is none."""
    names = profile_names()
    if name not in names:
        raise ValueError(f"unknown profile {name!r}; there are: {', '.join(names)}")
    with (PROFILE_FOLDER / f"{name}.toml").open("rb") as file:
        return parse_profile(name, tomllib.load(file))


def parse_profile(name: str, document: Mapping[str, Any]) -> Profile:
    """Check a profile document. Raises ValueError naming profile, figure, what was found and what is accepted."""
    if document.get("name") != name:
        raise ValueError(f"profile {name!r}: its name field is {document.get('name')!r}; it must be {name!r}")
    summary = document.get("summary")
    if not isinstance(summary, str) or not summary:
        raise ValueError(f"profile {name!r}: summary is {summary!r}; it must be a sentence")
    unknown = document.keys() - _RANGES.keys() - {"name", "summary"}
    if unknown:
        raise ValueError(f"profile {name!r}: unknown figure {min(unknown)!r}; there are: {', '.join(_RANGES)}")
    values = {figure: _value(name, figure, document.get(figure)) for figure in _RANGES}
    if values["memory_bytes"] % MEMORY_GRANULE_BYTES:
        raise ValueError(
            f"profile {name!r}: memory_bytes is {values['memory_bytes']};"
            f" it must be a multiple of {MEMORY_GRANULE_BYTES}"
        )
    sources = {figure: Source(document[figure]["source"], document[figure]["assumed"]) for figure in _RANGES}
    return Profile(name=name, summary=summary, sources=MappingProxyType(sources), **values)


def _value(profile: str, figure: str, table: Any) -> int:
    """The checked value of one figure's table."""
    where = f"profile {profile!r}: {figure}"
    if not isinstance(table, Mapping) or table.keys() != {"value", "source", "assumed"}:
        raise ValueError(f"{where} is {table!r}; it must be a table of value, source and assumed")
    value, source, assumed = table["value"], table["source"], table["assumed"]
    if not isinstance(source, str) or not source.strip():
        raise ValueError(f"{where} has the source {source!r}; it must say where the figure comes from")
    if assumed not in (True, False):
        raise ValueError(f"{where} has assumed = {assumed!r}; it must be true or false")
    low, high = _RANGES[figure]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{where} is {value!r}; it must be a whole number from {low} to {high}")
    return value
