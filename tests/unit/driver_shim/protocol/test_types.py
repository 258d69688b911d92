"""The table of element types against literals from onnx.proto and dlpack.h."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from driver_shim.protocol.types import (
    UnsupportedType,
    WireType,
    constant_type,
    constant_type_of,
    pack,
    unpack,
    wire_type,
    wire_type_of,
)

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
PACKED_TABLE = [(21, "uint4", (1, 4)), (22, "int4", (0, 4))]


@pytest.mark.parametrize(("number", "name", "size", "dlpack"), TABLE)
def test_every_type_has_its_published_numbers(number: int, name: str, size: int, dlpack: tuple[int, int]) -> None:
    kind = wire_type(number)
    assert (kind.text, kind.size, kind.dlpack) == (name, size, dlpack)
    assert kind.dtype.itemsize == size
    assert kind.dtype.name == name
    assert wire_type_of(kind.dtype) is kind
    assert wire_type_of(name) is kind


def test_the_table_is_complete() -> None:
    assert [int(kind) for kind in WireType] == [row[0] for row in TABLE] + [row[0] for row in PACKED_TABLE]


@pytest.mark.parametrize(("number", "name", "dlpack"), PACKED_TABLE)
def test_4_bit_integers_are_types_of_constants_alone(number: int, name: str, dlpack: tuple[int, int]) -> None:
    kind = constant_type(number)
    assert (kind.text, kind.dlpack) == (name, dlpack)
    assert constant_type_of(kind.dtype) is kind
    assert [kind.stored_bytes(elements) for elements in (0, 1, 2, 3)] == [0, 1, 1, 2]
    with pytest.raises(UnsupportedType, match="only constants can have it"):
        wire_type(number)
    with pytest.raises(UnsupportedType, match="only constants can have it"):
        wire_type_of(name)


def test_4_bit_integers_are_stored_in_pairs_the_first_in_the_low_bits() -> None:
    signed = np.array([[-8, 7, -1]], WireType.INT4.dtype)
    assert pack(signed).tolist() == [0x78, 0x0F]
    assert unpack(pack(signed), WireType.INT4, (1, 3)).astype(int).tolist() == [[-8, 7, -1]]
    plain = np.array([1, 15], WireType.UINT4.dtype)
    assert pack(plain).tolist() == [0xF1]
    assert unpack(pack(plain), WireType.UINT4, (2,)).astype(int).tolist() == [1, 15]
    assert unpack(pack(plain[:0]), WireType.UINT4, (0,)).size == 0


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


@pytest.mark.parametrize("name", ["FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT4E2M1"])
def test_small_floats_are_refused_by_name_with_what_to_use(name: str) -> None:
    for each in (wire_type, constant_type):
        with pytest.raises(
            UnsupportedType, match=rf"^{name.lower()} is not supported .*use int8, or weights in blocks"
        ):
            each(onnx.TensorProto.DataType.Value(name))
