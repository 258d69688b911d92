"""The reset matrix: every cell tried on every transport, and docs/reset.md says what was found."""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from driver_shim.protocol import commands as c
from driver_shim.protocol.commands import AdminOpcode, LogPage, ResetCause, Status
from driver_shim.protocol.config_space import (
    COMMAND_OFFSET,
    DEVICE_CONTROL_INITIATE_FLR,
    EXPRESS,
)
from driver_shim.protocol.registers import BAR0, BAR4, MSIX_TABLE_OFFSET, Post
from tests.support.benches import Bench, bench
from tests.support.bus_client import BOTH, MEMORY_BYTES, MEMORY_IOVA, BusClient, fired
from tests.support.paths import DOCS
from tests.support.programs import add_twice, build
from tests.support.rigs import TRANSPORTS
from tests.support.time_scale import patience

DOCUMENT = DOCS / "reset.md"
COLUMNS = (
    "COMMAND",
    "function registers",
    "cold registers",
    "MSI-X table",
    "queues",
    "programs",
    "device memory",
    "DMA maps",
    "eventfds",
    "error log",
    "black box",
    "management core",
    "clocks",
)
_FULL_RESET = "cleared, reset, kept, reset, deleted, unloaded, zeroed, kept, kept, kept, kept, goes on, go on"
MATRIX = {
    "queue delete": "kept, kept, kept, kept, that one deleted, kept, kept, kept, kept, kept, kept, goes on, go on",
    "controller disable": "kept, kept, kept, kept, deleted, unloaded, kept, kept, kept, kept, kept, goes on, go on",
    "function level reset": _FULL_RESET,
    "`DEVICE_RESET`": _FULL_RESET,
    "client lost": "cleared, reset, kept, reset, deleted, unloaded, zeroed, dropped, dropped, kept, saved,"
    " goes on, go on",
    "power-on": "cleared, reset, reset, reset, deleted, unloaded, zeroed, dropped, dropped, emptied, emptied,"
    " restarts, restart",
}
CELLS = {
    (row, column): word
    for row, words in MATRIX.items()
    for column, word in zip(COLUMNS, words.split(", "), strict=True)
}
CAUSES = {
    "queue delete": ResetCause.CONTROLLER_DISABLE,  # of the preparation: deleting a queue is no reset
    "controller disable": ResetCause.CONTROLLER_DISABLE,
    "function level reset": ResetCause.FLR,
    "`DEVICE_RESET`": ResetCause.DEVICE_RESET,
    "client lost": ResetCause.CLIENT_LOST,
    "power-on": ResetCause.POWER_ON,
}
DEVICE_CONTROL = EXPRESS.offset + EXPRESS.layout.offset_of("device_control")
MARK = 0x1234_5678
SIGNAL_S, SIGNAL_POLL_S = patience(0.5), 0.01
UPTIME_S = 0.5
"""A device that is switched off has run this long before, so that ticks that go on differ from those that restart."""


