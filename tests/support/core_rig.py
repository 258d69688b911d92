"""A management core without its process: one chip in virtual time, with the host's end of the mailbox and of DMA."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from driver_shim.protocol.mailbox import MAILBOX_BYTES, REQUEST, MailboxCommand, MailboxResult
from driver_shim.protocol.registers import REGISTERS, CoreReset, Post
from emulator.management.chip import Chip
from emulator.management.link import Link, make_link_file
from emulator.management.machine import StopReason
from emulator.management.storage import Storage, open_storage
from emulator.management.thermal import Thermal, ThermalFigures

SLICE_INSTRUCTIONS = 20_000
TICKS_PER_MS = 10_000
PATIENCE_MS = 60_000
"""Of virtual time, for anything."""


class CoreRig:
    """Host, chip and time. `memory` is what DMA reads: address → bytes."""

    def __init__(self, image: bytes | None = None, *, storage_fd: int | None = None, volts: float = 0.8) -> None:
        self._link_fd = make_link_file()
        self.link = Link(self._link_fd)
        self._storage_fd = open_storage(None, image) if storage_fd is None else os.dup(storage_fd)
        self.storage = Storage(self._storage_fd)
        self.output = bytearray()
        self.memory: dict[int, bytes | Callable[[int], bytes]] = {}
        self.resets: list[CoreReset] = []
        self._dma_done = 0
        self._wakes_at: int | None = None
        figures = ThermalFigures(volts=volts)
        thermal = Thermal(figures, lambda: 0, 1, 1)
        self.thermal: Any = thermal
        self.chip = Chip(self.storage, self.link, thermal, transmit=self.output.extend, wake_function=lambda: None)
        self.running = self.chip.boot(CoreReset.POWER_ON)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Power off for good."""
        self.chip.close()
        self.storage.flash.on_change = lambda _offset, _size: None
        del self.chip
        self.link.close()
        os.close(self._link_fd)
        os.close(self._storage_fd)

    @property
    def milliseconds(self) -> int:
        """Virtual time since power-on."""
        return self.chip.machine.tick // TICKS_PER_MS

    def progress(self, field: str) -> int:
        """A field of `boot_progress`."""
        return REGISTERS["boot_progress"].extract(self.link["boot_progress"], field)

    def reboot(self, reason: CoreReset = CoreReset.HOST) -> None:
        """Reset the core."""
        self._wakes_at = None
        self.running = self.chip.boot(reason)

    def step(self) -> None:
        """Run one slice. When the core waits and nobody has anything for it, the next step begins at its deadline."""
        if self._wakes_at is not None:
            self.chip.machine.advance_to(self._wakes_at)
        self._wakes_at = None
        stop = self.chip.machine.run(SLICE_INSTRUCTIONS)
        if stop.reason is StopReason.WAITING:
            assert stop.until is not None, "the core waits for nothing"
            self._wakes_at = stop.until
        elif stop.reason is StopReason.RESET:
            assert stop.reset is not None
            self.resets.append(stop.reset)
            self.reboot(stop.reset)
        self._look()

    def _look(self) -> bool:
        return any([self._serve_dma(), self.chip.look()])

    def run_until(self, done: Callable[[], bool], patience_ms: int = PATIENCE_MS) -> None:
        """Step until `done`. Raises TimeoutError in virtual time."""
        end = self.milliseconds + patience_ms
        while not done():
            if self.milliseconds >= end:
                raise TimeoutError(f"after {patience_ms} ms of the core's time; it printed {bytes(self.output)!r}")
            self.step()

    def run_for(self, milliseconds: int) -> None:
        """Let virtual time pass."""
        end = self.milliseconds + milliseconds
        self.run_until(lambda: self.milliseconds >= end)

    def run_until_ready(self) -> None:
        """Until the firmware answers."""
        self.run_until(lambda: self.progress("post_code") == Post.FIRMWARE_READY)

    def ring(self, command: int, body: bytes = b"", *, length: int | None = None, sequence: int = 7) -> None:
        """Hand over a request."""
        head = REQUEST.build(command=command, body_bytes=len(body) if length is None else length, sequence=sequence)
        self.link.request[:] = (head + body).ljust(MAILBOX_BYTES, b"\xee")
        self.link.announce("ring_number", self.link["ring_number"] + 1)
        self._look()

    def answered(self) -> bool:
        """Whether the last request was."""
        return self.link["answer_number"] == self.link["ring_number"]

    def ask(
        self, command: MailboxCommand | int, body: bytes = b"", *, length: int | None = None
    ) -> tuple[MailboxResult, bytes]:
        """A request and its answer's body."""
        self.ring(command, body, length=length)
        self.run_until(self.answered)
        answer = bytes(self.link.answer)
        head = REQUEST.parse(answer[: REQUEST.size])
        assert (head.command, head.sequence) == (command, 7)
        return MailboxResult(self.link["answer_result"]), answer[REQUEST.size : REQUEST.size + head.body_bytes]

    def type(self, text: str) -> bytes:
        """Input for the console; returns what it printed until it waited again."""
        before = len(self.output)
        data = text.encode()
        while data:
            data = data[self.chip.receive(data) :]
            self.step()
        self.run_until(lambda: self._wakes_at is not None)
        return bytes(self.output[before:])

    def _serve_dma(self) -> bool:
        link = self.link
        if link["dma_number"] == self._dma_done:
            return False
        self._dma_done = link["dma_number"]
        data = self._host_bytes(link["dma_address"], link["dma_length"])
        link["dma_failed"] = int(data is None)
        if data is not None:
            link.dma[: len(data)] = data
        link.announce("dma_finished", self._dma_done)
        return True

    def _host_bytes(self, address: int, size: int) -> bytes | None:
        for base, contents in self.memory.items():
            data = contents(address - base) if callable(contents) else contents
            if base <= address and address + size <= base + len(data):
                return data[address - base : address - base + size]
        return None
