"""Devices for tests: in process (deterministic) and a real emulator process over vfio-user, shared by a test worker."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from driver_shim.protocol.commands import ResetCause
from driver_shim.transport.base import Transport
from driver_shim.transport.in_process import InProcessTransport
from driver_shim.transport.vfio import VfioTransport
from driver_shim.transport.vfio_user import VfioUserTransport
from emulator.build import build
from emulator.function.function import PciFunction
from sdk import Device
from sdk.device import on_transport
from sdk.opening.private_emulator import PrivateEmulator
from tests.support.time_scale import patience

CARD_VARIABLE = "NPU_TEST_CARD"
"""Bus address of a card bound to vfio-pci, for tests that run beside one: then they use it alone."""
TRANSPORTS = ("vfio",) if CARD_VARIABLE in os.environ else ("in-process", "vfio-user")
TEST_TIMEOUT_S = patience(30.0)


@dataclasses.dataclass
class Rig:
    """A way to reach a function, before any driver has touched it."""

    transport: Transport
    function: PciFunction | None
    """The object itself, in process only."""
    pid: int | None = None
    """The emulator's process, where it has one."""

    def device(self, timeout: float = TEST_TIMEOUT_S) -> Device:
        """A driver's device over this transport."""
        return on_transport(self.transport, timeout=timeout)


@contextmanager
def in_process_rig(kernels: str = "auto") -> Iterator[Rig]:
    """A function object in this process."""
    function = build("generic", kernels, in_process=True)
    transport = InProcessTransport(function, ResetCause.DEVICE_RESET)
    try:
        yield Rig(transport, function)
    finally:
        transport.close()
        function.close()


@contextmanager
def process_rig(kernels: str = "auto", core: str = "none") -> Iterator[Rig]:
    """An emulator process of its own; without a management core, which takes as long to start as all the rest."""
    emulator = PrivateEmulator("generic", kernels, core)
    try:
        transport = VfioUserTransport.from_socket(
            emulator.socket, address="vfio-user:test", timeout=TEST_TIMEOUT_S, peer_pid=emulator.pid
        )
        try:
            yield Rig(transport, None, emulator.pid)
        finally:
            transport.close()
    finally:
        emulator.stop()


class Card:
    """The card that the environment names. A function has one holder, so all who use it in this process share it."""

    _open: VfioTransport | None = None

    @classmethod
    def transport(cls) -> VfioTransport:
        """It, open."""
        if cls._open is None or not cls._open.alive():
            cls._open = VfioTransport(os.environ[CARD_VARIABLE])
        return cls._open

    @classmethod
    def close(cls) -> None:
        """Let it go, for somebody else or for good."""
        if cls._open is not None:
            cls._open.close()


class CardRig(Rig):
    """A rig whose transport comes back after a device over it was closed."""

    def __init__(self) -> None:
        super().__init__(Card.transport(), None)

    def __getattribute__(self, name: str) -> Any:
        return Card.transport() if name == "transport" else super().__getattribute__(name)


@contextmanager
def vfio_rig(kernels: str = "auto") -> Iterator[Rig]:
    """The card, as after a reset; it stays open for the next one."""
    Card.transport().reset()
    yield CardRig()


RIGS = {"in-process": in_process_rig, "vfio-user": process_rig, "vfio": vfio_rig}
