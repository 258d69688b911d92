"""Metadata of GGUF files, as another program writes them; damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from driver_shim.errors import UnsupportedModel
from sdk.chat.metadata import read_metadata
from tests.support.needs import module_of_extra
from tests.support.small_chat import byte_level_metadata, write_gguf

gguf = module_of_extra("gguf", "chat")

_ONE = (1).to_bytes(8, "little")
_NO_TENSORS = bytes(8)
_VERSION_3 = b"GGUF" + (3).to_bytes(4, "little")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "small.gguf", byte_level_metadata())


def test_all_is_read_as_it_was_written(file: Path) -> None:
    found = read_metadata(file)
    assert {name: found[name] for name in byte_level_metadata()} == byte_level_metadata()


def test_every_type_of_number_is_read(tmp_path: Path) -> None:
    path = tmp_path / "numbers.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    written = {
        "uint8": 200,
        "int8": -100,
        "uint16": 60_000,
        "int16": -30_000,
        "uint32": 4_000_000_000,
        "int32": -2_000_000_000,
        "uint64": 1 << 60,
        "int64": -(1 << 60),
        "float32": 0.5,
        "float64": 1e300,
        "bool": True,
    }
    for kind, value in written.items():
        getattr(writer, f"add_{kind}")(kind, value)
    writer.add_array("reals", [1.5, -2.5])
    writer.add_array("texts", ["é", ""])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = read_metadata(path)
    assert {name: found[name] for name in written} == written
    assert (found["reals"], found["texts"]) == ([1.5, -2.5], ["é", ""])


def test_a_file_that_is_cut_short_anywhere_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (*range(1, 64), *range(64, len(whole) - 32, 97)):
        cut.write_bytes(whole[:size])
        with pytest.raises(UnsupportedModel, match="ends within its metadata"):
            read_metadata(cut)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"\x08\x07" * 20, "no GGUF file"),
        (b"GGUF" + (9).to_bytes(4, "little") + bytes(16), "version 9"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(16), "little-endian"),
        (_VERSION_3 + _NO_TENSORS + _ONE + _ONE + b"\xff", "no UTF-8"),
        (_VERSION_3 + _NO_TENSORS + _ONE + _ONE + b"a" + (99).to_bytes(4, "little"), "number 99"),
    ],
    ids=["empty", "another format", "another version", "big-endian", "text", "type"],
)
def test_what_is_no_gguf_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModel, match=what) as caught:
        read_metadata(path)
    assert str(path) in str(caught.value)
