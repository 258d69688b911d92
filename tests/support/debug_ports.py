"""Emulator processes with a debug port, and raw USB/IP to them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from driver_shim.errors import DeviceLost, DeviceNotFound, Timeout
from driver_shim.protocol import usbip
from driver_shim.protocol.firmware_slots import SECTOR_BYTES, SLOT_OFFSETS
from driver_shim.protocol.registers import REGISTERS, Post
from driver_shim.protocol.usb import Setup
from driver_shim.transport.usb import UsbTransport
from tests.support.npuctl import environment, published
from tests.support.paths import ROOT
from tests.support.time_scale import patience

PATIENCE_S = patience(60.0)
POLL_S = 0.02
LOOPBACK = "127.0.0.1"
BUS_ID = b"1-1"
DEVICE_ID = 0x1_0002
_Found = TypeVar("_Found")
FACTORY_IMAGE = ROOT / "emulator/management/firmware/reference.bin"


class Served(NamedTuple):
    """A served emulator."""

    process: subprocess.Popen[bytes]
    socket: Path
    serial: str
    port: int

    @property
    def address(self) -> str:
        return f"usb:{self.serial}"


def encode_unlink(request: usbip.Unlink, devid: int) -> bytes:
    """The wish to have a transfer back; our own host never has it."""
    head = usbip.BASIC.build(command=usbip.Command.UNLINK, seqnum=request.seqnum, devid=devid)
    return head + usbip.UNLINK.build(unlink_seqnum=request.unlinked)


@contextlib.contextmanager
def served(folder: Path, *arguments: str) -> Iterator[Served]:
    """An emulator that publishes in `folder`, where `NPU_RUNTIME_DIR` must point for it to be found."""
    path = folder / "npu.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "emulator", "--socket", os.fspath(path), "--usbip-port", "0", *arguments],
        cwd=ROOT,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
    )
    try:
        record = wait_for(lambda: _publication(folder, process))
        yield Served(process, path, record["serial"], record["usbip_port"])
    finally:
        process.kill()
        process.wait()


def _publication(folder: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    if process.poll() is not None:
        raise AssertionError(f"the emulator ended with {process.returncode}")
    return published(folder, "pid", process.pid)


def wait_for(condition: Callable[[], _Found | None], patience_s: float = PATIENCE_S) -> _Found:
    """What the condition gives, once that is true."""
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(POLL_S)
    return found


def wait_for_post(serial: str, *posts: Post) -> int:
    """Wait until the core has come this far, as the debug port tells; boot_progress."""
    register = REGISTERS["boot_progress"]

    def progress() -> int:
        try:
            with contextlib.closing(UsbTransport(serial)) as transport:
                value = transport.read(0, register.offset, register.size)
        except (Timeout, DeviceLost, DeviceNotFound):  # off the bus on its way to recovery or back, or slow
            return 0
        return value if register.extract(value, "post_code") in posts else 0

    return wait_for(progress)


class RawHost:
    """Sends and receives bytes; knows nothing about what they mean."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((LOOPBACK, port), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._seqnum = 0

    def __enter__(self) -> RawHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, size: int) -> bytes:
        """Exactly this much, or what came before the end."""
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                break
            data += part
        return data

    def hung_up(self) -> bool:
        """Wait for the server's end. Raises TimeoutError when it stays."""
        while True:
            try:
                if not self.socket.recv(1 << 16):
                    return True
            except ConnectionResetError:
                return True

    def import_device(self, busid: bytes = BUS_ID) -> int | None:
        """The status of the reply; None when the server hung up instead."""
        self.send(usbip.encode_operation(usbip.Operation.REQUEST_IMPORT, payload=usbip.IMPORT.build(busid=busid)))
        reply = self.receive(usbip.OPERATION.size)
        if len(reply) < usbip.OPERATION.size:
            return None
        _, code, status = usbip.OPERATION.unpack_from(reply)
        assert code == usbip.Operation.REPLY_IMPORT
        if status == usbip.OperationStatus.OK:
            assert len(self.receive(usbip.DEVICE.size)) == usbip.DEVICE.size
        return int(status)

    def submit(self, setup: Setup, data: bytes = b"", **changes: Any) -> int:
        """Send a transfer; its seqnum."""
        self._seqnum += 1
        direction = usbip.Direction.IN if setup.is_in else usbip.Direction.OUT
        request = usbip.Submit(self._seqnum, DEVICE_ID, direction, 0, setup.length, setup.build(), data)
        self.send(usbip.encode_submit(request._replace(**changes)))
        return self._seqnum

    def unlink(self, seqnum: int) -> int:
        """Ask for a transfer back; the seqnum of that."""
        self._seqnum += 1
        self.send(encode_unlink(usbip.Unlink(self._seqnum, seqnum), DEVICE_ID))
        return self._seqnum

    def returned(self, *, inward: bool = True) -> tuple[int, int, int, bytes]:
        """(command, seqnum, status, data) of the next reply."""
        head = self.receive(usbip.HEADER_BYTES)
        assert len(head) == usbip.HEADER_BYTES, "hung up"
        command, seqnum, *_ = usbip.BASIC.unpack_from(head)
        if command == usbip.Command.RETURN_UNLINK:
            return command, seqnum, usbip.RETURN_UNLINK.unpack_from(head, usbip.BASIC.size)[0], b""
        status, length, *_ = usbip.RETURN_SUBMIT.unpack_from(head, usbip.BASIC.size)
        return command, seqnum, status, self.receive(length) if inward else b""


def bricked_chip(folder: Path) -> Path:
    """The state folder of a device whose slots were both destroyed after it had run."""
    chip = folder / "chip"
    with served(folder, "--state", str(chip)) as emulator:
        wait_for_post(emulator.serial, Post.FIRMWARE_READY)
        emulator.process.terminate()
        emulator.process.wait()
    with (chip / "flash.bin").open("r+b") as flash:
        for offset in SLOT_OFFSETS.values():
            flash.seek(offset)
            flash.write(bytes(SECTOR_BYTES))
    return chip
