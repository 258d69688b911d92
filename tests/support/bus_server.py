"""A small function behind the real server, and a client that speaks raw vfio-user messages to it."""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from driver_shim.protocol import vfio_user as vu
from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.vfio_user_framing import Framer, Message, encode_command
from emulator.function.blocks.interrupts import Interrupts
from emulator.host_memory.address_space import AddressSpace
from emulator.server.listener import Listener
from emulator.server.vfio_user import Server, StopSignal

PATIENCE_S = 20.0
BAR0_BYTES = 0x1000
APERTURE_BYTES = 0x8000
APERTURE_AREAS = ((0, 0x2000), (0x4000, 0x1000))
VECTORS = 4
RECEIVE_BYTES = 1 << 16


class SmallRegion(NamedTuple):
    size_bytes: int
    readable: bool = True
    writable: bool = True
    mappable: tuple[tuple[int, int], ...] = ()
    fd: int | None = None


class SmallFunction:
    """Regions of plain memory; `jobs` are what its steps carry out."""

    def __init__(self) -> None:
        self.file = os.memfd_create("aperture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.file, APERTURE_BYTES)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.regions = {
            0: SmallRegion(BAR0_BYTES),
            2: SmallRegion(BAR0_BYTES, readable=False),
            4: SmallRegion(APERTURE_BYTES, mappable=APERTURE_AREAS, fd=self.file),
            vu.RegionIndex.CONFIG: SmallRegion(4096),
        }
        self.memory = {index: bytearray(region.size_bytes) for index, region in self.regions.items()}
        self.address_space = AddressSpace()
        self.interrupts = Interrupts(VECTORS, lambda: True, lambda vector: None)
        self.jobs: deque[Callable[[], None]] = deque()
        self.resets: list[ResetCause] = []
        self.clients_lost = 0

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        return bytes(self.memory[region][offset : offset + size])

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self.memory[region][offset : offset + len(data)] = data

    def step(self) -> bool:
        if not self.jobs:
            return False
        self.jobs.popleft()()
        return True

    def arm(self) -> bool:
        return not self.jobs

    def wake_fds(self) -> list[int]:
        return []

    def next_deadline_ns(self) -> int | None:
        return None

    def reset(self, cause: ResetCause) -> None:
        self.address_space.abort_transfers()
        self.resets.append(cause)

    def client_lost(self) -> None:
        self.clients_lost += 1
        self.address_space.unmap_all()
        self.interrupts.disconnect_all()

    def close(self) -> None:
        self.address_space.unmap_all()
        self.interrupts.close()
        os.close(self.file)


@contextlib.contextmanager
def serving(function: SmallFunction, path: Path) -> Iterator[None]:
    """Serve at `path` from a thread; what ends the loop by an exception fails the test."""
    stop, failures = StopSignal(), []
    listener = Listener(path)

    def run() -> None:
        try:
            Server(function, stop, listener=listener).run()
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        listener.close()
        stop.close()
    assert not failures, failures
    assert not thread.is_alive()


class RawClient:
    """Sends and receives messages; knows nothing about what they mean."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE_S)
        self._framer = Framer()
        self._next_id = 0

    @classmethod
    def connect(cls, path: Path) -> RawClient:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.fspath(path))
        return cls(sock)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for fd in self._framer.abandon():
            os.close(fd)
        self.socket.close()

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            self.socket.sendmsg([data], rights)
        elif data:
            self.socket.sendall(data)

    def send(self, command: int, payload: bytes = b"", fds: Sequence[int] = (), *, no_reply: bool = False) -> int:
        self._next_id += 1
        self.send_bytes(encode_command(self._next_id, command, payload, no_reply=no_reply), fds)
        return self._next_id

    def receive(self) -> Message | None:
        """The next message, or None at the end of the stream."""
        while (message := self._framer.next_message()) is None:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(RECEIVE_BYTES, socket.CMSG_SPACE(64))
            except ConnectionResetError:
                return None
            if not data:
                return None
            fds = array.array("i")
            for _, _, rights in ancillary:
                fds.frombytes(rights)
            self._framer.feed(data, fds.tolist())
        return message

    def ask(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """A command's reply; nothing else may arrive meanwhile."""
        message_id = self.send(command, payload, fds)
        reply = self.receive()
        assert reply is not None, f"hung up instead of answering command {command}"
        assert (reply.id, reply.command, reply.is_reply) == (message_id, command, True)
        return reply

    def negotiate(self, minor: int = 0) -> Message:
        return self.ask(vu.Command.VERSION, vu.encode_version(0, minor, vu.OURS))

    def read(self, region: int, offset: int, count: int) -> bytes:
        reply = self.ask(vu.Command.REGION_READ, vu.REGION_ACCESS.pack(offset, region, count))
        assert not reply.failed, os.strerror(reply.error)
        return reply.payload[vu.REGION_ACCESS.size :]


def open_files() -> int:
    """Descriptors of this process."""
    gc.collect()  # what earlier tests left goes now, not while this one counts
    return len(os.listdir("/proc/self/fd"))


def memory_file(size: int, *, sealed: bool = True) -> int:
    """A memfd that a client may hand over."""
    fd = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd
