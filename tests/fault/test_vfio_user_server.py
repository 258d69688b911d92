"""What clients may do to the server, right or wrong: it answers, or drops them, and serves the next."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver_shim.protocol import vfio_user as vu
from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.vfio_user import Command, IrqIndex, IrqSet
from driver_shim.protocol.vfio_user_framing import encode_command, encode_error, encode_reply
from emulator import timeouts
from emulator.host_memory.address_space import DmaFault
from emulator.server import connection as connection_module
from emulator.server import newcomers as newcomers_module
from emulator.server.listener import Listener, ListenError
from tests.support.bus_server import (
    APERTURE_AREAS,
    APERTURE_BYTES,
    BAR0_BYTES,
    PATIENCE_S,
    VECTORS,
    RawClient,
    SmallFunction,
    memory_file,
    open_files,
    serving,
)

PAGE = 4096
REMOTE_IOVA = 0x10000
FLAGS_OFFSET = 8
"""Of a message's header; the low four bits are its type."""


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for a test that was starved; the tests of its limits shorten them."""
    for name in ("NEGOTIATION_S", "DMA_REPLY_S"):
        monkeypatch.setattr(timeouts, name, PATIENCE_S * 10)


@pytest.fixture
def function() -> Iterator[SmallFunction]:
    function = SmallFunction()
    yield function
    function.close()


@pytest.fixture
def path(function: SmallFunction, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "npu.sock"
    with serving(function, path):
        yield path


@pytest.fixture
def client(path: Path) -> Iterator[RawClient]:
    with RawClient.connect(path) as client:
        client.negotiate()
        yield client


def encode_writes(writes: Sequence[vu.RegionWrite]) -> bytes:
    """Payload of a REGION_WRITE_MULTI."""
    entries = (vu.WRITE_ONE.build(offset=w.offset, region=w.region, count=len(w.data), data=w.data) for w in writes)
    return vu.WRITE_MULTI.pack(len(writes)) + b"".join(entries)


def access(region: int, offset: int, count: int, data: bytes = b"") -> bytes:
    return vu.REGION_ACCESS.pack(offset, region, count) + data


def dma_map(iova: int = REMOTE_IOVA, size: int = PAGE, flags: int = 3) -> bytes:
    return vu.DMA_MAP.pack(vu.DMA_MAP.size, flags, 0, iova, size)


def irqs(flags: int, index: int, start: int, count: int, data: bytes = b"") -> bytes:
    return vu.IRQ_SET.pack(vu.IRQ_SET.size + len(data), flags, index, start, count) + data


CONNECT = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER
KINDS: dict[str, tuple[Command, bytes, str]] = {
    "VERSION": (Command.VERSION, vu.encode_version(0, 0, vu.OURS), ""),
    "DMA_MAP": (Command.DMA_MAP, dma_map(), "memory"),
    "DMA_UNMAP": (Command.DMA_UNMAP, vu.DMA_UNMAP.pack(24, 0, REMOTE_IOVA, PAGE), ""),
    "GET_INFO": (Command.DEVICE_GET_INFO, vu.DEVICE_INFO.pack(16, 0, 0, 0), ""),
    "GET_REGION_INFO": (Command.DEVICE_GET_REGION_INFO, vu.REGION_INFO.pack(512, 0, 4, 0, 0, 0), ""),
    "GET_REGION_IO_FDS": (Command.DEVICE_GET_REGION_IO_FDS, vu.REGION_IO_FDS.pack(16, 0, 2, 0), ""),
    "GET_IRQ_INFO": (Command.DEVICE_GET_IRQ_INFO, vu.IRQ_INFO.pack(16, 0, 2, 0), ""),
    "SET_IRQS": (Command.DEVICE_SET_IRQS, irqs(CONNECT, IrqIndex.MSIX, 0, 1), "eventfd"),
    "REGION_READ": (Command.REGION_READ, access(0, 0, 4), ""),
    "REGION_WRITE": (Command.REGION_WRITE, access(0, 0, 4, b"abcd"), ""),
    "RESET": (Command.DEVICE_RESET, b"", ""),
    "WRITE_MULTI": (Command.REGION_WRITE_MULTI, encode_writes([vu.RegionWrite(0, 0, b"abcd")]), ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_may_vanish_after_any_byte_and_the_next_is_served(
    function: SmallFunction, path: Path, kind: str
) -> None:
    command, payload, extra = KINDS[kind]
    message = encode_command(1, command, payload)
    fds = [memory_file(PAGE)] if extra == "memory" else [os.eventfd(0)] if extra == "eventfd" else []
    with RawClient.connect(path) as client:
        client.negotiate()
        before = open_files()
    for cut in range(len(message) + 1):
        with RawClient.connect(path) as client:
            if command != Command.VERSION:
                client.negotiate()
            client.send_bytes(message[:1], fds if cut else [])
            client.send_bytes(message[1:cut])
    with RawClient.connect(path) as client:
        client.negotiate()
        assert client.read(0, 0, 4) in (bytes(4), b"abcd")
        assert len(function.address_space) == 0
    with RawClient.connect(path) as client:  # whose place is free only when the one before was let go
        client.negotiate()
        assert open_files() == before
    for fd in fds:
        os.close(fd)
    negotiated = 2 if command == Command.VERSION else len(message) + 3
    assert function.clients_lost >= negotiated


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    negotiate=st.booleans(),
    chunks=st.lists(
        st.binary(max_size=64)
        | st.builds(
            lambda command, size, flags, payload: vu.HEADER.pack(1, command, size, flags, 0) + payload,
            st.integers(0, 20),
            st.integers(0, 200),
            st.sampled_from([0, 0, 0, 1, 16, 2, 33]),
            st.binary(max_size=64),
        )
        | st.builds(
            lambda command, payload: encode_command(2, command, payload), st.sampled_from(list(Command)), st.binary()
        ),
        max_size=8,
    ),
)
def test_random_messages_end_at_worst_the_client_that_sent_them(
    path: Path, negotiate: bool, chunks: list[bytes]
) -> None:
    with RawClient.connect(path) as client:
        if negotiate:
            client.negotiate()
        try:
            for chunk in chunks:
                client.send_bytes(chunk)
        except OSError as error:
            assert error.errno in (errno.EPIPE, errno.ECONNRESET)
    with RawClient.connect(path) as client:
        client.negotiate()
        assert len(client.read(0, 0, 4)) == 4


# --- negotiation -------------------------------------------------------------------------------------------------


def test_the_lower_minor_and_only_proposed_capabilities_are_answered(path: Path) -> None:
    with RawClient.connect(path) as client:
        payload = vu.encode_version(0, 7, vu.OURS, ["max_msg_fds"])
        reply = client.ask(Command.VERSION, payload)
        assert reply.payload == b'\0\0\0\0{"capabilities":{"max_msg_fds":16}}\0'


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.VERSION, vu.encode_version(1, 0, vu.OURS)),
        (Command.VERSION, b"\0\0\0\0{\0"),
        (Command.VERSION, b"\0"),
        (Command.REGION_READ, access(0, 0, 4)),
        (Command.DEVICE_RESET, b""),
    ],
)
def test_who_does_not_negotiate_properly_is_refused_and_hung_up_on(
    function: SmallFunction, path: Path, command: Command, payload: bytes
) -> None:
    with RawClient.connect(path) as client:
        reply = client.ask(command, payload)
        assert reply.failed and reply.error == errno.EINVAL
        assert client.receive() is None
    assert function.clients_lost == 0 and not function.resets


def test_a_second_client_is_told_busy_and_the_first_goes_on(path: Path, client: RawClient) -> None:
    with RawClient.connect(path) as second:
        reply = second.negotiate()
        assert reply.failed and reply.error == errno.EBUSY
        assert second.receive() is None
    assert client.read(0, 0, 4) == bytes(4)


def test_a_client_that_hung_up_behind_much_that_is_unread_is_no_reason_to_turn_the_next_away(
    function: SmallFunction, path: Path, client: RawClient
) -> None:
    """Files part what is received: each message below takes a receive call of its own."""
    fd, held = memory_file(PAGE), threading.Event()

    def stand() -> None:
        held.wait(PATIENCE_S)

    function.jobs.append(stand)
    client.send(Command.REGION_WRITE, access(0, 0, 1, b"!"), no_reply=True)  # wakes the loop
    for _ in range(40):
        client.send(Command.DMA_MAP, dma_map(), [fd], no_reply=True)
    client.close()
    with RawClient.connect(path) as following:
        message_id = following.send(Command.VERSION, vu.encode_version(0, 0, vu.OURS))
        held.set()
        reply = following.receive()
        assert reply is not None and (reply.id, reply.failed, reply.error) == (message_id, False, 0)
    os.close(fd)


def test_a_connection_that_says_nothing_stands_in_nobodys_way_and_is_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawClient.connect(path), RawClient.connect(path) as client:
        client.negotiate()
        monkeypatch.setattr(timeouts, "NEGOTIATION_S", 0.05)  # only now, when nobody is in a hurry to negotiate
        with RawClient.connect(path) as silent:
            assert silent.receive() is None
        assert client.read(0, 0, 4) == bytes(4)


def test_connections_that_say_nothing_are_bounded_in_number(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers_module, "MAX_NEWCOMERS", 2)
    with RawClient.connect(path) as first, RawClient.connect(path), RawClient.connect(path) as third:
        assert third.receive() is None
        assert not first.negotiate().failed


# --- requests ----------------------------------------------------------------------------------------------------


def test_the_device_describes_itself(client: RawClient) -> None:
    assert client.ask(Command.DEVICE_GET_INFO, vu.DEVICE_INFO.pack(16, 0, 0, 0)).payload == bytes.fromhex(
        "10000000 03000000 09000000 05000000"
    )
    counts = [
        vu.IRQ_INFO.unpack_from(client.ask(Command.DEVICE_GET_IRQ_INFO, vu.IRQ_INFO.pack(16, 0, i, 0)).payload)[3]
        for i in range(5)
    ]
    assert counts == [0, 0, VECTORS, 1, 1]
    assert client.ask(Command.DEVICE_GET_REGION_IO_FDS, vu.REGION_IO_FDS.pack(16, 0, 0, 0)).payload == bytes.fromhex(
        "10000000 00000000 00000000 00000000"
    )


def test_a_mappable_region_comes_with_its_areas_and_its_file(function: SmallFunction, client: RawClient) -> None:
    short = client.ask(Command.DEVICE_GET_REGION_INFO, vu.REGION_INFO.pack(32, 0, 4, 0, 0, 0))
    described, needed = vu.decode_region_info(short.payload)
    assert (described.areas, short.fds) == ((), [])
    whole = client.ask(Command.DEVICE_GET_REGION_INFO, vu.REGION_INFO.pack(needed, 0, 4, 0, 0, 0))
    described, _ = vu.decode_region_info(whole.payload)
    assert (described.size, described.areas) == (APERTURE_BYTES, APERTURE_AREAS)
    assert [os.fstat(fd).st_ino for fd in whole.fds] == [os.fstat(function.file).st_ino]
    os.close(whole.fds[0])
    absent = client.ask(Command.DEVICE_GET_REGION_INFO, vu.REGION_INFO.pack(32, 0, 6, 0, 0, 0))
    assert vu.decode_region_info(absent.payload)[0] == vu.RegionDescription(6, 0, 0)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 64, BAR0_BYTES])
def test_regions_are_accessed_in_every_length(function: SmallFunction, client: RawClient, count: int) -> None:
    data = bytes(range(256)) * 16
    written = client.ask(Command.REGION_WRITE, access(0, 0, count, data[:count]))
    assert written.payload == access(0, 0, count)
    assert client.read(0, 0, count) == data[:count]


def test_posted_messages_are_never_answered_not_even_wrong_ones(function: SmallFunction, client: RawClient) -> None:
    client.send(Command.REGION_WRITE, access(0, 8, 4, b"post"), no_reply=True)
    client.send(Command.REGION_WRITE, access(0, BAR0_BYTES, 4, b"post"), no_reply=True)
    client.send(Command.REGION_WRITE, access(9, 0, 4), no_reply=True)
    client.send(Command.REGION_READ, access(0, 0, 4), no_reply=True)
    client.send(Command.DMA_UNMAP, b"", no_reply=True)
    client.send(99, b"", no_reply=True)
    client.send(Command.REGION_WRITE_MULTI, encode_writes([vu.RegionWrite(0, 0, b"multi")]), no_reply=True)
    assert client.read(0, 0, 12) == b"multi\0\0\0post"


def test_coalesced_writes_are_all_done_or_none(client: RawClient) -> None:
    good = [vu.RegionWrite(0, 0, b"ab"), vu.RegionWrite(4, 0, b"cd")]
    assert client.ask(Command.REGION_WRITE_MULTI, encode_writes(good)).payload == b"\2\0\0\0\0\0\0\0"
    bad = [vu.RegionWrite(0, 0, b"zz"), vu.RegionWrite(BAR0_BYTES, 0, b"zz")]
    assert client.ask(Command.REGION_WRITE_MULTI, encode_writes(bad)).error == errno.EINVAL
    assert client.read(0, 0, 6) == b"ab\0\0cd"


@pytest.mark.parametrize(
    ("command", "payload", "number"),
    [
        (Command.REGION_READ, access(0, BAR0_BYTES - 1, 2), errno.EINVAL),
        (Command.REGION_READ, access(0, (1 << 64) - 1, 2), errno.EINVAL),
        (Command.REGION_READ, access(1, 0, 4), errno.EINVAL),
        (Command.REGION_READ, access(2, 0, 4), errno.EINVAL),
        (Command.REGION_READ, access(0, 0, 4, b"x"), errno.EINVAL),
        (Command.REGION_READ, b"short", errno.EINVAL),
        (Command.REGION_WRITE, access(0, 0, 4, b"abc"), errno.EINVAL),
        (Command.DMA_MAP, dma_map(flags=0), errno.EINVAL),
        (Command.DMA_MAP, dma_map(flags=0x100), errno.EINVAL),
        (Command.DMA_MAP, dma_map(size=0), errno.EINVAL),
        (Command.DMA_MAP, dma_map(iova=(1 << 64) - PAGE, size=2 * PAGE), errno.EINVAL),
        (Command.DMA_UNMAP, vu.DMA_UNMAP.pack(24, 0, 0, PAGE), errno.ENOENT),
        (Command.DMA_UNMAP, vu.DMA_UNMAP.pack(24, 1, 0, PAGE), errno.EINVAL),
        (Command.DEVICE_GET_INFO, vu.DEVICE_INFO.pack(15, 0, 0, 0), errno.EINVAL),
        (Command.DEVICE_GET_REGION_INFO, vu.REGION_INFO.pack(32, 0, 9, 0, 0, 0), errno.EINVAL),
        (Command.DEVICE_GET_IRQ_INFO, vu.IRQ_INFO.pack(16, 0, 5, 0), errno.EINVAL),
        (Command.DMA_READ, vu.DMA_ACCESS.pack(0, 4), errno.ENOTSUP),
        (99, b"", errno.ENOTSUP),
        (Command.VERSION, vu.encode_version(0, 0, vu.OURS), errno.ENOTSUP),
    ],
)
def test_wrong_requests_get_an_error_without_payload(
    client: RawClient, command: int, payload: bytes, number: int
) -> None:
    reply = client.ask(command, payload)
    assert (reply.failed, reply.error, reply.payload) == (True, number, b"")
    assert client.read(0, 0, 1) == b"\0"


def test_descriptors_where_none_belong_are_closed_and_refused(client: RawClient) -> None:
    fd = memory_file(PAGE)
    before = open_files()
    assert client.ask(Command.REGION_READ, access(0, 0, 4), [fd]).error == errno.EINVAL
    assert client.ask(Command.DMA_MAP, dma_map(), [fd, fd]).error == errno.EINVAL
    assert client.ask(Command.DEVICE_SET_IRQS, irqs(CONNECT, IrqIndex.MSIX, 0, 3), [fd]).error == errno.EINVAL
    assert client.ask(Command.DEVICE_SET_IRQS, irqs(CONNECT, IrqIndex.MSIX, 0, 1), [fd]).error == errno.EINVAL
    assert open_files() == before
    os.close(fd)


def test_more_descriptors_than_agreed_end_the_connection(client: RawClient) -> None:
    fd = memory_file(PAGE)
    before = open_files()
    client.send(Command.REGION_READ, access(0, 0, 4), [fd] * (vu.MAX_FDS + 8))
    assert client.receive() is None
    assert open_files() <= before
    os.close(fd)


def test_maps_are_made_and_taken_back(function: SmallFunction, client: RawClient) -> None:
    fd = memory_file(PAGE)
    assert not client.ask(Command.DMA_MAP, dma_map(0), [fd]).failed
    assert client.ask(Command.DMA_MAP, dma_map(0), [fd]).error == errno.EEXIST
    assert not client.ask(Command.DMA_MAP, dma_map((1 << 64) - PAGE)).failed
    assert len(function.address_space) == 2
    request = vu.DMA_UNMAP.pack(24, 0, 0, PAGE)
    assert client.ask(Command.DMA_UNMAP, request).payload == request
    assert not client.ask(Command.DMA_UNMAP, vu.DMA_UNMAP.pack(24, vu.UnmapFlag.ALL, 0, 0)).failed
    assert len(function.address_space) == 0
    os.close(fd)


def test_a_reset_keeps_maps_and_is_one_of_the_device(function: SmallFunction, client: RawClient) -> None:
    client.ask(Command.DMA_MAP, dma_map())
    assert not client.ask(Command.DEVICE_RESET).failed
    assert function.resets == [ResetCause.DEVICE_RESET]
    assert len(function.address_space) == 1


# --- interrupts --------------------------------------------------------------------------------------------------


def signals(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(VECTORS)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_vectors_signal_the_eventfds_they_were_connected_to(client: RawClient, eventfds: list[int]) -> None:
    def set_irqs(flags: int, start: int, count: int, data: bytes = b"", fds: list[int] | None = None) -> None:
        assert not client.ask(Command.DEVICE_SET_IRQS, irqs(flags, IrqIndex.MSIX, start, count, data), fds or []).failed

    def heard() -> list[int]:
        return [signals(fd) for fd in eventfds]

    set_irqs(CONNECT, 0, VECTORS, fds=eventfds)
    set_irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 1, 2)
    assert heard() == [0, 1, 1, 0]
    set_irqs(IrqSet.DATA_BOOL | IrqSet.ACTION_TRIGGER, 0, 4, b"\1\0\0\1")
    assert heard() == [1, 0, 0, 1]
    set_irqs(IrqSet.DATA_NONE | IrqSet.ACTION_MASK, 0, 1)
    set_irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 0, 2)
    assert heard() == [0, 1, 0, 0]
    set_irqs(IrqSet.DATA_BOOL | IrqSet.ACTION_UNMASK, 0, 1, b"\1")
    assert heard() == [1, 0, 0, 0]
    set_irqs(CONNECT, 1, 1)
    set_irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 0, 2)
    assert heard() == [1, 0, 0, 0]
    set_irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 0, 0)
    set_irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 0, 4)
    assert heard() == [0, 0, 0, 0]


def test_error_and_request_interrupts_are_the_clients_to_trigger(client: RawClient, eventfds: list[int]) -> None:
    for index in (IrqIndex.ERR, IrqIndex.REQ):
        assert not client.ask(Command.DEVICE_SET_IRQS, irqs(CONNECT, index, 0, 1), eventfds[:1]).failed
        trigger = irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, index, 0, 1)
        assert not client.ask(Command.DEVICE_SET_IRQS, trigger).failed
        assert signals(eventfds[0]) == 1


@pytest.mark.parametrize(
    "payload",
    [
        irqs(0, 2, 0, 1),
        irqs(IrqSet.DATA_NONE, 2, 0, 1),
        irqs(IrqSet.DATA_NONE | IrqSet.DATA_BOOL | IrqSet.ACTION_TRIGGER, 2, 0, 1),
        irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER | IrqSet.ACTION_MASK, 2, 0, 1),
        irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER | 64, 2, 0, 1),
        irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 2, VECTORS, 1),
        irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 2, 1, 0xFFFF_FFFF),
        irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 2, 1, 0),
        irqs(IrqSet.DATA_NONE | IrqSet.ACTION_MASK, 2, 0, 0),
        irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 0, 0, 1),
        irqs(IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, 5, 0, 0),
        irqs(IrqSet.DATA_NONE | IrqSet.ACTION_MASK, 3, 0, 1),
        irqs(IrqSet.DATA_BOOL | IrqSet.ACTION_TRIGGER, 2, 0, 2, b"\1"),
    ],
)
def test_wrong_interrupt_requests_are_refused(client: RawClient, payload: bytes) -> None:
    assert client.ask(Command.DEVICE_SET_IRQS, payload).error == errno.EINVAL


# --- DMA by message ----------------------------------------------------------------------------------------------


class Job:
    """A transfer that the function's next step makes; its outcome, once it is over."""

    def __init__(self, function: SmallFunction, client: RawClient, act: Callable[[], object]) -> None:
        self._over = threading.Event()
        self._outcome: object = None
        self._act = act
        assert not client.ask(Command.DMA_MAP, dma_map(size=2 * PAGE)).failed
        function.jobs.append(self._run)
        client.send(Command.REGION_WRITE, access(0, 0, 1, b"!"), no_reply=True)  # wakes the loop

    def _run(self) -> None:
        try:
            self._outcome = self._act()
        except DmaFault as fault:
            self._outcome = fault
        self._over.set()

    def outcome(self) -> object:
        assert self._over.wait(PATIENCE_S)
        return self._outcome


