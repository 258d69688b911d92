"""Holds the device with so much host memory: `python hold.py MIB FILE [idle]` until FILE is there.

With "idle" it touches the device no more once it has it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import sdk

POLL_S = 0.05


def main() -> None:
    """Say "holding" once the device can reach all of it, and has read it."""
    mib, release = int(sys.argv[1]), Path(sys.argv[2])
    with sdk.Device() as device, device.queue() as queue:
        if mib:
            far = device.buffer((mib << 20,), "int8")
            host = device.host_buffer((mib << 20,), "int8")
            began = time.monotonic()
            host.array[:] = 1
            queue.copy(far, host).wait()
            print(f"copied in {time.monotonic() - began:.2f} s")
        print("holding", flush=True)
        while not release.exists():
            time.sleep(POLL_S)
            if sys.argv[3:] != ["idle"]:
                queue.nop().wait()


if __name__ == "__main__":
    main()
