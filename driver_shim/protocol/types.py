"""Element types on the wire: one table of ONNX number, name, numpy dtype and DLPack code.

Numbers are those of `TensorProto.DataType` (ONNX IR, onnx.proto); DLPack codes those of `DLDataTypeCode`
(dlpack.h 1.0). Elements are little-endian; a bool is one byte.
"""

from __future__ import annotations

import enum
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class WireType(enum.IntEnum):
    """Types a tensor of a program can have; the value is the ONNX number."""

    FLOAT32 = 1
    UINT8 = 2
    INT8 = 3
    INT16 = 5
    INT32 = 6
    INT64 = 7
    """Storage only: every value must fit int32, else the command that meets it fails."""
    BOOL = 9
    FLOAT16 = 10
    BFLOAT16 = 16
    UINT4 = 21
    """Two to a byte, the first in the low bits; of constants alone."""
    INT4 = 22
    """Likewise."""

    @property
    def text(self) -> str:
        """numpy's name of the type, as in messages and `TensorInfo.dtype`."""
        return self.name.lower()

    @property
    def size(self) -> int:
        """Bytes of one element; 0 where several share a byte."""
        return _TRAITS[self].bits // 8

    def stored_bytes(self, elements: int) -> int:
        """Bytes of so many elements, one after the other."""
        return -(-elements * _TRAITS[self].bits // 8)

    @property
    def dlpack(self) -> tuple[int, int]:
        """DLPack's (type code, bits)."""
        traits = _TRAITS[self]
        return traits.dlpack_code, traits.bits

    @property
    def is_float(self) -> bool:
        """True for float32, float16 and bfloat16."""
        return self in FLOATS

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype (of `ml_dtypes`, imported when first asked for, where numpy itself has none).

        An array of 4-bit integers has a byte for each.
        """
        return _numpy_dtype(self)


class _Traits(NamedTuple):
    bits: int
    dlpack_code: int


_DLPACK_INT = 0
_DLPACK_UINT = 1
_DLPACK_FLOAT = 2
_DLPACK_BFLOAT = 4
_DLPACK_BOOL = 6

_TRAITS: dict[WireType, _Traits] = {
    WireType.FLOAT32: _Traits(32, _DLPACK_FLOAT),
    WireType.UINT8: _Traits(8, _DLPACK_UINT),
    WireType.INT8: _Traits(8, _DLPACK_INT),
    WireType.INT16: _Traits(16, _DLPACK_INT),
    WireType.INT32: _Traits(32, _DLPACK_INT),
    WireType.INT64: _Traits(64, _DLPACK_INT),
    WireType.BOOL: _Traits(8, _DLPACK_BOOL),
    WireType.FLOAT16: _Traits(16, _DLPACK_FLOAT),
    WireType.BFLOAT16: _Traits(16, _DLPACK_BFLOAT),
    WireType.UINT4: _Traits(4, _DLPACK_UINT),
    WireType.INT4: _Traits(4, _DLPACK_INT),
}

FLOATS = frozenset({WireType.FLOAT32, WireType.FLOAT16, WireType.BFLOAT16})
INTEGERS = frozenset({WireType.UINT8, WireType.INT8, WireType.INT16, WireType.INT32, WireType.INT64})
QUANTISED = frozenset({WireType.UINT8, WireType.INT8})
PACKED = frozenset({WireType.UINT4, WireType.INT4})
"""Types of constants alone."""
_OF_ML_DTYPES = PACKED | {WireType.BFLOAT16}

INT64_STORAGE_MIN = -(1 << 31)
INT64_STORAGE_MAX = (1 << 31) - 1
"""What an int64 element may hold: the range of int32."""

_SMALL_FLOATS = (
    "floats of 8 or 4 bits are not computed with; use int8, or weights in blocks of int8 or int4 with scales"
)
_REFUSED: dict[int, tuple[str, str]] = {
    0: ("undefined", "give the tensor a type"),
    4: ("uint16", "use int32"),
    8: ("string", "process strings on the host"),
    11: ("float64", "convert the model to float32"),
    12: ("uint32", "use int32"),
    13: ("uint64", "use int64 with values that fit 32 bits"),
    14: ("complex64", "keep real and imaginary parts as float32"),
    15: ("complex128", "keep real and imaginary parts as float32"),
    17: ("float8e4m3fn", _SMALL_FLOATS),
    18: ("float8e4m3fnuz", _SMALL_FLOATS),
    19: ("float8e5m2", _SMALL_FLOATS),
    20: ("float8e5m2fnuz", _SMALL_FLOATS),
    23: ("float4e2m1", _SMALL_FLOATS),
}
_OTHER_HINT = "use one of the supported types"
_PACKED_HINT = "only constants can have it, which DequantizeLinear reads"


class UnsupportedType(ValueError):
    """An element type that does not exist on the wire; the message names it and what to use instead."""


def wire_type(number: int) -> WireType:
    """The type with this ONNX number that any tensor can have. Raises UnsupportedType with a hint for any other."""
    kind = constant_type(number)
    if kind in PACKED:
        raise UnsupportedType(f"{kind.text} is not supported by the device: {_PACKED_HINT}")
    return kind


def constant_type(number: int) -> WireType:
    """The type with this ONNX number that a constant can have. Raises UnsupportedType with a hint for any other."""
    try:
        return WireType(number)
    except ValueError:
        name, hint = _REFUSED.get(number, (f"type {number}", _OTHER_HINT))
        raise UnsupportedType(f"{name} is not supported by the device: {hint}") from None


def wire_type_of(dtype: np.dtype[Any] | type | str) -> WireType:
    """The type, which any tensor can have, of a numpy dtype (or anything numpy takes for one, and "bfloat16").

    Raises UnsupportedType with a hint when the device has no such type.
    """
    kind = constant_type_of(dtype)
    if kind in PACKED:
        raise UnsupportedType(f"{kind.text} is not supported by the device: {_PACKED_HINT}")
    return kind


def constant_type_of(dtype: np.dtype[Any] | type | str) -> WireType:
    """The same for constants, which can be of 4-bit integers, too."""
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    try:
        return _FROM_ML_DTYPES.get(name) or WireType[np.dtype(name).name.upper()]
    except (KeyError, TypeError):
        hint = next((hint for known, hint in _REFUSED.values() if known == name), _OTHER_HINT)
        raise UnsupportedType(f"{name} is not supported by the device: {hint}") from None


_FROM_ML_DTYPES = {kind.text: kind for kind in _OF_ML_DTYPES}


@functools.cache
def _numpy_dtype(kind: WireType) -> np.dtype[Any]:
    if kind not in _OF_ML_DTYPES:
        return np.dtype(kind.text)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, kind.text))
    return dtype


def pack(array: NDArray[Any]) -> NDArray[np.uint8]:
    """4-bit integers as they are stored: bytes."""
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8) & _LOW_BITS
    padded = np.append(bits, np.zeros(bits.size % 2, np.uint8))
    return np.asarray(padded[0::2] | padded[1::2] << _WIDTH)


def unpack(stored: NDArray[np.uint8], kind: WireType, shape: tuple[int, ...]) -> NDArray[Any]:
    """4-bit integers out of the bytes that store them: an array of the type's dtype."""
    bits = np.stack([stored & _LOW_BITS, stored >> _WIDTH], axis=-1).reshape(-1)
    return bits[: math.prod(shape)].view(kind.dtype).reshape(shape)


_WIDTH, _LOW_BITS = 4, 0x0F