def asked(client: RawClient, command: Command) -> int:
    """Wait for the server's question; its id."""
    message = client.receive()
    assert message is not None and message.command == command and message.wants_reply
    assert vu.DMA_ACCESS.unpack_from(message.payload)[0] == REMOTE_IOVA
    return message.id


@pytest.fixture
def reading(function: SmallFunction, client: RawClient) -> Job:
    return Job(function, client, lambda: bytes(function.address_space.read(REMOTE_IOVA, 4)))


def test_memory_without_a_file_is_read_by_asking_and_registers_answer_meanwhile(
    client: RawClient, reading: Job
) -> None:
    question = asked(client, Command.DMA_READ)
    assert client.read(0, 0, 1) == b"!"
    client.send_bytes(encode_reply(question ^ 0x55, Command.DMA_READ, b"not asked"))
    client.send_bytes(encode_reply(question, Command.DMA_READ, vu.DMA_ACCESS.pack(REMOTE_IOVA, 4) + b"data"))
    assert reading.outcome() == b"data"
    assert client.read(0, 0, 1) == b"!"


def test_memory_without_a_file_is_written_by_asking(function: SmallFunction, client: RawClient) -> None:
    job = Job(function, client, lambda: function.address_space.write(REMOTE_IOVA, b"data"))
    message = client.receive()
    assert message is not None and message.command == Command.DMA_WRITE
    assert message.payload == vu.DMA_ACCESS.pack(REMOTE_IOVA, 4) + b"data"
    client.send_bytes(encode_reply(message.id, Command.DMA_WRITE, vu.DMA_ACCESS.pack(REMOTE_IOVA, 4)))
    assert job.outcome() is None


