"""Files that people name: what is no regular file is neither replaced nor read for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from firmware_tools.files import FileTooLarge, read_bounded, write_whole


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(path, b"image")
        assert os.read(reader, 100) == b"image"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_link_stays_one(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "folder" / "target"
    target.parent.mkdir()
    link.symlink_to(target)
    for data in (b"one", b"two"):
        write_whole(link, data)
        assert link.is_symlink()
        assert target.read_bytes() == data
    assert list(target.parent.iterdir()) == [target]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_whole(path, b"image")
    assert path.read_bytes() == b"image"


@pytest.mark.parametrize("name", ["nowhere/image", "a file/image", ""])
def test_what_cannot_be_written_is_named_as_it_was_given(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").touch()
    path = tmp_path / name
    with pytest.raises(OSError) as raised:
        write_whole(path, b"image")
    assert raised.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a file"]


def test_what_never_ends_is_not_read_to_its_end() -> None:
    with pytest.raises(FileTooLarge, match="more than 4,096 bytes"):
        read_bounded(Path("/dev/zero"), 4096)


def test_a_file_as_long_as_allowed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    assert read_bounded(path, 4096) == bytes(4096)
