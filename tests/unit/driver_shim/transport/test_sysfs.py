"""The way in through sysfs, on a tree of ordinary files: they take the place of the kernel's."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sdk
from driver_shim.cards.holder import claim
from driver_shim.protocol import config_space as facts
from driver_shim.protocol.registers import BAR0, BAR0_BYTES, BAR2, BAR4, IDENTITY, REGISTERS
from driver_shim.transport import sysfs as module
from driver_shim.transport.sysfs import SysfsTransport
from sdk.cli import regs
from sdk.cli.exit_codes import exit_code_of
from sdk.cli.frame import Frame
from sdk.device import on_transport
from sdk.opening import addresses as opening
from sdk.opening.listing import DeviceInfo
from tests.support import sysfs
from tests.support.npuctl import validator

BUS_ADDRESS = "0000:03:00.0"
ADDRESS = f"sysfs:{BUS_ADDRESS}"
BIND = f"npuctl bind -d pci:{BUS_ADDRESS}"
SCRATCH = REGISTERS["scratch"].offset
PM_CONTROL = facts.PM_OFFSET + facts.PM_CONTROL_OFFSET


@pytest.fixture(autouse=True)
def nothing_left(leaves_nothing: None) -> None:
    """No descriptor stays open."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "devices"


@pytest.fixture
def folder(root: Path) -> Path:
    """The files of one card that is on and decodes memory."""
    return sysfs.add_card(root, BUS_ADDRESS)


@pytest.fixture
def opened(folder: Path, root: Path) -> Any:
    transport = SysfsTransport(BUS_ADDRESS, root)
    yield transport
    transport.close()


