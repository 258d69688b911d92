"""The figures of one chip, read from `profiles/NAME.toml` or from a file of somebody's own.

Each figure is a table `{value, source, assumed}`: nothing here is fitted, and what no public text states is marked
an assumption. A figure that is unknown is left out, and with it the term of the model that needs it: `timing.py` turns
those that there are into ticks. `docs/timing.md` says what each is for.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

PROFILE_FOLDER = Path(__file__).parent / "profiles"
PROFILE_SUFFIX = ".toml"

MEMORY_GRANULE_BYTES = 4096
"""Device memory is handed out and mapped in pages."""
MAX_NAME_BYTES = 31
"""As many as identify data have room for."""
MAX_TILES = 32
_MAX_FILE_BYTES = 1 << 20

_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_NAME_BYTES - 1}}}")
_PARTS = {"value", "source", "assumed"}
_TEXTS = {"name", "summary", "bounds_only_without"}
"""What a file has beside figures."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a figure comes from."""

    text: str
    assumed: bool
    """True when no public text states the figure."""


class ProfileError(ValueError):
    """A file is no profile; the message has a line for each thing that is wrong with it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One chip. Rates are whole numbers per tick, costs whole ticks; None is a figure that is not known."""

    name: str
    summary: str
    bounds_only_without: tuple[str, ...] = ()
    """Figures for lack of which what it takes cannot be told: its ticks are a bound, which no run gets below."""
    tick_hz: int
    memory_bytes: int
    """Device memory of one function; a multiple of `MEMORY_GRANULE_BYTES`."""
    engines: int
    """Cores that share each command between them."""
    int8_macs_per_tick: int | None = None
    """Peak multiply-accumulates of one engine, 8-bit integers with 32-bit sums."""
    fp16_macs_per_tick: int | None = None
    """The same for fp16 with fp32 sums."""
    bf16_macs_per_tick: int | None = None
    fp32_macs_per_tick: int | None = None
    tiles: tuple[tuple[int, int], ...] = ()
    """(rows, columns) of results that an engine computes at a time; the best for a command is taken."""
    fill_ticks: int = 0
    """Filling and draining an engine, for each tile."""
    memory_bytes_per_tick: int | None = None
    """Device memory, reads and writes together."""
    sram_bytes: int | None = None
    """Of one engine's own."""
    shared_sram_bytes: int | None = None
    """On chip, between engines and memory."""
    shared_port_bytes_per_tick: int | None = None
    """What one engine reads from there."""
    link_bytes_per_tick: int | None = None
    """Host link, each direction."""
    nop_fixed_ticks: int = 0
    barrier_fixed_ticks: int = 0
    copy_fixed_ticks: int = 0
    fill_fixed_ticks: int = 0
    exec_fixed_ticks: int = 0
    """Start of one program, beside the cost of its commands."""
    command_fixed_ticks: int = 0
    """Each command inside a program."""
    idle_watts: int | float | None = None
    power_cap_watts: int | float | None = None
    sources: Mapping[str, Source]
    """Source of every figure that is known, by field name."""


# --- figures ----------------------------------------------------------------------------------------------------------


def _whole(low: int, high: int) -> Callable[[Any], str | None]:
    """A check: None for a whole number in the range, else what it must be."""

    def wanted(value: Any) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if good else f"a whole number from {low} to {high}"

    return wanted


def _pages(value: Any) -> str | None:
    low, high = 1 << 20, 1 << 42
    refusal = _whole(low, high)(value)
    if refusal is None and value % MEMORY_GRANULE_BYTES:
        return f"a multiple of {MEMORY_GRANULE_BYTES}"
    return refusal


def _watts(value: Any) -> str | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100_000
    return None if good else "a number of watts, above 0 and at most 100000"


def _tiles(value: Any) -> str | None:
    good = isinstance(value, list) and 0 < len(value) <= MAX_TILES and all(map(_is_tile, value))
    return None if good else f"1 to {MAX_TILES} pairs [rows, columns], each from 1 to 65536"


def _is_tile(value: Any) -> bool:
    side = _whole(1, 1 << 16)
    return isinstance(value, list) and len(value) == 2 and all(side(each) is None for each in value)


class _Figure(NamedTuple):
    refusal: Callable[[Any], str | None]
    required: bool = False


_RATE = _Figure(_whole(1, 1 << 32))
_TICKS = _Figure(_whole(0, 1 << 40))
_SIZE = _Figure(_whole(1, 1 << 42))
FIGURES: Mapping[str, _Figure] = MappingProxyType(
    {
        "tick_hz": _Figure(_whole(1_000, 10**12), required=True),
        "memory_bytes": _Figure(_pages, required=True),
        "engines": _Figure(_whole(1, 256), required=True),
        "int8_macs_per_tick": _RATE,
        "fp16_macs_per_tick": _RATE,
        "bf16_macs_per_tick": _RATE,
        "fp32_macs_per_tick": _RATE,
        "tiles": _Figure(_tiles),
        "fill_ticks": _TICKS,
        "memory_bytes_per_tick": _RATE,
        "sram_bytes": _SIZE,
        "shared_sram_bytes": _SIZE,
        "shared_port_bytes_per_tick": _RATE,
        "link_bytes_per_tick": _RATE,
        "nop_fixed_ticks": _TICKS,
        "barrier_fixed_ticks": _TICKS,
        "copy_fixed_ticks": _TICKS,
        "fill_fixed_ticks": _TICKS,
        "exec_fixed_ticks": _TICKS,
        "command_fixed_ticks": _TICKS,
        "idle_watts": _Figure(_watts),
        "power_cap_watts": _Figure(_watts),
    }
)
"""Every figure there is, what its value must be, and whether a profile is none without it."""
RATES = tuple(name for name in FIGURES if name.endswith("_macs_per_tick"))


