"""What servers may do to the client, right or wrong: it says what was wrong, and neither hangs nor leaks."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_shim import timeouts
from driver_shim.errors import (
    Closed,
    ContractMismatch,
    DeviceBusy,
    DeviceLost,
    DeviceNotFound,
    HostMemoryLimit,
    NpuError,
    PermissionDenied,
    Timeout,
)
from driver_shim.protocol import vfio_user as vu
from driver_shim.protocol.vfio_user import Command
from driver_shim.protocol.vfio_user_framing import Message, encode_command, encode_error, encode_reply
from driver_shim.transport.vfio_user import VfioUserTransport
from sdk import Device
from tests.support.bus_server import (
    APERTURE_AREAS,
    APERTURE_BYTES,
    PATIENCE_S,
    VECTORS,
    RawClient,
    SmallFunction,
    memory_file,
    open_files,
    serving,
)

PAGE = 4096
Answer = Callable[[Message], "bytes | tuple[bytes, list[int]] | None"]
"""What the server sends for a request: a whole message, with files or without; None hangs up."""


def region_reply(message: Message, size: int = APERTURE_BYTES, flags: int = 3) -> bytes:
    index = vu.REGION_INFO.unpack_from(message.payload)[2]
    size = {0: PAGE, 4: size, 7: PAGE}.get(index, 0)
    payload, _ = vu.encode_region_info(
        vu.RegionDescription(index, size, flags if index == 4 else 3 if size else 0), 512
    )
    return encode_reply(message.id, message.command, payload)


def good(message: Message) -> bytes:
    """What a well-behaved server answers."""
    payload = b""
    if message.command == Command.VERSION:
        payload = vu.encode_version(0, 0, vu.OURS)
    elif message.command == Command.DEVICE_GET_INFO:
        payload = vu.DEVICE_INFO.pack(16, 3, 9, 5)
    elif message.command == Command.DEVICE_GET_REGION_INFO:
        return region_reply(message)
    elif message.command == Command.DEVICE_GET_IRQ_INFO:
        payload = vu.IRQ_INFO.pack(16, 1, 2, VECTORS)
    elif message.command == Command.REGION_READ:
        payload = message.payload + bytes(range(1, 1 + vu.REGION_ACCESS.unpack_from(message.payload)[2]))
    elif message.command == Command.REGION_WRITE:
        payload = message.payload[: vu.REGION_ACCESS.size]
    return encode_reply(message.id, message.command, payload)


class FakeServer:
    """Answers requests on one end of a socket pair from a thread."""

    def __init__(self, answers: dict[Command, Answer]) -> None:
        self._answers = answers
        ours, self.theirs = socket.socketpair()
        self.peer = RawClient(ours)
        self.heard: list[Message] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (message := self.peer.receive()) is not None:
                self.heard.append(message)
                for fd in message.fds:
                    os.close(fd)
                if message.is_reply or not message.wants_reply:
                    continue
                answer = self._answers.get(Command(message.command), good)(message)
                if answer is None:
                    break
                data, fds = answer if isinstance(answer, tuple) else (answer, [])
                self.peer.send_bytes(data, fds)
        except OSError:  # the client hung up on us
            pass
        self.peer.close()

    def end(self) -> None:
        self.theirs.close()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def start() -> Iterator[Callable[..., FakeServer]]:
    before = open_files()
    servers: list[FakeServer] = []

    def start(**answers: Answer) -> FakeServer:
        servers.append(FakeServer({Command[name]: answer for name, answer in answers.items()}))
        return servers[-1]

    yield start
    for server in servers:
        server.end()
    assert open_files() == before, "a descriptor leaked"


def opened(server: FakeServer) -> VfioUserTransport:
    return VfioUserTransport.from_socket(server.theirs, "test device", PATIENCE_S)


def opened_with_limit(server: FakeServer, limit_s: float) -> VfioUserTransport:
    """One that gives up this early, but only once it is open: opening has to succeed."""
    transport = opened(server)
    assert transport._channel._limit_ns == timeouts.MESSAGE_S * 1e9
    transport._channel.limit(limit_s)
    return transport


# --- opening -----------------------------------------------------------------------------------------------------


def refuse(number: int) -> Answer:
    return lambda message: encode_error(message.id, message.command, number)


def raw(data: bytes) -> Answer:
    return lambda message: data


def reply(payload: bytes) -> Answer:
    return lambda message: encode_reply(message.id, message.command, payload)


def hang_up(message: Message) -> None:
    return None


WRONG_OPENINGS: dict[str, tuple[str, Answer, type[NpuError], str]] = {
    "busy": ("VERSION", refuse(errno.EBUSY), DeviceBusy, "another client"),
    "other major": ("VERSION", refuse(errno.EINVAL), ContractMismatch, "refused vfio-user 0.0"),
    "hang up": ("VERSION", hang_up, DeviceLost, "hung up"),
    "major 1": ("VERSION", reply(b"\1\0\0\0"), ContractMismatch, "with 1.0"),
    "higher minor": ("VERSION", reply(b"\0\0\1\0"), ContractMismatch, "with 0.1"),
    "bad json": ("VERSION", reply(b"\0\0\0\0{\0"), ContractMismatch, "JSON"),
    "empty version": ("VERSION", reply(b""), ContractMismatch, "VERSION of 0 bytes"),
    "wrong id": ("VERSION", lambda m: encode_reply(m.id + 1, m.command), DeviceLost, "with id 2"),
    "wrong command": ("VERSION", lambda m: encode_reply(m.id, 9), DeviceLost, "replied to command 9"),
    "huge": ("VERSION", raw(vu.HEADER.pack(1, 1, 0xFFFF_FFFF, 1, 0)), DeviceLost, "of 4294967295 bytes"),
    "tiny": ("VERSION", raw(vu.HEADER.pack(1, 1, 15, 1, 0)), DeviceLost, "of 15 bytes"),
    "unknown type": ("VERSION", raw(vu.HEADER.pack(1, 1, 16, 7, 0)), DeviceLost, "unknown type 7"),
    "no pci": ("DEVICE_GET_INFO", reply(vu.DEVICE_INFO.pack(16, 1, 9, 5)), ContractMismatch, "no PCI device"),
    "few regions": ("DEVICE_GET_INFO", reply(vu.DEVICE_INFO.pack(16, 3, 2, 5)), ContractMismatch, "2 regions"),
    "short info": ("DEVICE_GET_INFO", reply(b"\0"), ContractMismatch, "1 bytes instead of 16"),
    "info refused": ("DEVICE_GET_INFO", refuse(errno.EIO), ContractMismatch, "refused DEVICE_GET_INFO"),
    "unnamed error": ("DEVICE_GET_INFO", refuse(0), ContractMismatch, "refused DEVICE_GET_INFO"),
    "short region": ("DEVICE_GET_REGION_INFO", reply(b"\0" * 31), ContractMismatch, "region info of 31"),
    "other region": (
        "DEVICE_GET_REGION_INFO",
        reply(vu.REGION_INFO.pack(32, 3, 8, 0, PAGE, 0)),
        ContractMismatch,
        "described region 0",
    ),
    "nonsense size": (
        "DEVICE_GET_REGION_INFO",
        reply(vu.REGION_INFO.pack(32, 3, 0, 0, 1 << 63, 0)),
        ContractMismatch,
        "described region 0",
    ),
    "no config": (
        "DEVICE_GET_REGION_INFO",
        lambda m: encode_reply(m.id, m.command, vu.REGION_INFO.pack(32, 0, m.payload[8], 0, 0, 0)),
        ContractMismatch,
        "no configuration space",
    ),
    "many vectors": (
        "DEVICE_GET_IRQ_INFO",
        reply(vu.IRQ_INFO.pack(16, 1, 2, 1 << 31)),
        ContractMismatch,
        "2147483648 MSI-X vectors",
    ),
}


@pytest.mark.parametrize("case", WRONG_OPENINGS)
def test_a_server_that_opens_wrongly_is_refused_with_the_reason(start: Callable[..., FakeServer], case: str) -> None:
    name, answer, error, reason = WRONG_OPENINGS[case]
    with pytest.raises(error, match=reason) as raised:
        opened(start(**{name: answer}))
    assert raised.value.device == "test device"


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_a_server_may_vanish_after_any_byte_of_a_reply(start: Callable[..., FakeServer], cut: int) -> None:
    server = start()

    def half(message: Message) -> bytes:
        server.peer.send_bytes(good(message)[:cut])
        server.peer.socket.shutdown(socket.SHUT_RDWR)
        return b""

    server._answers[Command.VERSION] = half
    with pytest.raises(DeviceLost, match=r"hung up|failed"):
        opened(server)


def test_files_nobody_asked_for_are_closed(start: Callable[..., FakeServer]) -> None:
    fd = memory_file(PAGE)

    def generous(message: Message) -> tuple[bytes, list[int]]:
        return good(message), [fd, fd, fd]

    with pytest.raises(DeviceLost, match="3 files"):
        opened(start(DEVICE_GET_REGION_INFO=generous))
    server = start(DEVICE_GET_INFO=generous, REGION_READ=generous)
    transport = opened(server)
    assert transport.read(0, 0, 4) == 0x04030201
    transport.close()
    os.close(fd)


def test_a_silent_server_is_lost_after_the_limit(start: Callable[..., FakeServer]) -> None:
    transport = opened_with_limit(start(REGION_READ=raw(b"")), 0.05)
    with pytest.raises(DeviceLost, match=r"did not answer REGION_READ within 0\.05 s"):
        transport.read(0, 0, 4)
    with pytest.raises(DeviceLost):
        transport.read(0, 0, 4)
    assert not transport.alive()
    transport.close()


def test_a_server_that_talks_without_answering_is_lost_after_the_limit(start: Callable[..., FakeServer]) -> None:
    server = start()

    def chatter(message: Message) -> bytes:
        try:
            while True:
                server.peer.send_bytes(encode_command(5, Command.DMA_READ, bytes(16), no_reply=True) * 50)
        except OSError:
            return b""

    server._answers[Command.REGION_READ] = chatter
    transport = opened_with_limit(server, 0.1)
    with pytest.raises(DeviceLost, match="did not answer"):
        transport.read(0, 0, 4)
    transport.close()


def test_a_server_that_is_silent_from_the_start_is_a_time_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stopped emulator accepts connections and says nothing: nothing was lost that there had been."""
    monkeypatch.setattr(timeouts, "MESSAGE_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "silent.sock"))
        listening.listen()
        with pytest.raises(Timeout, match="did not answer VERSION") as caught:
            VfioUserTransport.connect(tmp_path / "silent.sock", timeout=0.1)
    assert caught.value.remedy


def test_commands_of_the_server_are_declined_and_the_reply_still_found(start: Callable[..., FakeServer]) -> None:
    def asking(message: Message) -> bytes:
        return encode_command(77, Command.DMA_READ, vu.DMA_ACCESS.pack(0, 4)) + good(message)

    server = start(REGION_READ=asking)
    transport = opened(server)
    assert [transport.read(0, 0, 4) for _ in range(3)] == [0x04030201] * 3
    transport.reset()
    declined = [message for message in server.heard if message.is_reply]
    assert [(m.id, m.command, m.failed, m.error) for m in declined] == [(77, Command.DMA_READ, True, errno.ENOTSUP)] * 3
    transport.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda m: encode_reply(m.id, m.command, m.payload + bytes(3)), DeviceLost),
        (lambda m: encode_reply(m.id, m.command, bytes(16) + bytes(4)), DeviceLost),
        (lambda m: encode_reply(m.id, m.command), DeviceLost),
        (refuse(errno.EINVAL), ContractMismatch),
        (hang_up, DeviceLost),
    ],
)
def test_a_register_reply_that_does_not_fit_is_no_value(
    start: Callable[..., FakeServer], answer: Answer, error: type[NpuError]
) -> None:
    transport = opened(start(REGION_READ=answer))
    with pytest.raises(error):
        transport.read(0, 8, 4)
    transport.close()


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([Command.VERSION, Command.DEVICE_GET_REGION_INFO, Command.REGION_READ]), st.data())
def test_random_replies_raise_our_errors_only(command: Command, data: st.DataObject) -> None:
    garbage = data.draw(st.binary(max_size=100))
    kind = data.draw(st.sampled_from(["raw", "payload"]))

    def answer(message: Message) -> bytes | None:
        if kind == "raw":
            server.peer.send_bytes(garbage)
            return None
        return encode_reply(message.id, message.command, garbage)

    server = FakeServer({command: answer})
    try:
        transport = opened(server)
        try:
            transport.read(0, 0, 4)
        finally:
            transport.close()
    except (DeviceLost, ContractMismatch):
        pass
    finally:
        server.end()


