"""Four threads that submit and wait without pause, while the device is reset or taken away under them.

`python storm.py resets N`: the main thread resets the device N times; the threads carry on after each.
`python storm.py until-lost [quietly]`: until the device is lost, which every thread must be told. "Quietly" leaves
register accesses out, so that the device's end meets none half way.
"""

from __future__ import annotations

import collections
import json
import sys
import threading
import time

import numpy as np

import sdk

THREADS = 4
BYTES = 64 << 10
TURN_S = 0.05
AFTERMATH_S = 10.0
"""How long the program goes on after the loss: it must live, whatever it still touches."""


class Storm:
    """The threads and what they have met."""

    def __init__(self, device: sdk.Device) -> None:
        self.device = device
        self.quiet = "quietly" in sys.argv
        self.stop = threading.Event()
        self.commands = 0
        self.errors: collections.Counter[str] = collections.Counter()
        self._threads = [threading.Thread(target=self._work) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the threads."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self.stop.is_set():
            try:
                self._one_queue()
            except sdk.DeviceLost:
                self.errors["device-lost"] += 1
                return
            except (sdk.CommandFailed, sdk.Closed) as error:
                self.errors[error.code] += 1

    def _one_queue(self) -> None:
        device = self.device
        host, far = device.host_buffer((BYTES,), "int8"), device.buffer((BYTES,), "int8")
        with device.queue(depth=64) as queue:
            while not self.stop.is_set():
                host.array[:] = 7
                queue.copy(far, host)
                queue.fill(far[:64], 1)
                queue.copy(host, far).wait()
                if not np.array_equal(host.array[:65], [1] * 64 + [7]):
                    raise AssertionError(f"wrong data: {host.array[:65]}")
                if not self.quiet:
                    device.registers.scratch.write(value=1)
                    device.registers.identity.read()
                self.commands += 3


def resets(count: int) -> None:
    """Reset under the threads; then show that the device is as good as new."""
    with sdk.Device() as device:
        storm = Storm(device)
        for _ in range(count):
            time.sleep(TURN_S)
            device.reset()
        time.sleep(TURN_S)
        storm.stop.set()
        storm.join()
        with device.queue() as queue:
            queue.nop().wait()
        print(json.dumps({"resets": count, "commands": storm.commands, "errors": storm.errors}))


def until_lost() -> None:
    """Say that the storm is on, then what became of it and how submitting afterwards ends."""
    device = sdk.Device()
    aperture = device._function.transport.map_region(4, 0, 1 << 20)
    storm = Storm(device)
    while not storm.commands:
        time.sleep(TURN_S)
    print("running", flush=True)
    began = time.monotonic()
    storm.join()
    seconds = time.monotonic() - began
    after = "nothing"
    try:
        device.queue()
    except sdk.NpuError as error:
        after = error.code
    until = time.monotonic() + AFTERMATH_S / 10
    while time.monotonic() < until:
        aperture[:4] = bytes(aperture[4:8])
    document = {"errors": storm.errors, "after": after, "seconds": seconds, "commands": storm.commands}
    print(json.dumps(document), flush=True)
    device.close()


if __name__ == "__main__":
    if sys.argv[1] == "resets":
        resets(int(sys.argv[2]))
    else:
        until_lost()
