"""A management core on the bench: the core in this process, without wall time, driven like the PCI function would."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from driver_shim.protocol.mailbox import (
    BODY_BYTES,
    REQUEST,
    UPDATE_BEGIN,
    UPDATE_STATUS,
    MailboxCommand,
    MailboxResult,
    UpdateFlag,
    UpdateState,
)
from driver_shim.protocol.management_registers import MTIME_HERTZ
from driver_shim.protocol.registers import REGISTERS, CoreReset, Post
from emulator.management.link import Link, make_link_file
from emulator.management.npu.core import Core
from emulator.management.npu.storage import Storage, fresh_storage
from emulator.management.npu.thermal import Thermal, ThermalFigures
from emulator.management.process.console_wire import ConsoleWire
from emulator.management.riscv.machine import StopReason
from tests.support.paths import ROOT

REFERENCE_IMAGE = (ROOT / "emulator/management/firmware/reference.bin").read_bytes()
_STEP_INSTRUCTIONS = 100_000
_PATIENCE_TICKS = 120 * MTIME_HERTZ
"""Two minutes of the core's own time, which an idle core passes at once."""
NO_FLAGS = UpdateFlag(0)
HOST_ADDRESS = 0x1_0000_0000


class CoreBench:
    """One powered core. `host` is host memory that it can reach by DMA, at `HOST_ADDRESS`."""

    def __init__(self, contents: bytes | None = None, figures: ThermalFigures | None = None) -> None:
        fd = os.memfd_create("bench-flash")
        try:
            os.pwrite(fd, contents if contents is not None else fresh_storage(REFERENCE_IMAGE), 0)
            self.storage = Storage(fd)
            self._fd = os.dup(fd)
        finally:
            os.close(fd)
        link_fd = make_link_file()
        self.link = Link(link_fd)
        os.close(link_fd)
        self.printed = bytearray()
        self.wall_ns = 0
        self._wire = ConsoleWire(self.link, self.printed.extend)
        self.host = b""
        self.on_dma: Callable[[int, int], None] = lambda _address, _length: None
        """Told of each transfer before it is carried out."""
        self.runs = False
        self.exit_code: int | None = None
        self.resets: list[CoreReset] = []
        thermal = Thermal(
            figures or ThermalFigures(), lambda: self.link["busy_ticks"], 1_000_000_000, 2, lambda: self.wall_ns
        )
        self.core = Core(self.storage, self.link, thermal, transmit=self._wire.transmit, wake_function=lambda: None)

    def close(self) -> None:
        """Power off; what storage held can still be read with `contents`."""
        self.core.close()
        os.close(self._fd)

    def contents(self) -> bytes:
        """Everything that the storage holds."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    # --- running -----------------------------------------------------------------------------------------------

    def boot(self, reason: CoreReset = CoreReset.POWER_ON) -> None:
        """Reset the core."""
        self.runs = self.core.boot(reason)

    def run_until(self, done: Callable[[], bool], ticks: int = _PATIENCE_TICKS) -> bool:
        """Let the core run until `done`, at most for so many ticks of its own; whether it was done."""
        machine = self.core.machine
        goal = machine.tick + ticks
        while not done():
            if not self.runs or machine.tick >= goal:
                return False
            self._serve()
            stop = machine.run(_STEP_INSTRUCTIONS)
            if stop.reason is StopReason.WAITING:
                if done():
                    break
                before = machine.tick
                machine.advance_to(goal if stop.until is None else min(goal, stop.until))
                self.wall_ns += (machine.tick - before) * 1_000_000_000 // MTIME_HERTZ
            elif stop.reason is StopReason.RESET:
                assert stop.reset is not None
                self.resets.append(stop.reset)
                self.boot(stop.reset)
            elif stop.reason is not StopReason.RUNNING:
                self.exit_code = stop.exit_code
                self.runs = False
        return True

    def run_for(self, seconds: float) -> None:
        """Let the core run for so long by its own clock."""
        self.run_until(lambda: False, round(seconds * MTIME_HERTZ))

    def boot_to_ready(self, reason: CoreReset = CoreReset.POWER_ON) -> bool:
        """Reset the core and let it run until it answers the mailbox; whether it came to that."""
        self.boot(reason)
        return self.ready()

    def ready(self) -> bool:
        """Let the core run until it answers the mailbox; whether it came to that."""
        return self.run_until(lambda: self.progress()["post_code"] == Post.FIRMWARE_READY)

    def progress(self) -> dict[str, int]:
        """The boot progress register's fields."""
        return REGISTERS["boot_progress"].decode(self.link["boot_progress"])

    def _serve(self) -> None:
        self.core.look()
        self._wire.feed(self.core.receive)
        number = self.link["dma_number"]
        if number != self.link["dma_finished"]:
            address, length = self.link["dma_address"], self.link["dma_length"]
            self.on_dma(address, length)
            at = address - HOST_ADDRESS
            failed = at < 0 or at + length > len(self.host)
            if not failed:
                self.link.dma[:length] = self.host[at : at + length]
            self.link["dma_failed"] = int(failed)
            self.link["dma_finished"] = number

    # --- the mailbox -------------------------------------------------------------------------------------------

    def ask(self, command: int, body: bytes = b"") -> tuple[MailboxResult, bytes]:
        """One request of the firmware: its result and the answer's body."""
        sequence = self.link["ring_number"] + 1
        head = REQUEST.build(command=command, body_bytes=len(body), sequence=sequence)
        return self.ask_raw(head + body)

    def ask_raw(self, request: bytes) -> tuple[MailboxResult, bytes]:
        """One request of any bytes."""
        self.link.request[:] = request.ljust(len(self.link.request), b"\0")
        number = self.link["ring_number"] + 1
        self.link["ring_number"] = number
        answered = self.run_until(lambda: self.link["answer_number"] == number)
        assert answered, f"no answer; post code {self.progress()['post_code']:#x}; printed {bytes(self.printed)!r}"
        answer = bytes(self.link.answer)
        size = REQUEST.parse(answer[: REQUEST.size]).body_bytes
        assert size <= BODY_BYTES
        return MailboxResult(self.link["answer_result"]), answer[REQUEST.size : REQUEST.size + size]

    def update(self, image: bytes, flags: UpdateFlag = NO_FLAGS) -> tuple[MailboxResult, int]:
        """Flash an image from host memory; the result and how many bytes the slot held already."""
        self.host = image
        body = UPDATE_BEGIN.build(address=HOST_ADDRESS, image_bytes=len(image), flags=int(flags))
        result, _ = self.ask(MailboxCommand.UPDATE_BEGIN, body)
        if result is not MailboxResult.OK:
            return result, 0
        return self.finish_update()

    def finish_update(self) -> tuple[MailboxResult, int]:
        """Wait for the end of the update that is going on."""
        while True:
            result, body = self.ask(MailboxCommand.UPDATE_STATUS)
            assert result is MailboxResult.OK
            status = UPDATE_STATUS.parse(body)
            if status.state in (UpdateState.DONE, UpdateState.FAILED):
                return MailboxResult(status.result), status.kept_bytes


def milliseconds(bench: CoreBench) -> int:
    """The core's own time."""
    return bench.core.machine.tick * 1000 // MTIME_HERTZ


@contextmanager
def core_bench(contents: bytes | None = None, figures: ThermalFigures | None = None) -> Iterator[CoreBench]:
    """A core, powered off in the end."""
    bench = CoreBench(contents, figures)
    try:
        yield bench
    finally:
        bench.close()
