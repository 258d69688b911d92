"""Files that are replaced whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from driver_shim.shared.whole_file import replace_whole

WAYS = pytest.mark.parametrize("options", [{}, {"shared": True}, {"shared": True, "durable": True}])


@WAYS
def test_a_file_is_made_and_replaced_and_nothing_is_left_beside_it(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"second, longer", b""):
        replace_whole(path, data, **options)
        assert path.read_bytes() == data
        assert os.listdir(tmp_path) == ["file"]


@WAYS
def test_the_permissions_of_what_is_replaced_stay(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"secret")
    path.chmod(0o600)
    replace_whole(path, b"another secret", **options)
    assert path.stat().st_mode & 0o777 == 0o600


@WAYS
def test_when_it_fails_the_old_file_is_there_alone(
    tmp_path: Path, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(source: Path, target: Path) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        replace_whole(path, b"new", **options)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file.new").write_bytes(b"half of")
    replace_whole(tmp_path / "file", b"whole")
    assert os.listdir(tmp_path) == ["file"]