def test_a_client_that_never_answers_costs_the_command_not_the_device(
    monkeypatch: pytest.MonkeyPatch, client: RawClient, function: SmallFunction
) -> None:
    monkeypatch.setattr(timeouts, "DMA_REPLY_S", 0.05)
    job = Job(function, client, lambda: function.address_space.read(REMOTE_IOVA, 4))
    question = asked(client, Command.DMA_READ)
    fault = job.outcome()
    assert isinstance(fault, DmaFault) and "did not answer" in fault.reason
    client.send_bytes(encode_reply(question, Command.DMA_READ, vu.DMA_ACCESS.pack(REMOTE_IOVA, 4) + b"late"))
    assert client.read(0, 0, 1) == b"!"


def test_a_second_client_is_turned_away_while_the_first_owes_an_answer(
    path: Path, client: RawClient, reading: Job
) -> None:
    question = asked(client, Command.DMA_READ)
    with RawClient.connect(path) as second:
        assert second.negotiate().error == errno.EBUSY
    client.send_bytes(encode_reply(question, Command.DMA_READ, vu.DMA_ACCESS.pack(REMOTE_IOVA, 4) + b"data"))
    assert reading.outcome() == b"data"


def test_stopping_ends_the_wait_and_every_transfer_after_it(function: SmallFunction, tmp_path: Path) -> None:
    path = tmp_path / "stopped.sock"
    with contextlib.ExitStack() as client_end:
        with serving(function, path):
            client = client_end.enter_context(RawClient.connect(path))
            client.negotiate()
            job = Job(function, client, lambda: function.address_space.read(REMOTE_IOVA, 4))
            asked(client, Command.DMA_READ)
        fault = job.outcome()
    assert isinstance(fault, DmaFault) and "switched off" in fault.reason


