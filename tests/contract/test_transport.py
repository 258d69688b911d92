"""What the transport interface promises beyond registers, alike on every transport."""

from __future__ import annotations

import os

import pytest

from driver_shim.protocol import commands as c
from driver_shim.protocol.config_space import COMMAND_MEMORY, DEVICE_CONTROL_INITIATE_FLR
from driver_shim.protocol.registers import BAR0, BAR4
from driver_shim.transport.mapping import create_memory_file
from tests.contract.test_reset_matrix import DEVICE_CONTROL
from tests.support.bus_client import BOTH, MEMORY_BYTES, MEMORY_IOVA, PAGE_BYTES, BusClient

ELSEWHERE = 0x7_0000_0000


@pytest.mark.parametrize(
    ("iova", "size"),
    [
        (MEMORY_IOVA, MEMORY_BYTES),
        (MEMORY_IOVA + PAGE_BYTES, PAGE_BYTES),
        (MEMORY_IOVA - PAGE_BYTES, 2 * PAGE_BYTES),
        (ELSEWHERE + 1, PAGE_BYTES),
        (ELSEWHERE, 100),
        (ELSEWHERE, 0),
        (ELSEWHERE, 2 * MEMORY_BYTES),
        ((1 << 64) - PAGE_BYTES, 2 * PAGE_BYTES),
    ],
)
def test_dma_maps_that_cannot_be_are_refused_and_change_nothing(bus: BusClient, iova: int, size: int) -> None:
    with pytest.raises(ValueError):
        bus.transport.dma_map(bus.file, 0, iova, size)
    bus.enable()
    assert bus.queue().run(c.NOP.build())[0].status == 0


def test_unmapping_takes_exactly_what_was_mapped(bus: BusClient) -> None:
    for iova, size in ((ELSEWHERE, PAGE_BYTES), (MEMORY_IOVA, PAGE_BYTES), (MEMORY_IOVA + PAGE_BYTES, PAGE_BYTES)):
        with pytest.raises(ValueError):
            bus.transport.dma_unmap(iova, size)
    bus.enable()
    bus.map(bus.file, ELSEWHERE, PAGE_BYTES)
    bus.unmap(ELSEWHERE)
    bus.map(bus.file, ELSEWHERE, PAGE_BYTES)


def test_the_last_page_of_the_bus_can_be_mapped(bus: BusClient) -> None:
    fd = create_memory_file(PAGE_BYTES)
    last = (1 << 64) - PAGE_BYTES
    bus.map(fd, last, PAGE_BYTES)
    queue = bus.enable().queue()
    done = queue.run(
        c.FILL.build(opcode=2, destination=last, size=PAGE_BYTES, pattern_size=1, pattern=0x5A),
        c.FILL.build(opcode=2, destination=last, size=PAGE_BYTES + 1, pattern_size=1, pattern=0xFF),
    )
    assert [one.status for one in done] == [0, c.Status.DMA_FAULT]
    assert os.pread(fd, PAGE_BYTES, 0) == b"\x5a" * PAGE_BYTES
    os.close(fd)


def test_accesses_outside_a_region_never_reach_the_device(bus: BusClient) -> None:
    before = bus.registers.fault_count.read()
    for region in (BAR0, BAR4):
        size = bus.transport.regions()[region].size_bytes
        for offset, width in ((size, 4), (size - 2, 4), (-4, 4), (0, 0)):
            with pytest.raises(ValueError):
                bus.transport.read(region, offset, width)
            with pytest.raises(ValueError):
                bus.transport.write(region, offset, 0, width)
    for offset, width in ((4096, 1), (4094, 4), (-1, 1)):
        with pytest.raises(ValueError):
            bus.transport.config_read(offset, width)
    assert bus.registers.fault_count.read() == before


def test_an_idle_device_records_nothing_when_bus_mastering_goes_off(bus: BusClient) -> None:
    bus.enable()
    bus.configure_shadows()
    queue = bus.queue()
    assert queue.host_line is not None
    queue.run(c.NOP.build())
    queue.put(c.NOP.build())
    queue.host_line[0] = queue.tail  # found by a device that polls; its doorbell now lags behind
    bus.settle()
    queue.ring()
    queue.take()
    for _ in range(3):
        queue.put(c.NOP.build())
        queue.host_line[0] = queue.tail
        bus.bell(0, 0, bus.admin_queue.tail if bus.admin_queue else 0)  # wakes it without telling of this queue
        queue.take()
    before = bus.registers.fault_count.read()
    bus.command(COMMAND_MEMORY)
    bus.settle()
    assert bus.registers.fault_count.read() == before
    bus.command(BOTH)
    assert queue.run(c.NOP.build())[0].status == 0


@pytest.mark.parametrize("flr", [False, True], ids=["DEVICE_RESET", "FLR"])
def test_a_reset_forgets_a_refused_enable(bus: BusClient, flr: bool) -> None:
    bus.registers.control.write(enable=1)
    assert bus.registers.status.config_error == 1
    if flr:
        bus.transport.config_write(DEVICE_CONTROL, DEVICE_CONTROL_INITIATE_FLR.to_bytes(2, "little"))
    else:
        bus.transport.reset()
    bus.command(BOTH)
    assert bus.registers.status.fields() == {"ready": 0, "fatal": 0, "config_error": 0, "bus_master": 1}
