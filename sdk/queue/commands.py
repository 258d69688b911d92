"""The commands of an I/O queue as methods: checked arguments in, a descriptor's values out."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from driver_shim.protocol.commands import BARRIER, COPY, FILL, NOP, PATTERN_SIZES, IoOpcode
from sdk.here_only import HereOnly
from sdk.memory.buffers import Span
from sdk.queue.completions import Completions
from sdk.queue.events import Event, T

_NOP, _BARRIER, _COPY, _FILL = (int(o) for o in (IoOpcode.NOP, IoOpcode.BARRIER, IoOpcode.COPY, IoOpcode.FILL))


class Commands(HereOnly, abc.ABC):
    """The commands, as methods; queues submit them, batches record them."""

    def __init__(self, completions: Completions) -> None:
        """`completions` is the queue's that the events belong to."""
        self._completions = completions

    @abc.abstractmethod
    def _issue(self, event: Event[T], codec: Any, opcode: int, values: tuple[Any, ...]) -> Event[T]:
        """Submit or record one command; returns its event."""

    def nop(self) -> Event[None]:
        """Do nothing; completes when everything before it has."""
        return self._issue(Event(self._completions, "nop"), NOP.codec, _NOP, ())

    def barrier(self) -> Event[None]:
        """Complete after everything before it in this queue."""
        return self._issue(Event(self._completions, "barrier"), BARRIER.codec, _BARRIER, ())

    def copy(self, destination: Span, source: Span) -> Event[None]:
        """Copy `source` to `destination` (buffers or contiguous slices) of equal shape and dtype.

        Raises TypeError for anything but our buffers, ValueError when shapes or dtypes differ, Closed when freed.
        """
        check_buffer(destination, "destination", self._completions.owner)
        check_buffer(source, "source", self._completions.owner)
        if destination.shape != source.shape or not _same_dtype(destination.dtype, source.dtype):
            raise ValueError(
                f"copy needs equal shapes and dtypes: destination {destination.shape} {destination.dtype},"
                f" source {source.shape} {source.dtype}"
            )
        there, here = destination._root, source._root
        values = (
            there._base_address() + destination._offset,
            here._base_address() + source._offset,
            source.nbytes,
            there._space,
            here._space,
        )
        event: Event[None] = Event(self._completions, "copy", (there, here))
        return self._issue(event, COPY.codec, _COPY, values)

    def fill(self, destination: Span, value: Any) -> Event[None]:
        """Set every element of `destination` to `value`, which its dtype must represent exactly.

        Raises TypeError, ValueError, Closed.
        """
        check_buffer(destination, "destination", self._completions.owner)
        pattern = exact_pattern(value, destination.dtype)
        values = (
            destination.address,
            destination.nbytes,
            destination._root._space,
            len(pattern),
            int.from_bytes(pattern, "little"),
        )
        event: Event[None] = Event(self._completions, "fill", (destination._root,))
        return self._issue(event, FILL.codec, _FILL, values)


def _same_dtype(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    return one is other or one == other  # comparing costs as much as the rest of a copy's checks


def check_buffer(thing: Any, role: str, owner: object) -> None:
    """Raise TypeError unless it is a buffer or a slice of one, ValueError unless `owner`, the queue's, is its too."""
    if isinstance(thing, Span):
        if thing._root._owner is not owner:
            raise ValueError(
                f"{role} is a buffer of {thing._root._owner!r}, the queue is one of {owner!r};"
                " devices do not share memory: copy through numpy arrays"
            )
        return
    if isinstance(thing, np.ndarray):
        raise TypeError(
            f"{role} is a numpy array, which the device cannot reach; put it into a host buffer:"
            f" b = dev.host_buffer({thing.shape}, {str(thing.dtype)!r}); b.array[...] = your_array"
        )
    raise TypeError(f"{role} must be a buffer of this device or a slice of one, got {type(thing).__name__}")


def exact_pattern(value: Any, dtype: np.dtype[Any]) -> bytes:
    """The bytes of `value` in `dtype`. Raises ValueError unless it is represented exactly, TypeError if no scalar."""
    if isinstance(value, (str, bytes)) or not (
        np.isscalar(value) or (isinstance(value, np.ndarray) and not value.ndim)
    ):
        raise TypeError(f"fill takes one number, got {type(value).__name__} {value!r}")
    if dtype.itemsize not in PATTERN_SIZES:
        raise TypeError(
            f"fill works on elements of {', '.join(map(str, PATTERN_SIZES))} bytes, {dtype} has {dtype.itemsize};"
            " copy from a host buffer instead"
        )
    try:
        with np.errstate(all="ignore"):
            given: Any = np.asarray(value).item()
            element = np.asarray(_without_zero_part(given, dtype)).astype(dtype)
            back: Any = element.item()
    except (OverflowError, ValueError, TypeError) as error:
        raise ValueError(f"fill: {value!r} is not a value of {dtype} ({error})") from None
    if not _same(given, back):
        raise ValueError(f"fill: {value!r} is not exactly representable in {dtype} (it would become {back!r})")
    return element.tobytes()


def _without_zero_part(given: Any, dtype: np.dtype[Any]) -> Any:
    """A complex number without imaginary part as a real one, for a real dtype. Raises ValueError if it has one."""
    if not isinstance(given, complex) or dtype.kind == "c":
        return given
    if given.imag:
        raise ValueError("it has an imaginary part")
    return given.real


def _same(given: Any, back: Any) -> bool:
    """Equal, where a NaN equals a NaN."""
    if isinstance(given, complex) or isinstance(back, complex):
        given, back = complex(given), complex(back)
        return _same(given.real, back.real) and _same(given.imag, back.imag)
    return bool(given == back) or bool(given != given and back != back)
