"""Profiles: every figure has a source, nonsense is refused with a message that names it."""

from __future__ import annotations

import copy
import dataclasses
import tomllib
from typing import Any

import pytest

from emulator.model.profile import PROFILE_FOLDER, load_profile, parse_profile, profile_names


@pytest.fixture()
def document() -> dict[str, Any]:
    return tomllib.loads((PROFILE_FOLDER / "generic.toml").read_text())


def test_generic_is_there_and_has_the_figures_of_its_file() -> None:
    assert "generic" in profile_names()
    profile = load_profile("generic")
    assert profile.name == "generic"
    assert profile.tick_hz == 1_000_000_000
    assert profile.memory_bytes == 1 << 30
    assert profile.int8_macs_per_tick == 16384


@pytest.mark.parametrize("name", profile_names())
def test_every_figure_of_every_profile_has_a_source(name: str) -> None:
    profile = load_profile(name)
    figures = {field.name for field in dataclasses.fields(profile)} - {"name", "summary", "sources"}
    assert set(profile.sources) == figures
    assert all(source.text for source in profile.sources.values())


def test_all_of_generic_is_marked_as_assumed() -> None:
    assert all(source.assumed for source in load_profile("generic").sources.values())


@pytest.mark.parametrize("name", ["hopper", "", "../profile", "generic.toml", "/etc/passwd"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"there are: .*generic"):
        load_profile(name)


def test_a_profile_cannot_be_altered() -> None:
    profile = load_profile("generic")
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.tick_hz = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        profile.sources["tick_hz"] = None  # type: ignore[index]


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("tick_hz", 0),
        ("tick_hz", -1),
        ("tick_hz", 1e9),
        ("tick_hz", "fast"),
        ("engines", True),
        ("engines", 0),
        ("engines", 10_000),
        ("memory_bytes", (1 << 30) + 1),
        ("memory_bytes", 1 << 60),
        ("memory_bytes_per_tick", 0),
        ("int8_macs_per_tick", float("nan")),
        ("exec_fixed_ticks", -1),
    ],
)
def test_a_nonsense_value_is_refused_by_name(document: dict[str, Any], figure: str, value: Any) -> None:
    document[figure]["value"] = value
    with pytest.raises(ValueError, match=f"'generic': {figure} is"):
        parse_profile("generic", document)


@pytest.mark.parametrize("change", ["missing", "bare number", "no source", "empty source", "assumed as text", "extra"])
def test_a_figure_without_its_parts_is_refused_by_name(document: dict[str, Any], change: str) -> None:
    table = document["link_bytes_per_tick"]
    if change == "missing":
        del document["link_bytes_per_tick"]
    elif change == "bare number":
        document["link_bytes_per_tick"] = 32
    elif change == "no source":
        del table["source"]
    elif change == "empty source":
        table["source"] = " "
    elif change == "assumed as text":
        table["assumed"] = "yes"
    else:
        table["unit"] = "bytes"
    with pytest.raises(ValueError, match="link_bytes_per_tick"):
        parse_profile("generic", document)


def test_unknown_figures_wrong_names_and_missing_summaries_are_refused(document: dict[str, Any]) -> None:
    odd = copy.deepcopy(document) | {"colour": {"value": 1, "source": "x", "assumed": True}}
    with pytest.raises(ValueError, match="unknown figure 'colour'"):
        parse_profile("generic", odd)
    with pytest.raises(ValueError, match="must be 'other'"):
        parse_profile("other", document)
    with pytest.raises(ValueError, match="summary"):
        parse_profile("generic", document | {"summary": ""})
