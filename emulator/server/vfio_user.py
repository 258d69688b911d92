"""The event loop around a PCI function: one thread, no timers while idle.

While there is work the function is stepped, and the sockets are looked at every BUSY_POLL_S. After the last work the
loop keeps looking for IDLE_POLL_S, because a sleeping server costs the host a wake-up. Then the function arms its bells
and the loop sleeps until a message, an engine or the owner's end wakes it.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import select
import socket
import time

from driver_shim.protocol.vfio_user_framing import Message
from emulator import timeouts
from emulator.server.companion import Companion
from emulator.server.connection import Connection, ConnectionLost, close_all
from emulator.server.dispatch import Dispatcher
from emulator.server.function_port import FunctionPort
from emulator.server.listener import Listener
from emulator.server.newcomers import Newcomers, negotiate
from emulator.server.remote_memory import MessageMemory

_logger = logging.getLogger("npu.emulator.server")

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000
_BUSY_POLL_NS = int(timeouts.BUSY_POLL_S * _NS_PER_S)
_SPIN_POLL_NS = int(timeouts.SPIN_POLL_S * _NS_PER_S)
_QUIET_POLL_NS = int(timeouts.QUIET_POLL_S * _NS_PER_S)
_CROWDED_TURN_NS = int(timeouts.CROWDED_TURN_S * _NS_PER_S)
_EAGER_POLL_NS = int(timeouts.EAGER_POLL_S * _NS_PER_S)
_IDLE_POLL_NS = int(timeouts.IDLE_POLL_S * _NS_PER_S)


class StopSignal:
    """Ends a server's loop, from a signal handler or another thread."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        """End the loop soon. Does nothing after `close`."""
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Close its descriptor; idempotent."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


