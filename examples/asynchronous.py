"""Await commands of several queues in one event loop, without a thread.

$ python examples/asynchronous.py
"""

import asyncio

import sdk


async def worker(dev: sdk.Device, number: int) -> int:
    host, there = dev.host_buffer(1 << 20, "uint8"), dev.buffer(1 << 20, "uint8")
    with dev.queue(depth=16) as q:
        for value in range(8):
            q.fill(there, value)
            await q.copy(host, there)
    return number * int(host.array[0])


async def main() -> None:
    with sdk.Device("emulator") as dev:
        results = await asyncio.gather(*[worker(dev, number) for number in range(4)])
    assert results == [0, 7, 14, 21]
    print(results)


asyncio.run(main())
