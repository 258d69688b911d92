"""The table of element types against literals from onnx.proto and dlpack.h."""

from __future__ import annotations

import numpy as np
import pytest

from driver_shim.protocol.types import UnsupportedType, WireType, wire_type, wire_type_of

TABLE = [
    # ONNX number, name, bytes, DLPack (code, bits)
    (1, "float32", 4, (2, 32)),
    (2, "uint8", 1, (1, 8)),
    (3, "int8", 1, (0, 8)),
    (5, "int16", 2, (0, 16)),
    (6, "int32", 4, (0, 32)),
    (7, "int64", 8, (0, 64)),
    (9, "bool", 1, (6, 8)),
    (10, "float16", 2, (2, 16)),
    (16, "bfloat16", 2, (4, 16)),
]


@pytest.mark.parametrize(("number", "name", "size", "dlpack"), TABLE)
def test_every_type_has_its_published_numbers(number: int, name: str, size: int, dlpack: tuple[int, int]) -> None:
    kind = wire_type(number)
    assert (kind.text, kind.size, kind.dlpack) == (name, size, dlpack)
    assert kind.dtype.itemsize == size
    assert kind.dtype.name == name
    assert wire_type_of(kind.dtype) is kind
    assert wire_type_of(name) is kind


def test_the_table_is_complete() -> None:
    assert [int(kind) for kind in WireType] == [row[0] for row in TABLE]


def test_double_is_refused_with_a_hint() -> None:
    with pytest.raises(UnsupportedType, match=r"float64 is not supported.*float32"):
        wire_type(11)
    with pytest.raises(UnsupportedType, match=r"float64 is not supported.*float32"):
        wire_type_of(np.float64)


@pytest.mark.parametrize("number", [0, 4, 8, 12, 13, 14, 15, 17, 99, -1])
def test_other_numbers_are_refused(number: int) -> None:
    with pytest.raises(UnsupportedType):
        wire_type(number)


@pytest.mark.parametrize("name", ["nonsense", "object", "complex64", "datetime64"])
def test_foreign_dtypes_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedType):
        wire_type_of(name)
