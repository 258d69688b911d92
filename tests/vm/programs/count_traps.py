"""Counts the register accesses that submissions cost: none while the device is busy, one for each time it wakes.

`python count_traps.py N`: besides a busy stretch, N commands one by one, each to a device that has fallen asleep.
"""

from __future__ import annotations

import collections
import json
import sys
import time

import numpy as np

import sdk
from driver_shim.protocol import commands as c
from driver_shim.protocol.registers import BAR2, CQ_HEAD_DOORBELL, DOORBELL_PAGE_BYTES, SQ_TAIL_DOORBELL
from driver_shim.transport.base import Transport

SUBMISSIONS = 10_000
BUSY_BYTES = 8 << 20
"""Filling as much takes so long that half a queue outlasts what a guest needs to fill the other half."""
ASLEEP_S = 2.0
"""Far longer than the device looks for more work after the last, even where it is starved meanwhile."""


_NAMES = {SQ_TAIL_DOORBELL: "bells", CQ_HEAD_DOORBELL: "head bells"}


class Counter:
    """Counts what passes a transport's `read` and `write`."""

    def __init__(self, transport: Transport) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        read, write = transport.read, transport.write

        def counted_read(region: int, offset: int, width: int) -> int:
            self.counts["reads"] += 1
            return read(region, offset, width)

        def counted_write(region: int, offset: int, value: int, width: int) -> None:
            self.counts[_NAMES.get(offset % DOORBELL_PAGE_BYTES, "?") if region == BAR2 else "other writes"] += 1
            write(region, offset, value, width)

        transport.read = counted_read  # type: ignore[method-assign]
        transport.write = counted_write  # type: ignore[method-assign]

    def take(self) -> dict[str, int]:
        """What was counted since the last call."""
        taken, self.counts = dict(self.counts), collections.Counter()
        return taken


def main() -> None:
    """Print both counts as one JSON object."""
    lone = int(sys.argv[1])
    with sdk.Device() as device, device.queue(depth=4096) as queue:
        counter = Counter(device._function.transport)
        memory = device.buffer((BUSY_BYTES,), "int8")
        queue.nop().wait()
        time.sleep(ASLEEP_S)
        counter.take()
        fill = c.FILL.build(
            opcode=int(c.IoOpcode.FILL),
            destination=memory.address,
            destination_space=c.Space.DEVICE,
            size=BUSY_BYTES,
            pattern_size=1,
        )
        queue.submit(np.frombuffer(fill * SUBMISSIONS, sdk.DESCRIPTOR), keep=(memory,)).wait()
        busy = counter.take()
        for _ in range(lone):
            time.sleep(ASLEEP_S)
            queue.nop().wait()
        print(json.dumps({"submissions": SUBMISSIONS, "busy": busy, "lone": counter.take()}))


if __name__ == "__main__":
    main()
