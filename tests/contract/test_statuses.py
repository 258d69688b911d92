"""Every (command, status) pair that can occur, over the raw bus; a pair without a case fails the suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from driver_shim.protocol import commands as c
from driver_shim.protocol.command_statuses import NEVER_COMPLETED, STATUSES, UNKNOWN_OPCODE
from driver_shim.protocol.commands import AdminOpcode, IoOpcode, LogPage, Space, Status, status_slug
from driver_shim.transport.in_process import InProcessTransport
from emulator.chip.chip import Chip
from emulator.engines import executor
from emulator.engines.inline import InlineEngines
from emulator.engines.job import ProgramFault
from emulator.function.function import PciFunction
from emulator.model.profile import load_profile
from tests.support import small_programs
from tests.support.bus_client import MEMORY_BYTES, MEMORY_IOVA, UNMAPPED_IOVA, BusClient, RawQueue, text
from tests.support.children import child_commands, children_that_run, ends
from tests.support.coverage import CaseTable
from tests.support.programs import add_twice, build
from tests.support.rigs import Rig, in_process_rig, process_rig

Admin, Io = AdminOpcode, IoOpcode
UNKNOWN_IO, UNKNOWN_ADMIN = "unknown I/O opcode", "unknown admin opcode"
Pair = tuple[str, Status]
IO_QUEUE = 1
ADDED_PLACE = (0, 16)
"""Where the constant of `add_twice` lies, and its size."""
BEYOND = 1 << 40
"""A device address that no profile has."""
RESERVED = (1 << 511).to_bytes(64, "little")
"""A submission entry of which only the last bit is set: reserved in every command but exec, whose last field it is."""
FLAG, CONTEXT, EXEC_RESERVED = bytes(1) + b"\1", bytes(4) + b"\1", bytes(8) + b"\1"


def name_of(queue_id: int, opcode: int) -> str:
    """How the table calls an opcode of a queue."""
    kind, unknown = (Admin, UNKNOWN_ADMIN) if queue_id == c.ADMIN_QUEUE_ID else (Io, UNKNOWN_IO)
    try:
        return kind(opcode).name.lower()
    except ValueError:
        return unknown


ALL_PAIRS: set[Pair] = {(opcode.name.lower(), status) for opcode, statuses in STATUSES.items() for status in statuses}
ALL_PAIRS |= {(name, status) for name in (UNKNOWN_IO, UNKNOWN_ADMIN) for status in UNKNOWN_OPCODE}
TABLE: CaseTable[Pair] = CaseTable(ALL_PAIRS)


def record(queue_id: int, opcode: int, status: int) -> None:
    """Every completion that any test here sees goes through the table."""
    TABLE.reach((name_of(queue_id, opcode), Status(status)))


@pytest.fixture
def client(bus: BusClient) -> Iterator[BusClient]:
    """An enabled function whose every completion is checked against the table."""
    bus.enable()
    bus.record = record
    yield bus


# --- how to bring each about: a case makes what it needs and returns the entry ------------------------------------

Case = Callable[[BusClient], bytes]


def set_bits(entry: bytes, bits: bytes) -> bytes:
    """An entry with more bits set."""
    return bytes(a | b for a, b in zip(entry, bits.ljust(len(entry), b"\0"), strict=True))


def load_fields(client: BusClient, image: bytes, *constants: tuple[int, int]) -> dict[str, int]:
    """What a load_program entry says of a container whose constants lie at these (device address, size)."""
    table = b"".join(c.BINDING.build(address=address, size=size) for address, size in constants)
    iova, view = client.allocate(len(table) + len(image))
    view[:] = table + image
    return {
        "source": iova + len(table),
        "size": len(image),
        "constants": iova if table else 0,
        "constant_count": len(constants),
    }


def load(client: BusClient, image: bytes, *constants: tuple[int, int]) -> int:
    """Load a program; its handle."""
    done = client.admin(c.LOAD_PROGRAM, Admin.LOAD_PROGRAM, **load_fields(client, image, *constants))
    assert done.status == 0, text(client.newest_error())
    return int(done.result)


def write_device(client: BusClient, address: int, data: bytes) -> None:
    """Store through the aperture."""
    for at in range(0, len(data), 4):
        client.transport.write(4, address + at, int.from_bytes(data[at : at + 4], "little"), 4)


def exec_entry(client: BusClient, handle: int, sizes: tuple[int, ...], **changes: Any) -> bytes:
    """An exec with buffers at device addresses 0x1000, 0x2000, … of these sizes; `addresses` replaces those."""
    addresses = changes.pop("addresses", [0x1000 * (at + 1) for at in range(len(sizes))])
    iova, view = client.allocate(4096)
    for at, (address, size) in enumerate(zip(addresses, sizes, strict=True)):
        view[at * 16 : (at + 1) * 16] = c.BINDING.build(address=address, size=size)
    fields = {"program": handle, "binding_count": len(sizes), "bindings": iova, "workspace": 0x10000, **changes}
    return c.EXEC.build(opcode=Io.EXEC, **fields)


def add_entry(client: BusClient, **changes: Any) -> bytes:
    """An exec of y = (x + c) + c."""
    return exec_entry(client, load(client, build(add_twice()), ADDED_PLACE), changes.pop("sizes", (16, 16)), **changes)


def data_fault(image: bytes, sizes: tuple[int, ...], *contents: bytes) -> Case:
    """An exec that fails by the data in its input buffers."""

    def case(client: BusClient) -> bytes:
        for at, content in enumerate(contents):
            write_device(client, 0x1000 * (at + 1), content)
        return exec_entry(client, load(client, image), sizes)

    return case


def create(**changes: Any) -> Case:
    """A create_queue entry for queue 2 that would succeed but for the changes."""

    def case(client: BusClient) -> bytes:
        rings = {"submission_base": client.allocate(1024)[0], "completion_base": client.allocate(512)[0]}
        sizes = {"submission_entries": 16, "completion_entries": 16, "queue": 2, "vector": 2}
        return c.CREATE_QUEUE.build(opcode=Admin.CREATE_QUEUE, **{**rings, **sizes, **changes})

    return case


def shadows(**changes: Any) -> Case:
    """A configure_shadows entry that would succeed but for the changes."""

    def case(client: BusClient) -> bytes:
        lines = {"shadows": client.allocate(4096)[0], "events": client.allocate(4096)[0]}
        return c.CONFIGURE_SHADOWS.build(opcode=Admin.CONFIGURE_SHADOWS, **{**lines, **changes})

    return case


def program(image: bytes = b"", *constants: tuple[int, int], **changes: Any) -> Case:
    """A load_program entry for an image (a good one by default) that would succeed but for the changes."""

    def case(client: BusClient) -> bytes:
        fields = load_fields(client, image or build(add_twice()), *(constants or (ADDED_PLACE,)))
        return c.LOAD_PROGRAM.build(opcode=Admin.LOAD_PROGRAM, **{**fields, **changes})

    return case


def too_many_programs(client: BusClient) -> bytes:
    """Load as many as the device says it takes; the next is refused."""
    iova, view = client.allocate(512)
    assert client.admin(c.IDENTIFY, Admin.IDENTIFY, destination=iova, size=512).status == 0
    entry = program()(client)
    for _ in range(c.IDENTIFY_DATA.parse(bytes(view)).max_programs):
        assert client.admin_raw(entry).status == 0
    return entry


def unsealed(client: BusClient) -> bytes:
    """Rings in a file that could shrink."""
    client.map(client.unsealed_file(0x10000), 0x2_0000_0000, 0x10000)
    return create(submission_base=0x2_0000_0000)(client)


def host(client: BusClient) -> int:
    """The bus address of a page."""
    return client.allocate(4096)[0]


def copy(**fields: Any) -> Case:
    return lambda client: c.COPY.build(
        opcode=Io.COPY, **{"destination": host(client), "source": host(client), "size": 64, **fields}
    )


def fill(**fields: Any) -> Case:
    return lambda client: c.FILL.build(
        opcode=Io.FILL, **{"destination": host(client), "size": 64, "pattern_size": 1, **fields}
    )


def identify(**fields: Any) -> Case:
    return lambda client: c.IDENTIFY.build(
        opcode=Admin.IDENTIFY, **{"destination": host(client), "size": c.IDENTIFY_DATA.size, **fields}
    )


def log_page(**fields: Any) -> Case:
    return lambda client: c.GET_LOG_PAGE.build(
        opcode=Admin.GET_LOG_PAGE, **{"destination": host(client), "size": 128, "page": LogPage.ACTIVITY, **fields}
    )


def delete(queue: int = IO_QUEUE) -> Case:
    return lambda client: c.DELETE_QUEUE.build(opcode=Admin.DELETE_QUEUE, queue=queue)


def unload(client: BusClient) -> bytes:
    return c.UNLOAD_PROGRAM.build(opcode=Admin.UNLOAD_PROGRAM, program=load(client, build(add_twice()), ADDED_PLACE))


def report(**fields: Any) -> Case:
    def case(client: BusClient) -> bytes:
        loaded = {"destination": host(client), "size": 128, "program": load(client, build(add_twice()), ADDED_PLACE)}
        return c.GET_PROGRAM_REPORT.build(opcode=Admin.GET_PROGRAM_REPORT, **{**loaded, **fields})

    return case


def plain(opcode: int) -> Case:
    return lambda _: c.NOP.build(opcode=opcode)


GOOD: dict[str, Case] = {
    "nop": plain(Io.NOP),
    "barrier": plain(Io.BARRIER),
    "copy": copy(),
    "fill": fill(),
    "exec": add_entry,
    "identify": identify(),
    "create_queue": create(),
    "delete_queue": delete(),
    "configure_shadows": shadows(),
    "get_log_page": log_page(),
    "load_program": program(),
    "unload_program": unload,
    "get_program_report": report(),
    UNKNOWN_IO: plain(0x60),
    UNKNOWN_ADMIN: plain(0x00),
}
"""Each command as it succeeds; reserved bits, flags and contexts are added to these."""

CASES: list[tuple[str, Status, Case]] = [
    ("copy", Status.DMA_FAULT, copy(source=UNMAPPED_IOVA)),
    ("copy", Status.DMA_FAULT, copy(destination=UNMAPPED_IOVA)),
    ("copy", Status.DMA_FAULT, copy(destination=MEMORY_IOVA + MEMORY_BYTES - 32)),
    ("copy", Status.DMA_FAULT, copy(source=(1 << 64) - 1, size=(1 << 64) - 1)),
    ("copy", Status.DEVICE_ADDRESS_FAULT, copy(source=BEYOND, source_space=Space.DEVICE)),
    ("copy", Status.DEVICE_ADDRESS_FAULT, copy(destination=(1 << 64) - 1, destination_space=Space.DEVICE)),
    ("copy", Status.INVALID_FIELD, copy(source_space=2)),
    ("copy", Status.INVALID_FIELD, copy(destination_space=255)),
    ("fill", Status.DMA_FAULT, fill(destination=UNMAPPED_IOVA)),
    ("fill", Status.DEVICE_ADDRESS_FAULT, fill(destination=BEYOND, destination_space=Space.DEVICE)),
    ("fill", Status.MISALIGNED, fill(pattern_size=8, size=63)),
    ("fill", Status.MISALIGNED, fill(pattern_size=2, destination=MEMORY_IOVA + 1)),
    ("fill", Status.INVALID_FIELD, fill(pattern_size=3)),
    ("fill", Status.INVALID_FIELD, fill(pattern_size=2, pattern=0x10000)),
    ("fill", Status.INVALID_FIELD, fill(destination_space=2)),
    ("exec", Status.INVALID_PROGRAM, lambda client: exec_entry(client, 99, (16, 16))),
    ("exec", Status.BINDING_MISMATCH, lambda client: add_entry(client, sizes=(16,))),
    ("exec", Status.BINDING_MISMATCH, lambda client: add_entry(client, sizes=(16, 12))),
    ("exec", Status.BINDING_MISMATCH, lambda client: add_entry(client, binding_count=0xFFFF_FFFF)),
    ("exec", Status.DMA_FAULT, lambda client: add_entry(client, bindings=UNMAPPED_IOVA)),
    ("exec", Status.MISALIGNED, lambda client: add_entry(client, addresses=(0x1000, 0x2010))),
    ("exec", Status.INVALID_FIELD, lambda client: add_entry(client, entry=1)),
    ("exec", Status.MISALIGNED, lambda client: add_entry(client, workspace=1)),
    ("exec", Status.DEVICE_ADDRESS_FAULT, lambda client: add_entry(client, addresses=(0x1000, BEYOND))),
    ("exec", Status.DEVICE_ADDRESS_FAULT, lambda client: add_entry(client, workspace=BEYOND)),
    (
        "exec",
        Status.INDEX_OUT_OF_RANGE,
        data_fault(small_programs.gather(), (16, 16, 16), bytes(16), b"\4" + bytes(15)),
    ),
    ("exec", Status.DIVISION_BY_ZERO, data_fault(small_programs.divide(), (16, 16, 16), b"\1" * 16, bytes(16))),
    ("exec", Status.VALUE_OUT_OF_RANGE, data_fault(small_programs.narrow(), (32, 16), bytes(4) + b"\1" + bytes(27))),
    ("identify", Status.DMA_FAULT, identify(destination=UNMAPPED_IOVA)),
    ("identify", Status.INVALID_FIELD, identify(size=511)),
    ("create_queue", Status.INVALID_QUEUE, create(queue=0)),
    ("create_queue", Status.INVALID_QUEUE, create(queue=c.MAX_IO_QUEUES + 1)),
    ("create_queue", Status.QUEUE_EXISTS, create(queue=IO_QUEUE)),
    ("create_queue", Status.INVALID_QUEUE_SIZE, create(submission_entries=15)),
    ("create_queue", Status.INVALID_QUEUE_SIZE, create(completion_entries=1)),
    ("create_queue", Status.INVALID_QUEUE_SIZE, create(submission_entries=c.MAX_QUEUE_ENTRIES * 2)),
    ("create_queue", Status.INVALID_QUEUE_SIZE, create(completion_entries=0)),
    ("create_queue", Status.INVALID_VECTOR, create(vector=c.MAX_IO_QUEUES + 1)),
    ("create_queue", Status.MISALIGNED, create(submission_base=MEMORY_IOVA + 64)),
    ("create_queue", Status.MISALIGNED, create(completion_base=MEMORY_IOVA + 2048)),
    ("create_queue", Status.NOT_SHAREABLE, create(submission_base=UNMAPPED_IOVA)),
    ("create_queue", Status.NOT_SHAREABLE, create(completion_base=UNMAPPED_IOVA)),
    (
        "create_queue",
        Status.NOT_SHAREABLE,
        create(submission_base=MEMORY_IOVA + MEMORY_BYTES - 4096, submission_entries=128),
    ),
    ("create_queue", Status.NOT_SHAREABLE, unsealed),
    ("delete_queue", Status.INVALID_QUEUE, delete(0)),
    ("delete_queue", Status.INVALID_QUEUE, delete(9)),
    ("delete_queue", Status.INVALID_QUEUE, delete(0xFFFF)),
    ("configure_shadows", Status.MISALIGNED, shadows(shadows=MEMORY_IOVA + 64)),
    ("configure_shadows", Status.MISALIGNED, shadows(events=MEMORY_IOVA + 64)),
    ("configure_shadows", Status.NOT_SHAREABLE, shadows(shadows=UNMAPPED_IOVA)),
    ("configure_shadows", Status.NOT_SHAREABLE, shadows(events=UNMAPPED_IOVA)),
    ("get_log_page", Status.INVALID_LOG_PAGE, log_page(page=0)),
    ("get_log_page", Status.INVALID_LOG_PAGE, log_page(page=200)),
    ("get_log_page", Status.DMA_FAULT, log_page(destination=UNMAPPED_IOVA)),
    ("get_log_page", Status.INVALID_FIELD, log_page(size=(1 << 20) + 1)),
    ("get_program_report", Status.INVALID_PROGRAM, report(program=77)),
    ("get_program_report", Status.DMA_FAULT, report(destination=UNMAPPED_IOVA)),
    ("get_program_report", Status.INVALID_FIELD, report(size=(1 << 20) + 1)),
    ("load_program", Status.NOT_SHAREABLE, program(source=UNMAPPED_IOVA)),
    ("load_program", Status.PROGRAM_REJECTED, program(b"no container at all")),
    ("load_program", Status.PROGRAM_REJECTED, program(size=0)),
    ("load_program", Status.PROGRAM_REJECTED, program(size=(1 << 64) - 1)),
    ("load_program", Status.PROGRAM_REJECTED, program(build(add_twice())[:-1])),
    ("load_program", Status.NOT_SHAREABLE, program(constants=UNMAPPED_IOVA)),
    ("load_program", Status.BINDING_MISMATCH, program(constant_count=0)),
    ("load_program", Status.BINDING_MISMATCH, program(constant_count=(1 << 32) - 1)),
    ("load_program", Status.BINDING_MISMATCH, program(b"", (0, 12))),
    ("load_program", Status.MISALIGNED, program(b"", (1, 16))),
    ("load_program", Status.DEVICE_ADDRESS_FAULT, program(b"", (BEYOND, 16))),
    ("load_program", Status.PROGRAM_LIMIT, too_many_programs),
    (
        "unload_program",
        Status.INVALID_PROGRAM,
        lambda _: c.UNLOAD_PROGRAM.build(opcode=Admin.UNLOAD_PROGRAM, program=7),
    ),
    (UNKNOWN_IO, Status.INVALID_OPCODE, plain(0x05)),
    (UNKNOWN_IO, Status.INVALID_OPCODE, plain(Admin.IDENTIFY)),
    (UNKNOWN_IO, Status.INVALID_OPCODE, lambda _: b"\xff" + bytes(63)),
    (UNKNOWN_ADMIN, Status.INVALID_OPCODE, plain(Io.NOP)),
    (UNKNOWN_ADMIN, Status.INVALID_OPCODE, plain(0x88)),
]


def with_bits(case: Case, bits: bytes) -> Case:
    """A case whose entry has more bits set."""
    return lambda client: set_bits(case(client), bits)


for _name, _case in GOOD.items():
    if _name not in (UNKNOWN_IO, UNKNOWN_ADMIN):
        _reserved = EXEC_RESERVED if _name == "exec" else RESERVED
        CASES.append((_name, Status.SUCCESS, _case))
        CASES.append((_name, Status.INVALID_FIELD, with_bits(_case, _reserved)))
    CASES.append((_name, Status.INVALID_FIELD, with_bits(_case, FLAG)))
    CASES.append((_name, Status.INVALID_CONTEXT, with_bits(_case, CONTEXT)))

ELSEWHERE: set[Pair] = {
    ("exec", Status.ENGINE_LOST),
    ("exec", Status.EXECUTION_FAULT),
    ("load_program", Status.ENGINE_LOST),
}
"""Pairs with a test of their own below, because data alone does not bring them about."""


def is_admin(name: str) -> bool:
    """Whether the table's command belongs on the admin queue."""
    return name == UNKNOWN_ADMIN or name.upper() in Admin.__members__