def patch(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def command_of(folder: Path) -> int:
    return int.from_bytes((folder / "config").read_bytes()[4:6], "little")


def failing(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """Make mapping, or opening resource files, fail as the kernel would."""
    error = OSError(code, os.strerror(code))
    if call == "map":

        def refuse(fd: int, size: int) -> memoryview:
            raise error

        monkeypatch.setattr(module, "map_memory_file", refuse)
        return
    really = os.open

    def open_but_resources(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if Path(path).name.startswith("resource"):
            raise error
        return really(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", open_but_resources)


# --- registers and BARs ---------------------------------------------------------------------------------------------


def test_registers_are_read_and_written_at_their_width(opened: SysfsTransport, folder: Path) -> None:
    assert opened.read(BAR0, 0, 4) == IDENTITY
    assert opened.read(BAR0, REGISTERS["tick_hertz"].offset, 8) == sysfs.TICK_HZ
    opened.write(BAR0, SCRATCH, 0x1234_5678, 4)
    assert (folder / "resource0").read_bytes()[SCRATCH : SCRATCH + 4] == bytes.fromhex("78563412")
    opened.write(BAR0, SCRATCH, 0xAB, 1)
    assert (opened.read(BAR0, SCRATCH, 4), opened.read(BAR0, SCRATCH, 2)) == (0x1234_56AB, 0x56AB)
    opened.write(BAR2, 4, 7, 4)
    assert opened.read(BAR2, 4, 4) == 7


@pytest.mark.parametrize(
    ("region", "offset", "width"),
    [(0, 2, 4), (0, BAR0_BYTES, 4), (0, -4, 4), (0, 0, 3), (0, 0, 0), (1, 0, 4), (5, 0, 4)],
)
def test_accesses_outside_or_askew_are_refused(opened: SysfsTransport, region: int, offset: int, width: int) -> None:
    with pytest.raises(ValueError):
        opened.read(region, offset, width)
    with pytest.raises(ValueError):
        opened.write(region, offset, 0, width)


def test_regions_are_the_memory_bars_and_can_be_mapped_whole(opened: SysfsTransport) -> None:
    regions = opened.regions()
    assert {index: region.size_bytes for index, region in regions.items()} == sysfs.BAR_SIZES
    assert all(region.mappable == ((0, region.size_bytes),) for region in regions.values())


def test_the_aperture_is_mapped(opened: SysfsTransport, folder: Path) -> None:
    view = opened.map_region(BAR4, 0x1000, 0x2000)
    view[:4] = b"data"
    assert (folder / "resource4").read_bytes()[0x1000:0x1004] == b"data"
    opened.close()
    assert bytes(view[:4]) == b"data"  # mapped as long as somebody looks


@pytest.mark.parametrize("area", [(4, 0, 0), (4, -1, 4), (4, sysfs.BAR_SIZES[4], 1), (1, 0, 4), (7, 0, 4)])
def test_what_cannot_be_mapped_is_refused(opened: SysfsTransport, area: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        opened.map_region(*area)


def test_configuration_space_is_read_and_written(opened: SysfsTransport, folder: Path) -> None:
    assert opened.config_read(0, 4) == bytes.fromhex("c4b7504e")
    opened.config_write(0x0C, b"\x10")
    assert (folder / "config").read_bytes()[0x0C] == 0x10
    for offset, size in ((4096, 1), (4094, 4), (-1, 1), (0, 0)):
        with pytest.raises(ValueError):
            opened.config_read(offset, size)


def test_configuration_space_that_only_root_reads_says_so(opened: SysfsTransport, folder: Path) -> None:
    os.truncate(folder / "config", 64)
    with pytest.raises(sdk.PermissionDenied, match=r"0 of 4 bytes at 0x100 .*root"):
        opened.config_read(0x100, 4)


def test_configuration_space_may_end_where_pci_express_begins(folder: Path, root: Path) -> None:
    os.truncate(folder / "config", 256)
    transport = SysfsTransport(BUS_ADDRESS, root)
    with pytest.raises(ValueError, match="which has 0x100"):
        transport.config_read(0x100, 4)
    transport.close()


# --- what sysfs has not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask", [lambda t: t.dma_map(0, 0, 0x1000, 0x1000), lambda t: t.set_interrupts([1]), lambda t: t.reset()]
)
def test_dma_interrupts_and_reset_are_refused_with_the_remedy(
    opened: SysfsTransport, ask: Callable[[SysfsTransport], None]
) -> None:
    with pytest.raises(sdk.UnsupportedPlatform, match="sysfs offers neither DMA nor interrupts") as caught:
        ask(opened)
    assert caught.value.code == "no-dma"
    assert BIND in str(caught.value.remedy)


def test_it_says_that_it_has_none(opened: SysfsTransport) -> None:
    assert (opened.has_dma, opened.resets_on_open, opened.iova_ranges(), opened.interrupt_count()) == (
        False,
        False,
        (),
        0,
    )
    opened.set_interrupts([])
    with pytest.raises(ValueError, match="not mapped"):
        opened.dma_unmap(0x1000, 0x1000)


# --- opening and closing leave the card as it was --------------------------------------------------------------------


def test_memory_decoding_is_switched_on_and_back_off(folder: Path, root: Path) -> None:
    patch(folder / "config", facts.COMMAND_OFFSET, facts.COMMAND_PARITY_RESPONSE.to_bytes(2, "little"))
    transport = SysfsTransport(BUS_ADDRESS, root)
    assert command_of(folder) == facts.COMMAND_PARITY_RESPONSE | facts.COMMAND_MEMORY
    transport.close()
    transport.close()
    assert command_of(folder) == facts.COMMAND_PARITY_RESPONSE


def test_what_the_caller_made_of_command_is_undone_too(opened: SysfsTransport, folder: Path) -> None:
    opened.config_write(facts.COMMAND_OFFSET, facts.COMMAND_BUS_MASTER.to_bytes(2, "little"))
    opened.close()
    assert command_of(folder) == facts.COMMAND_MEMORY


def test_command_is_left_to_whoever_changed_it_meanwhile(folder: Path, root: Path) -> None:
    patch(folder / "config", facts.COMMAND_OFFSET, bytes(2))
    transport = SysfsTransport(BUS_ADDRESS, root)
    both = facts.COMMAND_MEMORY | facts.COMMAND_BUS_MASTER
    patch(folder / "config", facts.COMMAND_OFFSET, both.to_bytes(2, "little"))
    transport.close()
    assert command_of(folder) == both


def test_a_card_that_is_on_is_not_written_to(folder: Path, root: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    SysfsTransport(BUS_ADDRESS, root).close()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_card_in_d3hot_is_woken(folder: Path, root: Path) -> None:
    asleep = facts.PM_NO_SOFT_RESET | facts.D3_HOT
    patch(folder / "config", PM_CONTROL, bytes([asleep, 0x80]))
    SysfsTransport(BUS_ADDRESS, root).close()
    assert (folder / "config").read_bytes()[PM_CONTROL : PM_CONTROL + 2] == bytes([facts.PM_NO_SOFT_RESET, 0x80])


def test_a_refused_mapping_leaves_the_card_asleep(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(folder / "config", facts.COMMAND_OFFSET, bytes(2))
    patch(folder / "config", PM_CONTROL, bytes([facts.D3_HOT]))
    before = (folder / "config").read_bytes()
    failing(monkeypatch, "map", errno.EPERM)
    with pytest.raises(sdk.PermissionDenied):
        SysfsTransport(BUS_ADDRESS, root)
    assert (folder / "config").read_bytes() == before


def test_after_close_everything_is_closed(opened: SysfsTransport) -> None:
    opened.read(BAR0, 0, 4)
    opened.close()
    for call in (
        lambda: opened.read(BAR0, 0, 4),
        lambda: opened.write(BAR0, SCRATCH, 0, 4),
        lambda: opened.config_read(0, 4),
        lambda: opened.map_region(BAR4, 0, 4096),
        lambda: opened.reset(),
    ):
        with pytest.raises(sdk.Closed):
            call()
    assert not opened.alive()


# --- cards that cannot be opened ------------------------------------------------------------------------------------


def test_an_absent_function_is_not_found(root: Path) -> None:
    with pytest.raises(sdk.DeviceNotFound, match="no such function"):
        SysfsTransport(BUS_ADDRESS, root)


def test_another_makers_function_is_not_touched(folder: Path, root: Path) -> None:
    patch(folder / "config", 0, bytes.fromhex("8680aa0a"))
    with pytest.raises(sdk.DeviceNotFound, match=r"is 8086:0aaa, not one of ours \(b7c4:4e50\)"):
        SysfsTransport(BUS_ADDRESS, root)


@pytest.mark.parametrize("file", ["config", "resource0"])
def test_a_card_that_reads_all_ones_is_lost(folder: Path, root: Path, file: str) -> None:
    patch(folder / file, 0, b"\xff" * 64)
    with pytest.raises(sdk.DeviceLost, match="all ones"):
        SysfsTransport(BUS_ADDRESS, root)


def test_liveness_is_the_vendor_id(opened: SysfsTransport, folder: Path) -> None:
    assert opened.alive()
    patch(folder / "config", 0, b"\xff\xff")
    assert not opened.alive()


@pytest.mark.parametrize("text", ["", "0x0 0x0 0x0\n", "what is this\n" * 6])
def test_resources_that_cannot_be_read_break_the_contract(folder: Path, root: Path, text: str) -> None:
    (folder / "resource").write_text(text, "ascii")
    with pytest.raises(sdk.ContractMismatch, match="does not describe 6 BARs"):
        SysfsTransport(BUS_ADDRESS, root)


@pytest.mark.parametrize(
    "line",
    ["0x00 0x00 0x00", "0xf0000000 0xf0000fff 0x00040200", "0xc000 0x1bfff 0x00000101"],
    ids=["no", "small", "io"],
)
def test_bar0_must_hold_the_registers(folder: Path, root: Path, line: str) -> None:
    _, *others = (folder / "resource").read_text("ascii").splitlines()
    (folder / "resource").write_text("\n".join([line, *others]), "ascii")
    with pytest.raises(sdk.ContractMismatch, match=r"BAR0 has 0x[0-9a-f]+ bytes, not 0x10000"):
        SysfsTransport(BUS_ADDRESS, root)


def test_a_file_shorter_than_its_bar_is_not_mapped(folder: Path, root: Path) -> None:
    os.truncate(folder / "resource0", 0x1000)
    with pytest.raises(sdk.ContractMismatch, match="has 0x1000 of BAR0's 0x10000 bytes"):
        SysfsTransport(BUS_ADDRESS, root)


@pytest.mark.parametrize("call", ["open", "map"])
@pytest.mark.parametrize(
    ("text", "mode"),
    [("none [integrity] confidentiality", "integrity"), ("none integrity [confidentiality]", "confidentiality")],
)
def test_kernel_lockdown_is_named(
    folder: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, text: str, mode: str
) -> None:
    (tmp_path / "lockdown").write_text(text + "\n", "ascii")
    failing(monkeypatch, call, errno.EPERM)
    with pytest.raises(sdk.PermissionDenied, match=rf"locked down \({mode}\)") as caught:
        SysfsTransport(BUS_ADDRESS, root, tmp_path / "lockdown")
    assert caught.value.cause == f"kernel lockdown ({mode})"
    assert BIND in str(caught.value.remedy)


@pytest.mark.parametrize("text", [None, "[none] integrity confidentiality"])
def test_without_lockdown_it_is_just_not_permitted(
    folder: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    if text:
        (tmp_path / "lockdown").write_text(text, "ascii")
    failing(monkeypatch, "map", errno.EPERM)
    with pytest.raises(sdk.PermissionDenied, match="Operation not permitted") as caught:
        SysfsTransport(BUS_ADDRESS, root, tmp_path / "lockdown")
    assert caught.value.remedy == "run as root"


def test_a_user_without_permission_is_told_the_way(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "open", errno.EACCES)
    with pytest.raises(sdk.PermissionDenied, match=f"resource0: Permission denied.*root.*{BIND}"):
        SysfsTransport(BUS_ADDRESS, root)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBUSY])
def test_a_driver_that_keeps_the_bars_to_itself_is_named(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    sysfs.link(folder, "driver", "vfio-pci")
    failing(monkeypatch, "map", code)
    with pytest.raises(sdk.DeviceBusy, match="the kernel driver vfio-pci keeps the BARs to itself"):
        SysfsTransport(BUS_ADDRESS, root)


@pytest.mark.parametrize(
    ("call", "code", "kind"),
    [
        ("open", errno.ENOENT, sdk.DeviceNotFound),
        ("map", errno.ENODEV, sdk.UnsupportedPlatform),
        ("map", errno.EIO, sdk.DeviceLost),
    ],
)
def test_other_refusals(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, kind: type[Exception]
) -> None:
    failing(monkeypatch, call, code)
    with pytest.raises(kind, match="resource0"):
        SysfsTransport(BUS_ADDRESS, root)


# --- Device and npuctl ----------------------------------------------------------------------------------------------


@pytest.fixture
def device(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`sdk.Device("sysfs:…")` on the made-up tree."""
    monkeypatch.setattr(opening, "SysfsTransport", lambda bus_address: SysfsTransport(bus_address, root))
    with sdk.Device(ADDRESS) as opened:
        yield opened


def test_a_device_through_sysfs_shows_registers_aperture_and_facts(device: sdk.Device) -> None:
    assert device.registers.identity.magic == IDENTITY
    device.registers.scratch.write(value=5)
    assert device.registers.scratch.value == 5
    assert len(device._function.transport.map_region(BAR4, 0, 4096)) == 4096
    assert device.info == DeviceInfo(
        name="NPU",
        address=ADDRESS,
        memory_bytes=sysfs.MEMORY_BYTES,
        pre_open=device.info.pre_open,
        tick_hz=sysfs.TICK_HZ,
        contract="0.5",
        boot=device.info.boot,
        revision="1.0",
        driver="sysfs",
    )
    device._function.check_alive()


@pytest.mark.parametrize(
    "ask",
    [
        lambda d: d.queue(),
        lambda d: d.host_buffer(4, "int8"),
        lambda d: d.host_buffer(0, "int8"),
        lambda d: d.buffer(4, "int8"),
        lambda d: d.load("missing.onnx"),
        lambda d: d.reset(),
        lambda d: d.errors(),
        lambda d: d.activity(),
        lambda d: d.black_box(),
    ],
)
def test_what_needs_dma_is_refused_and_the_device_stays_usable(
    device: sdk.Device, ask: Callable[[sdk.Device], object]
) -> None:
    with pytest.raises(sdk.UnsupportedPlatform, match="neither DMA") as caught:
        ask(device)
    assert (caught.value.code, caught.value.device) == ("no-dma", ADDRESS)
    assert BIND in str(caught.value.remedy)
    assert device.registers.identity.read() == IDENTITY


def test_opening_and_closing_a_device_changes_no_register(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(folder / "resource0", REGISTERS["control"].offset, b"\1")  # somebody's controller runs
    before = (folder / "resource0").read_bytes()
    monkeypatch.setattr(opening, "SysfsTransport", lambda bus_address: SysfsTransport(bus_address, root))
    with sdk.Device("sysfs:03:00.0") as opened:
        assert opened.address == ADDRESS
    assert (folder / "resource0").read_bytes() == before


def test_a_board_whose_firmware_answers_nothing_yet_can_be_looked_at(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sysfs.add_card(root, BUS_ADDRESS, identity=0, device_memory_bytes=0, contract=0x0007_0003)
    with caplog.at_level(logging.WARNING, "npu"), on_transport(SysfsTransport(BUS_ADDRESS, root)) as opened:
        assert (opened.info.memory_bytes, opened.info.contract) == (0, "7.3")
        with pytest.raises(sdk.DeviceLost):
            opened._function.check_alive()
    assert "0x00000000, not 0x55504e31" in caplog.text


def test_a_card_that_somebody_holds_is_looked_at_but_not_written_to(
    folder: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(opening, "SysfsTransport", lambda bus_address: SysfsTransport(bus_address, root))
    before = (folder / "resource0").read_bytes()
    device, scratch = DeviceInfo("NPU", ADDRESS), [REGISTERS["scratch"]]
    frame = Frame("regs", as_json=False, timeout=None)
    held = claim(f"pci:{BUS_ADDRESS}", "fail", math.inf)
    try:
        with pytest.raises(sdk.DeviceBusy, match=f"held by PID {os.getpid()} .*python") as caught:
            regs._one_device(frame, device, scratch, {"scratch": 0xABC})
        assert (exit_code_of(caught.value), caught.value.holder is not None) == (1, True)
        assert (folder / "resource0").read_bytes() == before
        regs._one_device(frame, device, scratch, {})
    finally:
        held.release()
    regs._one_device(frame, device, scratch, {"scratch": 0xABC})
    shown = capsys.readouterr().out
    assert "0x00000abc" in shown and "reset" not in shown


def test_registers_are_reported_as_read_without_a_reset(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "SysfsTransport", lambda bus_address: SysfsTransport(bus_address, root))
    frame = Frame("regs", as_json=True, timeout=None)
    regs._one_device(frame, DeviceInfo("NPU", ADDRESS), [REGISTERS["scratch"]], {"scratch": 0xABC})
    frame.finish()
    document = json.loads(capsys.readouterr().out)
    validator("regs").validate(document)
    (device,) = document["devices"]
    assert (device["address"], device["opened_with_reset"]) == (ADDRESS, False)
    assert device["registers"][0]["value"] == "0x00000abc"
