"""`npuctl fw export`: the register maps for other tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from firmware_tools.export.c_header import c_header
from firmware_tools.export.html_pages import write_html
from firmware_tools.export.json_map import json_maps
from firmware_tools.export.maps import CONTRACT, MAPS, ExportedMap, named_maps
from firmware_tools.export.output import write_text
from firmware_tools.export.system_rdl import system_rdl
from sdk.cli.frame import Frame
from sdk.cli.verb import verb

VERB = "fw export"
_TEXTS: dict[str, Callable[[Sequence[ExportedMap]], str]] = {"c": c_header, "rdl": system_rdl}
_JSON, _HTML = "json", "html"
_JSON_MARK = '"schema": "npuctl.fw-export"'
"""By which a document that an earlier run wrote is known."""


@verb(VERB)
@click.option("--format", "kind", type=click.Choice([*_TEXTS, _HTML, _JSON]), required=True, help="What to write.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file, or a folder for html; else stdout.")
@click.option("--map", "names", type=click.Choice(list(MAPS)), multiple=True, help="Repeatable; all without it.")
def command(frame: Frame, kind: str, output: Path | None, names: tuple[str, ...]) -> None:
    """Export the register maps as a C header, SystemRDL 2.0, HTML pages or JSON.

    Nothing is overwritten but what an earlier export made. --format html needs the extra [firmware].
    """
    maps = named_maps(names)
    if output == Path("-"):
        output = None
    if output is None and kind == _HTML:
        raise click.UsageError("html is a folder of pages: name it with -o FOLDER")
    if output is None and frame.as_json and kind in _TEXTS:
        raise click.UsageError(f"--json and the {kind} text would share stdout: add -o FILE, or use --format json")
    frame.sections["export"] = {
        "format": kind,
        "path": None if output is None else str(output),
        "contract": CONTRACT,
        "maps": [each.name for each in maps],
    }
    if kind == _JSON:
        _write_json(frame, maps, output)
    elif kind == _HTML and output is not None:
        write_html(maps, output)
    elif output is not None:
        write_text(output, _TEXTS[kind](maps))
    else:
        frame.write(_TEXTS[kind](maps))
    if output is not None:
        frame.say(f"wrote {output / 'index.html' if kind == _HTML else output}")


def _write_json(frame: Frame, maps: list[ExportedMap], output: Path | None) -> None:
    """On stdout the maps are part of the report; a file is a report with the maps in it."""
    if output is None:
        frame.as_json = True
        frame.sections["maps"] = json_maps(maps)
        return
    document = {**frame.document(), "maps": json_maps(maps)}
    write_text(output, json.dumps(document, ensure_ascii=False, indent=1) + "\n", _JSON_MARK)
