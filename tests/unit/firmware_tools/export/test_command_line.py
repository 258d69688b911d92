"""`npuctl fw export` from outside: texts, documents that fit the shipped schema, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firmware_tools.export.c_header import c_header
from firmware_tools.export.json_map import json_maps
from firmware_tools.export.maps import CONTRACT, MAPS
from firmware_tools.export.system_rdl import system_rdl
from tests.support.npuctl import Npuctl, validator

VERB = ("fw", "export")
ALL = list(MAPS.values())


@pytest.fixture
def npuctl(tmp_path: Path) -> Npuctl:
    return Npuctl(tmp_path / "runtime")


@pytest.mark.parametrize(("kind", "text"), [("c", c_header(ALL)), ("rdl", system_rdl(ALL))])
def test_texts_go_to_stdout_alone(npuctl: Npuctl, kind: str, text: str) -> None:
    done = npuctl(*VERB, "--format", kind)
    assert (done.returncode, done.stdout, done.stderr) == (0, text, "")


def test_a_map_is_chosen_by_name(npuctl: Npuctl) -> None:
    done = npuctl(*VERB, "--format", "c", "--map", "management")
    assert done.stdout == c_header([MAPS["management"]])


def test_the_json_format_is_a_report_with_the_maps_in_it(npuctl: Npuctl, tmp_path: Path) -> None:
    document = json.loads(npuctl(*VERB, "--format", "json").stdout)
    validator("fw-export").validate(document)
    assert (document["schema"], document["schema_version"], document["errors"]) == ("npuctl.fw-export", 1, [])
    assert document["export"] == {"format": "json", "path": None, "contract": CONTRACT, "maps": list(MAPS)}
    assert document["maps"] == json_maps(ALL)
    path = tmp_path / "map.json"
    for _ in range(2):
        assert npuctl(*VERB, "--format", "json", "-o", str(path)).returncode == 0
    written = json.loads(path.read_text("utf-8"))
    validator("fw-export").validate(written)
    assert written["maps"] == document["maps"]


def test_the_report_of_a_written_file(npuctl: Npuctl, tmp_path: Path) -> None:
    path = tmp_path / "registers.h"
    document = npuctl.document("fw export", "--format", "c", "-o", str(path))
    assert document["export"]["path"] == str(path)
    assert "maps" not in document
    assert npuctl(*VERB, "--format", "c", "-o", str(path)).stdout == f"wrote {path}\n"
    assert path.read_text("utf-8") == c_header(ALL)


def test_pages_are_written(npuctl: Npuctl, tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    done = npuctl(*VERB, "--format", "html", "-o", str(folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {folder / 'index.html'}\n", "")
    assert (folder / "index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--format"),
        (("--format", "pdf"), "'pdf'"),
        (("--format", "html"), "name it with -o FOLDER"),
        (("--format", "c", "--json"), "add -o FILE"),
        (("--format", "c", "--map", "nonesuch"), "'nonesuch'"),
    ],
)
def test_a_wrong_command_line_exits_2(npuctl: Npuctl, arguments: tuple[str, ...], message: str) -> None:
    done = npuctl(*VERB, *arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["c", "rdl", "json", "html"])
def test_what_others_made_is_kept_and_the_error_says_so(npuctl: Npuctl, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine"
    path.write_text("mine")
    document = npuctl.document("fw export", "--format", kind, "-o", str(path), code=1)
    (error,) = document["errors"]
    assert (error["code"], error["remedy"]) == ("output-exists", "name another path, or move what is there")
    assert path.read_text() == "mine"


def test_help_names_the_subcommands_and_a_wrong_one_exits_2(npuctl: Npuctl) -> None:
    assert "\n  export " in npuctl("fw", "--help").stdout
    assert npuctl("fw", "--help").returncode == 0
    assert npuctl("fw", "nonesuch").returncode == 2
    assert "\n  fw " in npuctl("--help").stdout