def run(client: BusClient, name: str, case: Case) -> tuple[Any, RawQueue]:
    """Bring a case about; its completion and the I/O queue."""
    queue = client.queue(IO_QUEUE)
    entry = case(client)
    return (client.admin_raw(entry) if is_admin(name) else queue.run(entry)[0]), queue


@pytest.mark.parametrize(
    ("name", "status", "case"),
    CASES,
    ids=[f"{at}-{name}-{status.slug}-{case.__name__}" for at, (name, status, case) in enumerate(CASES)],
)
def test_every_command_completes_with_every_status_it_can(
    client: BusClient, name: str, status: Status, case: Case
) -> None:
    done, queue = run(client, name, case)
    assert Status(done.status) is status
    if status is not Status.SUCCESS:
        entry = client.newest_error()
        assert (entry.status, entry.queue) == (status, 0 if is_admin(name) else IO_QUEUE)
        assert text(entry).startswith(status.slug)
        assert done.result == 0
        assert client.registers.fault_status.read() != 0
        assert queue.run(c.NOP.build())[0].status == 0  # the queue runs on


def test_the_engine_that_ran_a_program_dies() -> None:
    """Only where engines are processes: in process there is none to lose."""
    with process_rig() as rig:
        client = BusClient(rig.transport, record).enable()
        queue = client.queue(IO_QUEUE)
        entry = add_entry(client)
        workers = children(rig)
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        queue.put(entry)
        queue.ring()
        client.wait_until(lambda: executions(client) == 1, "start of the program")
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        assert queue.take()[0].status == Status.ENGINE_LOST
        assert text(client.newest_error()).startswith("engine-lost")
        assert client.registers.fault_status.engine == 1
        assert all(map(ends, workers))
        assert queue.run(entry)[0].status == 0  # by a new engine
        client.close()


