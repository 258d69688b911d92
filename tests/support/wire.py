"""What QEMU says to a vfio-user server, as bytes written by hand from the specification, and a process to say it to.

Each message: 16-byte header (id, command, size, flags, error), then its payload. NO_REPLY is flag 0x10.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.bus_server import RawClient
from tests.support.children import environment

PATIENCE_S = 60.0
POLL_S = 0.01
PAGE = 4096

QEMU_CAPABILITIES = (
    b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"pgsizes":4096,"max_dma_maps":65535,'
    b'"write_multiple":true}}\0'
)
"""123 bytes with the NUL; the message has 16 + 4 + 123 = 143 = 0x8f."""
QEMU_VERSION = bytes.fromhex("0100 0100 8f000000 00000000 00000000 0000 0000") + QEMU_CAPABILITIES
OUR_CAPABILITIES = (
    b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,'
    b'"write_multiple":true}}\0'
)
OUR_VERSION = bytes.fromhex("0100 0100 8f000000 01000000 00000000 0000 0000") + OUR_CAPABILITIES


class Exchange(NamedTuple):
    """A message and the whole reply; None where none may come."""

    request: bytes
    reply: bytes | None
    file: str = ""
    """"memory" or "eventfd": what goes with the request."""


def exchange(request: str, reply: str | None, file: str = "") -> Exchange:
    """From hex."""
    return Exchange(bytes.fromhex(request), None if reply is None else bytes.fromhex(reply), file)


CONVERSATION: dict[str, Exchange] = {
    "device info": exchange(
        "0200 0400 20000000 00000000 00000000  10000000 00000000 00000000 00000000",
        "0200 0400 20000000 01000000 00000000  10000000 03000000 09000000 05000000",
    ),
    "config space is region 7": exchange(
        "0300 0500 30000000 00000000 00000000  20000000 00000000 07000000 00000000 0000000000000000 0000000000000000",
        "0300 0500 30000000 01000000 00000000  20000000 03000000 07000000 00000000 0010000000000000 0000000000000000",
    ),
    "bar 0, 64 KiB": exchange(
        "0400 0500 30000000 00000000 00000000  20000000 00000000 00000000 00000000 0000000000000000 0000000000000000",
        "0400 0500 30000000 01000000 00000000  20000000 03000000 00000000 00000000 0000010000000000 0000000000000000",
    ),
    "bar 2, 128 KiB": exchange(
        "0500 0500 30000000 00000000 00000000  20000000 00000000 02000000 00000000 0000000000000000 0000000000000000",
        "0500 0500 30000000 01000000 00000000  20000000 03000000 02000000 00000000 0000020000000000 0000000000000000",
    ),
    "no rom": exchange(
        "0600 0500 30000000 00000000 00000000  20000000 00000000 06000000 00000000 0000000000000000 0000000000000000",
        "0600 0500 30000000 01000000 00000000  20000000 00000000 06000000 00000000 0000000000000000 0000000000000000",
    ),
    "no vga": exchange(
        "0700 0500 30000000 00000000 00000000  20000000 00000000 08000000 00000000 0000000000000000 0000000000000000",
        "0700 0500 30000000 01000000 00000000  20000000 00000000 08000000 00000000 0000000000000000 0000000000000000",
    ),
    "no intx": exchange(
        "0800 0700 20000000 00000000 00000000  10000000 00000000 00000000 00000000",
        "0800 0700 20000000 01000000 00000000  10000000 09000000 00000000 00000000",
    ),
    "no msi": exchange(
        "0900 0700 20000000 00000000 00000000  10000000 00000000 01000000 00000000",
        "0900 0700 20000000 01000000 00000000  10000000 09000000 01000000 00000000",
    ),
    "32 msi-x vectors": exchange(
        "0a00 0700 20000000 00000000 00000000  10000000 00000000 02000000 00000000",
        "0a00 0700 20000000 01000000 00000000  10000000 03000000 02000000 20000000",
    ),
    "an error interrupt": exchange(
        "0b00 0700 20000000 00000000 00000000  10000000 00000000 03000000 00000000",
        "0b00 0700 20000000 01000000 00000000  10000000 09000000 03000000 01000000",
    ),
    "a request interrupt": exchange(
        "0c00 0700 20000000 00000000 00000000  10000000 00000000 04000000 00000000",
        "0c00 0700 20000000 01000000 00000000  10000000 09000000 04000000 01000000",
    ),
    "vendor and device": exchange(
        "0d00 0900 20000000 00000000 00000000  0000000000000000 07000000 04000000",
        "0d00 0900 24000000 01000000 00000000  0000000000000000 07000000 04000000 c4b7504e",
    ),
    "command: memory, bus master": exchange(
        "0e00 0a00 22000000 00000000 00000000  0400000000000000 07000000 02000000 0600",
        "0e00 0a00 20000000 01000000 00000000  0400000000000000 07000000 02000000",
    ),
    "identity, the register at 0": exchange(
        "0f00 0900 20000000 00000000 00000000  0000000000000000 00000000 04000000",
        "0f00 0900 24000000 01000000 00000000  0000000000000000 00000000 04000000 314e5055",
    ),
    "memory": exchange(
        "1000 0200 30000000 00000000 00000000  20000000 03000000 0000000000000000 0000000000000000 0010000000000000",
        "1000 0200 10000000 01000000 00000000",
        "memory",
    ),
    "a readable range without a file, as a rom has": exchange(
        "1100 0200 30000000 00000000 00000000  20000000 01000000 0000000000000000 0000f0ff00000000 0000010000000000",
        "1100 0200 10000000 01000000 00000000",
    ),
    "a range that ends at 2**64": exchange(
        "1200 0200 30000000 00000000 00000000  20000000 03000000 0000000000000000 00f0ffffffffffff 0010000000000000",
        "1200 0200 10000000 01000000 00000000",
        "memory",
    ),
    "taking that back": exchange(
        "1300 0300 28000000 00000000 00000000  18000000 00000000 00f0ffffffffffff 0010000000000000",
        "1300 0300 28000000 01000000 00000000  18000000 00000000 00f0ffffffffffff 0010000000000000",
    ),
    "taking back what was never mapped: ENOENT": exchange(
        "1400 0300 28000000 00000000 00000000  18000000 00000000 0000000020000000 0010000000000000",
        "1400 0300 10000000 21000000 02000000",
    ),
    "an eventfd for vector 1": exchange(
        "1500 0800 24000000 00000000 00000000  14000000 24000000 02000000 01000000 01000000",
        "1500 0800 10000000 01000000 00000000",
        "eventfd",
    ),
    "a posted write of scratch": exchange(
        "1600 0a00 24000000 10000000 00000000  a000000000000000 00000000 04000000 78563412",
        None,
    ),
    "posted writes in one message": exchange(
        "1700 0f00 48000000 10000000 00000000  0200000000000000"
        "a800000000000000 00000000 04000000 0403020100000000"
        "ac00000000000000 00000000 04000000 0807060500000000",
        None,
    ),
    "what the posted writes left": exchange(
        "1800 0900 20000000 00000000 00000000  a000000000000000 00000000 04000000",
        "1800 0900 24000000 01000000 00000000  a000000000000000 00000000 04000000 78563412",
    ),
    "what the combined ones left": exchange(
        "1900 0900 20000000 00000000 00000000  a800000000000000 00000000 08000000",
        "1900 0900 28000000 01000000 00000000  a800000000000000 00000000 08000000 0403020108070605",
    ),
}

REFUSED: dict[str, Exchange] = {
    "a map that overlaps one: EEXIST": exchange(
        "2000 0200 30000000 00000000 00000000  20000000 03000000 0000000000000000 0000000000000000 0010000000000000",
        "2000 0200 10000000 21000000 11000000",
        "memory",
    ),
    "a map that overlaps its first page only: EEXIST": exchange(
        "2100 0200 30000000 00000000 00000000  20000000 01000000 0000000000000000 0000000000000000 0000010000000000",
        "2100 0200 10000000 21000000 11000000",
    ),
    "a map that wraps: EINVAL": exchange(
        "2200 0200 30000000 00000000 00000000  20000000 03000000 0000000000000000 00f0ffffffffffff 0020000000000000",
        "2200 0200 10000000 21000000 16000000",
    ),
    "a map of 2**64 - 1 bytes": exchange(
        "2300 0200 30000000 00000000 00000000  20000000 03000000 0000000000000000 0000000000000000 ffffffffffffffff",
        "2300 0200 10000000 21000000 16000000",
    ),
    "a map of nothing": exchange(
        "2400 0200 30000000 00000000 00000000  20000000 03000000 0000000000000000 0000000020000000 0000000000000000",
        "2400 0200 10000000 21000000 16000000",
        "memory",
    ),
    "a map of half a page": exchange(
        "2500 0200 30000000 00000000 00000000  20000000 03000000 0000000000000000 0000000020000000 0008000000000000",
        "2500 0200 10000000 21000000 16000000",
        "memory",
    ),
    "a map that neither reads nor writes": exchange(
        "2600 0200 30000000 00000000 00000000  20000000 00000000 0000000000000000 0000000020000000 0010000000000000",
        "2600 0200 10000000 21000000 16000000",
        "memory",
    ),
    "a map beyond its file": exchange(
        "2700 0200 30000000 00000000 00000000  20000000 03000000 0010000000000000 0000000020000000 0010000000000000",
        "2700 0200 10000000 21000000 16000000",
        "memory",
    ),
    "a map of an eventfd": exchange(
        "2800 0200 30000000 00000000 00000000  20000000 03000000 0000000000000000 0000000020000000 0010000000000000",
        "2800 0200 10000000 21000000 16000000",
        "eventfd",
    ),
    "an unmap of a part of what was mapped: EINVAL": exchange(
        "2900 0300 28000000 00000000 00000000  18000000 00000000 0000000000000000 0008000000000000",
        "2900 0300 10000000 21000000 16000000",
    ),
    "an unmap of nothing: ENOENT": exchange(
        "2a00 0300 28000000 00000000 00000000  18000000 00000000 0000000000000000 0000000000000000",
        "2a00 0300 10000000 21000000 02000000",
    ),
    "an unmap whose argsz is short": exchange(
        "2b00 0300 28000000 00000000 00000000  17000000 00000000 0000000000000000 0010000000000000",
        "2b00 0300 10000000 21000000 16000000",
    ),
    "vector 32 of 32": exchange(
        "2c00 0800 24000000 00000000 00000000  14000000 24000000 02000000 20000000 01000000",
        "2c00 0800 10000000 21000000 16000000",
        "eventfd",
    ),
    "vectors up to 2**32": exchange(
        "2d00 0800 24000000 00000000 00000000  14000000 21000000 02000000 01000000 ffffffff",
        "2d00 0800 10000000 21000000 16000000",
    ),
    "interrupt type 5": exchange(
        "2e00 0800 24000000 00000000 00000000  14000000 21000000 05000000 00000000 01000000",
        "2e00 0800 10000000 21000000 16000000",
    ),
    "two vectors, one eventfd": exchange(
        "2f00 0800 24000000 00000000 00000000  14000000 24000000 02000000 00000000 02000000",
        "2f00 0800 10000000 21000000 16000000",
        "eventfd",
    ),
    "memory where an eventfd belongs": exchange(
        "3000 0800 24000000 00000000 00000000  14000000 24000000 02000000 00000000 01000000",
        "3000 0800 10000000 21000000 16000000",
        "memory",
    ),
    "a read across the end of bar 0": exchange(
        "3100 0900 20000000 00000000 00000000  feff000000000000 00000000 04000000",
        "3100 0900 10000000 21000000 16000000",
    ),
    "a read across 2**64": exchange(
        "3200 0900 20000000 00000000 00000000  feffffffffffffff 00000000 04000000",
        "3200 0900 10000000 21000000 16000000",
    ),
    "a write across the end of config space": exchange(
        "3300 0a00 24000000 00000000 00000000  fe0f000000000000 07000000 04000000 ffffffff",
        "3300 0a00 10000000 21000000 16000000",
    ),
    "combined writes of which the second crosses the end": exchange(
        "3400 0f00 48000000 00000000 00000000  0200000000000000"
        "a000000000000000 00000000 04000000 ffffffff00000000"
        "feff000000000000 00000000 04000000 ffffffff00000000",
        "3400 0f00 10000000 21000000 16000000",
    ),
    "a read of a region that is not there": exchange(
        "3500 0900 20000000 00000000 00000000  0000000000000000 01000000 04000000",
        "3500 0900 10000000 21000000 16000000",
    ),
    "a read of region 9": exchange(
        "3600 0900 20000000 00000000 00000000  0000000000000000 09000000 04000000",
        "3600 0900 10000000 21000000 16000000",
    ),
    "a read of a byte more than a message holds": exchange(
        "3700 0900 20000000 00000000 00000000  0000000000000000 04000000 01001000",
        "3700 0900 10000000 21000000 16000000",
    ),
    "a write that carries less than it says": exchange(
        "3800 0a00 22000000 00000000 00000000  a000000000000000 00000000 04000000 ffff",
        "3800 0a00 10000000 21000000 16000000",
    ),
    "a read that carries data": exchange(
        "3900 0900 24000000 00000000 00000000  a000000000000000 00000000 04000000 00000000",
        "3900 0900 10000000 21000000 16000000",
    ),
    "a file where none belongs": exchange(
        "3a00 0400 20000000 00000000 00000000  10000000 00000000 00000000 00000000",
        "3a00 0400 10000000 21000000 16000000",
        "memory",
    ),
    "a description of region 9": exchange(
        "3b00 0500 30000000 00000000 00000000  20000000 00000000 09000000 00000000 0000000000000000 0000000000000000",
        "3b00 0500 10000000 21000000 16000000",
    ),
    "a map of a header alone": exchange(
        "3c00 0200 10000000 00000000 00000000", "3c00 0200 10000000 21000000 16000000", "memory"
    ),
    "an unmap cut short": exchange("3d00 0300 12000000 00000000 00000000 1800", "3d00 0300 10000000 21000000 16000000"),
    "interrupts of a header alone": exchange(
        "3e00 0800 10000000 00000000 00000000", "3e00 0800 10000000 21000000 16000000", "eventfd"
    ),
    "a read of a header alone": exchange(
        "3f00 0900 10000000 00000000 00000000", "3f00 0900 10000000 21000000 16000000"
    ),
    "combined writes of a header alone": exchange(
        "4000 0f00 10000000 00000000 00000000", "4000 0f00 10000000 21000000 16000000"
    ),
    "command 0: ENOTSUP": exchange("4100 0000 10000000 00000000 00000000", "4100 0000 10000000 21000000 5f000000"),
    "command 14": exchange("4200 0e00 10000000 00000000 00000000", "4200 0e00 10000000 21000000 5f000000"),
    "device features, which we have none of": exchange(
        "4300 1000 18000000 00000000 00000000  0800000002000100", "4300 1000 10000000 21000000 5f000000"
    ),
    "command 65535": exchange("4400 ffff 10000000 00000000 00000000", "4400 ffff 10000000 21000000 5f000000", "memory"),
    "a server's command": exchange(
        "4500 0b00 20000000 00000000 00000000  0000000000000000 0400000000000000",
        "4500 0b00 10000000 21000000 5f000000",
    ),
    "a second version": exchange(
        "4600 0100 14000000 00000000 00000000  0000 0000", "4600 0100 10000000 21000000 5f000000"
    ),
    "a reply to nothing": exchange("4700 0b00 10000000 01000000 00000000", None, "memory"),
    "an error to nothing": exchange("4800 0c00 10000000 21000000 0e000000", None),
    "a message of type 2": exchange("4900 0d00 10000000 02000000 00000000", None),
    "a posted write that is wrong": exchange(
        "4a00 0a00 24000000 10000000 00000000  0000010000000000 00000000 04000000 ffffffff", None
    ),
}
"""What is wrong in itself; none of it may change anything. Follows a CONVERSATION."""


_UNHURRIED = (
    "import sys; from emulator import serve, timeouts; timeouts.DMA_REPLY_S = 600.0; sys.exit(serve.main(sys.argv[1:]))"
)


@contextlib.contextmanager
def emulator_process(folder: Path, *arguments: str, unhurried: bool = False) -> Iterator[EmulatorProcess]:
    """A served emulator. Fails unless it is alive in the end, ends when told, and never printed a traceback.

    With `unhurried` it waits for a starved client's answer to its DMA messages.
    """
    path, log = folder / "npu.sock", folder / "emulator.log"
    program = ["-c", _UNHURRIED] if unhurried else ["-m", "emulator"]
    command = [sys.executable, *program, "--kernels", "numpy", "--socket", os.fspath(path), *arguments]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stderr=errors, env=environment() | {"NPU_RUNTIME_DIR": os.fspath(folder)})
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert time.monotonic() < deadline and process.poll() is None, log.read_text("utf-8")
            time.sleep(POLL_S)
        yield EmulatorProcess(path, process.pid)
        assert process.poll() is None, log.read_text("utf-8")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert "Traceback" not in log.read_text("utf-8")
    finally:
        process.kill()
        process.wait(PATIENCE_S)


class EmulatorProcess(NamedTuple):
    """Where it serves, and who it is."""

    path: Path
    pid: int

    def connect(self) -> RawClient:
        """A client that has negotiated with QEMU's words."""
        client = RawClient.connect(self.path)
        client.send_bytes(QEMU_VERSION)
        assert receive(client, OUR_VERSION) == OUR_VERSION
        return client

    def open_files(self) -> int:
        """Descriptors it has while one client is connected that has done nothing yet."""
        with self.connect():
            return len(os.listdir(f"/proc/{self.pid}/fd"))


class Files:
    """What clients send along: a page of memory, an eventfd."""

    def __init__(self) -> None:
        self._fds = {"memory": os.memfd_create("client", os.MFD_CLOEXEC), "eventfd": os.eventfd(0)}
        os.ftruncate(self._fds["memory"], PAGE)

    def of(self, exchanged: Exchange) -> list[int]:
        """What goes with a request."""
        return [self._fds[exchanged.file]] if exchanged.file else []

    def close(self) -> None:
        """Close them."""
        for fd in self._fds.values():
            os.close(fd)


def receive(client: RawClient, expected: bytes) -> bytes:
    """As many bytes as are expected, or those up to the end of the stream."""
    found = b""
    while len(found) < len(expected) and (part := client.socket.recv(len(expected) - len(found))):
        found += part
    return found
