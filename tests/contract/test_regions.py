"""BARs over the raw bus: doorbells, aperture, memory enable, power states, bus mastering, interrupts, clocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from driver_shim.protocol import commands as c
from driver_shim.protocol.commands import FaultSource, Space
from driver_shim.protocol.config_space import (
    COMMAND_BUS_MASTER,
    COMMAND_MEMORY,
    D0,
    D3_HOT,
    POWER_MANAGEMENT,
)
from driver_shim.protocol.image_layout import ImageVersion
from driver_shim.protocol.registers import BAR0, BAR0_BYTES, BAR2, BAR4, IDENTITY
from driver_shim.transport.in_process import InProcessTransport
from emulator.chip.chip import Chip
from emulator.engines import executor
from emulator.engines.inline import InlineEngines
from emulator.function.function import PciFunction
from emulator.model.profile import load_profile
from tests.support.bus_client import BOTH, BusClient, fired, text

WIDTHS = (1, 2, 4, 8)
ODD_MEMORY_BYTES = 3 << 20
_PM_CONTROL = POWER_MANAGEMENT.offset + POWER_MANAGEMENT.layout.offset_of("control")


def test_regions_are_as_the_contract_says(bus: BusClient) -> None:
    regions = bus.transport.regions()
    assert regions[BAR0].size_bytes == BAR0_BYTES
    assert regions[BAR2].size_bytes == 4096 * (c.MAX_IO_QUEUES + 1)
    memory = bus.registers.device_memory_bytes.read()
    assert regions[BAR4].size_bytes == 1 << (memory - 1).bit_length()
    assert regions[BAR4].mappable == ((0, memory),)


def test_registers_and_doorbells_trap(bus: BusClient) -> None:
    regions = bus.transport.regions()
    assert not regions[BAR0].mappable
    assert not regions[BAR2].mappable


@pytest.mark.parametrize("width", WIDTHS)
def test_the_aperture_takes_every_width(bus: BusClient, width: int) -> None:
    value = 0x8877_6655_4433_2211 & (1 << 8 * width) - 1
    bus.transport.write(BAR4, 0x1000, value, width)
    assert bus.transport.read(BAR4, 0x1000, width) == value
    assert bus.transport.read(BAR4, 0x1000 + width, width) == 0


def test_mapped_aperture_and_dma_see_the_same_memory(bus: BusClient) -> None:
    queue = bus.enable().queue()
    mapped = bus.transport.map_region(BAR4, 0, 1 << 20)
    iova, view = bus.allocate(8192)
    view[:] = bytes(range(256)) * 32
    done = queue.run(c.COPY.build(opcode=1, destination=0x800, destination_space=Space.DEVICE, source=iova, size=8192))
    assert done[0].status == 0
    assert bytes(mapped[0x800 : 0x800 + 8192]) == bytes(view)
    assert bus.transport.read(BAR4, 0x801, 1) == 1
    mapped[0x900:0x904] = b"\xaa\xbb\xcc\xdd"
    assert bus.transport.read(BAR4, 0x900, 4) == 0xDDCC_BBAA
    queue.run(c.COPY.build(opcode=1, destination=iova, source=0x900, source_space=Space.DEVICE, size=4))
    assert bytes(view[:4]) == b"\xaa\xbb\xcc\xdd"


def test_beyond_device_memory_reads_are_ones_writes_are_dropped_and_both_are_recorded() -> None:
    """In process only: no profile that ships has a hole in its aperture."""
    profile = dataclasses.replace(load_profile("generic"), memory_bytes=ODD_MEMORY_BYTES)
    function = PciFunction(Chip(profile, lambda memory: InlineEngines(memory.view, executor)))
    transport = InProcessTransport(function, c.ResetCause.DEVICE_RESET)
    bus = BusClient(transport)
    bus.enable()
    assert transport.regions()[BAR4].size_bytes == 4 << 20
    assert transport.regions()[BAR4].mappable == ((0, ODD_MEMORY_BYTES),)
    for width in WIDTHS:
        before = bus.registers.fault_count.read()
        assert transport.read(BAR4, ODD_MEMORY_BYTES, width) == (1 << 8 * width) - 1
        transport.write(BAR4, ODD_MEMORY_BYTES, 0, width)
        assert bus.registers.fault_count.read() == before + 2
    transport.write(BAR4, ODD_MEMORY_BYTES - 4, 0x1234_5678, 4)
    transport.write(BAR4, ODD_MEMORY_BYTES - 4, 0, 8)  # half outside: dropped whole
    assert transport.read(BAR4, ODD_MEMORY_BYTES - 4, 8) == 0xFFFF_FFFF_1234_5678
    assert bus.registers.fault_status.aperture == 1
    assert bus.newest_error().source == FaultSource.APERTURE
    with pytest.raises(ValueError, match="cannot be mapped"):
        transport.map_region(BAR4, 0, 4 << 20)
    done = bus.queue().run(c.FILL.build(opcode=2, destination=ODD_MEMORY_BYTES, destination_space=1, pattern_size=1))
    assert done[0].status == 0  # of nothing, at the very end
    done = bus.queue(2).run(
        c.FILL.build(opcode=2, destination=ODD_MEMORY_BYTES, destination_space=1, pattern_size=1, size=1)
    )
    assert done[0].status == c.Status.DEVICE_ADDRESS_FAULT
    bus.close()
    transport.close()
    function.close()


def off_by_command(bus: BusClient, on: bool) -> None:
    bus.command(BOTH if on else COMMAND_BUS_MASTER)


def off_by_power(bus: BusClient, on: bool) -> None:
    bus.transport.config_write(_PM_CONTROL, (D0 if on else D3_HOT).to_bytes(2, "little"))


@pytest.mark.parametrize("switch", [off_by_command, off_by_power], ids=["memory decoding off", "D3hot"])
def test_a_function_that_does_not_decode_reads_ones_and_drops_writes(
    bus: BusClient, switch: Callable[[BusClient, bool], None]
) -> None:
    bus.enable()
    bus.registers.scratch.write(value=1)
    bus.transport.write(BAR4, 0, 2, 4)
    switch(bus, False)
    for region, offset in ((BAR0, 0), (BAR0, 0x8000), (BAR2, 0), (BAR4, 0), (BAR4, 0x12340)):
        for width in WIDTHS:
            assert bus.transport.read(region, offset, width) == (1 << 8 * width) - 1
    bus.transport.write(BAR0, 0x0A0, 7, 4)
    bus.transport.write(BAR4, 0, 7, 4)
    bus.transport.write(BAR2, 4096, 7, 4)
    assert bus.transport.config_read(0, 2) != b"\xff\xff"  # configuration space answers
    switch(bus, True)
    assert bus.registers.identity.read() == IDENTITY
    assert bus.registers.scratch.read() == 1  # no soft reset: what was there is there still
    assert bus.transport.read(BAR4, 0, 4) == 2
    assert bus.registers.status.ready == 1


def test_without_bus_mastering_there_is_no_dma_and_no_interrupt(bus: BusClient) -> None:
    queue = bus.enable().queue()
    eventfd = bus.interrupts([1])[1]
    queue.run(c.NOP.build())
    bus.wait_until(lambda: fired(eventfd) == 1, "interrupt")  # it follows the completion
    bus.command(COMMAND_MEMORY)
    assert bus.registers.status.bus_master == 0
    bus.registers.fault_status.write(dma=1)
    before = bytes(queue.completions)
    queue.put(c.NOP.build(command_id=5))
    queue.ring()
    bus.wait_until(lambda: bus.registers.fault_status.dma == 1, "fault")
    bus.settle()
    assert bytes(queue.completions) == before
    assert fired(eventfd) == 0
    bus.command(BOTH)
    assert queue.take()[0].command_id == 5
    bus.wait_until(lambda: fired(eventfd) > 0, "interrupt")
    entry = next(entry for entry in bus.errors() if "bus mastering is off" in text(entry))
    assert entry.source == FaultSource.DMA


def test_without_bus_mastering_the_controller_cannot_be_enabled(bus: BusClient) -> None:
    bus.set_admin_queue()
    bus.command(COMMAND_MEMORY)
    bus.registers.control.write(enable=1)
    assert bus.registers.status.fields() == {"ready": 0, "fatal": 0, "config_error": 1, "bus_master": 0}


# --- interrupts --------------------------------------------------------------------------------------------------


def test_without_an_interrupt_index_each_completion_interrupts(bus: BusClient) -> None:
    queue = bus.enable().queue()
    admin, own = bus.interrupts([0, 1]).values()
    fired(admin)  # what the creation of the queue left pending
    queue.run(c.NOP.build())
    bus.wait_until(lambda: fired(own) > 0, "interrupt")
    assert fired(admin) == 0
    bus.log_page(c.LogPage.ERRORS)
    bus.wait_until(lambda: fired(admin) > 0, "interrupt of the admin queue")


def test_an_interrupt_comes_only_when_its_index_is_passed(bus: BusClient) -> None:
    bus.enable()
    bus.configure_shadows()
    queue = bus.queue()
    eventfd = bus.interrupts([1])[1]
    assert queue.host_line is not None
    queue.host_line[2] = 2  # tell me of the third completion
    queue.run(c.NOP.build())
    queue.run(c.NOP.build())
    bus.settle()
    assert fired(eventfd) == 0
    bus.registers.interrupt_status.write(vectors=1)  # the admin queue's
    assert bus.registers.interrupt_status.vectors == 0
    queue.run(c.NOP.build())
    bus.wait_until(lambda: fired(eventfd) == 1, "interrupt")
    assert bus.registers.interrupt_status.vectors == 1 << 1
    queue.run(c.NOP.build())
    bus.settle()
    assert fired(eventfd) == 0  # the index was passed once


def test_interrupt_status_stays_until_it_is_cleared(bus: BusClient) -> None:
    queue = bus.enable().queue(5)
    bus.registers.interrupt_status.write(vectors=0xFFFF_FFFF)
    queue.run(c.NOP.build())
    bus.wait_until(lambda: bus.registers.interrupt_status.vectors == 1 << 5, "status bit")
    bus.registers.interrupt_status.write(vectors=1 << 4)
    assert bus.registers.interrupt_status.vectors == 1 << 5
    bus.registers.interrupt_status.write(vectors=1 << 5)
    assert bus.registers.interrupt_status.vectors == 0


def test_a_masked_vector_is_held_back_and_released(bus: BusClient) -> None:
    queue = bus.enable().queue()
    eventfd = bus.interrupts([1])[1]
    bus.registers.interrupt_mask.write(vectors=1 << 1)
    queue.run(*[c.NOP.build()] * 3)
    bus.wait_until(lambda: bus.registers.interrupt_status.vectors >> 1 & 1 == 1, "status bit")
    assert fired(eventfd) == 0
    bus.registers.interrupt_mask.write(vectors=0)
    bus.wait_until(lambda: fired(eventfd) == 1, "interrupt")
    bus.registers.interrupt_mask.write(vectors=1 << 1)
    bus.registers.interrupt_mask.write(vectors=0)
    bus.settle()
    assert fired(eventfd) == 0  # nothing happened meanwhile


# --- clocks and counters -----------------------------------------------------------------------------------------


def clocks(bus: BusClient) -> tuple[int, int]:
    """(ticks, wall nanoseconds) of one moment."""
    bus.registers.clock_snapshot.write(take=1)
    return bus.registers.tick_snapshot.read(), bus.registers.wall_snapshot.read()


def test_snapshots_stand_still_and_both_clocks_go_on(bus: BusClient) -> None:
    queue = bus.enable().queue()
    tick, wall = clocks(bus)
    for _ in range(20):
        completion = queue.run(c.NOP.build())[0]
        assert (bus.registers.tick_snapshot.read(), bus.registers.wall_snapshot.read()) == (tick, wall)
    later_tick, later_wall = clocks(bus)
    assert later_wall > wall
    assert tick <= completion.start_tick <= completion.end_tick <= later_tick


def test_idle_time_counts_in_ticks(bus: BusClient) -> None:
    hertz = bus.registers.tick_hertz.read()
    tick, wall = clocks(bus)
    bus.wait_until(lambda: clocks(bus)[1] - wall > 2_000_000, "two milliseconds")
    later_tick, later_wall = clocks(bus)
    passed = (later_wall - wall) * hertz // 1_000_000_000
    assert abs(later_tick - tick - passed) <= 1  # nothing ran: the clocks differ by rounding only


def test_counters_move_when_a_snapshot_is_taken(bus: BusClient) -> None:
    names = ("commands_completed", "bytes_moved", "busy_ticks")

    def read() -> list[int]:
        return [bus.registers[name].read() for name in names]

    queue = bus.enable().queue()
    bus.registers.counter_snapshot.write(take=1)
    before = read()
    done = queue.run(
        c.COPY.build(opcode=1, destination_space=1, source=bus.allocate(4096)[0], size=3000),
        c.FILL.build(opcode=2, destination_space=1, pattern_size=4, size=400),
        c.NOP.build(),
        c.NOP.build(opcode=0x60),
    )
    assert read() == before
    bus.registers.counter_snapshot.write(take=1)
    ticks = sum(one.end_tick - one.start_tick for one in done)
    assert [after - old for after, old in zip(read(), before, strict=True)] == [4, 3400, ticks]


def test_the_registers_say_what_identify_says(bus: BusClient) -> None:
    bus.enable()
    iova, view = bus.allocate(512)
    bus.admin(c.IDENTIFY, c.AdminOpcode.IDENTIFY, destination=iova, size=512)
    data = c.IDENTIFY_DATA.parse(bytes(view))
    registers = bus.registers
    assert registers.contract.fields() == {"major": data.contract_major, "minor": data.contract_minor}
    assert registers.features.read() == data.features
    assert registers.revision.read() == data.silicon_revision
    assert registers.device_memory_bytes.read() == data.memory_bytes
    assert registers.tick_hertz.read() == data.tick_hertz
    assert registers.capabilities.max_io_queues == data.max_io_queues
    assert 1 << registers.capabilities.max_queue_entries_log2 == data.max_queue_entries
    shown = registers.firmware_version.fields()
    said = bytes(data.firmware).rstrip(b"\0").decode()
    assert said in ("", str(ImageVersion(**shown)))  # the core may have come up since identify looked
