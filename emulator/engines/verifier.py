"""Verification in a process of its own, so that a container that takes long, or breaks it, holds up nothing else."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import time
from collections import deque
from typing import NamedTuple

from driver_shim.protocol.commands import Status
from driver_shim.shared.child_process import main_command
from emulator import timeouts
from emulator.engines.process import sealed_file
from emulator.engines.verdict import Verdict
from emulator.engines.verifier_worker import NUMBER, decode_verdict, encode_profile
from emulator.model.profile import Profile

_logger = logging.getLogger("npu.emulator.engines")

WORKER = "emulator.engines.verifier_worker"
_NS_PER_S = 10**9


class _Work(NamedTuple):
    """A container that is being verified."""

    number: int
    deadline_ns: int
    wanted: bool


class VerifierProcess:
    """`Verifier` whose worker starts with the first container and is replaced when it dies or takes too long."""

    def __init__(self, profile: Profile, worker: str = WORKER, patience_s: float = timeouts.VERIFY_S) -> None:
        """Start nothing yet; `worker` names the module that verifies."""
        self._profile = profile
        self._worker = worker
        self._patience_ns = int(patience_s * _NS_PER_S)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._work: deque[_Work] = deque()
        """In the order of their verdicts."""
        self._lost: list[Verdict] = []
        self._ending: list[subprocess.Popen[bytes]] = []
        """Killed workers not yet reaped."""

    @property
    def pid(self) -> int | None:
        """The worker's process, where there is one."""
        return None if self._process is None else self._process.pid

    def start(self, number: int, image: bytes) -> None:
        """Hand a container to the worker. Raises OSError when the system refuses."""
        if self._work and not any(work.wanted for work in self._work):
            self.poll()  # perhaps it has finished it
        self._reap()
        if any(not work.wanted for work in self._work):
            self._end_worker()  # it is at something that nobody wants, and may be for long
        fd = sealed_file("npu-container", image)
        try:
            if not self._send(number, fd):
                self._end_worker()
                if not self._send(number, fd):
                    raise OSError("a new verifier takes no containers")
        finally:
            os.close(fd)
        self._work.append(_Work(number, time.monotonic_ns() + self._patience_ns, True))

    def poll(self) -> list[Verdict]:
        """Verdicts that came, and what became of containers whose worker died or took too long."""
        verdicts = []
        while self._socket is not None and self._work:
            answer = self._receive(self._socket)
            if answer is None:
                break
            if not answer:
                verdicts += self._give_up(Status.ENGINE_LOST, "what verified the program died")
                break
            work = self._work.popleft()
            if work.wanted:
                verdicts.append(decode_verdict(answer))
        deadline = self.next_deadline_ns()
        if deadline is not None and time.monotonic_ns() >= deadline:
            took = self._patience_ns / _NS_PER_S
            verdicts += self._give_up(Status.PROGRAM_REJECTED, f"program rejected: not verified within {took:g} s")
        self._reap()
        return verdicts

    def fds(self) -> list[int]:
        """The worker's socket, while it works."""
        return [self._socket.fileno()] if self._socket is not None and self._work else []

    def next_deadline_ns(self) -> int | None:
        """When the worker has had the container that it is at for too long."""
        return self._work[0].deadline_ns if self._work else None

    def cancel_all(self) -> None:
        """Nobody wants what is being verified; the worker may finish it, unless something else comes."""
        self._work = deque(work._replace(wanted=False) for work in self._work)

    def close(self) -> None:
        """Kill and reap the worker; idempotent."""
        self._end_worker()
        for process in self._ending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeouts.REAP_S)
        self._ending = []

    def _send(self, number: int, fd: int) -> bool:
        """Hand the file over; False if the worker takes no messages."""
        channel = self._socket or self._start_worker()
        try:
            socket.send_fds(channel, [NUMBER.pack(number)], [fd])
        except (BlockingIOError, ConnectionError):
            return False
        return True

    def _receive(self, channel: socket.socket) -> bytes | None:
        """The next answer; None if there is none yet, empty if the worker died."""
        try:
            message, fds, _, _ = socket.recv_fds(channel, NUMBER.size, 1)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""
        if not message:
            return b""
        with open(fds[0], "rb") as answer:
            answer.seek(0)
            return answer.read()

    def _give_up(self, status: Status, message: str) -> list[Verdict]:
        """End the worker; verdicts of what it was given."""
        _logger.warning("%s", message)
        lost = [Verdict(work.number, status, message, None) for work in self._work if work.wanted]
        self._end_worker()
        return lost

    def _start_worker(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            self._process = subprocess.Popen(
                main_command(self._worker, str(theirs.fileno()), str(os.getpid()), encode_profile(self._profile)),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,
            )
            undo.pop_all()
        ours.setblocking(False)
        self._socket = ours
        return ours

    def _end_worker(self) -> None:
        """Kill the worker, if there is one; it is reaped later."""
        self._work.clear()
        if self._process is not None:
            self._process.kill()
            self._ending.append(self._process)
            self._process = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _reap(self) -> None:
        if self._ending:
            self._ending = [process for process in self._ending if process.poll() is None]
