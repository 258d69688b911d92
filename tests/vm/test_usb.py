"""The debug port on a real kernel: Linux's USB/IP attaches it, Debian's own tools and our SDK use it.

Its emulator is a process of its own on this machine, beside the cards of the guest, which reaches it through QEMU's
user network. A port that leaves the bus has to be attached again, as Linux's USB/IP has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver_shim.protocol.registers import REGISTERS, Post
from tests.support.debug_ports import FACTORY_IMAGE, Served, bricked_chip, served, wait_for_post
from tests.vm.conftest import IOMMUFD, PATIENCE_S
from tests.vm.guest import GUEST, HOST, Guest, Ran
from tests.vm.test_tools import WORKER

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(0),  # each wait here has a limit of its own
    pytest.mark.skipif(IOMMUFD, reason="the kernel with iommufd has no USB"),
]
OURS = "-d b7c4:4e51"
DETACH_DELAY_S = 40
"""How long dfu-util waits for the port to come back: the guest is slow."""
IO_ERROR = 74
"""dfu-util's exit code (EX_IOERR) when the device says no."""
IMAGE, DAMAGED, READ = "/exchange/image.bin", "/exchange/damaged.bin", "/exchange/read.bin"


class Port:
    """A debug port on this machine, and the guest that attaches it."""

    def __init__(self, guest: Guest, emulator: Served) -> None:
        self._guest = guest
        self.emulator = emulator
        where = f"usbip --tcp-port {emulator.port}"
        self.attach = f"{where} attach -r {HOST} -b 1-1 >/dev/null 2>&1"
        self.attached = f"lsusb {OURS} >/dev/null"
        self.again = f"until {self.attached}; do {self.attach}; sleep 1; done; udevadm settle"
        """Shell words that attach it unless it is, and wait until the kernel knows it."""

    def gone(self) -> None:
        """Wait until the port has left the guest's bus."""
        self._guest.check(f"while {self.attached}; do sleep 0.2; done", PATIENCE_S)

    def plug_in(self) -> None:
        self._guest.check(self.again, PATIENCE_S)

    def run(self, command: str) -> Ran:
        """A command with the port attached."""
        self.plug_in()
        return self._guest.run(f"{command} 2>&1", PATIENCE_S)

    def run_while_it_comes_back(self, command: str, times: int) -> Ran:
        """A command in whose course the port leaves the bus; who minds the bus attaches it again so many times.

        Not once more: the port may leave again while the command ends, and `gone` waits for just that.
        """
        self.plug_in()
        left = f"while {self.attached}; do sleep 1; done"
        minder = f"( for time in $(seq {times}); do {left}; {self.again}; done ) & minder=$!"
        end = "status=$?; kill $minder 2>/dev/null; exit $status"
        return self._guest.run(f"{minder}; {command} 2>&1; {end}", 2 * PATIENCE_S)

    def let_go(self) -> None:
        """Detach it, so that this machine can look."""
        self._guest.run("for port in 0 1; do usbip detach -p $port; done 2>/dev/null", PATIENCE_S)
        self._guest.check(f"while {self.attached}; do sleep 0.2; done", PATIENCE_S)

    def boot_progress(self, *posts: Post) -> dict[str, int]:
        """Detach it, and wait until the core is that far."""
        self.let_go()
        return REGISTERS["boot_progress"].decode(wait_for_post(self.emulator.serial, *posts))


@pytest.fixture(scope="module")
def network(guest: Guest) -> None:
    """The guest reaches this machine, and has the kernel's USB/IP."""
    guest.check("modprobe -a virtio_net vhci-hcd && udevadm settle", PATIENCE_S)
    card = "$(ls /sys/class/net | grep -v lo)"
    guest.check(f"ip link set {card} up && ip address add {GUEST} dev {card}", PATIENCE_S)
    (guest.exchange / Path(IMAGE).name).write_bytes(FACTORY_IMAGE.read_bytes())
    image = bytearray(FACTORY_IMAGE.read_bytes())
    image[-1] ^= 1
    (guest.exchange / Path(DAMAGED).name).write_bytes(image)


@pytest.fixture(scope="module")
def runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_RUNTIME_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def port(guest: Guest, network: None, runtime_folder: Path) -> Iterator[Port]:
    """The port of a device whose firmware runs."""
    with served(runtime_folder, "--state", str(runtime_folder / "chip")) as emulator:
        opened = Port(guest, emulator)
        opened.boot_progress(Post.FIRMWARE_READY)
        yield opened
        opened.let_go()


