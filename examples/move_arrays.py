"""Copy an array to the device and back.

$ python examples/move_arrays.py
"""

import numpy as np

import sdk

with sdk.Device("emulator") as dev:
    x = dev.host_buffer((1024, 1024), "int8")  # memory that the device can reach; x.array is numpy's view of it
    x.array[...] = np.random.default_rng(0).integers(-128, 128, x.shape)
    w = dev.buffer((1024, 1024), "int8")  # the device's own memory
    back = dev.host_buffer((1024, 1024), "int8")
    with dev.queue() as q:
        q.copy(w, x)  # destination first; a queue runs its commands in order
        q.fill(w[:2], 7)  # slices of the first dimension are buffers, too
        done = q.copy(back, w)
        done.wait(timeout=10)
    assert (back.array[2:] == x.array[2:]).all() and (back.array[:2] == 7).all()
    print(f"{dev.info.name}: copied {back.nbytes} bytes, ticks {done.start_tick} to {done.end_tick}")
