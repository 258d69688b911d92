"""Queues that have more to do than any machine that runs tests may stall."""

from __future__ import annotations

import numpy as np

import sdk
from driver_shim.protocol.commands import IoOpcode, Space

FILLS = 200
"""Of half a gigabyte each the emulator needs twenty seconds for so many."""


def occupied(device: sdk.Device, buffer: sdk.DeviceBuffer) -> tuple[sdk.Queue, sdk.Event[np.ndarray]]:
    """A queue that fills the buffer over and over, and the event of all of that. To be closed, not drained."""
    queue = device.queue()
    fills = np.zeros(FILLS, sdk.DESCRIPTOR)
    fills["opcode"], fills["pattern_size"] = IoOpcode.FILL, 1
    fills["destination_space"], fills["destination"] = Space.DEVICE, buffer.address
    fills["size"] = buffer.nbytes
    return queue, queue.submit(fills, keep=buffer)
