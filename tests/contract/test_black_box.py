"""What the device keeps: the black box of a client that vanished, and the state folder across processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from driver_shim.protocol import commands as c
from driver_shim.protocol.commands import AdminOpcode, FaultSource, LogPage, ResetCause, Status
from driver_shim.protocol.config_space import DEVICE_CONTROL_INITIATE_FLR
from driver_shim.protocol.registers import BAR4, REGISTERS
from driver_shim.transport.base import Transport
from emulator.build import build
from emulator.state_error import StateError
from tests.contract.test_reset_matrix import DEVICE_CONTROL
from tests.contract.test_statuses import add_entry
from tests.support.benches import START_S, Bench, bench
from tests.support.bus_client import BOTH, MEMORY_BYTES, BusClient, text
from tests.support.children import children_that_run
from tests.support.paths import ROOT
from tests.support.rigs import TRANSPORTS, process_rig

SCRATCH = 0xCAFE_F00D


class Box(NamedTuple):
    """A BLACK_BOX page in parts."""

    header: Any
    registers: bytes
    queues: list[Any]
    descriptors: list[Any]
    completions: list[Any]
    errors: list[Any]


def split(page: bytes) -> Box:
    """Take a page apart; it must be exactly as long as its header says."""
    at = c.BLACK_BOX.size
    header = c.BLACK_BOX.parse(page[:at])
    registers = page[at : at + header.register_bytes]
    at += header.register_bytes
    parts: list[list[Any]] = []
    for layout, count in (
        (c.BLACK_BOX_QUEUE, header.queue_count),
        (c.BLACK_BOX_DESCRIPTOR, header.descriptor_count),
        (c.BLACK_BOX_COMPLETION, header.completion_count),
        (c.ERROR_ENTRY, header.error_count),
    ):
        parts.append([layout.parse(page[at + n * layout.size : at + (n + 1) * layout.size]) for n in range(count)])
        at += count * layout.size
    assert at == len(page)
    return Box(header, registers, *parts)


@pytest.fixture(params=TRANSPORTS)
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A device whose client can vanish."""
    with bench(request.param, tmp_path) as made:
        yield made


def after(bus: BusClient, transport: Transport) -> BusClient:
    """The next client, up and running, with the memory of the one before."""
    bus.move_to(transport)
    bus.command(BOTH)
    bus.transport.dma_map(bus.file, 0, 0x1_0000_0000, MEMORY_BYTES)
    return bus.enable()


def stalled(device: Bench) -> tuple[BusClient, bytes]:
    """A client with commands in flight: its completion ring is full. The newest descriptor that was carried out."""
    bus = BusClient(device.transport).enable()
    bus.registers.scratch.write(value=SCRATCH)
    queue = bus.queue(1, 64, 32)
    queue.put(*[c.NOP.build(command_id=at) for at in range(40)])
    queue.ring()
    bus.wait_until(lambda: queue.ready(31), "a full completion ring")
    return bus, c.NOP.build(command_id=31)


def test_a_client_that_vanishes_leaves_a_black_box(device: Bench) -> None:
    bus, newest = stalled(device)
    box = split(after(bus, device.reconnect()).log_page(LogPage.BLACK_BOX))
    assert (box.header.present, box.header.cause) == (1, ResetCause.CLIENT_LOST)
    assert box.header.tick > 0 and box.header.wall_nanoseconds > 0
    scratch = REGISTERS["scratch"]
    assert int.from_bytes(box.registers[scratch.offset : scratch.offset + 4], "little") == SCRATCH
    status = REGISTERS["status"].decode(int.from_bytes(box.registers[0x1C:0x20], "little"))
    assert status["ready"] == 1
    admin, queue = box.queues
    assert (admin.queue, queue.queue, queue.state) == (0, 1, 0)
    assert (queue.sq_tail, queue.sq_head, queue.cq_tail, queue.cq_head) == (40, 32, 32, 0)
    assert (queue.submission_entries, queue.completion_entries, queue.vector) == (64, 32, 1)
    assert len(box.descriptors) == len(box.completions) == c.BLACK_BOX_ENTRIES
    assert (box.descriptors[-1].queue, box.descriptors[-1].descriptor) == (1, newest)
    last = c.COMPLETION.parse(box.completions[-1].completion)
    assert (last.command_id, last.status, last.submission_head) == (31, 0, 32)
    assert box.errors[0].source == FaultSource.CLIENT
    assert "went away" in text(box.errors[0])


