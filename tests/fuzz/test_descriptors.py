"""Random 64-byte entries on both kinds of queue: a status out of the table, a record, and the queue runs on."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from driver_shim.protocol import commands as c
from driver_shim.protocol.command_statuses import STATUSES, UNKNOWN_OPCODE
from driver_shim.protocol.commands import AdminOpcode, IoOpcode, Status
from tests.fuzz.device import Subject, entries, fuzzed, subject
from tests.support.programs import add_twice, build

CONTAINER = build(add_twice())


def allowed(queue: int, opcode: int) -> tuple[Status, ...]:
    """What an entry may complete with."""
    kind: type[AdminOpcode] | type[IoOpcode] = AdminOpcode if queue == c.ADMIN_QUEUE_ID else IoOpcode
    try:
        return STATUSES[kind(opcode)]
    except ValueError:
        return UNKNOWN_OPCODE


@fuzzed(75, batch=st.lists(entries(), min_size=1, max_size=8))
def test_io_entries(batch: list[bytes]) -> None:
    with subject() as device:
        queue = device.bus.queue(1)
        load_program(device)
        for entry in batch:
            check(device, 1, entry, queue.run(entry)[0])
        assert queue.run(c.NOP.build())[0].status == 0
        device.serves_on()


@fuzzed(75, batch=st.lists(entries(), min_size=1, max_size=8))
def test_admin_entries(batch: list[bytes]) -> None:
    with subject() as device:
        device.bus.queue(1)
        load_program(device)
        for entry in batch:
            check(device, c.ADMIN_QUEUE_ID, entry, device.bus.admin_raw(entry))
        device.serves_on()


def load_program(device: Subject) -> None:
    """A program with handle 1, so that exec and unload have something to hit."""
    assert device.bus.admin_raw(load_entry(device, CONTAINER)).result == 1


def load_entry(device: Subject, image: bytes) -> bytes:
    """A load_program entry for a container with one constant of 16 bytes, at device address 0."""
    table, (iova, view) = c.BINDING.build(address=0, size=16), device.bus.allocate(c.BINDING.size + len(image))
    view[:] = table + image
    fields = {"source": iova + len(table), "size": len(image), "constants": iova, "constant_count": 1}
    return c.LOAD_PROGRAM.build(opcode=AdminOpcode.LOAD_PROGRAM, **fields)


def check(device: Subject, queue: int, entry: bytes, done: Any) -> None:
    """The completion fits the entry, and a failure is in the error log."""
    status = Status(done.status)
    assert status in allowed(queue, entry[0])
    assert done.command_id == int.from_bytes(entry[2:4], "little")
    if status is not Status.SUCCESS:
        newest = device.bus.newest_error()
        assert (newest.status, newest.queue, newest.opcode) == (status, queue, entry[0])


@fuzzed(30, position=st.integers(0, len(CONTAINER) - 1), octet=st.integers(1, 255), cut=st.integers(0, len(CONTAINER)))
def test_mutated_programs(position: int, octet: int, cut: int) -> None:
    with subject() as device:
        for image in (mutated(position, octet), CONTAINER[:cut]):
            done = device.bus.admin_raw(load_entry(device, image))
            assert done.status in (Status.SUCCESS, Status.PROGRAM_REJECTED)
            assert (done.status == Status.SUCCESS) is (image == CONTAINER)  # its checksum covers every byte
        device.serves_on()


def mutated(position: int, octet: int) -> bytes:
    """The container with one byte changed."""
    image = bytearray(CONTAINER)
    image[position] ^= octet
    return bytes(image)
