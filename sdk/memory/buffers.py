"""Buffers: shaped, typed pieces of host (DMA-able) and device memory, and contiguous slices of them."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from driver_shim.errors import BufferInUse, Closed
from driver_shim.function.dma import HostBlock
from driver_shim.protocol.commands import Space
from sdk.here_only import HereOnly
from sdk.memory.port import MemoryOwner

DEVICE_ALIGNMENT = 64
"""Device buffers begin on a cache line, as programs need their operands to."""
_MAX_RANK = 32


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """A numpy dtype; also by the name "bfloat16". Raises TypeError for types that have no fixed layout."""
    if isinstance(dtype, str) and dtype in ("bfloat16", "bf16"):
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if dtype is None:
        raise TypeError("dtype is missing; name one, such as 'int8' or 'float32'")
    result: np.dtype[Any] = np.dtype(dtype)
    if result.hasobject or result.itemsize == 0 or result.subdtype is not None:
        raise TypeError(f"dtype {result} has no fixed memory layout; use a numeric type such as 'int8' or 'float32'")
    return result


def as_shape(shape: Any) -> tuple[int, ...]:
    """A tuple of non-negative ints from an int or a sequence. Raises TypeError or ValueError."""
    sequence = (shape,) if isinstance(shape, (int, np.integer)) else shape
    try:
        result = tuple(int(extent) for extent in sequence if _is_int(extent))
    except TypeError:
        raise TypeError(f"shape must be an int or a tuple of ints, got {shape!r}") from None
    if len(result) > _MAX_RANK or any(extent < 0 for extent in result):
        raise ValueError(f"shape {shape!r}: extents must be 0 or more, at most {_MAX_RANK} of them")
    return result


def _is_int(extent: Any) -> bool:
    if isinstance(extent, bool) or not isinstance(extent, (int, np.integer)):
        raise TypeError
    return True


class Span(HereOnly):
    """A contiguous piece of a buffer: what copies and fills work on. Slicing it gives a smaller one."""

    def __init__(self, root: Buffer, offset: int, shape: tuple[int, ...]) -> None:
        self._whole = root
        self._describe(offset, shape, root.dtype)

    def _describe(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._offset = offset
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize

    @property
    def _root(self) -> Buffer:
        """The buffer that this is a piece of (a buffer is its own)."""
        return self._whole

    @property
    def address(self) -> int:
        """Bus address (host) or device address of the first byte. Raises Closed once freed."""
        return self._root._base_address() + self._offset

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a buffer without dimensions has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Span]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: Any) -> Span:
        """A contiguous slice `b[i:j]` along the first dimension, or one row `b[i]`."""
        if not self.shape:
            raise IndexError("a buffer without dimensions cannot be sliced")
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if isinstance(key, slice):
            start, stop, step = key.indices(self.shape[0])
            if step != 1:
                raise ValueError(f"slice step {key.step}: only contiguous slices b[i:j] can be copied")
            return Span(self._root, self._offset + start * row_bytes, (max(0, stop - start), *self.shape[1:]))
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            index = int(key) + (self.shape[0] if key < 0 else 0)
            if not 0 <= index < self.shape[0]:
                raise IndexError(f"index {key} is out of range for a first dimension of {self.shape[0]}")
            return Span(self._root, self._offset + index * row_bytes, self.shape[1:])
        raise TypeError(f"buffers take an int or a slice along the first dimension, got {key!r}")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self._root._array_at(self._offset, self.shape)
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"a {dtype} array of a {array.dtype} buffer needs a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __repr__(self) -> str:
        return f"<{type(self._root).__name__}{'' if self is self._root else ' slice'} {self.shape} {self.dtype}>"


class Buffer(Span):
    """What host and device buffers share: shape, dtype, address, freeing."""

    _space: Space
    """Which memory its addresses mean."""

    def __init__(self, owner: MemoryOwner, shape: tuple[int, ...], dtype: np.dtype[Any], address: int) -> None:
        self._owner = owner
        self._address: int | None = address
        self._describe(0, shape, dtype)

    @property
    def _root(self) -> Buffer:
        """Itself. Not an attribute: a buffer that referred to itself would not go when it is let go."""
        return self

    def _base_address(self) -> int:
        """Address of the first byte. Raises Closed once freed, or when the device was reset or closed."""
        if self._address is None:
            raise Closed(
                f"this {self!r} was freed, or its device was closed or reset",
                remedy="create a new buffer",
                code="closed",
            )
        return self._address

    def _array_at(self, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """The memory itself as an array. Raises TypeError for device memory, Closed once freed."""
        raise TypeError(
            f"{self!r} is device memory, which numpy cannot reach; copy it into a host buffer:"
            f" h = dev.host_buffer({self.shape}, {self.dtype.name!r}); q.copy(h, buffer).wait(); h.array"
        )

    @property
    def closed(self) -> bool:
        """Whether it was freed or invalidated."""
        return self._address is None

    def _invalidate(self) -> None:
        """The device behind it is gone or was reset."""
        self._address = None

    def _claim(self) -> bool:
        """Take the address away so that no further command can use the buffer; False if that was done before.

        Raises BufferInUse (and the buffer stays) while a command in flight uses it.
        """
        address = self._address
        if address is None:
            return False
        self._address = None
        if self._owner.uses(self):
            self._address = address
            raise BufferInUse(
                f"a command in flight uses this {self!r}",
                device=self._owner.address,
                subsystem="memory",
                remedy="wait for its event, then free it",
            )
        return True


class HostBuffer(Buffer):
    """DMA-able host memory; `array` is a zero-copy numpy view. Starts zeroed."""

    _space = Space.HOST

    def __init__(self, owner: MemoryOwner, shape: tuple[int, ...], dtype: np.dtype[Any], block: HostBlock) -> None:
        super().__init__(owner, shape, dtype, block.iova)
        self._block = block
        self._finalizer = weakref.finalize(self, owner.host_memory.abandon, block)
        self._finalizer.atexit = False

    @property
    def array(self) -> NDArray[Any]:
        """The memory itself as a numpy array of this shape and dtype. Raises Closed once freed."""
        return self._array_at(0, self.shape)

    def _array_at(self, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        self._base_address()
        return np.frombuffer(self._block.view, self.dtype, math.prod(shape), offset).reshape(shape)

    def free(self) -> None:
        """Give the memory back now. Raises BufferInUse while a command or a view of `array` uses it. Idempotent."""
        address = self._address
        if not self._claim():
            return
        try:
            self._owner.host_memory.free(self._block)
        except BufferInUse as error:
            self._address = address
            raise BufferInUse(
                f"an array or another view of this {self!r} is alive",
                device=self._owner.address,
                subsystem="memory",
                remedy="delete what came from .array, numpy or DLPack, then free it",
            ) from error
        self._finalizer.detach()

    def __dlpack__(self, **options: Any) -> Any:
        """DLPack capsule of the memory (CPU)."""
        from sdk.memory.dlpack import export

        return export(self.array, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """(kDLCPU, 0)."""
        return (1, 0)

    if sys.version_info >= (3, 12):

        def __buffer__(self, flags: int) -> memoryview:
            return memoryview(self.array)


class DeviceBuffer(Buffer):
    """Device memory. Its contents are unspecified until written."""

    _space = Space.DEVICE

    def __init__(self, owner: MemoryOwner, shape: tuple[int, ...], dtype: np.dtype[Any], address: int) -> None:
        super().__init__(owner, shape, dtype, address)
        self._finalizer = weakref.finalize(self, owner.device_memory.release, address)
        self._finalizer.atexit = False

    def free(self) -> None:
        """Give the memory back now. Raises BufferInUse while a command in flight uses it. Idempotent."""
        if self._claim():
            self._finalizer()
