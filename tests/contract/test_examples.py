"""Every example runs as its first lines say, and prints something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.models import minilm, packages
from tests.support.children import PROGRAM_TIMEOUT_S
from tests.support.needs import require_all_there
from tests.support.paths import ROOT

OF_A_MODEL = ROOT / "examples" / "similar_sentences.py"
"""It is given the files of a model."""
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if path != OF_A_MODEL]


def run(path: Path, *arguments: str) -> None:
    """By path, so that its folder comes first on sys.path, as for a user: no example may hide a standard module."""
    assert " ".join(["$ python", f"examples/{path.name}", *(Path(name).name for name in arguments)]) in path.read_text(
        "utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs(path: Path) -> None:
    run(path)


@pytest.mark.slow
def test_the_example_of_a_sentence_encoder_runs_with_minilm(tmp_path: Path) -> None:
    require_all_there(packages.missing(minilm.PACKAGE))
    onnx.save(minilm.model(), tmp_path / "model.onnx")
    (tmp_path / "tokenizer.json").write_bytes(minilm.tokenizer_file())
    run(OF_A_MODEL, str(tmp_path / "model.onnx"), str(tmp_path / "tokenizer.json"))