class Subject:
    """A device in use, all of it changed from its power-on state."""

    def __init__(self, device: Bench) -> None:
        self.bench = device
        self.bus = bus = BusClient(device.transport)
        bus.enable()
        assert bus.admin_queue is not None
        bus.admin_queue.ring(1000)  # a fatal error, for a black box
        bus.wait_until(lambda: bus.registers.status.fatal == 1, "fatal state")
        bus.registers.control.write(enable=0)
        bus.enable()
        for queue_id in (1, 2):
            bus.queue(queue_id).run(c.NOP.build())
        table, image = c.BINDING.build(address=0, size=16), build(add_twice())
        iova, view = bus.allocate(len(table) + len(image))
        view[:] = table + image
        load = {"source": iova + len(table), "size": len(image), "constants": iova, "constant_count": 1}
        self.program = int(bus.admin(c.LOAD_PROGRAM, AdminOpcode.LOAD_PROGRAM, **load).result)
        self.mapped = bus.transport.map_region(BAR4, 0, 1 << 20)
        self.mapped[0x8000:0x8004] = MARK.to_bytes(4, "little")
        self.eventfd = bus.interrupts([0])[0]
        bus.registers.scratch.write(value=MARK)
        bus.registers.interrupt_mask.write(vectors=1 << 3)
        self.has_msix_table = bus.transport.name != "vfio-pci"  # there the hypervisor acts on what is written to it
        if self.has_msix_table:
            bus.transport.write(BAR0, MSIX_TABLE_OFFSET, MARK & ~3, 4)
        bus.transport.read(BAR0, 0x0A2, 2)
        self.said = self._talk()
        self.tick = self.read_tick()
        self.switched_off = math.inf
        """When, by the host's clock."""

    def _talk(self) -> int:
        """Have the firmware say something that it does not say as it boots; how much it has said then."""
        registers = self.bus.registers
        if registers.boot_progress.post_code == Post.ABSENT:
            return 0
        self.bus.wait_until(lambda: registers.boot_progress.post_code == Post.FIRMWARE_READY, "firmware")
        said = registers.console_written.read()
        registers.console_input.write(byte=ord("\r"))
        self.bus.wait_until(lambda: registers.console_written.read() > said, "an echo")
        return registers.console_written.read()

    def read_tick(self) -> int:
        """Device ticks now."""
        self.bus.registers.clock_snapshot.write(take=1)
        return self.bus.registers.tick_snapshot.read()

    # --- the rows ------------------------------------------------------------------------------------------------

    def queue_delete(self) -> None:
        assert self.bus.admin(c.DELETE_QUEUE, AdminOpcode.DELETE_QUEUE, queue=1).status == 0

    def controller_disable(self) -> None:
        self.bus.disable()

    def function_level_reset(self) -> None:
        transport = self.bus.transport
        control = int.from_bytes(transport.config_read(DEVICE_CONTROL, 2), "little") | DEVICE_CONTROL_INITIATE_FLR
        transport.config_write(DEVICE_CONTROL, control.to_bytes(2, "little"))

    def device_reset(self) -> None:
        self.bus.transport.reset()

    def client_lost(self) -> None:
        self.bus.move_to(self.bench.reconnect())

    def power_on(self) -> None:
        hertz = self.bus.registers.tick_hertz.read()
        self.bus.wait_until(lambda: self.read_tick() > UPTIME_S * hertz, "some uptime")
        self.switched_off = time.monotonic()
        self.bus.move_to(self.bench.power_cycle())

    # --- the columns ---------------------------------------------------------------------------------------------

    def observe(self) -> dict[str, str]:
        """What became of everything, in the matrix's words; in an order in which looking disturbs nothing."""
        bus, seen = self.bus, {}
        command = int.from_bytes(bus.transport.config_read(COMMAND_OFFSET, 2), "little")
        seen["COMMAND"] = {BOTH: "kept", 0: "cleared"}[command]
        bus.command(BOTH)
        registers = bus.registers
        function = (registers.scratch.read(), registers.interrupt_mask.read(), registers.admin_queue_size.read())
        seen["function registers"] = {(MARK, 1 << 3, 16 | 16 << 16): "kept", (0, 0, 0): "reset"}[function]
        cold = (registers.fault_status.register, registers.fault_count.read() > 0, registers.tick_snapshot.read() > 0)
        seen["cold registers"] = {(1, True, True): "kept", (0, False, False): "reset"}[cold]
        seen["reset cause"] = ResetCause(registers.reset_cause.cause).name
        if self.said:
            going_on = registers.console_written.read() >= self.said
            seen["management core"] = "goes on" if going_on else "restarts"
        seen["clocks"] = self._clocks()
        if self.has_msix_table:
            table = bus.transport.read(BAR0, MSIX_TABLE_OFFSET, 4)
            seen["MSI-X table"] = {MARK & ~3: "kept", 0: "reset"}[table]
        memory = bus.transport.read(BAR4, 0x8000, 4)
        seen["device memory"] = {MARK: "kept", 0: "zeroed"}[memory]
        seen["DMA maps"] = self._enable_again()
        fired(self.eventfd)
        page = bus.log_page(LogPage.ERRORS)
        bus.settle()
        seen["eventfds"] = "kept" if self._fires() else "dropped"
        total = c.ERROR_LOG_HEADER.parse(page[: c.ERROR_LOG_HEADER.size]).total
        seen["error log"] = "kept" if total > 1 else "emptied"
        box = c.BLACK_BOX.parse(bus.log_page(LogPage.BLACK_BOX)[: c.BLACK_BOX.size])
        seen["black box"] = {
            (1, ResetCause.FATAL): "kept",
            (1, ResetCause.CLIENT_LOST): "saved",
            (0, 0): "emptied",
        }[box.present, box.cause]
        done = bus.admin(c.UNLOAD_PROGRAM, AdminOpcode.UNLOAD_PROGRAM, program=self.program).status
        seen["programs"] = {Status.SUCCESS: "kept", Status.INVALID_PROGRAM: "unloaded"}[done]
        there = (self._exists(1), self._exists(2))
        seen["queues"] = {(True, True): "kept", (False, True): "that one deleted", (False, False): "deleted"}[there]
        return seen

    def _clocks(self) -> str:
        """Ticks that restarted count at most the time since the device was switched off, however long it took."""
        tick, hertz = self.read_tick(), self.bus.registers.tick_hertz.read()
        return "go on" if tick >= max(self.tick, hertz * (time.monotonic() - self.switched_off)) else "restart"

    def _fires(self) -> bool:
        """Whether the eventfd is signalled, as a guest on a loaded machine may see with a delay."""
        deadline = time.monotonic() + SIGNAL_S
        while not fired(self.eventfd):
            if time.monotonic() > deadline:
                return False
            time.sleep(SIGNAL_POLL_S)
        return True

    def _enable_again(self) -> str:
        """Bring the controller up if it is not; whether the DMA maps of before were enough for that."""
        bus = self.bus
        if bus.registers.control.enable:
            return "kept"
        bus.admin_queue = bus.set_admin_queue()
        bus.registers.control.write(enable=1)
        if bus.registers.status.ready:
            return "kept"
        assert bus.registers.status.config_error
        bus.registers.control.write(enable=0)
        bus.transport.dma_map(bus.file, 0, MEMORY_IOVA, MEMORY_BYTES)
        bus.enable()
        return "dropped"

    def _exists(self, queue_id: int) -> bool:
        done = self.bus.admin(
            c.CREATE_QUEUE,
            AdminOpcode.CREATE_QUEUE,
            submission_base=self.bus.allocate(4096)[0],
            completion_base=self.bus.allocate(4096)[0],
            submission_entries=16,
            completion_entries=16,
            queue=queue_id,
        )
        return {Status.SUCCESS: False, Status.QUEUE_EXISTS: True}[done.status]


