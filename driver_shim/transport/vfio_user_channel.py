"""The client's end of a vfio-user connection: requests and their replies, bounded in time, whatever the server does.

One request is under way at a time. A reply is matched to its request by id; the reply to a request that was given up (a
signal handler raised while it was under way) is recognised later and dropped, so Ctrl-C leaves the connection usable.
For that, what is received is counted within one C call (see `_receive`): no exception can come between a byte's arrival
and its being counted.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence

from driver_shim import timeouts
from driver_shim.errors import Closed, DeviceLost
from driver_shim.protocol.vfio_user import HEADER, REGION_MESSAGE, TYPE_MASK, Command, Flag
from driver_shim.protocol.vfio_user_framing import encode_command, encode_error

MAX_CHUNK_BYTES = 1 << 14
"""Data of one message of ours: it then goes through the socket in one piece, wholly or not at all."""
MAX_REPLY_BYTES = REGION_MESSAGE.size + MAX_CHUNK_BYTES
_INBOX_BYTES = 4 * MAX_REPLY_BYTES
_MAX_ID = 0xFFFF
_POSTED_ID = 0
"""Id of messages that are never replied to; requests have others."""
_MAX_GIVEN_UP = 256
"""Requests given up without a reply so far; a server that never answers them is lost."""
_NS_PER_S = 1_000_000_000
_SPIN_NS = int(timeouts.SPIN_S * _NS_PER_S)
_FD_BYTES = array.array("i").itemsize
_MAX_REPLY_FDS = 8
_TIMEVAL = struct.Struct("@ll")

_REPLY, _ERROR, _NO_REPLY = int(Flag.REPLY), int(Flag.ERROR), int(Flag.NO_REPLY)
_READ, _WRITE = int(Command.REGION_READ), int(Command.REGION_WRITE)
_region_pack_into = REGION_MESSAGE.codec.pack_into
_region_unpack_from = REGION_MESSAGE.codec.unpack_from
_header_unpack_from = HEADER.codec.unpack_from
_ACCESS_BYTES = REGION_MESSAGE.size
_WIDEST_REGISTER = 8


class Refused(OSError):
    """The server answered a request with an error, or the kernel would not send its descriptors; `errno` says which."""


class Channel:
    """A connected vfio-user socket. Every method is thread-safe and raises DeviceLost once the server is gone."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        """Take over `sock`; `address` is what errors call the device."""
        self.address = address
        self._socket = sock
        sock.setblocking(True)
        self.limit(timeouts.MESSAGE_S)
        self._lock = threading.Lock()
        self._owner_pid = os.getpid()
        self._failure: str | None = None
        self._closed = False
        self._spins = len(os.sched_getaffinity(0)) > 1
        self._last_id = 0
        self._under_way = 0
        """Id of the request that waits for its reply; not 0 between requests if one was interrupted."""
        self.silent = False
        """Whether the connection was given up because the server did not answer in time."""
        self._given_up: set[int] = set()
        self._outgoing = memoryview(bytearray(_ACCESS_BYTES + _WIDEST_REGISTER))
        self._read_request = self._outgoing[:_ACCESS_BYTES]
        self._inbox = memoryview(bytearray(_INBOX_BYTES))
        self._whole_inbox = (self._inbox,)
        self._counts: list[int] = []
        """Sizes of what was received into the inbox, one after the other."""
        self._start = 0
        """Where the first message that was not looked at begins in the inbox."""
        self._compacting = False

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def limit(self, limit_s: float) -> None:
        """Wait this long for the server from now on, at most `DEFAULT_S`; `MESSAGE_S` to begin with."""
        self._limit_ns = _limit_ns(limit_s)
        # The kernel keeps the time: a blocking call costs one system call, where Python's own time-outs cost two.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(self._limit_ns))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(self._limit_ns))

    @property
    def lost(self) -> bool:
        """Whether the server is known to be gone, or this channel is closed."""
        return self._failure is not None or self._closed

    def request(
        self, command: Command, payload: bytes = b"", fds: Sequence[int] = (), *, max_fds: int = 0
    ) -> tuple[bytes, list[int]]:
        """Send a command; its reply's payload, and up to `max_fds` descriptors, which become the caller's.

        Raises Refused for an error reply, DeviceLost, Closed.
        """
        with self._lock:
            message_id = self._begin()
            self._send(encode_command(message_id, command, payload), fds)
            taken: list[int] = []
            try:
                reply = self._await_reply(message_id, command, taken if max_fds else None)
                if len(taken) > max_fds:
                    raise self._lose(f"it sent {len(taken)} files with its reply to {command.name}")
            except BaseException:
                _close_all(taken)
                raise
            return reply, taken

    def read_register(self, region: int, offset: int, width: int) -> int:
        """One REGION_READ of 1 to 8 bytes. Raises Refused, DeviceLost, Closed."""
        with self._lock:
            message_id = self._begin()
            _region_pack_into(self._outgoing, 0, message_id, _READ, _ACCESS_BYTES, 0, 0, offset, region, width)
            self._send(self._read_request, ())
            size = _ACCESS_BYTES + width
            if not self._counts:
                self._receive(self._whole_inbox)
                if self._counts[0] == size and _region_unpack_from(self._inbox) == (
                    (message_id, _READ, size, _REPLY, 0, offset, region, width)
                ):
                    value = int.from_bytes(self._inbox[_ACCESS_BYTES:size], "little")
                    self._counts.clear()
                    self._under_way = 0
                    return value
            payload = self._await_reply(message_id, Command.REGION_READ, None)
            asked = self._outgoing[HEADER.size : _ACCESS_BYTES]
            if len(payload) != size - HEADER.size or payload[: len(asked)] != asked:
                raise self._lose(f"its reply to a read of {width} bytes at {offset:#x} does not fit")
            return int.from_bytes(payload[len(asked) :], "little")

    def post_register(self, region: int, offset: int, value: int, width: int) -> None:
        """One REGION_WRITE of 1 to 8 bytes that is never replied to. Raises OverflowError, DeviceLost, Closed."""
        data = value.to_bytes(width, "little")
        with self._lock:
            self._check()
            size = _ACCESS_BYTES + width
            outgoing = self._outgoing
            _region_pack_into(outgoing, 0, _POSTED_ID, _WRITE, size, _NO_REPLY, 0, offset, region, width)
            outgoing[_ACCESS_BYTES:size] = data
            self._send(outgoing[:size], ())

    def close(self) -> None:
        """Hang up; idempotent. In a forked child it only lets go of the child's copy."""
        self._closed = True
        if self._owner_pid != os.getpid():
            self._socket.close()
            return
        self._hang_up()  # wakes a thread that waits for a reply, which holds the lock
        with self._lock:
            self._socket.close()

    # --- under the lock ----------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise unless messages can be sent."""
        if self._closed or self._owner_pid != os.getpid():
            raise Closed("the connection was closed, or belongs to the parent process", device=self.address)
        if self._failure is not None:
            raise self._lost_error()
        if self._compacting:
            raise self._lose("a signal handler raised while a message was moved")

    def _begin(self) -> int:
        """The id of a new request."""
        self._check()
        if self._start >= sum(self._counts):
            self._counts.clear()
            self._start = 0
        if self._under_way:
            self._given_up.add(self._under_way)
            if len(self._given_up) > _MAX_GIVEN_UP:
                raise self._lose(f"it left {_MAX_GIVEN_UP} requests unanswered")
        message_id = self._last_id % _MAX_ID + 1
        while message_id in self._given_up:
            message_id = message_id % _MAX_ID + 1
        self._last_id = self._under_way = message_id
        return message_id

    def _send(self, message: bytes | memoryview, fds: Sequence[int]) -> None:
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                sent = self._socket.sendmsg([message], rights, socket.MSG_NOSIGNAL)
            else:
                sent = self._socket.send(message, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            if fds and error.errno in (errno.EBADF, errno.ETOOMANYREFS):
                self._under_way = 0  # nothing was sent
                raise Refused(error.errno, error.strerror) from error
            raise self._lose(f"its socket failed: {error.strerror}") from error
        if sent != len(message):
            raise self._lose(f"it took no message for {self._limit_ns / _NS_PER_S:g} s")

    def _await_reply(self, message_id: int, command: Command, fds: list[int] | None) -> bytes:
        """Look at messages until the reply comes; collects descriptors into `fds` if given."""
        deadline_ns = time.monotonic_ns() + self._limit_ns
        while True:
            have = sum(self._counts)
            start = min(self._start, have)  # beyond it when a signal came between the two resets below
            if have - start >= HEADER.size:
                found_id, found, size, flags, error = _header_unpack_from(self._inbox, start)
                if not HEADER.size <= size <= MAX_REPLY_BYTES:
                    raise self._lose(f"it sent a message of {size} bytes ({command.name} was asked)")
                if have - start >= size:
                    payload = bytes(self._inbox[start + HEADER.size : start + size])
                    self._start = start + size
                    if self._is_reply(message_id, command, found_id, found, flags):
                        self._under_way = 0
                        if flags & _ERROR:
                            raise Refused(error or errno.EIO, os.strerror(error or errno.EIO))
                        return payload
                    continue
            if start == have:
                self._counts.clear()
                self._start = have = 0
            elif have == len(self._inbox):
                have = self._compact(start, have)
            if time.monotonic_ns() >= deadline_ns:
                raise self._lose(self._silence(command))
            if fds is None:
                self._receive((self._inbox[have:],), command)
            else:
                self._receive_fds(self._inbox[have:], fds, command)

    def _is_reply(self, message_id: int, command: Command, found_id: int, found: int, flags: int) -> bool:
        """Whether a message is the reply waited for; answers or drops what else may come, and is lost at the rest."""
        kind = flags & TYPE_MASK
        if kind == 0:
            if not flags & Flag.NO_REPLY:
                self._send(encode_error(found_id, found, errno.ENOTSUP), ())
            return False
        if kind != _REPLY:
            raise self._lose(f"it sent a message of unknown type {kind}")
        if found_id in self._given_up:
            self._given_up.discard(found_id)
            return False
        if found_id != message_id or found != command:
            raise self._lose(
                f"it replied to command {found} with id {found_id}; {command.name} with id {message_id} was asked"
            )
        return True

    def _receive(self, views: tuple[memoryview], command: Command = Command.REGION_READ) -> None:
        """Receive once into the view. Spins a little first: a sleeping thread costs a wake-up."""
        counts, receive = self._counts, self._socket.recv_into
        try:
            if self._spins:
                spin_end_ns = time.monotonic_ns() + _SPIN_NS
                while True:
                    try:
                        counts.extend(map(receive, views, _ALL_BYTES, _DONT_WAIT))
                        break
                    except BlockingIOError:
                        if time.monotonic_ns() >= spin_end_ns:
                            counts.extend(map(receive, views))
                            break
            else:
                counts.extend(map(receive, views))
        except BlockingIOError:
            raise self._lose(self._silence(command)) from None
        except OSError as error:
            raise self._lose(f"its socket failed: {error.strerror}") from error
        if counts[-1] == 0:
            raise self._lose("it hung up")

    def _receive_fds(self, view: memoryview, fds: list[int], command: Command) -> None:
        """Receive once, descriptors included."""
        room = socket.CMSG_SPACE(_MAX_REPLY_FDS * _FD_BYTES)
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into([view], room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            raise self._lose(self._silence(command)) from None
        except OSError as error:
            raise self._lose(f"its socket failed: {error.strerror}") from error
        self._counts.append(count)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds += array.array("i", data[: len(data) - len(data) % _FD_BYTES])
        if count == 0:
            raise self._lose("it hung up")
        if flags & socket.MSG_CTRUNC:
            raise self._lose(f"it sent more files with its reply to {command.name} than there is room for")

    def _compact(self, start: int, have: int) -> int:
        """Move an incomplete message to the front of the inbox; its size so far."""
        self._compacting = True
        rest = bytes(self._inbox[start:have])
        self._inbox[: len(rest)] = rest
        self._start = 0
        self._counts[:] = [len(rest)]
        self._compacting = False
        return len(rest)

    # --- the end -----------------------------------------------------------------------------------------------

    def _silence(self, command: Command) -> str:
        self.silent = True
        return f"it did not answer {command.name} within {self._limit_ns / _NS_PER_S:g} s"

    def _lose(self, what: str) -> DeviceLost | Closed:
        """The server cannot be talked to any more; hangs up, and returns what to raise."""
        self._failure = what
        self._hang_up()
        return self._lost_error()

    def _lost_error(self) -> DeviceLost | Closed:
        if self._closed:
            return Closed("the connection was closed", device=self.address)
        return DeviceLost(
            f"{self.address} is lost: {self._failure}",
            device=self.address,
            subsystem="vfio-user",
            cause=self._failure,
            remedy="open it again; if it does not come back, restart what serves it",
        )

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)


_ALL_BYTES = (0,)
_DONT_WAIT = (socket.MSG_DONTWAIT,)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def limit_sends(sock: socket.socket, limit_s: float) -> None:
    """Bound the blocking sends of a socket, and its connect, by at most `DEFAULT_S`."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_limit_ns(limit_s)))


def _limit_ns(limit_s: float) -> int:
    return int(min(max(limit_s, timeouts.SOCKET_LEAST_S), timeouts.DEFAULT_S) * _NS_PER_S)


def _timeval(limit_ns: int) -> bytes:
    return _TIMEVAL.pack(limit_ns // _NS_PER_S, limit_ns % _NS_PER_S // 1000)
