"""Profiles: every figure has a source, and a bad file is refused line by line, each with what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from emulator.model.profile import (
    FIGURES,
    PROFILE_FOLDER,
    ProfileError,
    load_profile,
    named_profile,
    parse_profile,
    profile_names,
)

SMALLEST = """\
name = "mine"
summary = "A chip."

[tick_hz]
value = 1_000_000
source = "its data sheet"
assumed = false

[memory_bytes]
value = 1_048_576
source = "its data sheet"
assumed = false

[engines]
value = 3
source = "counted"
assumed = true

[int8_macs_per_tick]
value = 64
source = "its data sheet"
assumed = false
"""


def test_generic_is_there_and_has_the_figures_of_its_file() -> None:
    assert "generic" in profile_names()
    profile = load_profile("generic")
    assert profile.name == "generic"
    assert profile.tick_hz == 1_000_000_000
    assert profile.memory_bytes == 1 << 30
    assert profile.int8_macs_per_tick == 16384


@pytest.mark.parametrize("name", profile_names())
def test_every_figure_of_every_profile_has_a_source_and_bears_its_files_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    given = {figure for figure in FIGURES if getattr(profile, figure) not in (None, 0, ())}
    assert given <= set(profile.sources) <= set(FIGURES)
    assert all(source.text for source in profile.sources.values())


def test_every_figure_is_a_field_and_every_field_a_figure() -> None:
    fields = {field.name for field in dataclasses.fields(load_profile("generic"))}
    assert set(FIGURES) == fields - {"name", "summary", "sources", "bounds_only_without"}


def test_all_of_generic_is_marked_as_assumed() -> None:
    assert all(source.assumed for source in load_profile("generic").sources.values())


def test_what_a_file_leaves_out_is_not_known_and_costs_nothing() -> None:
    profile = parse_profile("mine.toml", SMALLEST)
    assert (profile.engines, profile.int8_macs_per_tick, profile.fp16_macs_per_tick) == (3, 64, None)
    assert (profile.memory_bytes_per_tick, profile.link_bytes_per_tick, profile.tiles) == (None, None, ())
    assert (profile.command_fixed_ticks, profile.exec_fixed_ticks, profile.idle_watts) == (0, 0, None)
    assert set(profile.sources) == {"tick_hz", "memory_bytes", "engines", "int8_macs_per_tick"}
    assert profile.sources["engines"].assumed and not profile.sources["tick_hz"].assumed


@pytest.mark.parametrize("name", ["hopper", "", "../profile", "generic.toml", "/etc/passwd"])
def test_an_unknown_name_lists_the_known_ones_and_says_how_to_give_a_file(name: str) -> None:
    with pytest.raises(ValueError, match=r"there are: .*generic.*; or name a file of your own, FILE\.toml"):
        load_profile(name)


def test_a_command_line_names_profiles_and_files() -> None:
    assert named_profile("generic") == "generic"
    assert named_profile("chips/mine.toml") == Path("chips/mine.toml")


def test_a_file_of_ones_own_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "anything.toml"
    path.write_text(SMALLEST)
    assert load_profile(path) == parse_profile("x", SMALLEST)
    path.write_text(SMALLEST.replace('"mine"', '"generic"'))
    with pytest.raises(ProfileError, match=r"anything\.toml is called 'generic'.*choose another name"):
        load_profile(path)
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ProfileError, match="byte 8 is not UTF-8"):
        load_profile(path)
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ProfileError, match="more than 1048576 bytes"):
        load_profile(path)
    with pytest.raises(FileNotFoundError):
        load_profile(tmp_path / "none.toml")


def test_a_profile_cannot_be_altered() -> None:
    profile = load_profile("generic")
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.tick_hz = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        profile.sources["tick_hz"] = None  # type: ignore[index]


@pytest.mark.parametrize(
    ("figure", "value", "wanted"),
    [
        ("tick_hz", "0", "a whole number from 1000"),
        ("tick_hz", "1e9", "a whole number"),
        ("tick_hz", '"fast"', "a whole number"),
        ("engines", "true", "a whole number from 1 to 256"),
        ("engines", "10_000", "a whole number from 1 to 256"),
        ("memory_bytes", str((1 << 30) + 1), "a multiple of 4096"),
        ("memory_bytes", str(1 << 60), "a whole number"),
        ("memory_bytes_per_tick", "0", "a whole number from 1"),
        ("int8_macs_per_tick", "nan", "a whole number from 1"),
        ("exec_fixed_ticks", "-1", "a whole number from 0"),
        ("tiles", "[]", r"1 to 32 pairs \[rows, columns\]"),
        ("tiles", "[[16, 16, 16]]", r"1 to 32 pairs \[rows, columns\]"),
        ("tiles", "[[0, 16]]", r"1 to 32 pairs \[rows, columns\]"),
        ("idle_watts", "-2.5", "a number of watts, above 0"),
    ],
)
def test_a_nonsense_value_is_refused_by_name_and_line(figure: str, value: str, wanted: str) -> None:
    kept = "\n\n".join(part for part in SMALLEST.split("\n\n") if not part.startswith(f"[{figure}]"))
    text = f'{kept.rstrip()}\n\n[{figure}]\nsource = "x"\nassumed = false\nvalue = {value}\n'
    line = len(text.splitlines())
    with pytest.raises(ProfileError, match=rf"line {line}: {figure} is .*; it must be {wanted}"):
        parse_profile("mine.toml", text)


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ('source = "counted"\n', "", 14, "engines has no source; add it"),
        ('source = "counted"', 'source = " "', 16, "the source of engines is ' '; say where the figure comes from"),
        ("assumed = true", 'assumed = "yes"', 17, "assumed of engines is 'yes'; it must be true or false"),
        ("assumed = true", 'unit = "cores"\nassumed = true', 17, "engines has a 'unit'; it may have value, source"),
        ("[engines]", "[cores]", 14, "unknown figure 'cores'; there are: tick_hz, "),
        ('name = "mine"', 'name = "My chip"', 1, "name is 'My chip'; it must be 1 to 31 of"),
        ('name = "mine"', f'name = "{"m" * 32}"', 1, "it must be 1 to 31 of"),
        ('summary = "A chip."', 'summary = ""', 2, "summary is ''; it must be a sentence"),
        ('"A chip."', '"A chip."\nbounds_only_without = ["tile"]', 3, "it must be a list of figures: tick_hz, "),
    ],
)
def test_each_mistake_is_told_with_its_line_and_what_to_do(old: str, new: str, line: int, reason: str) -> None:
    assert SMALLEST.count(old) == 1
    with pytest.raises(ProfileError) as caught:
        parse_profile("mine.toml", SMALLEST.replace(old, new))
    told = str(caught.value).splitlines()
    assert told[0] == "mine.toml is no profile:"
    assert any(each.startswith(f"  line {line}: ") and reason in each for each in told), told


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = SMALLEST.replace("1_000_000", "-1").replace("value = 3", "value = 0").replace("int8", "int7")
    with pytest.raises(ProfileError) as caught:
        parse_profile("mine.toml", text)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["there is no rate; add at least one of int8_macs_per_tick, fp16_macs_per_tick, bf16_macs_per_tick, fp32_macs_per_tick", "line 5", "line 15", "line 19"]  # fmt: skip  # noqa: E501


def test_what_is_missing_is_told_with_how_to_add_it() -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile("mine.toml", "engines = 4\n")
    told = str(caught.value)
    assert "tick_hz is missing; add a table [tick_hz] with value, source and assumed" in told
    assert "line 1: engines is 4; it must be a table [engines] with value, source and assumed" in told
    assert "name is None" in told and "there is no rate" in told
    with pytest.raises(ProfileError, match=r"it is not TOML: .*line 2"):
        parse_profile("mine.toml", 'name = "mine"\nsummary\n')


def test_the_files_of_profiles_lie_where_they_are_looked_for() -> None:
    assert (PROFILE_FOLDER / "generic.toml").is_file()