def test_a_reset_ends_the_wait(client: RawClient, reading: Job) -> None:
    asked(client, Command.DMA_READ)
    assert not client.ask(Command.DEVICE_RESET).failed
    fault = reading.outcome()
    assert isinstance(fault, DmaFault) and "reset" in fault.reason


@pytest.mark.parametrize(
    "payload", [b"", vu.DMA_ACCESS.pack(REMOTE_IOVA, 4) + b"dat", vu.DMA_ACCESS.pack(0, 4) + b"data"]
)
def test_an_answer_that_does_not_fit_is_a_fault(client: RawClient, reading: Job, payload: bytes) -> None:
    client.send_bytes(encode_reply(asked(client, Command.DMA_READ), Command.DMA_READ, payload))
    fault = reading.outcome()
    assert isinstance(fault, DmaFault) and "fit" in fault.reason


def test_a_refusal_is_a_fault(client: RawClient, reading: Job) -> None:
    client.send_bytes(encode_error(asked(client, Command.DMA_READ), Command.DMA_READ, errno.EFAULT))
    assert isinstance(reading.outcome(), DmaFault)


def test_a_client_that_goes_while_asked_is_let_go(
    function: SmallFunction, path: Path, client: RawClient, reading: Job
) -> None:
    asked(client, Command.DMA_READ)
    client.close()
    assert isinstance(reading.outcome(), DmaFault)
    with RawClient.connect(path) as following:
        assert not following.negotiate().failed
    assert function.clients_lost >= 1


