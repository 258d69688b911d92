"""Every example runs as it stands, and prints something."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.children import ROOT, run

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs(path: Path) -> None:
    assert run(path.read_text("utf-8")).strip()
