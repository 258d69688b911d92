"""The debug port of a real emulator process: registers, ownership, firmware, and the tool that recovers it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdk
from driver_shim import timeouts
from driver_shim.errors import DeviceBusy, DeviceLost, DeviceNotFound, UnsupportedPlatform
from driver_shim.protocol.config_space import DEVICE_ID, VENDOR_ID
from driver_shim.protocol.dfu import Status
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.registers import REGISTERS, Post
from driver_shim.transport.usb import UsbTransport
from driver_shim.transport.vfio_user import VfioUserTransport
from firmware_tools.dfu import RecoveryLink, RecoveryRefused
from tests.support.children import stopped
from tests.support.debug_ports import FACTORY_IMAGE, Served, bricked_chip, served, wait_for_post
from tests.support.needs import module_of_extra
from tests.support.npuctl import Npuctl
from tests.support.waiting import PATIENCE_S

SCRATCH = REGISTERS["scratch"]
WIDE = REGISTERS["scratch_wide"]
pytestmark = pytest.mark.usefixtures("runtime_folder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def runtime_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Served]:
    """A device whose management core runs the image it was made with."""
    module_of_extra("usb.core", "usb")
    module_of_extra("unicorn", "firmware")
    with pytest.MonkeyPatch.context() as patch, served(folder) as emulator:
        patch.setenv("NPU_RUNTIME_DIR", str(folder))
        wait_for_post(emulator.serial, Post.FIRMWARE_READY)
        yield emulator


# --- registers --------------------------------------------------------------------------------------------------------


def test_registers_are_there_though_pci_decodes_no_memory(shared: Served) -> None:
    transport = UsbTransport(shared.serial)
    identity = REGISTERS["identity"]
    assert transport.read(0, identity.offset, 4) == identity.reset_value
    transport.write(0, SCRATCH.offset, 0x1234_5678, 4)
    assert transport.read(0, SCRATCH.offset, 4) == 0x1234_5678
    transport.write(0, WIDE.offset, 0x0102_0304_0506_0708, 8)
    assert transport.read(0, WIDE.offset, 8) == 0x0102_0304_0506_0708
    assert transport.alive()
    assert list(transport.regions()) == [0]
    transport.close()
    assert not transport.alive()


def test_what_usb_cannot_do_is_refused_by_name(shared: Served) -> None:
    transport = UsbTransport(shared.serial)
    ids = VENDOR_ID.to_bytes(2, "little") + DEVICE_ID.to_bytes(2, "little")
    assert transport.config_read(0, 4) == ids
    for refused in (
        lambda: transport.config_read(4, 2),
        lambda: transport.config_write(4, b"\2\0"),
        lambda: transport.dma_map(0, 0, 0, 4096),
        lambda: transport.set_interrupts([0]),
        transport.reset,
    ):
        with pytest.raises(UnsupportedPlatform, match="usb offers neither"):
            refused()
    for wrong in (
        lambda: transport.read(2, 0, 4),
        lambda: transport.read(0, 0, 2),
        lambda: transport.read(0, 2, 4),
        lambda: transport.map_region(0, 0, 4096),
        lambda: transport.dma_unmap(0, 4096),
    ):
        with pytest.raises(ValueError):
            wrong()
    transport.set_interrupts([])
    assert transport.iova_ranges() == ()
    assert transport.interrupt_count() == 0
    transport.close()


def test_the_sdk_opens_a_window_on_the_registers(shared: Served) -> None:
    with sdk.Device(shared.address) as device:
        assert device.info.driver == "usb"
        assert (device.info.serial, device.info.emulated) == (shared.serial, True)
        assert device.registers.boot_progress.post_code == Post.FIRMWARE_READY
        with pytest.raises(UnsupportedPlatform):
            device.queue()


def test_a_pci_client_keeps_others_from_writing_unless_they_insist(shared: Served) -> None:
    usual, insistent = UsbTransport(shared.serial), None
    owner = VfioUserTransport.connect(shared.socket)
    try:
        before = usual.read(0, SCRATCH.offset, 4)
        with pytest.raises(DeviceBusy, match="PCI client"):
            usual.write(0, SCRATCH.offset, ~before & 0xFF, 4)
        assert usual.read(0, SCRATCH.offset, 4) == before
        usual.close()
        insistent = UsbTransport(shared.serial, force=True)
        insistent.write(0, SCRATCH.offset, 7, 4)
        assert insistent.read(0, SCRATCH.offset, 4) == 7
    finally:
        owner.close()
        usual.close()
        if insistent is not None:
            insistent.close()


def test_one_host_at_a_time(shared: Served) -> None:
    first = UsbTransport(shared.serial)
    with pytest.raises(DeviceBusy, match="another host"):
        UsbTransport(shared.serial)
    first.close()
    UsbTransport(shared.serial).close()


def test_whoever_has_the_port_is_named_and_others_can_line_up(shared: Served) -> None:
    first = sdk.Device(shared.address)
    with pytest.raises(DeviceBusy, match="held by") as refused:
        sdk.Device(shared.address)
    assert refused.value.holder is not None and refused.value.holder.pid == os.getpid()
    with pytest.raises(sdk.Timeout):
        sdk.Device(shared.address, when_busy="wait", timeout=0.1)
    closer = threading.Timer(0.3, first.close)
    closer.start()
    sdk.Device(shared.address, when_busy="wait").close()
    closer.join(PATIENCE_S)


def test_a_host_outside_the_line_is_waited_for_too(shared: Served) -> None:
    first = UsbTransport(shared.serial)
    with pytest.raises(DeviceBusy, match="another host"):
        sdk.Device(shared.address)
    closer = threading.Timer(0.3, first.close)
    closer.start()
    sdk.Device(shared.address, when_busy="wait").close()
    closer.join(PATIENCE_S)


def test_the_time_out_of_the_device_holds_for_a_port_that_does_not_answer(
    shared: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped(shared.process.pid), monkeypatch.context() as patch:
        patch.setattr(timeouts, "USB_TRANSFER_S", 60.0)
        began = time.monotonic()
        with pytest.raises(sdk.Timeout, match=r"no answer within 0\.2 s"):
            sdk.Device(shared.address, timeout=0.2)
        assert time.monotonic() - began < timeouts.USB_TRANSFER_S
    with sdk.Device(shared.address) as device, stopped(shared.process.pid), pytest.raises(sdk.Timeout):
        device.registers.scratch.read()


def test_nobody_of_that_serial(shared: Served) -> None:
    with pytest.raises((DeviceNotFound, UnsupportedPlatform)):  # the latter where libusb is missing
        UsbTransport("NOBODY")


# --- firmware ---------------------------------------------------------------------------------------------------------


def test_a_running_device_goes_into_recovery_and_takes_an_image_and_boots_it(shared: Served) -> None:
    image = FACTORY_IMAGE.read_bytes()
    told: list[tuple[int, int]] = []
    with RecoveryLink(shared.serial) as link:
        assert not link.in_recovery
        link.enter_recovery()
        assert link.in_recovery
        link.enter_recovery()
        link.download(Slot.B, image, lambda done, total: told.append((done, total)))
        assert told[-1] == (len(image), len(image))
        assert link.upload(Slot.B) == image
        assert link.upload(Slot.A) == image
        link.leave_recovery()
        assert not link.in_recovery
    found = REGISTERS["boot_progress"].decode(wait_for_post(shared.serial, Post.FIRMWARE_READY))
    assert (found["slot"], found["trial"]) == (Slot.B, 0)


def test_a_bad_image_is_refused_in_the_boot_roms_words_and_changes_nothing(shared: Served) -> None:
    damaged = bytearray(FACTORY_IMAGE.read_bytes())
    damaged[-1] ^= 1
    with RecoveryLink(shared.serial) as link:
        link.enter_recovery()
        before = link.upload(Slot.A)
        with pytest.raises(RecoveryRefused) as refused:
            link.download(Slot.A, bytes(damaged))
        assert refused.value.status is Status.ERR_FILE
        assert "nothing was written" in str(refused.value)
        assert link.upload(Slot.A) == before
        link.leave_recovery()
    wait_for_post(shared.serial, Post.FIRMWARE_READY)


def test_the_tool_recovers_a_device_and_keeps_its_exit_codes(
    shared: Served, runtime_folder: Path, tmp_path: Path
) -> None:
    npuctl = Npuctl(runtime_folder)
    done = npuctl.document("fw recover", "-d", shared.address, str(FACTORY_IMAGE), "--slot", "A")
    size = FACTORY_IMAGE.stat().st_size
    assert done["devices"] == [
        {"address": shared.address, "slot": "A", "image_bytes": size, "booted_before": True, "booted": True}
    ]
    wait_for_post(shared.serial, Post.FIRMWARE_READY)
    damaged = tmp_path / "damaged.bin"
    image = bytearray(FACTORY_IMAGE.read_bytes())
    image[-1] ^= 1
    damaged.write_bytes(image)
    refused = npuctl.document("fw recover", "-d", shared.address, str(damaged), code=5)
    assert refused["errors"][0]["code"] == "recovery-refused"
    wait_for_post(shared.serial, Post.FIRMWARE_READY)
    damaged.write_bytes(b"no image at all, but long enough to hold a header")
    assert npuctl("fw", "recover", "-d", shared.address, str(damaged)).returncode == 5
    assert npuctl("fw", "recover", "-d", f"vfio-user:{shared.socket}", str(FACTORY_IMAGE)).returncode == 2
    listed = npuctl.document("list")
    assert [device["debug_port"] for device in listed["devices"]] == [shared.address]
    (known,) = npuctl.document("info", "-d", shared.address)["devices"]
    assert (known["opened"], known["opened_with_reset"], known["driver"]) == (True, False, "usb")
    assert npuctl.document("info", "-d", "usb:NOBODY", code=3)["errors"][0]["code"] == "device-not-found"
    seen = npuctl.document("regs", "boot_progress", "-d", shared.address)
    assert seen["devices"][0]["opened_with_reset"] is False


def test_a_device_without_a_core_says_that_there_is_nothing_to_recover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path))
    with (
        served(tmp_path, "--core", "none") as emulator,
        RecoveryLink(emulator.serial) as link,
        pytest.raises(RecoveryRefused, match="no management core"),
    ):
        link.enter_recovery()


def test_an_emulator_that_ends_is_a_lost_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path))
    with served(tmp_path, "--core", "none") as emulator:
        transport = UsbTransport(emulator.serial)
        emulator.process.kill()
        emulator.process.wait(PATIENCE_S)
        with pytest.raises(DeviceLost):
            transport.read(0, SCRATCH.offset, 4)
        assert not transport.alive()
        transport.close()


def test_a_bricked_device_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both slots are destroyed while it is off; the boot ROM waits for an image and boots it."""
    module_of_extra("unicorn", "firmware")
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path))
    chip = bricked_chip(tmp_path)
    with served(tmp_path, "--state", str(chip)) as emulator:
        wait_for_post(emulator.serial, Post.RECOVERY)
        done = Npuctl(tmp_path).document("fw recover", "-d", emulator.address, str(FACTORY_IMAGE), "--slot", "B")
        assert done["devices"][0]["booted_before"] is False
        found = REGISTERS["boot_progress"].decode(wait_for_post(emulator.serial, Post.FIRMWARE_READY))
        assert found["slot"] == Slot.B