# --- reading ----------------------------------------------------------------------------------------------------------


def profile_names() -> tuple[str, ...]:
    """Names that `load_profile` accepts, sorted."""
    return tuple(sorted(path.stem for path in PROFILE_FOLDER.glob(f"*{PROFILE_SUFFIX}")))


def named_profile(text: str) -> str | Path:
    """A profile as a command line names it: a path if it ends in `.toml`, else the name of one that comes with us."""
    return Path(text) if text.endswith(PROFILE_SUFFIX) else text


def load_profile(name: str | Path) -> Profile:
    """The profile called `name`, or the one in a file.

    Raises ValueError, listing the names, when there is none; ProfileError with a line for all that is wrong with a
    file; OSError for a file that cannot be read.
    """
    if isinstance(name, Path):
        return _own_profile(name)
    names = profile_names()
    if name not in names:
        raise ValueError(
            f"unknown profile {name!r}; there are: {', '.join(names)}; or name a file of your own, FILE{PROFILE_SUFFIX}"
        )
    return parse_profile(name, (PROFILE_FOLDER / f"{name}{PROFILE_SUFFIX}").read_text(encoding="utf-8"))


def _own_profile(path: Path) -> Profile:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise ProfileError(f"{path} is no profile: it has more than {_MAX_FILE_BYTES} bytes")
    try:
        profile = parse_profile(str(path), data.decode())
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path} is no profile: byte {error.start} is not UTF-8; save it as such") from None
    if profile.name in profile_names():
        raise ProfileError(f"{path} is called {profile.name!r}, as a profile that comes with us; choose another name")
    return profile


def parse_profile(where: str, text: str) -> Profile:
    """The profile that a text is. Raises ProfileError, which begins with `where` and has a line for each problem."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{where} is no profile: it is not TOML: {error}") from None
    lines = _lines_of(text)
    problems = sorted((lines.get(key, 0), message) for key, message in _problems(document))
    if problems:
        listed = "\n".join(f"  line {line}: {message}" if line else f"  {message}" for line, message in problems)
        raise ProfileError(f"{where} is no profile:\n{listed}")
    known = [name for name in FIGURES if name in document]
    values = {name: _frozen(document[name]["value"]) for name in known}
    return Profile(
        name=document["name"],
        summary=document["summary"],
        bounds_only_without=tuple(document.get("bounds_only_without", ())),
        sources=MappingProxyType({n: Source(document[n]["source"], document[n]["assumed"]) for n in known}),
        **values,
    )


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that nobody can alter them."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _lines_of(text: str) -> dict[tuple[str, ...], int]:
    """The line of every table, and of every key outside of tables or in one; from 1."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            table = (header[1],)
            found.setdefault(table, number)
        elif key := re.match(r"\s*([\w-]+)\s*=", line):
            found.setdefault((*table, key[1]), number)
    return found


_Problem = tuple[tuple[str, ...], str]


def _problems(document: Mapping[str, Any]) -> list[_Problem]:
    """What is wrong with a document: (key that it is about, text with what to do)."""
    problems = _text_problems(document)
    for name in document.keys() - FIGURES.keys() - _TEXTS:
        problems.append(((name,), f"unknown figure {name!r}; there are: {', '.join(FIGURES)}"))
    for name, figure in FIGURES.items():
        if name in document:
            problems += _figure_problems(name, figure, document[name])
        elif figure.required:
            problems.append(((), f"{name} is missing; add a table [{name}] with value, source and assumed"))
    if not any(rate in document for rate in RATES):
        problems.append(((), f"there is no rate; add at least one of {', '.join(RATES)}"))
    return problems


def _text_problems(document: Mapping[str, Any]) -> list[_Problem]:
    problems: list[_Problem] = []
    name, summary = document.get("name"), document.get("summary")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        wanted = f"1 to {MAX_NAME_BYTES} of a-z, 0-9, '.', '_' and '-'"
        problems.append((("name",), f"name is {name!r}; it must be {wanted}, in quotes"))
    if not isinstance(summary, str) or not summary.strip():
        problems.append((("summary",), f"summary is {summary!r}; it must be a sentence, in quotes"))
    lacking = document.get("bounds_only_without", [])
    if not isinstance(lacking, list) or any(each not in FIGURES for each in lacking):
        what = f"bounds_only_without is {lacking!r}; it must be a list of figures: {', '.join(FIGURES)}"
        problems.append((("bounds_only_without",), what))
    return problems


def _figure_problems(name: str, figure: _Figure, table: Any) -> list[_Problem]:
    if not isinstance(table, Mapping):
        return [((name,), f"{name} is {table!r}; it must be a table [{name}] with value, source and assumed")]
    problems: list[_Problem] = []
    for part in sorted(_PARTS - table.keys()):
        problems.append(((name,), f"{name} has no {part}; add it"))
    for part in sorted(table.keys() - _PARTS):
        problems.append(((name, part), f"{name} has a {part!r}; it may have value, source and assumed only"))
    source, assumed = table.get("source", "-"), table.get("assumed", False)
    if not isinstance(source, str) or not source.strip():
        problems.append(((name, "source"), f"the source of {name} is {source!r}; say where the figure comes from"))
    if not isinstance(assumed, bool):
        problems.append(((name, "assumed"), f"assumed of {name} is {assumed!r}; it must be true or false"))
    wanted = figure.refusal(table["value"]) if "value" in table else None
    if wanted is not None:
        problems.append(((name, "value"), f"{name} is {table['value']!r}; it must be {wanted}"))
    return problems