class Server:
    """Serves one function to one client at a time."""

    def __init__(
        self,
        function: FunctionPort,
        stop: StopSignal,
        *,
        listener: Listener | None = None,
        client: socket.socket | None = None,
        owner_pidfd: int | None = None,
    ) -> None:
        """Serve whoever connects to `listener`, or `client` alone and end with it.

        Ends with the process of `owner_pidfd`, too. All of these stay the caller's, but for `client`.
        """
        self._function = function
        self._stop_fd = stop.fd
        self._listener = listener
        self._owner_pidfd = owner_pidfd
        self._private = client is not None
        self._poller = select.poll()
        self._newcomers = Newcomers(self._poller)
        self._dispatcher = Dispatcher(function)
        self._client: Connection | None = None
        self._memory: MessageMemory | None = None
        self._companion: Companion | None = None
        self._waits_for_room = False
        """Whether the client has left replies unread, so that we wait for it to make room."""
        self._wake_fds: list[int] = []
        self._stopped = False
        self._spare_fd = -1
        self._reserve_spare()
        self._poller.register(stop.fd, select.POLLIN)
        if listener is not None:
            self._poller.register(listener.socket, select.POLLIN)
        if owner_pidfd is not None:
            self._poller.register(owner_pidfd, select.POLLIN)
        if client is not None:
            self._newcomers.add(client, patience_s=math.inf)

    def accompany(self, companion: Companion) -> None:
        """Serve its sockets in the same loop, and close it with the loop. Before `run`, and one only."""
        self._companion = companion
        companion.attach(self._poller)

    @property
    def occupied(self) -> bool:
        """Whether a client is connected."""
        return self._client is not None

    def run(self) -> None:
        """Serve until stopped. Afterwards no client is connected; the function is the caller's to close."""
        idle_ns = 0 if len(os.sched_getaffinity(0)) == 1 else _IDLE_POLL_NS
        step, arm, now = self._function.step, self._function.arm, time.monotonic_ns
        worked = looked = eager_until = now()
        try:
            while not self._stopped:
                if step():
                    worked = now()
                    if worked - looked < _BUSY_POLL_NS:
                        continue
                    happened = self._look(0)
                elif (time_ns := now()) - worked < idle_ns:
                    if time_ns - looked < _SPIN_POLL_NS and time_ns > eager_until:
                        if time_ns - worked > _QUIET_POLL_NS:
                            os.sched_yield()
                            if now() - time_ns > _CROWDED_TURN_NS:
                                worked = time_ns - idle_ns  # somebody else needs this CPU: sleep instead
                        continue
                    happened = self._look(0)
                else:
                    happened = self._look(0) or not arm() or self._look(self._patience_ms())
                looked = now()
                if happened:
                    worked, eager_until = looked, looked + _EAGER_POLL_NS
        finally:
            self._close()

    # --- waiting -----------------------------------------------------------------------------------------------

    def _look(self, patience_ms: float | None) -> bool:
        """Serve every socket that has something; waits for that at most this long. True if anything happened."""
        wake_fds = self._function.wake_fds()
        if wake_fds != self._wake_fds:
            self._watch(wake_fds)
        client = self._client
        if client is not None and client.lost is not None:
            self._lose_client()
            return True
        events = self._poller.poll(patience_ms)
        self._newcomers.expire()
        companion = self._companion
        if companion is not None:
            companion.expire()
        if not events:
            return False
        if client is not None:  # first, so that its end is known before anyone asks for its place
            client_fd = client.fileno()
            for fd, event in events:
                if fd == client_fd:
                    self._serve_client(event)
        self._serve_others(events)
        if companion is not None:
            for fd, event in events:
                if fd in companion:
                    companion.serve(fd, event)
        return True

    def _look_aside(self) -> bool:
        """Serve newcomers while a step waits for the client's answer; True when serving must end.

        The companion waits too: what it does to the function is not meant for the middle of a step.
        """
        events = self._poller.poll(0)
        self._newcomers.expire()
        self._serve_others(events)
        return self._stopped

    def _serve_others(self, events: list[tuple[int, int]]) -> None:
        for fd, _ in events:
            if fd == self._stop_fd or fd == self._owner_pidfd:
                self._stopped = True
            elif fd in self._newcomers:
                self._serve_newcomer(fd)
            elif self._listener is not None and fd == self._listener.socket.fileno():
                self._accept(self._listener.socket)

    def _watch(self, wake_fds: list[int]) -> None:
        for fd in self._wake_fds:
            self._poller.unregister(fd)
        for fd in wake_fds:
            self._poller.register(fd, select.POLLIN)
        self._wake_fds = list(wake_fds)

    def _patience_ms(self) -> float | None:
        """How long nothing needs to be done; None for ever."""
        waits = []
        function_ns = self._function.next_deadline_ns()
        if function_ns is not None:
            waits.append((function_ns - time.monotonic_ns()) / _NS_PER_MS)
        newcomer_s = self._newcomers.next_deadline()
        companion_s = self._companion.next_deadline() if self._companion is not None else None
        for deadline_s in (newcomer_s, companion_s):
            if deadline_s is not None and deadline_s != math.inf:
                waits.append((deadline_s - time.monotonic()) * 1000)
        return max(0, math.ceil(min(waits))) if waits else None

    # --- the client --------------------------------------------------------------------------------------------

    def _serve_client(self, event: int) -> None:
        client = self._client
        if client is None:
            return
        try:
            if event & select.POLLOUT:
                client.flush()
            if event & ~select.POLLOUT:
                client.receive()
            for message in client.messages():
                self._serve(message)
        except ConnectionLost:
            self._lose_client()
            return
        if bool(client.backlog_bytes) != self._waits_for_room:
            self._waits_for_room = not self._waits_for_room
            self._poller.modify(client, select.POLLIN | (select.POLLOUT if self._waits_for_room else 0))

    def _serve(self, message: Message) -> None:
        """Carry out one message of the client. Raises ConnectionLost."""
        client, memory = self._client, self._memory
        if client is None or memory is None:
            return
        memory.barred = True
        try:
            reply = self._dispatcher.answer(message)
        finally:
            memory.barred = False
        if reply is not None:
            client.send(*reply)

    def _lose_client(self) -> None:
        client = self._client
        if client is None:
            return
        _logger.info("the client is gone: %s", client.lost)
        self._client = self._memory = None
        self._waits_for_room = False
        self._poller.unregister(client)
        client.close()
        self._function.address_space.remote = None
        self._function.client_lost()
        self._dispatcher.disconnect()
        self._stopped = self._stopped or self._private

    # --- newcomers ---------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, _ = listening.accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                return  # the peer is gone again
            # No descriptor is left: take the spare one to turn the peer away, else the loop would spin on it.
            self._give_spare_up()
            try:
                listening.accept()[0].close()
            except OSError:
                _logger.warning("a connection could not be accepted: %s", error.strerror)
            self._reserve_spare()
            return
        self._newcomers.add(sock)

    def _serve_newcomer(self, fd: int) -> None:
        heard = self._newcomers.hear(fd)
        if heard is None:
            self._stopped = self._stopped or (self._private and fd not in self._newcomers)
            return
        connection, message = heard
        close_all(message.fds)
        if self._memory is not None and not self._memory.waiting:
            self._serve_client(select.POLLIN)  # it may have hung up since the sockets were looked at
            while self._client is not None and self._client.hung_up():  # what it sent before that has an end
                self._serve_client(select.POLLIN)
        if self._client is not None:
            _logger.info("a second client was turned away")
            self._newcomers.refuse(connection, message, errno.EBUSY)
            return
        try:
            capabilities = negotiate(connection, message)
        except OSError as error:
            _logger.warning("a client was turned away: %s", error)
            self._newcomers.refuse(connection, message, error.errno or errno.EINVAL)
            self._stopped = self._stopped or self._private
            return
        except ConnectionLost as lost:
            self._poller.unregister(connection)
            connection.close()
            _logger.info("a client went while it negotiated: %s", lost)
            self._stopped = self._stopped or self._private
            return
        self._client = connection
        self._memory = MessageMemory(connection, self._serve, capabilities.max_data_xfer_size, self._look_aside)
        self._function.address_space.remote = self._memory
        _logger.info("a client is connected")
        self._serve_client(0)  # messages may have come with the VERSION

    def _close(self) -> None:
        self._lose_client()
        if self._companion is not None:
            self._companion.close()
        self._newcomers.close()
        self._give_spare_up()

    def _reserve_spare(self) -> None:
        """Keep a descriptor in hand; where the whole system has none left, do without."""
        try:
            self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare_fd = -1

    def _give_spare_up(self) -> None:
        if self._spare_fd >= 0:
            os.close(self._spare_fd)
            self._spare_fd = -1
