"""`make chat PROMPT="..."` hands the words to npuctl as they were typed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.needs import require_program
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S

TOOL = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile, a tool that prints its arguments, and all installed."""
    require_program("make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    made_of = (tmp_path / "pyproject.toml", tmp_path / "sdk/chat/default_model.py")
    tool = tmp_path / ".venv/bin/npuctl"
    for path in (*made_of, tool, *(tmp_path / ".venv" / name for name in ("chat.stamp", "chat-model.stamp"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / ".venv/bin/python").touch()
    for path in made_of:
        os.utime(path, (0, 0))
    tool.write_text(TOOL)
    tool.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("words", ["What costs $5?", 'it\'s "q" `id` \\', "a # b", "$(HOME)", "é🙂, %a", "two\nlines"])
@pytest.mark.parametrize("place", ["argument", "environment"])
def test_words_arrive_as_they_were_typed(project: Path, words: str, place: str) -> None:
    arguments = [f"PROMPT={words}"] if place == "argument" else []
    variables = {"PROMPT": words} if place == "environment" else {}
    done = subprocess.run(
        ["make", "-s", "chat", *arguments],
        cwd=project,
        env={**os.environ, "MAKEFLAGS": "", **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout == f"chat\n--prompt\n{words}\n"