# --- sockets -----------------------------------------------------------------------------------------------------


def test_a_client_that_never_reads_is_dropped(
    monkeypatch: pytest.MonkeyPatch, path: Path, client: RawClient, function: SmallFunction
) -> None:
    monkeypatch.setattr(connection_module, "MAX_BACKLOG_BYTES", 1 << 16)
    request = b"".join(encode_command(1, Command.REGION_READ, access(0, 0, BAR0_BYTES)) for _ in range(100))
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(1000):
            client.send_bytes(request)
    with RawClient.connect(path) as following:
        assert not following.negotiate().failed


def test_a_slow_reader_gets_every_reply_in_order(client: RawClient, function: SmallFunction) -> None:
    for number in range(400):
        client.send(Command.REGION_READ, access(0, number, BAR0_BYTES - number))
    for number in range(400):
        reply = client.receive()
        assert reply is not None and vu.REGION_ACCESS.unpack_from(reply.payload)[0] == number


def test_a_socket_is_the_owners_alone_and_removed_in_the_end(function: SmallFunction, tmp_path: Path) -> None:
    path = tmp_path / "npu.sock"
    with serving(function, path):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ListenError, match="another process serves"):
            Listener(path)
        assert path.exists()
    assert not path.exists()


def test_a_socket_file_nobody_serves_behind_is_replaced(function: SmallFunction, tmp_path: Path) -> None:
    path = tmp_path / "npu.sock"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(os.fspath(path))
    with serving(function, path), RawClient.connect(path) as client:
        assert not client.negotiate().failed


