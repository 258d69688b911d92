"""A register read over vfio-user: our server beside libvfio-user's, under the same client.

Both servers are bound to one processor and the client to another; rounds alternate, because what a wake-up costs here
changes by the minute.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.libvfio_user import PeerMissingError, sample, serving
from driver_shim.protocol.config_space import COMMAND_MEMORY, COMMAND_OFFSET
from driver_shim.protocol.registers import BAR0, REGISTERS
from driver_shim.transport.vfio_user import VfioUserTransport
from sdk.cli.measurements import timed_rounds, warm_up
from sdk.opening.private_emulator import PrivateEmulator

PEER = "libvfio-user"
ROUNDS, READS, WARM_UP_S = 9, 2_000, 0.1
PAUSED_READS = 25
ASLEEP_S = 20e-3
"""Our server looks for more work for 1 ms after the last; then it sleeps, as the peer always does between messages.
Long beside that millisecond, lest a loaded machine's scheduler takes a server that was asleep for a busy one."""
SHARE_OF_PEER = 1.5
_KINDS = (("trapped read", 0.0, SHARE_OF_PEER), ("trapped read of a sleeper", ASLEEP_S, None))
_WIDTH = 4
_PEER_SAMPLE, _PEER_REGION, _PEER_OFFSET = "gpio-pci-idio-16", 2, 0
"""A device whose BAR2 does next to nothing when it is read."""


def missing() -> str | None:
    """Why there is no peer to measure beside; None when there is one."""
    try:
        sample(_PEER_SAMPLE)
    except PeerMissingError as error:
        return str(error)
    return None


def figures() -> list[Figure]:
    """All figures of this topic; without the peer, ours alone."""
    with ExitStack() as cleanup:
        processors = sorted(os.sched_getaffinity(0))
        cleanup.callback(os.sched_setaffinity, 0, processors)
        ours = cleanup.enter_context(_our_read(processors[-1]))
        theirs = None if missing() else cleanup.enter_context(_their_read(processors[-1]))
        os.sched_setaffinity(0, processors[:1])
        reads = [ours] if theirs is None else [ours, theirs]
        found = []
        for name, pause_s, budget in _KINDS:
            p50s = _medians(reads, pause_s)
            peer = p50s[1] if theirs else None
            found.append(Figure(f"{name}, p50", p50s[0], "µs", PEER if peer else None, peer))
            if peer:
                found.append(Figure(f"{name} over {PEER}", p50s[0] / peer, "×", budget=budget))
        return found


def _medians(reads: Sequence[Callable[[], int]], pause_s: float) -> list[float]:
    """Of each server, the median round's median read, `pause_s` after the one before."""
    rounds: list[list[float]] = [[] for _ in reads]
    for _ in range(ROUNDS):
        for medians, read in zip(rounds, reads, strict=True):
            if pause_s:
                medians.append(statistics.median(_paused(read, pause_s)))
            else:
                warm_up(read, WARM_UP_S)
                medians.append(statistics.median(timed_rounds(read, READS)))
    return [statistics.median(medians) for medians in rounds]


def _paused(read: Callable[[], int], pause_s: float) -> Iterator[float]:
    for _ in range(PAUSED_READS):
        time.sleep(pause_s)
        yield from timed_rounds(read, 1)


@contextmanager
def _our_read(processor: int) -> Iterator[Callable[[], int]]:
    emulator = PrivateEmulator("generic", "numpy")
    try:
        transport = VfioUserTransport.from_socket(emulator.socket)
        try:
            os.sched_setaffinity(emulator.pid, {processor})
            transport.config_write(COMMAND_OFFSET, COMMAND_MEMORY.to_bytes(2, "little"))
            offset = REGISTERS["identity"].offset
            yield lambda: transport.read(BAR0, offset, _WIDTH)
        finally:
            transport.close()
    finally:
        emulator.stop()


@contextmanager
def _their_read(processor: int) -> Iterator[Callable[[], int]]:
    with tempfile.TemporaryDirectory() as folder, serving(_PEER_SAMPLE, Path(folder)) as served:
        os.sched_setaffinity(served.process.pid, {processor})
        transport = VfioUserTransport.connect(served.path)
        try:
            yield lambda: transport.read(_PEER_REGION, _PEER_OFFSET, _WIDTH)
        finally:
            transport.close()