def test_what_verifies_a_program_dies_and_nothing_else_waits_for_it() -> None:
    """Only where a process verifies."""
    with process_rig() as rig:
        client = BusClient(rig.transport, record).enable()
        queue = client.queue(IO_QUEUE)
        entry = program()(client)
        assert client.admin_raw(entry).status == 0
        assert rig.pid is not None
        (verifier,) = children_that_run(rig.pid, "emulator.engines.verifier_worker")
        os.kill(verifier, signal.SIGSTOP)
        admin = client.admin_queue
        assert admin is not None
        admin.put(entry)
        admin.ring()
        client.registers.scratch.write(value=7)
        assert client.registers.scratch.value == 7
        assert queue.run(c.NOP.build())[0].status == 0
        os.kill(verifier, signal.SIGKILL)
        assert admin.take()[0].status == Status.ENGINE_LOST
        assert text(client.newest_error()).startswith("engine-lost: what verified the program died")
        assert client.admin_raw(entry).status == 0  # by a new one
        assert ends(verifier)
        client.close()


def children(rig: Rig) -> list[int]:
    """Processes that the emulator started."""
    assert rig.pid is not None
    return list(child_commands(rig.pid))


def executions(client: BusClient) -> int:
    """Programs whose execution was begun."""
    return int(c.ACTIVITY_LOG.parse(client.log_page(LogPage.ACTIVITY, 128)).exec_commands)


