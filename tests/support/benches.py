"""Functions whose client can vanish and come back, and whose power can be cycled: in process and behind a socket."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from driver_shim.errors import DeviceBusy, DeviceNotFound
from driver_shim.protocol.commands import ResetCause
from driver_shim.transport.base import Transport
from driver_shim.transport.in_process import InProcessTransport
from driver_shim.transport.vfio_user import VfioUserTransport
from emulator.build import build
from tests.support.paths import ROOT
from tests.support.rigs import Card
from tests.support.time_scale import patience

START_S = patience(30.0)
POLL_S = 0.01


class Bench(Protocol):
    """A device on a bench."""

    transport: Transport
    pid: int | None
    """The emulator's process, where it has one."""

    def reconnect(self) -> Transport:
        """The client vanishes without a word; another takes its place."""

    def power_cycle(self) -> Transport:
        """Switch the device off and on; the new client's transport."""

    def close(self) -> None:
        """Leave nothing behind."""


class InProcessBench:
    """A function object."""

    pid: int | None = None

    def __init__(self, state: Path | None = None) -> None:
        self._state = state
        self._power_on()

    def _power_on(self) -> Transport:
        self.function = build("generic", "auto", self._state, in_process=True)
        self.transport: Transport = InProcessTransport(self.function, ResetCause.DEVICE_RESET)
        return self.transport

    def reconnect(self) -> Transport:
        """The function learns that its client is gone."""
        self.transport.close()
        self.transport = InProcessTransport(self.function, ResetCause.DEVICE_RESET)
        return self.transport

    def power_cycle(self) -> Transport:
        """A new function object."""
        self.close()
        return self._power_on()

    def close(self) -> None:
        """Power off."""
        self.transport.close()
        self.function.close()


class SocketBench:
    """`python -m emulator --socket`."""

    def __init__(self, folder: Path, state: Path | None = None) -> None:
        self._path = folder / "npu.sock"
        self._state = state
        self._power_on()

    def _power_on(self) -> Transport:
        state = [] if self._state is None else ["--state", str(self._state)]
        command = [sys.executable, "-m", "emulator", "--socket", str(self._path), *state]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NPU_RUNTIME_DIR": str(self._path.parent)}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment)
        self.pid: int | None = self._process.pid
        self.transport: Transport = self._connect()
        return self.transport

    def _connect(self) -> VfioUserTransport:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return VfioUserTransport.connect(self._path, START_S)
            except (DeviceNotFound, DeviceBusy):  # not there yet, or still busy with the client before
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(POLL_S)

    def reconnect(self) -> Transport:
        """Hang up and connect again."""
        self.transport.close()
        self.transport = self._connect()
        return self.transport

    def power_cycle(self) -> Transport:
        """End the process, start another."""
        self.close()
        return self._power_on()

    def close(self) -> None:
        """End the process."""
        self.transport.close()
        self._process.terminate()
        self._process.wait(START_S)


class CardBench:
    """The card that the environment names. Its power is out of reach, and its client is the kernel, which stays."""

    pid: int | None = None

    def __init__(self) -> None:
        Card.close()
        self.transport: Transport = Card.transport()

    def reconnect(self) -> Transport:
        """Let the card go and open it again."""
        Card.close()
        self.transport = Card.transport()
        return self.transport

    def power_cycle(self) -> Transport:
        """Nobody can."""
        raise AssertionError("a card's power is not ours to cycle")

    def close(self) -> None:
        """Let it go."""
        Card.close()


@contextmanager
def bench(transport: str, folder: Path, state: Path | None = None) -> Iterator[Bench]:
    """A device over "in-process", "vfio-user" or "vfio"."""
    made: Bench
    if transport == "vfio":
        made = CardBench()
    else:
        made = InProcessBench(state) if transport == "in-process" else SocketBench(folder, state)
    try:
        yield made
    finally:
        made.close()