# --- mappings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "sealed", "reason"),
    [(APERTURE_BYTES, False, "not sealed"), (PAGE, True, "the mapping ends at"), (None, True, "not sealed")],
)
def test_files_that_could_kill_us_are_not_mapped(
    start: Callable[..., FakeServer], size: int | None, sealed: bool, reason: str
) -> None:
    fd = os.eventfd(0) if size is None else memory_file(size, sealed=sealed)

    def offering(message: Message) -> tuple[bytes, list[int]]:
        return region_reply(message, flags=7), [fd] if message.payload[8] == 4 else []

    transport = opened(start(DEVICE_GET_REGION_INFO=offering))
    assert transport.regions()[4].mappable == ((0, APERTURE_BYTES),)
    with pytest.raises(ContractMismatch, match=reason):
        transport.map_region(4, 0, APERTURE_BYTES)
    transport.close()
    os.close(fd)


# --- against the real server -------------------------------------------------------------------------------------


@pytest.fixture
def function() -> Iterator[SmallFunction]:
    function = SmallFunction()
    yield function
    function.close()


@pytest.fixture
def transport(function: SmallFunction, tmp_path: Path) -> Iterator[VfioUserTransport]:
    with serving(function, tmp_path / "s"):
        transport = VfioUserTransport.connect(tmp_path / "s")
        yield transport
        transport.close()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_registers_are_read_and_written_in_every_width(
    function: SmallFunction, transport: VfioUserTransport, width: int
) -> None:
    value = int.from_bytes(bytes(range(0xF1, 0xF1 + width)), "little")
    transport.write(0, 16, value, width)
    assert transport.read(0, 16, width) == value
    assert function.memory[0][16 : 17 + width] == value.to_bytes(width, "little") + b"\0"


