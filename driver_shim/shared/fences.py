"""The four fences between host and device, in one place. Read `docs/wakeups.md` for where each one stands.

| fence | orders | where |
|---|---|---|
| `publish` | earlier stores before later stores (release) | entry before bell, completion body before its phase |
| `consume` | earlier loads before later loads (acquire) | phase before completion body, tail before entry |
| `full` | earlier stores before later loads (sequentially consistent) | shadow index before event index |
| `device_write` | ordinary stores before a store to mapped device memory | descriptor before doorbell register |

**The interpreter does not reorder.** CPython runs byte codes one by one; each store or load through a memoryview,
ctypes or numpy object is done inside an opaque C function that has finished when the next byte code starts, so a C
compiler has nothing to move across. What is left is the processor.

**x86-64** keeps loads among loads and stores among stores, and lets only a load overtake an earlier store to another
address (Intel SDM volume 3A, 8.2.2; AMD64 APM volume 2, 7.2). Stores to uncached memory, which is how BARs are mapped,
stay in order too. So three fences are empty calls and only `full` executes an instruction.

**AArch64** reorders all of it; every fence is a `DMB ISH`, which is what libatomic's `atomic_thread_fence` executes.
PCIe root complexes for Linux servers are coherent within the Inner Shareable domain (Arm Base System Architecture,
PCIe rules), so a device observes the stores before the bell.

Elsewhere the module imports, and calling any fence raises OSError(ENOTSUP).

`full` is libatomic's fence through `ctypes.PyDLL` (which keeps the interpreter lock: giving it up costs more than
the fence). Without libatomic it is `membarrier(2)` with GLOBAL_EXPEDITED, whose entry and exit are full barriers;
both sides register by importing this module. The PRIVATE_EXPEDITED form returns at once in a process with one thread,
without any barrier, and is of no use here.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

Fence = Callable[[], None]

MEMORY_ORDER_SEQ_CST = 5
"""C11's `memory_order_seq_cst` in the ABI of GCC and Clang."""

LIBATOMIC = "libatomic.so.1"

MEMBARRIER_GLOBAL_EXPEDITED = 1 << 1
MEMBARRIER_REGISTER_GLOBAL_EXPEDITED = 1 << 2
MEMBARRIER_SYSCALL = {"x86_64": 324, "aarch64": 283}
"""Linux's number of membarrier(2) for each machine type that can drive a device."""


class Fences(NamedTuple):
    """The fences of one machine type; each takes and returns nothing."""

    publish: Fence
    consume: Fence
    full: Fence
    device_write: Fence


def machine_type() -> str:
    """The kernel's name for this machine ("x86_64", "aarch64"); empty where this is not Linux."""
    return os.uname().machine if sys.platform == "linux" else ""


def libatomic_fence(library: str = LIBATOMIC) -> Fence:
    """A sequentially consistent fence from libatomic. Raises OSError where the library or function is missing."""
    try:
        function = ctypes.PyDLL(library).atomic_thread_fence
    except AttributeError as error:
        raise OSError(errno.ENOSYS, f"{library} has no atomic_thread_fence") from error
    # No argtypes: a Python int is passed as a C int anyway, and converting by prototype doubles the cost of the call.
    function.restype = None
    return functools.partial(function, MEMORY_ORDER_SEQ_CST)


def membarrier_fence(machine: str) -> Fence:
    """A full fence by system call, registered for this process. Raises OSError where the kernel has no such call."""
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    number = MEMBARRIER_SYSCALL[machine]
    # The registration belongs to the address space; a forked child inherits it.
    if system_call(number, MEMBARRIER_REGISTER_GLOBAL_EXPEDITED, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"membarrier(REGISTER_GLOBAL_EXPEDITED): {os.strerror(code)}")
    return functools.partial(system_call, number, MEMBARRIER_GLOBAL_EXPEDITED, 0, 0)


def no_instruction() -> None:
    """A fence that the processor keeps by itself (x86-64, see the module's text)."""


def unsupported(reason: str) -> Fence:
    """A fence that cannot be had: raises OSError(ENOTSUP, `reason`) when called."""

    def refuse() -> NoReturn:
        raise OSError(errno.ENOTSUP, reason)

    return refuse


def fences_for(machine: str) -> Fences:
    """The fences for a machine type as `machine_type` names it. Never raises: what is missing raises when called."""
    if machine not in MEMBARRIER_SYSCALL:
        reason = f"no memory fences for {machine or sys.platform}: only Linux on x86_64 and aarch64 can drive a device"
        return Fences(*[unsupported(reason)] * len(Fences._fields))
    full = _full_fence(machine)
    if machine == "x86_64":
        return Fences(no_instruction, no_instruction, full, no_instruction)
    return Fences(full, full, full, full)


def _full_fence(machine: str) -> Fence:
    try:
        return libatomic_fence()
    except OSError as no_library:
        try:
            return membarrier_fence(machine)
        except OSError as no_call:
            return unsupported(f"no full memory fence: {no_library}; {no_call} (install libatomic: package libatomic1)")


publish, consume, full, device_write = fences_for(machine_type())
