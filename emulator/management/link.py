"""The wires between the PCI function's process and the management core's: one shared page set, two eventfds.

Every word has one writer. Requests and answers carry numbers, so neither side ever waits for the other or needs a lock.
Memory order: what a number announces is stored before it (`fences.publish`) and read after it (`fences.consume`).
"""

from __future__ import annotations

import mmap
import os

from driver_shim.protocol.layout import Layout, raw, reserved, u32, u64
from driver_shim.protocol.mailbox import MAILBOX_BYTES
from driver_shim.protocol.registers import CONSOLE_WINDOW_BYTES
from driver_shim.shared import fences

MAX_DMA_BYTES = 0x1_0000
INPUT_BYTES = 256
LINK_BYTES = 0x2_0000
NUMBER_MASK = 0xFFFF_FFFF

LINK = Layout(
    "management_link",
    LINK_BYTES,
    # written by the function
    "hold" / u32,
    "reset_number" / u32,
    "reset_to_recovery" / u32,
    "ring_number" / u32,
    "input_written" / u32,
    "dma_finished" / u32,
    "dma_failed" / u32,
    "withdraw_number" / u32,
    "busy_ticks" / u64,
    reserved(24),
    # written by the core
    "stopped" / u32,
    "boot_progress" / u32,
    "build_id" / u32,
    "throttle" / u32,
    "temperature" / u32,
    "power" / u32,
    "voltage" / u32,
    "publications" / u32,
    "answer_number" / u32,
    "answer_result" / u32,
    "input_read" / u32,
    "dma_number" / u32,
    "dma_length" / u32,
    "exit_code" / u32,  # one more than what the image gave as it switched the core off; 0 while it has not
    "version" / u64,
    "published_ns" / u64,
    "console_written" / u64,
    "dma_address" / u64,
    "power_offs" / u32,
    reserved(100),
    "request" / raw(MAILBOX_BYTES),  # the function's
    "answer" / raw(MAILBOX_BYTES),  # the core's
    "input" / raw(INPUT_BYTES),  # the function's
    reserved(0xC00),
    "console" / raw(CONSOLE_WINDOW_BYTES),  # the core's
    reserved(0xE000),
    "dma" / raw(MAX_DMA_BYTES),  # the function's
)


class Link:
    """The shared memory as one side sees it: words by name, areas as views."""

    def __init__(self, fd: int) -> None:
        self._mapping = mmap.mmap(fd, LINK_BYTES)
        whole = memoryview(self._mapping)
        self._words = whole.cast("I")
        self._doubles = whole.cast("Q")
        self._at = {
            name: (self._doubles, spec.offset // 8) if spec.size == 8 else (self._words, spec.offset // 4)
            for name, spec in LINK.fields.items()
            if spec.size in (4, 8)
        }
        self.request = self._area(whole, "request")
        self.answer = self._area(whole, "answer")
        self.input = self._area(whole, "input")
        self.console = self._area(whole, "console")
        self.dma = self._area(whole, "dma")
        self._whole = whole

    @staticmethod
    def _area(whole: memoryview, name: str) -> memoryview:
        spec = LINK.fields[name]
        return whole[spec.offset : spec.offset + spec.size]

    def __getitem__(self, name: str) -> int:
        view, at = self._at[name]
        return int(view[at])

    def __setitem__(self, name: str, value: int) -> None:
        view, at = self._at[name]
        view[at] = value

    def announce(self, name: str, value: int) -> None:
        """Store a number after all that it announces."""
        fences.publish()
        self[name] = value

    def count_up(self, name: str) -> None:
        """Announce the next number."""
        self.announce(name, (self[name] + 1) & NUMBER_MASK)

    def noticed(self, name: str) -> int:
        """Load a number before all that it announces."""
        value = self[name]
        fences.consume()
        return value

    def close(self) -> None:
        """Give the mapping back; idempotent."""
        for view in (self.request, self.answer, self.input, self.console, self.dma):
            view.release()
        self._at = {}
        self._words.release()
        self._doubles.release()
        self._whole.release()
        self._mapping.close()


def make_link_file() -> int:
    """The file behind the shared memory. Raises OSError."""
    fd = os.memfd_create("npu-management", os.MFD_CLOEXEC)
    os.ftruncate(fd, LINK_BYTES)
    return fd