@pytest.mark.parametrize(
    ("region", "offset", "width"), [(0, 0x1000, 4), (0, 0xFFE, 4), (1, 0, 4), (0, -4, 4), (0, 0, 3), (9, 0, 4)]
)
def test_accesses_outside_a_region_are_value_errors(
    transport: VfioUserTransport, region: int, offset: int, width: int
) -> None:
    with pytest.raises(ValueError, match="access of"):
        transport.read(region, offset, width)
    with pytest.raises(ValueError, match="access of"):
        transport.write(region, offset, 0, width)
    assert transport.read(0, 0, 4) == 0


def test_a_value_wider_than_its_register_is_refused_and_harms_nothing(transport: VfioUserTransport) -> None:
    with pytest.raises(OverflowError):
        transport.write(0, 0, 1 << 32, 4)
    assert transport.read(0, 0, 4) == 0


def test_configuration_space_is_read_and_written_whole(transport: VfioUserTransport) -> None:
    data = bytes(range(256)) * 16
    transport.config_write(0, data)
    assert transport.config_read(0, 4096) == data
    with pytest.raises(ValueError, match="access of"):
        transport.config_read(4095, 2)


def test_only_the_mappable_areas_are_mapped_and_are_the_devices_memory(
    function: SmallFunction, transport: VfioUserTransport
) -> None:
    assert transport.regions()[4].mappable == APERTURE_AREAS
    view = transport.map_region(4, 0x4010, 16)
    view[:4] = b"here"
    assert os.pread(function.file, 4, 0x4010) == b"here"
    for offset, size in [(0x2000, PAGE), (0x1000, 0x4000), (0, 0), (0x5000, 1)]:
        with pytest.raises(ValueError, match="cannot be mapped"):
            transport.map_region(4, offset, size)
    transport.close()
    assert bytes(view[:4]) == b"here"


