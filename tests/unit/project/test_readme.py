"""The README keeps its word: the example runs as printed, and what it links to exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text("utf-8")
PATIENCE_S = 120
MOST_LINES = 24


def example() -> str:
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def test_the_example_prints_what_its_comments_say(tmp_path: Path) -> None:
    program = example()
    assert len(program.splitlines()) <= MOST_LINES
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"print\(.*\)  # (.*)", program)
    assert done.stdout.splitlines() == promised


def test_what_it_links_to_exists() -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", README)
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_linux_is_stated_before_anything_else() -> None:
    assert "Linux" in README.splitlines()[2]
