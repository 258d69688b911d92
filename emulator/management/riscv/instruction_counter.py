"""Count of the instructions that a run of unicorn has begun, known at every moment of it.

Unicorn counts when it is asked to stop after a number of instructions, but tells nobody. `NativeCounter` finds that
counter inside unicorn's own structure by running known numbers of instructions, once for each hart; where this does not
work, `HookCounter` counts in Python, with the same results and a hundredth of the speed.

Either way the counter includes the instruction that is running, and a run that was ended by its limit has counted one
instruction more than it ran.
"""

from __future__ import annotations

import abc
import ctypes
import logging
import struct

import unicorn
from unicorn import unicorn_const

log = logging.getLogger("npu.emulator.management")

_SCRATCH_BASE = 0x0
_SCRATCH_BYTES = 0x1000
_LOOP = struct.pack("<II", 0x00000013, 0xFFDFF06F)  # nop; j -4
_NOWHERE = 0xFFFFFFFF
"""An address at which no instruction can begin, so no run ends at it."""
_CALIBRATION_RUNS = (1_009, 2_003, 757)


class InstructionCounter(abc.ABC):
    """The instructions begun since `begin`."""

    @abc.abstractmethod
    def begin(self, limit: int) -> int:
        """A run of at most `limit` instructions starts; what unicorn is to be asked for."""

    @abc.abstractmethod
    def value(self) -> int:
        """The instructions begun in this run."""

    @abc.abstractmethod
    def limit(self) -> int:
        """How many instructions this run may have."""

    @abc.abstractmethod
    def shorten(self, by: int) -> None:
        """The run may have so many instructions less; at the least it ends when the current one is over."""

    def end_now(self) -> None:
        """End the run when the current instruction is over."""
        self.shorten(self.limit())


class NativeCounter(InstructionCounter):
    """Unicorn's own counter and limit, in its memory."""

    def __init__(self, counter: ctypes.c_uint64, limit: ctypes.c_uint64) -> None:
        """Both lie inside unicorn's structure, which must outlive this object."""
        self._counter = counter
        self._limit = limit

    def begin(self, limit: int) -> int:
        """See `InstructionCounter`."""
        return limit

    def value(self) -> int:
        """See `InstructionCounter`."""
        return self._counter.value

    def limit(self) -> int:
        """See `InstructionCounter`."""
        return self._limit.value

    def shorten(self, by: int) -> None:
        """See `InstructionCounter`."""
        self._limit.value = max(self._limit.value - by, self._counter.value)


class HookCounter(InstructionCounter):
    """Counts in a hook of unicorn: slow, and free of knowledge about unicorn's inside."""

    def __init__(self, engine: unicorn.Uc) -> None:
        """Must be made before any other hook, or that hook sees an instruction behind the limit."""
        self._value = 0
        self._limit = 0
        engine.hook_add(unicorn_const.UC_HOOK_CODE, self._count)

    def begin(self, limit: int) -> int:
        """See `InstructionCounter`: unicorn itself counts nothing."""
        self._value = 0
        self._limit = limit
        return 0

    def value(self) -> int:
        """See `InstructionCounter`."""
        return self._value

    def limit(self) -> int:
        """See `InstructionCounter`."""
        return self._limit

    def shorten(self, by: int) -> None:
        """See `InstructionCounter`."""
        self._limit = max(self._limit - by, self._value)

    def _count(self, engine: unicorn.Uc, _address: int, _size: int, _data: object) -> None:
        self._value += 1
        if self._value > self._limit:
            engine.emu_stop()


def find_counter(engine: unicorn.Uc) -> InstructionCounter:
    """The best counter for an engine that has no memory and no hooks yet."""
    native = _find_native(engine)
    if native is not None:
        return native
    log.warning("this build of unicorn hides its instruction counter; the management core will be slow")
    return HookCounter(engine)


def _find_native(engine: unicorn.Uc) -> NativeCounter | None:
    usable_size = getattr(ctypes.CDLL(None), "malloc_usable_size", None)
    address = engine._uch.value
    if usable_size is None or address is None:
        return None
    usable_size.argtypes, usable_size.restype = [ctypes.c_void_p], ctypes.c_size_t
    size = usable_size(address)
    counters: set[int] = set(range(0, size - 7, 8))
    limits = set(counters)
    engine.mem_map(_SCRATCH_BASE, _SCRATCH_BYTES)
    engine.mem_write(_SCRATCH_BASE, _LOOP)
    for count in _CALIBRATION_RUNS:
        engine.emu_start(_SCRATCH_BASE, _NOWHERE, 0, count)
        words = memoryview(ctypes.string_at(address, size & ~7)).cast("Q")
        counters = {offset for offset in counters if words[offset // 8] == count + 1}
        limits = {offset for offset in limits if words[offset // 8] == count}
    engine.ctl_flush_tb()
    engine.mem_unmap(_SCRATCH_BASE, _SCRATCH_BYTES)
    if len(counters) != 1 or len(limits) != 1:
        return None
    at = ctypes.c_uint64.from_address
    return NativeCounter(at(address + counters.pop()), at(address + limits.pop()))