def test_the_next_client_finds_a_device_that_works(device: Bench) -> None:
    bus, _ = stalled(device)
    after(bus, device.reconnect())
    assert bus.registers.reset_cause.cause == ResetCause.CLIENT_LOST
    assert bus.registers.fault_status.client == 1
    assert bus.registers.scratch.read() == 0
    assert bus.queue().run(c.NOP.build())[0].status == 0


@pytest.mark.parametrize("flr", [False, True], ids=["DEVICE_RESET", "FLR"])
def test_a_black_box_survives_resets(device: Bench, flr: bool) -> None:
    bus, _ = stalled(device)
    page = after(bus, device.reconnect()).log_page(LogPage.BLACK_BOX)
    reset(bus, flr)
    bus.command(BOTH)
    assert bus.enable().log_page(LogPage.BLACK_BOX) == page


def reset(bus: BusClient, flr: bool) -> None:
    """Reset the function one way or the other."""
    if flr:
        bus.transport.config_write(DEVICE_CONTROL, DEVICE_CONTROL_INITIATE_FLR.to_bytes(2, "little"))
    else:
        bus.transport.reset()


def test_a_clean_close_leaves_none(device: Bench) -> None:
    bus, _ = stalled(device)
    bus.disable()
    box = split(after(bus, device.reconnect()).log_page(LogPage.BLACK_BOX))
    assert box.header.present == 0
    assert not any("went away" in text(entry) for entry in bus.errors())


def test_a_long_log_page_can_be_read_in_pieces(device: Bench) -> None:
    bus, _ = stalled(device)
    page = after(bus, device.reconnect()).log_page(LogPage.BLACK_BOX)
    iova, view = bus.allocate(4096)
    pieces = bytearray()
    while len(pieces) < len(page):
        fields = {"destination": iova, "size": 100, "page": LogPage.BLACK_BOX, "offset": len(pieces)}
        done = bus.admin(c.GET_LOG_PAGE, AdminOpcode.GET_LOG_PAGE, **fields)
        assert (done.status, done.result) == (0, len(page))
        pieces += bytes(view[: min(100, len(page) - len(pieces))])
    assert pieces == page
    view[:] = bytes([0xEE]) * 4096
    fields = {"destination": iova, "size": 100, "page": LogPage.BLACK_BOX, "offset": 1 << 63}
    assert bus.admin(c.GET_LOG_PAGE, AdminOpcode.GET_LOG_PAGE, **fields).status == Status.SUCCESS
    assert bytes(view) == bytes([0xEE]) * 4096  # nothing is there: nothing is written


@pytest.mark.parametrize("flr", [False, True], ids=["DEVICE_RESET", "FLR"])
def test_a_reset_does_not_wait_for_a_busy_engine(flr: bool) -> None:
    """Only where engines are processes: in process an engine is never busy when the bus is."""
    with process_rig() as rig:
        bus = BusClient(rig.transport).enable()
        queue = bus.queue()
        entry = add_entry(bus)
        mapped = bus.transport.map_region(BAR4, 0, 1 << 20)
        mapped[:] = b"\x55" * len(mapped)
        assert rig.pid is not None
        workers = list(children_that_run(rig.pid, "emulator.engines.worker"))
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # an engine that will not finish
        queue.put(entry)
        queue.ring()
        bus.wait_until(
            lambda: c.ACTIVITY_LOG.parse(bus.log_page(LogPage.ACTIVITY, 128)).exec_commands == 1, "start of the program"
        )
        reset(bus, flr)
        assert not any(mapped)
        bus.command(BOTH)
        assert bus.registers.reset_cause.cause == (ResetCause.FLR if flr else ResetCause.DEVICE_RESET)
        assert not queue.ready()
        bus.enable()
        assert bus.queue().run(add_entry(bus))[0].status == 0
        assert not queue.ready()
        bus.close()


# --- the state folder --------------------------------------------------------------------------------------------


def identity(bus: BusClient) -> Any:
    """Identify data."""
    iova, view = bus.allocate(512)
    assert bus.admin(c.IDENTIFY, AdminOpcode.IDENTIFY, destination=iova, size=512).status == 0
    return c.IDENTIFY_DATA.parse(bytes(view))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_state_folder_keeps_serial_log_counters_and_black_box(transport: str, tmp_path: Path) -> None:
    with bench(transport, tmp_path, tmp_path / "state") as device:
        bus, _ = stalled(device)
        after(bus, device.reconnect())
        serial, errors, page = identity(bus).serial, bus.errors(), bus.log_page(LogPage.BLACK_BOX)
        activity = c.ACTIVITY_LOG.parse(bus.log_page(LogPage.ACTIVITY, 128))
        bus.disable()
        after(bus, device.power_cycle())
        assert identity(bus).serial == serial
        kept = bus.errors()
        assert [entry.message for entry in kept][-len(errors) :] == [entry.message for entry in errors]
        assert bus.log_page(LogPage.BLACK_BOX) == page
        again = c.ACTIVITY_LOG.parse(bus.log_page(LogPage.ACTIVITY, 128))
        assert again.nop_commands == activity.nop_commands == 32
        assert again.admin_commands > activity.admin_commands
        assert bus.registers.reset_cause.cause == ResetCause.POWER_ON


