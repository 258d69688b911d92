"""DLPack export of arrays, including bfloat16, which numpy itself refuses to export.

A bfloat16 array is exported by numpy as uint16; then the type code in its capsule is set to kDLBfloat. Layouts are
those of dlpack.h 1.0: `DLTensor` has its type code at byte 20 and lies behind a 32-byte header when versioned.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

KDL_BFLOAT = 4
_TYPE_CODE_OFFSET = 20
_TENSOR_OFFSETS = {b"dltensor": 0, b"dltensor_versioned": 32}


def export(array: NDArray[Any], **options: Any) -> Any:
    """A DLPack capsule over the array's memory; `options` as numpy's `__dlpack__` takes them."""
    if array.dtype.name != "bfloat16":
        return array.__dlpack__(**options)
    capsule = array.view(np.uint16).__dlpack__(**options)
    name = _capsule_name(capsule)
    address = _capsule_pointer(capsule, name)
    ctypes.c_uint8.from_address(address + _TENSOR_OFFSETS[name] + _TYPE_CODE_OFFSET).value = KDL_BFLOAT
    return capsule


def _capsule_name(capsule: Any) -> bytes:
    function = ctypes.pythonapi.PyCapsule_GetName
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.py_object]
    name: bytes = function(capsule)
    return name


def _capsule_pointer(capsule: Any, name: bytes) -> int:
    function = ctypes.pythonapi.PyCapsule_GetPointer
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    pointer: int = function(capsule, name)
    return pointer
