"""GGUF files are read as the package `gguf` reads them; what is none, damaged, or no whole model is refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from sdk import UnsupportedModel
from sdk.gguf import open_gguf
from tests.support.gguf_files import Net, write_gguf

EVERY_VALUE = {
    "one.string": "Grüße",
    "one.real": 0.5,
    "one.number": 7,
    "strings": ["a", "", "ç"],
    "numbers": [1, -2, 3],
    "reals": [0.5, -1.5],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small file of several types, with values of several types."""
    path = tmp_path / "net.gguf"
    write_gguf(path, Net(kinds=("F32", "F16", "BF16", "Q4_1", "Q6_K"), layers=1, general=EVERY_VALUE))
    return path


def test_metadata_and_tensors_are_those_that_were_written(path: Path) -> None:
    file, peer = open_gguf(path), gguf.GGUFReader(path)
    keys = [key for key in peer.fields if not key.startswith("GGUF.")]
    assert len(keys) > len(EVERY_VALUE)
    for key in keys:
        assert file.value(key) == peer.fields[key].contents(), key
    assert list(file.tensors) == [tensor.name for tensor in peer.tensors]
    for tensor in peer.tensors:
        found = file.tensors[tensor.name]
        assert found.kind == tensor.tensor_type.name
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert found.data is not None and found.data.tobytes() == tensor.data.tobytes()


def test_data_lie_where_the_alignment_of_the_file_puts_them(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    tensors = write_gguf(path, Net(layers=1, general={"general.alignment": 256}))
    assert len(set(tensors)) == len(tensors)
    for name, stored in open_gguf(path).tensors.items():
        assert stored.data is not None and np.array_equal(stored.data, tensors[name]), name


def test_a_key_that_is_not_there_has_the_default(path: Path) -> None:
    assert open_gguf(path).value("no.such.key") is None
    assert open_gguf(path).value("no.such.key", 3) == 3


def test_types_have_the_numbers_of_the_format(tmp_path: Path) -> None:
    from sdk.gguf.file import _TYPES

    for number, name in _TYPES.items():
        if name not in ("Q4_2", "Q4_3"):  # which nothing writes any more
            assert gguf.GGMLQuantizationType[name] == number


def test_a_file_cut_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, 400, 7), *np.linspace(400, len(whole) - 33, 60, dtype=int)]:
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:length])
        with pytest.raises(UnsupportedModel, match=r"cut\.gguf.*(truncated|no GGUF file)"):
            open_gguf(cut)


def test_damaged_headers_are_refused_or_read_but_never_anything_else(path: Path, tmp_path: Path) -> None:
    whole, random = path.read_bytes(), np.random.default_rng(3)
    header = whole.index(b"blk.0.attn_q.weight") + 400
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(0, header, 2):
            damaged[place] = random.integers(256)
        other = tmp_path / "damaged.gguf"
        other.write_bytes(damaged)
        try:
            file = open_gguf(other)
            for key in file.keys:
                file.value(key)
        except UnsupportedModel:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no GGUF file"),
        (b"\x08\x07onnx model", "no GGUF file"),
        (b"GGUF\x03\x00", "truncated"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "of version 1"),
        (struct.pack("<4sIQQ", b"GGUF", 99, 0, 0), "of version 99"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**60, 2**60), "truncated"),
    ],
)
def test_what_is_no_readable_file_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModel, match=reason):
        open_gguf(path)


@pytest.mark.parametrize(
    ("general", "reason"),
    [
        ({"split.count": 3}, "one of 3 parts.*--merge"),
        ({"general.type": "adapter"}, "adapter.*merge"),
        ({"general.type": "mmproj"}, "'mmproj', not a language model"),
    ],
)
def test_what_is_no_whole_model_is_refused(general: dict[str, object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    write_gguf(path, Net(layers=1, general=general))
    with pytest.raises(UnsupportedModel, match=reason):
        open_gguf(path)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "none.gguf")
