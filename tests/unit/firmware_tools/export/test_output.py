"""Where exports are put: whole or not at all, and never over what somebody else made."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from driver_shim.protocol.management_registers import DMA
from firmware_tools.errors import ExtraMissing
from firmware_tools.export import html_pages
from firmware_tools.export.c_header import c_header
from firmware_tools.export.errors import ForeignOutput
from firmware_tools.export.html_pages import write_html
from firmware_tools.export.maps import MAPS
from firmware_tools.export.output import MANIFEST, MARK, write_folder, write_text
from firmware_tools.export.system_rdl import system_rdl
from tests.support.paths import ROOT

PATIENCE_S = 120
TEXT = f"// {MARK}\n"


def pages(*names: str, text: str = "") -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name in names:
            (folder / name).write_text(text, "utf-8")

    return fill


def test_a_text_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "registers.h"
    for text in (TEXT, TEXT + "more\n"):
        write_text(path, text)
        assert path.read_text("utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "registers.h"
    link.symlink_to(tmp_path / "real" / "registers.h")
    write_text(link, TEXT)
    assert link.is_symlink() and link.read_text("utf-8") == TEXT


@pytest.mark.parametrize("content", ["int main(void) { return 0; }\n", "", "x" * 2000 + MARK])
def test_a_foreign_file_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "main.c"
    path.write_text(content, "utf-8")
    with pytest.raises(ForeignOutput, match=r"main\.c: exists and is not an export of this kind"):
        write_text(path, TEXT)
    assert path.read_text("utf-8") == content


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ForeignOutput):
        write_text(tmp_path, TEXT)


def test_a_folder_that_is_not_there_is_named_by_the_path_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "registers.h"
    with pytest.raises(FileNotFoundError, match=r"missing/registers\.h'"):
        write_text(path, TEXT)
    with pytest.raises(FileNotFoundError, match="missing/pages'"):
        write_folder(tmp_path / "missing" / "pages", lambda folder: None)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "pages"
    write_folder(target, pages("a.html", "old.html"))
    write_folder(target, pages("a.html", text="new"))
    assert {each.name for each in target.iterdir()} == {"a.html", MANIFEST}
    assert (target / "a.html").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    write_folder(tmp_path / "pages", pages("a.html"))
    assert (tmp_path / "pages" / "a.html").exists()


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "pages"
    write_folder(target, pages("a.html"))

    def fail(folder: Path) -> None:
        (folder / "b.html").write_text("b")
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_folder(target, fail)
    assert {each.name for each in target.iterdir()} == {"a.html", MANIFEST}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("manifest", [None, "", "not json", "7"])
def test_a_foreign_folder_is_not_touched(tmp_path: Path, manifest: str | None) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter.txt").write_text("years of work")
    if manifest is not None:
        (target / MANIFEST).write_text(manifest)
    with pytest.raises(ForeignOutput, match="not empty and was not made by an export"):
        write_folder(target, lambda folder: None)
    assert (target / "chapter.txt").read_text() == "years of work"


def test_a_foreign_file_among_our_pages_is_named(tmp_path: Path) -> None:
    target = tmp_path / "pages"
    write_folder(target, pages("a.html"))
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ForeignOutput, match=r"holds files that no export made, notes\.txt for one"):
        write_folder(target, lambda folder: None)
    assert (target / "notes.txt").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "pages").write_text("a file")
    with pytest.raises(ForeignOutput, match="exists and is not a folder"):
        write_folder(tmp_path / "pages", lambda folder: None)


def test_the_pages_have_every_register_of_every_map(tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    write_html(list(MAPS.values()), folder)
    index = (folder / "index.html").read_text("utf-8")
    assert "NPU registers, contract" in index
    assert "var MathJax = " in index
    assert not re.search(r"(src|href)=.https?:", index)
    pages = [path.read_text("utf-8") for path in (folder / "content").iterdir()]
    everything = "\n".join(pages)
    for each in MAPS.values():
        for block in each.blocks:
            for register in block.registers:
                assert all(f">{field.name}<" in everything for field in register.fields.values()), register.name
    dma = next(text for text in pages if DMA.doc.partition(".")[0] in html.unescape(text))
    assert re.search(rf"interrupt_line.*\b{DMA.interrupt}\b", dma, re.DOTALL)
    assert "reset_domain" in everything and "valid_from" in everything
    write_html([MAPS["host"]], folder)
    assert len(list((folder / "content").iterdir())) < len(pages)


@pytest.mark.parametrize("module", ["peakrdl_html", "systemrdl"])
def test_a_missing_extra_is_named_with_what_brings_it(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ExtraMissing, match=rf"{module}.* is not installed .*pip install 'npu-sdk\[firmware\]'"
    ) as caught:
        write_html([MAPS["host"]], tmp_path / "pages")
    assert caught.value.code == "extra-missing"
    assert not list(tmp_path.iterdir())


def test_nothing_of_the_extra_is_imported_before_it_is_used() -> None:
    names = f"{html_pages.__name__}, firmware_tools.export.__main__"
    code = f"import sys, {names}; print({{'systemrdl', 'peakrdl_html', 'sdk', 'click'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout == "set()\n"


def module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "firmware_tools.export", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_build_takes_texts_from_the_module(tmp_path: Path) -> None:
    maps = list(MAPS.values())
    assert module("c").stdout == c_header(maps)
    assert module("rdl", "--map", "host").stdout == system_rdl([MAPS["host"]])
    path = tmp_path / "registers.h"
    assert module("c", "--map", "management", "-o", str(path)).returncode == 0
    assert path.read_text("utf-8") == c_header([MAPS["management"]])


def test_the_module_refuses_as_npuctl_does(tmp_path: Path) -> None:
    path = tmp_path / "main.c"
    path.write_text("mine")
    done = module("c", "-o", str(path))
    assert (done.returncode, done.stdout, path.read_text()) == (1, "", "mine")
    assert "exists and is not an export" in done.stderr and "Traceback" not in done.stderr
    assert module("pdf").returncode == 2
