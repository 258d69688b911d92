"""Metadata of a file that another program wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from driver_shim.errors import UnsupportedModel
from sdk.chat.metadata import read_metadata
from tests.support.small_chat import byte_level_metadata, write_gguf


def test_all_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = read_metadata(write_gguf(tmp_path / "small.gguf", byte_level_metadata()))
    assert {name: found[name] for name in byte_level_metadata()} == byte_level_metadata()


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x07" * 20)
    with pytest.raises(UnsupportedModel, match=r"net\.onnx.*no GGUF file"):
        read_metadata(path)
