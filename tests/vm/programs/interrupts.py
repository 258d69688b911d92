"""Waits for completions asleep, and says how many interrupts of the card the kernel has counted meanwhile."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sdk

ROUNDS = 50
FILLED_BYTES = 256 << 20


def counted(bus_address: str) -> int:
    """Interrupts of all vectors of the card so far, as /proc/interrupts has them."""
    total = 0
    for line in Path("/proc/interrupts").read_text().splitlines():
        if f"({bus_address})" in line:
            total += sum(int(word) for word in line.split()[1:] if word.isdigit())
    return total


def main() -> None:
    """Print {"rounds", "interrupts", "vectors", "iommu"}."""
    bus_address = sys.argv[1]
    with sdk.Device() as device:
        function = device._function
        function.may_spin = False
        before = counted(bus_address)
        memory = device.buffer((FILLED_BYTES,), "int8")
        with device.queue() as queue:
            for _ in range(ROUNDS):  # each takes longer than it takes to fall asleep
                queue.fill(memory, 0).wait()
        found = {
            "vectors": function.transport.interrupt_count(),
            "iommu": getattr(function.transport, "iommu_kind", None),
        }
        print(json.dumps({"rounds": ROUNDS, "interrupts": counted(bus_address) - before, **found}))


if __name__ == "__main__":
    main()