def test_a_socket_file_appears_only_once_it_answers(
    function: SmallFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "npu.sock"
    shown = []
    listen = socket.socket.listen

    def look_and_listen(listening: socket.socket, backlog: int) -> None:
        shown.append(path.exists())
        listen(listening, backlog)

    monkeypatch.setattr(socket.socket, "listen", look_and_listen)
    with serving(function, path), RawClient.connect(path) as client:
        assert not client.negotiate().failed
        assert os.listdir(tmp_path) == [path.name]
    assert shown == [False]


def test_what_a_starter_that_was_killed_left_is_replaced(function: SmallFunction, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(os.fspath(tmp_path / "npu.sock~"))
    with serving(function, tmp_path / "npu.sock"):
        assert os.listdir(tmp_path) == ["npu.sock"]


def test_other_files_and_impossible_paths_are_refused(tmp_path: Path) -> None:
    before = open_files()
    (tmp_path / "file").write_text("precious")
    for path, why in [
        (tmp_path / "file", "no socket"),
        (tmp_path / "missing" / "s", "No such file"),
        (tmp_path / ("x" * 200), "shorter"),
    ]:
        with pytest.raises(ListenError, match=why):
            Listener(path)
    assert (tmp_path / "file").read_text() == "precious"
    assert open_files() == before


@pytest.mark.parametrize("kind", range(1, 16))
def test_messages_that_are_no_commands_change_nothing(function: SmallFunction, client: RawClient, kind: int) -> None:
    client.ask(Command.REGION_WRITE, access(0, 0, 4, b"kept"))
    write = bytearray(encode_command(77, Command.REGION_WRITE, access(0, 0, 4, b"lost")))
    reset = bytearray(encode_command(78, Command.DEVICE_RESET))
    for message in (write, reset):
        message[FLAGS_OFFSET] = kind
        client.send_bytes(bytes(message))
    assert client.read(0, 0, 4) == b"kept"
    assert function.resets == []