def test_a_kernel_fails_for_a_reason_of_its_own() -> None:
    """Only in process: no data makes the real kernels fail this way, so the executor is told to."""

    def fail(*_: Any, **__: Any) -> None:
        raise ProgramFault(Status.EXECUTION_FAULT, 1, "command 1 (BINARY): out of something")

    failing: Any = SimpleNamespace(load=executor.load, execute=fail)
    function = PciFunction(Chip(load_profile("generic"), lambda memory: InlineEngines(memory.view, failing)))
    transport = InProcessTransport(function, c.ResetCause.DEVICE_RESET)
    client = BusClient(transport, record).enable()
    queue = client.queue(IO_QUEUE)
    assert queue.run(add_entry(client))[0].status == Status.EXECUTION_FAULT
    entry = client.newest_error()
    assert (entry.command_index, entry.opcode) == (1, Io.EXEC)
    client.close()
    transport.close()
    function.close()


def test_an_engine_that_cannot_take_a_program_refuses_it() -> None:
    """A device that runs out of files for programs says so and lives on."""
    with in_process_rig() as rig:
        client = BusClient(rig.transport, record).enable()
        assert rig.function is not None
        engines: Any = rig.function.chip.engines
        engines.load = _no_files
        assert client.admin_raw(program()(client)).status == Status.PROGRAM_LIMIT
        del engines.load
        assert client.admin_raw(program()(client)).status == 0
        client.close()


def _no_files(*_: Any) -> None:
    raise OSError(24, "Too many open files")


def test_the_table_and_the_cases_have_the_same_pairs() -> None:
    covered = {(name, status) for name, status, _ in CASES} | ELSEWHERE
    assert covered == ALL_PAIRS, {str(pair) for pair in covered ^ ALL_PAIRS}


def test_every_command_and_every_status_is_in_the_table() -> None:
    assert set(STATUSES) == set(c.IO_COMMANDS) | set(c.ADMIN_COMMANDS)
    assert {status for _, status in ALL_PAIRS} == set(Status) - set(NEVER_COMPLETED)
    assert len({status_slug(status) for status in Status}) == len(Status)


def test_no_pair_is_left_out(request: pytest.FixtureRequest) -> None:
    TABLE.check_all_reached(request)
