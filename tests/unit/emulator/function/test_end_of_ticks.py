"""A device whose tick counter is full stands still in ticks and works on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from driver_shim.protocol import commands as c
from driver_shim.transport.in_process import InProcessTransport
from emulator.chip.chip import Chip
from emulator.engines import executor
from emulator.engines.inline import InlineEngines
from emulator.function.function import PciFunction
from emulator.model.clock import LAST_TICK
from emulator.model.profile import load_profile
from tests.support.bus_client import BOTH, MEMORY_BYTES, BusClient

FAST_HZ = 1 << 62
"""So fast that four seconds fill the counter."""


@pytest.mark.parametrize("count", [1, 7, 12])
def test_ticks_stop_at_the_largest_number(count: int) -> None:
    wall = 0
    profile = dataclasses.replace(load_profile("generic"), tick_hz=FAST_HZ, memory_bytes=1 << 20)
    chip = Chip(profile, lambda memory: InlineEngines(memory.view, executor), wall_ns=lambda: wall)
    function = PciFunction(chip)
    transport = InProcessTransport(function, c.ResetCause.DEVICE_RESET)
    bus = BusClient(transport).enable()
    queue = bus.queue()
    wall = 3_999_999_999  # nearly there
    assert queue.run(c.NOP.build())[0].end_tick < LAST_TICK
    wall = 5_000_000_000
    done = queue.run(*[c.NOP.build()] * count, c.FILL.build(opcode=2, destination_space=1, pattern_size=1, size=4096))
    assert [one.status for one in done] == [0] * (count + 1)
    assert (done[-1].start_tick, done[-1].end_tick) == (LAST_TICK, LAST_TICK)
    bus.registers.clock_snapshot.write(take=1)
    assert bus.registers.tick_snapshot.read() == LAST_TICK
    assert queue.run(c.NOP.build(opcode=0x60))[0].status == c.Status.INVALID_OPCODE
    assert bus.newest_error().tick == LAST_TICK
    function.chip.counters.busy_ticks = LAST_TICK + 5
    bus.registers.counter_snapshot.write(take=1)
    assert bus.registers.busy_ticks.read() == LAST_TICK
    assert c.ACTIVITY_LOG.parse(bus.log_page(c.LogPage.ACTIVITY, 128)).busy_ticks == LAST_TICK
    function.client_lost()  # a black box with all of this in it
    assert np.frombuffer(function.chip.black_box[: c.BLACK_BOX.size], c.BLACK_BOX.dtype)["tick"][0] == LAST_TICK
    transport.dma_map(bus.file, 0, 0x1_0000_0000, MEMORY_BYTES)
    bus.command(BOTH)
    bus.close()
    transport.close()
    function.close()
