"""Rings over the raw bus: with and without shadow lines, full, hostile, deleted, unmapped under the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from driver_shim.protocol import commands as c
from driver_shim.protocol.commands import AdminOpcode, FaultSource, Status
from driver_shim.protocol.registers import BAR2
from tests.support.bus_client import MEMORY_BYTES, MEMORY_IOVA, PAGE_BYTES, BusClient, RawQueue, text

both_kinds = pytest.mark.parametrize("shadows", [False, True], ids=["doorbells", "shadows"])


def make(
    bus: BusClient, shadows: bool, queue_id: int = 1, entries: int = 16, completions: int | None = None
) -> RawQueue:
    """A queue of an enabled controller."""
    if bus.admin_queue is None:
        bus.enable()
    if shadows and bus.shadows is None:
        bus.configure_shadows()
    return bus.queue(queue_id, entries, completions)


def nops(count: int, first: int = 0) -> list[bytes]:
    """Entries whose command ids count up."""
    return [c.NOP.build(command_id=(first + at) & 0xFFFF) for at in range(count)]


@both_kinds
def test_commands_complete_in_order_over_many_laps(bus: BusClient, shadows: bool) -> None:
    queue = make(bus, shadows, entries=4, completions=2)
    for lap in range(50):
        done = queue.run(*nops(2, 2 * lap))
        assert [(one.command_id, one.status) for one in done] == [(2 * lap, 0), (2 * lap + 1, 0)]
        assert done[-1].submission_head == 2 * lap + 2


def test_a_client_that_configures_no_shadows_is_served_by_its_doorbells(bus: BusClient) -> None:
    queue = make(bus, shadows=False)
    assert [one.status for one in queue.run(*nops(10))] == [0] * 10


def test_queues_created_before_shadows_were_configured_keep_their_doorbells(bus: BusClient) -> None:
    old = make(bus, shadows=False)
    bus.configure_shadows()
    new = bus.queue(2)
    assert new.host_line is not None
    assert old.run(c.NOP.build())[0].status == 0
    assert new.run(c.NOP.build())[0].status == 0


@both_kinds
def test_rings_scattered_page_by_page_are_rings_all_the_same(bus: BusClient, shadows: bool) -> None:
    """64 KiB of submissions in 16 pages that lie anywhere: what a guest behind an IOMMU has."""
    bus.scatter()
    queue = make(bus, shadows, entries=1024, completions=2048)
    for lap in range(5):
        done = queue.run(*nops(1000, 1000 * lap))
        assert [one.command_id for one in done] == list(range(1000 * lap, 1000 * lap + 1000))
        assert {one.status for one in done} == {Status.SUCCESS}
    source, data = bus.allocate(3 * PAGE_BYTES)
    target, copied = bus.allocate(3 * PAGE_BYTES)
    data[:] = bytes(range(256)) * (3 * PAGE_BYTES // 256)
    copy = c.COPY.build(opcode=1, destination=target, source=source, size=3 * PAGE_BYTES)
    assert queue.run(copy)[0].status == Status.SUCCESS
    assert copied == data


def test_a_queue_halts_when_one_page_of_its_scattered_ring_is_taken_back_and_the_others_serve_on(
    bus: BusClient,
) -> None:
    bus.scatter()
    queue, other = make(bus, True, entries=1024), make(bus, True, 2, entries=1024)
    queue.run(*nops(2))
    bus.unmap(queue.submission_iova + 9 * PAGE_BYTES)
    assert [one.status for one in other.run(*nops(1000))] == [0] * 1000
    queue.put(*nops(1))
    queue.ring()
    bus.settle()
    assert not queue.ready()
    assert "queue 1 halted" in text(bus.newest_error())


@both_kinds
def test_what_the_doorbell_did_not_tell_is_not_fetched(bus: BusClient, shadows: bool) -> None:
    queue = make(bus, shadows)
    queue.put(*nops(3))
    queue.ring(2)
    assert len(queue.take(2)) == 2
    bus.settle()
    assert not queue.ready()
    queue.ring()
    assert queue.take()[0].command_id == 2


@both_kinds
def test_a_full_completion_ring_stalls_fetching_and_nothing_is_overwritten(bus: BusClient, shadows: bool) -> None:
    queue = make(bus, shadows, entries=16, completions=4)
    queue.put(*nops(10))
    queue.ring()
    bus.wait_until(lambda: queue.ready(3), "four completions")
    full = bytes(queue.completions)
    bus.settle()
    assert bytes(queue.completions) == full
    assert c.COMPLETION.parse(full[-c.COMPLETION_BYTES :]).submission_head == 4  # the fifth was not even fetched
    taken = queue.take(2, publish=False)
    queue.publish_head()
    bus.wait_until(lambda: queue.ready(3), "two more completions")
    bus.settle()
    taken += queue.take(4)
    taken += queue.take(4)
    assert [one.command_id for one in taken] == list(range(10))


HOSTILE: dict[str, Callable[[RawQueue], None]] = {
    "tail far ahead": lambda queue: queue.ring(queue.tail + 1000),
    "tail one too far": lambda queue: queue.ring(queue.tail + queue.entries + 1),
    "tail before the head": lambda queue: queue.ring((queue.tail - 1) & 0xFFFF_FFFF),
    "head ahead of the completions": lambda queue: reap_and_ring(queue, queue.head + 1),
    "head far behind": lambda queue: reap_and_ring(queue, (queue.head - queue.completion_entries - 1) & 0xFFFF_FFFF),
}


def reap_and_ring(queue: RawQueue, head: int) -> None:
    """Claim to have reaped up to `head`, then submit."""
    queue.publish_head(head)
    queue.ring(queue.tail + 1)


@both_kinds
@pytest.mark.parametrize("how", HOSTILE)
def test_an_impossible_pointer_halts_that_queue_alone(bus: BusClient, shadows: bool, how: str) -> None:
    queue, other = make(bus, shadows), make(bus, shadows, 2)
    HOSTILE[how](queue)
    bus.wait_until(lambda: bus.registers.fault_status.queue == 1, "fault")
    assert bus.registers.status.fields()["fatal"] == 0
    entry = bus.newest_error()
    assert (entry.source, entry.status, entry.queue) == (FaultSource.QUEUE, Status.QUEUE_CORRUPT, 1)
    assert "queue 1 halted" in text(entry)
    assert not queue.ready()
    assert [one.status for one in other.run(*nops(20)[:5])] == [0] * 5
    # A pointer that is right again does not bring it back: what was lost meanwhile nobody knows.
    queue.publish_head(0)
    queue.put(*nops(1))
    queue.ring()
    assert other.run(c.NOP.build())[0].status == 0
    assert not queue.ready()
    bus.registers.fault_status.write(queue=1)
    assert bus.admin(c.DELETE_QUEUE, AdminOpcode.DELETE_QUEUE, queue=1).status == 0
    assert make(bus, shadows, 1).run(c.NOP.build())[0].status == 0


@pytest.mark.parametrize("how", HOSTILE)
def test_a_corrupt_admin_queue_is_fatal_until_a_reset(bus: BusClient, how: str) -> None:
    bus.enable()
    admin = bus.admin_queue
    assert admin is not None
    entry = c.IDENTIFY.build(opcode=AdminOpcode.IDENTIFY, destination=bus.allocate(512)[0], size=512, command_id=77)
    assert bus.admin_raw(entry).status == 0
    HOSTILE[how](admin)
    bus.wait_until(lambda: bus.registers.status.fatal == 1, "fatal state")
    assert bus.registers.status.ready == 0
    bus.registers.control.write(enable=0)
    assert bus.registers.status.fatal == 0
    bus.enable()
    box = bus.log_page(c.LogPage.BLACK_BOX)
    header = c.BLACK_BOX.parse(box[: c.BLACK_BOX.size])
    assert (header.present, header.cause) == (1, c.ResetCause.FATAL)
    assert entry in box  # the descriptor that it had carried out


def test_as_many_queues_as_the_device_says_exist_at_once(bus: BusClient) -> None:
    bus.enable()
    bus.configure_shadows()
    count = bus.registers.capabilities.max_io_queues
    queues = [bus.queue(queue_id, 4) for queue_id in range(1, count + 1)]
    for queue in queues:
        queue.put(*nops(3, queue.queue_id))
        queue.ring()
    for queue in queues:
        assert [one.command_id for one in queue.take(3)] == [queue.queue_id + at for at in range(3)]


@both_kinds
def test_deleting_a_queue_drops_what_it_had_not_fetched(bus: BusClient, shadows: bool) -> None:
    queue = make(bus, shadows, entries=16, completions=2)
    queue.put(*nops(10))
    queue.ring()
    bus.wait_until(lambda: queue.ready(1), "two completions")
    assert bus.admin(c.DELETE_QUEUE, AdminOpcode.DELETE_QUEUE, queue=1).status == 0
    before = bytes(queue.completions)
    queue.head += 2
    queue.publish_head()
    bus.settle()
    assert bytes(queue.completions) == before
    assert "doorbell of queue 1, which does not exist" in text(bus.newest_error())
    assert make(bus, shadows, 1).run(c.NOP.build())[0].status == 0


@both_kinds
def test_rings_unmapped_under_the_device_halt_their_queue(bus: BusClient, shadows: bool) -> None:
    bus.enable()
    elsewhere = 0x3_0000_0000
    bus.map(bus.file, elsewhere, MEMORY_BYTES)  # the same memory once more, at bus addresses that can be taken away
    if shadows:
        bus.configure_shadows()
    queue, other = RawQueue(bus, 1, 16, 16, bus.shadows), bus.queue(2)
    moved = elsewhere - MEMORY_IOVA
    done = bus.admin(
        c.CREATE_QUEUE,
        AdminOpcode.CREATE_QUEUE,
        submission_base=queue.submission_iova + moved,
        completion_base=queue.completion_iova + moved,
        submission_entries=16,
        completion_entries=16,
        queue=1,
        vector=1,
    )
    assert done.status == 0
    assert queue.run(*nops(3))[2].status == 0
    bus.unmap(elsewhere)
    queue.put(*nops(1))
    queue.ring()
    bus.wait_until(lambda: bus.registers.fault_status.queue == 1, "fault")
    assert not queue.ready()
    entry = bus.newest_error()
    assert (entry.queue, entry.status) == (1, Status.QUEUE_CORRUPT)
    assert "unmapped" in text(entry)
    assert other.run(c.NOP.build())[0].status == 0


def test_an_admin_ring_unmapped_under_the_device_is_fatal(bus: BusClient) -> None:
    bus.enable()
    bus.unmap(MEMORY_IOVA)
    bus.wait_until(lambda: bus.registers.status.fatal == 1, "fatal state")
    bus.map(bus.file, MEMORY_IOVA, MEMORY_BYTES)
    bus.registers.control.write(enable=0)
    bus.enable()
    assert c.BLACK_BOX.parse(bus.log_page(c.LogPage.BLACK_BOX)[: c.BLACK_BOX.size]).cause == c.ResetCause.FATAL


@pytest.mark.parametrize(("offset", "width"), [(0, 1), (0, 2), (0, 8), (1, 4), (8, 4), (4092, 4)])
def test_doorbells_of_wrong_width_or_place_are_ignored_and_counted(bus: BusClient, offset: int, width: int) -> None:
    queue = make(bus, shadows=False)
    queue.put(*nops(1))
    before = bus.registers.fault_count.read()
    bus.transport.write(BAR2, 4096 + offset, 1, width)
    assert bus.registers.fault_count.read() == before + 1
    bus.settle()
    assert not queue.ready()
    assert bus.transport.read(BAR2, 4096 + offset, width) == 0


def test_doorbells_of_queues_that_do_not_exist_are_counted(bus: BusClient) -> None:
    bus.enable()
    bus.bell(9, 0, 1)
    entry = bus.newest_error()
    assert (entry.source, entry.queue) == (FaultSource.QUEUE, 9)


@pytest.mark.parametrize(
    ("register", "value", "why"),
    [
        ("admin_queue_size", {"submission_entries": 15, "completion_entries": 16}, "a power of two"),
        ("admin_queue_size", {"submission_entries": 16, "completion_entries": 0}, "a power of two"),
        ("admin_submission_base", {"address": MEMORY_IOVA + 8}, "multiple of 4096"),
        ("admin_submission_base", {"address": 0xDEAD_0000_0000}, "nothing is mapped"),
        ("admin_completion_base", {"address": (1 << 64) - 4096}, "nothing is mapped"),
    ],
)
def test_unusable_admin_queues_refuse_the_enable(
    bus: BusClient, register: str, value: dict[str, int], why: str
) -> None:
    bus.set_admin_queue()
    bus.registers[register].write(**value)
    bus.registers.control.write(enable=1)
    assert bus.registers.status.fields() == {"ready": 0, "fatal": 0, "config_error": 1, "bus_master": 1}
    bus.registers.control.write(enable=0)
    assert bus.registers.status.config_error == 0
    bus.enable()
    assert "enable refused" in text(bus.newest_error()) and why in text(bus.newest_error())