def test_without_a_state_folder_nothing_is_kept(tmp_path: Path) -> None:
    with bench("in-process", tmp_path) as device:
        bus, _ = stalled(device)
        after(bus, device.power_cycle())
        assert split(bus.log_page(LogPage.BLACK_BOX)).header.present == 0
        assert bus.errors() == []


def test_two_devices_cannot_share_a_state_folder(tmp_path: Path) -> None:
    function = build("generic", "auto", tmp_path, in_process=True)
    with pytest.raises(StateError, match="in use by another emulator"):
        build("generic", "auto", tmp_path, in_process=True)
    function.close()
    build("generic", "auto", tmp_path, in_process=True).close()


def rewrite(key: str, value: object) -> Callable[[Path], None]:
    """Change one entry of the summary."""

    def change(folder: Path) -> None:
        path = folder / "device.json"
        document = json.loads(path.read_text("utf-8"))
        document[key] = value
        path.write_text(json.dumps(document), "utf-8")

    return change


def overwrite(name: str, data: bytes) -> Callable[[Path], None]:
    """Replace one file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def cut(name: str) -> Callable[[Path], None]:
    """Take the end of one file away."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-5])

    return change


def shadow(name: str) -> Callable[[Path], None]:
    """Put a folder in the place of one file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no JSON": overwrite("device.json", b"{"),
    "no text": overwrite("device.json", b"\xff\xfe\x00"),
    "another document": overwrite("device.json", b"[]"),
    "another version": rewrite("version", 99),
    "a serial that is too long": rewrite("serial", "S" * 33),
    "an empty serial": rewrite("serial", ""),
    "a serial of two lines": rewrite("serial", "EMU1\nEMU2"),
    "counters that are none": rewrite("counters", 5),
    "a counter that is negative": rewrite("counters", {"commands": -1}),
    "a counter beyond 64 bits": rewrite("counters", {"commands": 1 << 64}),
    "a cut error log": cut("errors.bin"),
    "an empty error log": overwrite("errors.bin", b""),
    "an error log of an unknown source": overwrite(
        "errors.bin", c.ERROR_LOG_HEADER.build(total=1, entries=1) + c.ERROR_ENTRY.build(source=200)
    ),
    "an error log with too many entries": overwrite(
        "errors.bin", c.ERROR_LOG_HEADER.build(total=1, entries=0xFFFF_FFFF)
    ),
    "a folder for an error log": shadow("errors.bin"),
    "a cut black box": cut("black_box.bin"),
    "a black box of other parts": overwrite("black_box.bin", c.BLACK_BOX.build(present=1, queue_count=0xFFFF_FFFF)),
}


@pytest.fixture
def used_folder(tmp_path: Path) -> Path:
    """A state folder with everything in it."""
    folder = tmp_path / "state"
    with bench("in-process", tmp_path, folder) as device:
        stalled(device)
        device.reconnect()
    return folder


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_state_folder_is_refused_by_name(used_folder: Path, how: str) -> None:
    DAMAGE[how](used_folder)
    for _ in range(2):  # the second time too: the first attempt does not keep the folder locked
        with pytest.raises(StateError, match=str(used_folder)) as caught:
            build("generic", "auto", used_folder, in_process=True)
        assert "name another" in str(caught.value) or "remove" in str(caught.value)


def test_an_emulator_refuses_a_damaged_folder_in_one_line(used_folder: Path, tmp_path: Path) -> None:
    DAMAGE["a cut error log"](used_folder)
    command = [sys.executable, "-m", "emulator", "--socket", str(tmp_path / "s"), "--state", str(used_folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NPU_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=START_S, check=False)
    assert done.returncode == 1
    lines = done.stderr.decode().strip().splitlines()
    assert len(lines) == 1 and str(used_folder) in lines[0]
    assert not (tmp_path / "s").exists()


def test_a_folder_that_went_away_costs_no_client_its_device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "state"
    with bench("in-process", tmp_path, folder) as device:
        bus, _ = stalled(device)
        shutil.rmtree(folder)
        after(bus, device.reconnect())
        assert bus.queue().run(c.NOP.build())[0].status == 0
    assert "nothing was kept" in caplog.text