def test_lsusb_reads_all_of_it(port: Port) -> None:
    shown = port.run(f"lsusb -v {OURS}")
    assert shown.status == 0, shown.output
    for wrong in ("can't", "cannot", "annot", "Warning", "junk", "unrecognized", "** UNRECOGNIZED", "(error)", "FAIL"):
        assert wrong not in shown.output, shown.output
    for wanted in (
        "NPU debug port",
        "Device Firmware Upgrade Interface Descriptor",
        "Will Detach",
        port.emulator.serial,
    ):
        assert wanted in shown.output, shown.output


def test_members_of_the_group_may_use_it(guest: Guest, port: Port) -> None:
    guest.check("sh udev/install.sh && udevadm control --reload && udevadm settle", PATIENCE_S)
    guest.check("id worker 2>/dev/null || useradd --create-home --groups npu worker", PATIENCE_S)
    port.let_go()
    seen = port.run(f"{WORKER} python3 -m npuctl regs identity -d usb:{port.emulator.serial}")
    assert (seen.status, "0x55504e31" in seen.output) == (0, True), seen.output
    nobody = port.run(
        f"id nobody2 >/dev/null 2>&1 || useradd nobody2; runuser -u nobody2 -- env PYTHONPATH=$PYTHONPATH "
        f"python3 -m npuctl regs identity -d usb:{port.emulator.serial}"
    )
    assert nobody.status == 4, nobody.output
    assert "npu" in nobody.output


def test_dfu_util_sends_a_running_device_into_recovery_and_writes_a_slot(port: Port) -> None:
    listed = port.run("dfu-util -l")
    assert re.search(r'Found Runtime: \[b7c4:4e51\].*name="firmware"', listed.output), listed.output
    flash = f"dfu-util {OURS} -a 'slot B' --detach-delay {DETACH_DELAY_S} -D {IMAGE}"
    written = port.run_while_it_comes_back(flash, times=1)
    assert written.status == 0, written.output
    assert "Done!" in written.output
    port.gone()
    found = port.boot_progress(Post.FIRMWARE_READY)
    assert (found["slot"], found["trial"]) == (2, 0)


def test_dfu_util_reads_a_slot_and_sends_the_device_back(guest: Guest, port: Port) -> None:
    detached = port.run(f"dfu-util {OURS} -e")
    assert detached.status == 0, detached.output
    port.gone()
    listed = port.run("dfu-util -l")
    assert all(f'name="slot {slot}"' in listed.output for slot in "AB"), listed.output
    assert "Found DFU" in listed.output
    read = guest.exchange / Path(READ).name
    read.unlink(missing_ok=True)
    shown = port.run(f"dfu-util {OURS} -a 'slot B' -U {READ} -R")
    assert shown.status == 0, shown.output
    assert read.read_bytes() == FACTORY_IMAGE.read_bytes()
    port.gone()
    port.boot_progress(Post.FIRMWARE_READY)


def test_dfu_util_is_told_why_an_image_is_refused(port: Port) -> None:
    port.run(f"dfu-util {OURS} -e")
    port.gone()
    refused = port.run(f"dfu-util {OURS} -a 'slot A' -D {DAMAGED}")
    assert refused.status == IO_ERROR, refused.output
    assert "completion packet" in refused.output, refused.output
    good = port.run(f"dfu-util {OURS} -a 'slot A' -D {IMAGE} -R")
    assert good.status == 0, good.output
    port.gone()
    assert port.boot_progress(Post.FIRMWARE_READY)["slot"] == 1


def test_our_tool_recovers_it_through_libusb(port: Port) -> None:
    tool = f"python3 -m npuctl fw recover -d usb:{port.emulator.serial} {IMAGE} --slot B"
    done = port.run_while_it_comes_back(tool, times=2)
    assert done.status == 0, done.output
    assert port.boot_progress(Post.FIRMWARE_READY)["slot"] == 2


def test_a_bricked_device_comes_back(guest: Guest, port: Port, tmp_path: Path) -> None:
    """Both slots are destroyed while it is off; the boot ROM waits for an image, and gets one from dfu-util."""
    port.let_go()
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_RUNTIME_DIR", str(folder))
        chip = bricked_chip(folder)
        with served(folder, "--state", str(chip)) as emulator:
            wait_for_post(emulator.serial, Post.RECOVERY)
            bricked = Port(guest, emulator)
            written = bricked.run(f"dfu-util {OURS} -a 'slot A' -D {IMAGE} -R")
            assert written.status == 0, written.output
            bricked.gone()
            assert bricked.boot_progress(Post.FIRMWARE_READY)["slot"] == 1
