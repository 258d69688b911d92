"""Submit thousands of descriptors at once, as one numpy array.

$ python examples/raw_descriptors.py
"""

import numpy as np

import sdk

FILL, DEVICE = 0x02, 1  # opcode, and the number of device memory as a space

with sdk.Device("emulator") as dev, dev.queue(depth=1024) as q:
    there, host = dev.buffer(10_000, "uint32"), dev.host_buffer(10_000, "uint32")
    fills = np.zeros(10_000, sdk.DESCRIPTOR)  # begin with zeros: reserved bytes must be
    fills["opcode"], fills["size"], fills["pattern_size"] = FILL, 4, 4
    fills["destination_space"] = DEVICE
    fills["destination"] = there.address + 4 * np.arange(10_000)
    fills["pattern"] = np.arange(10_000) ** 2
    statuses = q.submit(fills, keep=(there,)).result()  # one event for all; raises CommandFailed with the first index
    q.copy(host, there).wait()
    assert not statuses.any() and (host.array == np.arange(10_000) ** 2).all()
    print(f"{len(statuses)} descriptors done")