ROWS: dict[str, Callable[[Subject], None]] = {
    "queue delete": Subject.queue_delete,
    "controller disable": Subject.controller_disable,
    "function level reset": Subject.function_level_reset,
    "`DEVICE_RESET`": Subject.device_reset,
    "client lost": Subject.client_lost,
    "power-on": Subject.power_on,
}


@functools.cache
def observed(transport: str, row: str) -> dict[str, str]:
    """What one event did to a device in use."""
    with tempfile.TemporaryDirectory() as folder, bench(transport, Path(folder)) as device:
        subject = Subject(device)
        ROWS[row](subject)
        seen = subject.observe()
        memory = int.from_bytes(subject.mapped[0x8000:0x8004], "little")
        if row != "power-on":  # the old mapping shows what the device has: it was zeroed in place
            assert memory == (MARK if seen["device memory"] == "kept" else 0)
        subject.bus.close()
        return seen


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("row", "column"), CELLS)
def test_cell(transport: str, row: str, column: str) -> None:
    seen = observed(transport, row)
    if column == "management core" and column not in seen:
        pytest.skip("this device has no management core")
    assert seen[column] == CELLS[row, column]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("row", CAUSES)
def test_the_reset_cause_register_says_what_happened(transport: str, row: str) -> None:
    assert observed(transport, row)["reset cause"] == CAUSES[row].name


def test_the_document_has_the_same_table() -> None:
    first, *_ = DOCUMENT.read_text("utf-8").split("\n## ")
    lines = [line for line in first.splitlines() if line.startswith("|")]
    header, _, *rows = [[word.strip() for word in line.strip("|").split("|")] for line in lines]
    assert header == ["event", *COLUMNS]
    assert {row[0]: ", ".join(row[1:]) for row in rows} == MATRIX


def test_every_row_can_be_brought_about() -> None:
    assert set(ROWS) == set(MATRIX) == set(CAUSES)
    assert len(CELLS) == len(ROWS) * len(COLUMNS)
