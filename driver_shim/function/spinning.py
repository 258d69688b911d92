"""Spinning without starving: how a wait passes the time between two looks at a completion ring.

For its first QUIET_SPIN_S a wait looks again and again without letting go of the CPU. Then it yields between looks, and
sleeps once that shows that somebody else needs the CPU: a yield beside a busy neighbour gives away a whole slice, while
a thread that wakes up is run at once.
"""

from __future__ import annotations

import os
import time

from driver_shim.transport.base import Transport

CROWDED_TURN_S = 4e-6
"""A yield takes 0.5 µs; one that takes longer gave the CPU to somebody who used it."""
MISSES = 8
"""So many quiet spins that saw nothing, and the device, if it is a process, may be waiting for our CPU."""
FIRST_LOOK_S, LONGEST_LOOK_S = 5e-3, 1.0
"""Between two looks at who runs where, each some 20 µs: soon again where it helped, rarely where it does not."""
_CPU_FIELD = 36
"""Field 39 of /proc/PID/stat, "processor" (proc(5)), counted from the one behind the name in parentheses."""


class Spinner:
    """How one queue's waits pass the time."""

    def __init__(self, transport: Transport) -> None:
        self._progress = transport.progress
        self._peer_pid = transport.peer_pid
        self._misses = 0
        self._next_look = 0.0
        self._interval = FIRST_LOOK_S

    def yields(self) -> bool:
        """Yield the CPU once; False if somebody else needs it, so that the wait had better sleep."""
        began = time.monotonic()
        self._progress()
        return time.monotonic() - began < CROWDED_TURN_S

    def missed(self, now: float) -> None:
        """A quiet spin saw nothing until `now`, of the monotonic clock."""
        self._misses += 1
        if self._peer_pid is None or self._misses < MISSES or now < self._next_look:
            return
        self._misses = 0
        self._interval = FIRST_LOOK_S if part_from(self._peer_pid) else min(2 * self._interval, LONGEST_LOOK_S)
        self._next_look = now + self._interval


def part_from(pid: int) -> bool:
    """Move process `pid` to another CPU if its main thread is on this thread's; whether that was done.

    Two processes that wait for each other in turns keep one CPU as busy as one process would, so a scheduler sees no
    reason to part them. The CPUs that the process may use are the same afterwards.
    """
    try:
        here = _last_cpu("thread-self")
        if _last_cpu(str(pid)) != here:
            return False
        allowed = os.sched_getaffinity(pid)
        elsewhere = allowed - {here}
        if not elsewhere:
            return False
        try:
            os.sched_setaffinity(pid, elsewhere)
        finally:
            os.sched_setaffinity(pid, allowed)
    except (OSError, ValueError, IndexError):  # it is gone, another user's, or there is no /proc
        return False
    return True


def _last_cpu(process: str) -> int:
    """The CPU that a process's main thread, or a thread, ran on last."""
    with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[_CPU_FIELD])