def test_memory_is_mapped_for_the_device_and_taken_back(function: SmallFunction, transport: VfioUserTransport) -> None:
    fd = memory_file(2 * PAGE)
    transport.dma_map(fd, PAGE, 0x10000, PAGE)
    function.address_space.write(0x10000, b"dma")
    assert os.pread(fd, 3, PAGE) == b"dma"
    with pytest.raises(ValueError, match="refused"):
        transport.dma_map(fd, 0, 0x10000, PAGE)
    with pytest.raises(ValueError, match="refused"):
        transport.dma_map(-1, 0, 0x20000, PAGE)
    transport.dma_unmap(0x10000, PAGE)
    with pytest.raises(ValueError, match="not mapped"):
        transport.dma_unmap(0x10000, PAGE)
    os.close(fd)


def test_too_many_mappings_are_a_memory_limit(start: Callable[..., FakeServer]) -> None:
    transport = opened(start(DMA_MAP=refuse(errno.ENOSPC)))
    with pytest.raises(HostMemoryLimit):
        transport.dma_map(0, 0, 0, PAGE)
    transport.close()


def test_eventfds_replace_all_earlier_ones(function: SmallFunction, transport: VfioUserTransport) -> None:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(VECTORS)]
    transport.set_interrupts([fds[0], None, fds[2], fds[3]])
    transport.set_interrupts([fds[0], fds[1]])
    for vector in range(VECTORS):
        function.interrupts.trigger(vector)
    assert [os.read(fd, 8)[0] for fd in fds[:2]] == [1, 1]
    for fd in fds[2:]:
        with pytest.raises(BlockingIOError):
            os.read(fd, 8)
    with pytest.raises(ValueError, match="4 vectors"):
        transport.set_interrupts([None] * 5)
    for fd in fds:
        os.close(fd)


