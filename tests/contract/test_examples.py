"""Every example runs as its first lines say, and prints something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from sdk.chat import default_model
from tests.models import minilm, packages
from tests.support.children import PROGRAM_TIMEOUT_S
from tests.support.needs import module_of_extra, require_all_there
from tests.support.paths import ROOT

OF_A_MODEL = ROOT / "examples" / "similar_sentences.py"
"""It is given the files of a model."""
OF_LANGUAGE_MODELS = [ROOT / "examples" / name for name in ("shared_prompt.py", "speculative_decoding.py")]
"""They are given a GGUF file, as is the server, which does not end by itself: test_chat_server.py."""
GIVEN_FILES = {OF_A_MODEL, *OF_LANGUAGE_MODELS, ROOT / "examples" / "chat_server.py"}
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if path not in GIVEN_FILES]


def run(path: Path, *arguments: str) -> str:
    """By path, so that its folder comes first on sys.path, as for a user: no example may hide a standard module.

    Returns what it printed.
    """
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
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs(path: Path) -> None:
    run(path)


@pytest.mark.slow
def test_the_example_of_a_sentence_encoder_runs_with_minilm(tmp_path: Path) -> None:
    require_all_there(packages.missing(minilm.PACKAGE))
    onnx.save(minilm.model(), tmp_path / "model.onnx")
    (tmp_path / "tokenizer.json").write_bytes(minilm.tokenizer_file())
    run(OF_A_MODEL, str(tmp_path / "model.onnx"), str(tmp_path / "tokenizer.json"))


def run_with_language_model(path: Path, file: Path, folder: Path) -> str:
    """With the file under the name that the example's first lines give it."""
    (folder / "smollm2.gguf").symlink_to(file)
    return run(path, str(folder / "smollm2.gguf"))


def small_net(folder: Path, *, repeats_itself: bool = False) -> Path:
    module_of_extra("tokenizers", "chat")
    module_of_extra("jinja2", "chat")
    module_of_extra("gguf", "chat")
    from tests.support.talking_net import write_gguf  # it needs the extra

    return write_gguf(folder / "net.gguf", repeats_itself=repeats_itself)


def right_guesses(printed: str) -> list[int]:
    (line,) = (line for line in printed.splitlines() if line.startswith("guesses that were right"))
    return [int(number) for number in line.partition(":")[2].split()]


def kibibytes(printed: str) -> tuple[int, int]:
    """State memory that was taken, and that it would have been."""
    shared, alone = re.search(r"state memory: (\d+) KiB; without sharing (\d+) KiB", printed).groups()  # type: ignore[union-attr]
    return int(shared), int(alone)


def test_guesses_save_steps_and_change_no_word(tmp_path: Path) -> None:
    file = small_net(tmp_path, repeats_itself=True)
    right = right_guesses(run_with_language_model(OF_LANGUAGE_MODELS[1], file, tmp_path))
    assert 0 in right and 4 in right
    assert len(right) + sum(right) == 95, "of 96 words the first is the prompt's"
    assert len(right) < 75


def test_conversations_share_the_memory_of_what_they_begin_with(tmp_path: Path) -> None:
    file = small_net(tmp_path)
    shared, alone = kibibytes(run_with_language_model(OF_LANGUAGE_MODELS[0], file, tmp_path))
    assert shared < alone / 2


@pytest.mark.slow
def test_smollm2_guesses_some_of_its_words(tmp_path: Path) -> None:
    require_all_there(default_model.missing())
    right = right_guesses(run_with_language_model(OF_LANGUAGE_MODELS[1], default_model.path(), tmp_path))
    assert sum(right) > 20


@pytest.mark.slow
def test_smollm2_reads_what_conversations_begin_with_once(tmp_path: Path) -> None:
    require_all_there(default_model.missing())
    printed = run_with_language_model(OF_LANGUAGE_MODELS[0], default_model.path(), tmp_path)
    shared, alone = kibibytes(printed)
    assert shared < alone
    assert "The library is open" in printed.partition("When are you open?")[2].partition("\n")[0]