def test_threads_share_a_connection(transport: VfioUserTransport) -> None:
    wrong: list[int] = []

    def use(register: int) -> None:
        for value in range(200):
            transport.write(0, register, value, 4)
            if (found := transport.read(0, register, 4)) != value:
                wrong.append(found)

    threads = [threading.Thread(target=use, args=(8 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not wrong


def test_a_signal_that_raises_while_a_reply_is_awaited_leaves_the_connection_usable(
    start: Callable[..., FakeServer],
) -> None:
    raised_in_wait = threading.Event()
    server = start()

    def late(message: Message) -> bytes:
        if not raised_in_wait.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            raised_in_wait.wait(PATIENCE_S)
        return good(message)

    server._answers[Command.REGION_READ] = late

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        transport = opened(server)
        with pytest.raises(KeyboardInterrupt):
            transport.read(0, 0, 8)
    finally:
        signal.signal(signal.SIGUSR1, before)
        raised_in_wait.set()
    assert transport.read(0, 4, 4) == 0x04030201
    assert [transport.read(0, 0, width) for width in (1, 2, 4)] == [0x01, 0x0201, 0x04030201]
    transport.close()


def test_closing_ends_a_wait_of_another_thread_and_every_later_use(start: Callable[..., FakeServer]) -> None:
    asked = threading.Event()
    release = threading.Event()

    def never(message: Message) -> bytes:
        asked.set()
        release.wait(PATIENCE_S)
        return b""

    transport = opened(start(REGION_READ=never))
    outcome: list[BaseException] = []

    def read() -> None:
        try:
            transport.read(0, 0, 4)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert asked.wait(PATIENCE_S)
    transport.close()
    thread.join(PATIENCE_S)
    release.set()
    assert [type(error) for error in outcome] == [Closed]
    transport.close()
    assert not transport.alive()
    with pytest.raises(Closed):
        transport.reset()


def test_a_server_that_dies_is_noticed(start: Callable[..., FakeServer]) -> None:
    server = start()
    transport = opened(server)
    assert transport.alive()
    server.peer.socket.shutdown(socket.SHUT_RDWR)
    assert not transport.alive()
    with pytest.raises(DeviceLost):
        transport.read(0, 0, 4)
    transport.close()


# --- connecting --------------------------------------------------------------------------------------------------


def test_paths_without_a_server_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    with pytest.raises(DeviceNotFound, match="No such file"):
        VfioUserTransport.connect(tmp_path / "missing")
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(os.fspath(tmp_path / "stale"))
    with pytest.raises(DeviceNotFound, match="refused"):
        VfioUserTransport.connect(tmp_path / "stale")
    with pytest.raises(DeviceNotFound):
        VfioUserTransport.connect(tmp_path / ("x" * 200))
    with monkeypatch.context() as patch, pytest.raises(PermissionDenied):
        patch.setattr("socket.socket.connect", _denied)
        VfioUserTransport.connect(tmp_path / "stale")
    assert open_files() == before


def _denied(self: socket.socket, address: str) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_second_client_meets_a_busy_device(transport: VfioUserTransport, tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(DeviceBusy, match="serves another client"):
        VfioUserTransport.connect(tmp_path / "s")
    assert transport.read(0, 0, 4) == 0
    assert open_files() == before


def test_somebody_elses_function_is_refused_before_anything_is_written_to_it(
    function: SmallFunction, tmp_path: Path
) -> None:
    function.memory[vu.RegionIndex.CONFIG][:4] = b"\x86\x80\x34\x12"
    before = {index: bytes(octets) for index, octets in function.memory.items()}
    with serving(function, tmp_path / "s"):
        with pytest.raises(ContractMismatch, match=r"is PCI function 8086:1234 with 4096 bytes of registers"):
            Device(f"vfio-user:{tmp_path / 's'}")
        with RawClient.connect(tmp_path / "s") as following:  # whose place is free only when the one before was let go
            following.negotiate()
    assert function.memory == before
    assert function.resets == []


def test_our_ids_with_too_few_registers_are_not_ours(function: SmallFunction, tmp_path: Path) -> None:
    function.memory[vu.RegionIndex.CONFIG][:4] = b"\xc4\xb7\x50\x4e"
    with serving(function, tmp_path / "s"), pytest.raises(ContractMismatch, match="with 4096 bytes"):
        Device(f"vfio-user:{tmp_path / 's'}")
