"""Against nutanix/libvfio-user, the C implementation that others build their devices on: both of its ends.

Set NPU_LIBVFIO_USER to the folder of its built sample programs; see `benchmarks/libvfio_user.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.libvfio_user import PeerMissingError, Served, sample, serving
from driver_shim.errors import ContractMismatch, DeviceLost
from driver_shim.protocol import vfio_user as vu
from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.vfio_user import Command, IrqIndex, IrqSet
from driver_shim.transport.mapping import create_memory_file, map_memory_file
from driver_shim.transport.vfio_user import VfioUserTransport
from sdk import Device
from sdk.device import on_transport
from tests.support.bus_server import RawClient, SmallFunction, SmallRegion, open_files
from tests.support.bus_server import serving as serving_ours

PATIENCE_S = 60.0
POLL_S = 0.01
PAGE = 4096
CONNECT = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER

Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Serve a sample's device; skips where the sample is not built or, as some versions' `server`, does not start."""
    with contextlib.ExitStack() as running:

        def start(name: str, *arguments: str) -> Served:
            try:
                return running.enter_context(serving(name, tmp_path, *arguments))
            except PeerMissingError as missing:
                pytest.skip(str(missing))

        yield start


def connect(served: Served) -> VfioUserTransport:
    return VfioUserTransport.connect(served.path, PATIENCE_S)


def log_says(served: Served, what: str) -> bool:
    """Whether the sample said so, sooner or later: it logs after it has answered."""
    deadline = time.monotonic() + PATIENCE_S
    while what not in served.log.read_text("utf-8"):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


# --- our client, their server ------------------------------------------------------------------------------------


def test_our_client_works_the_pins_of_the_gpio_device(start: Start) -> None:
    served = start("gpio-pci-idio-16", "-v")
    before = open_files()
    for _ in range(2):  # it serves one client after the other
        transport = connect(served)
        assert {index: region.size_bytes for index, region in transport.regions().items()} == {2: 0x100, 7: 0x100}
        assert transport.config_read(0, 4) == b"\x4f\x49\xc8\x0d"
        transport.config_write(4, b"\x06\x00")
        assert transport.config_read(4, 2) == b"\x06\x00"
        level = transport.read(2, 5, 1)
        assert level == 0xFF, "an input reads high while its output was raised a multiple of three times"
        for expected in (0xFE, 0xFE, 0xFF):
            transport.write(2, 4, 0x01, 1)
            assert transport.read(2, 5, 1) == expected
        assert [transport.read(2, 0xF8, width) for width in (1, 2, 4, 8)] == [0, 0, 0, 0]
        transport.reset()
        assert transport.alive()
        transport.close()
    assert log_says(served, "device reset by client")
    assert open_files() == before


def test_our_client_maps_and_unmaps_memory_at_their_server(start: Start) -> None:
    transport = connect(start("gpio-pci-idio-16", "-v"))
    fd = create_memory_file(4 * PAGE)
    last_page = (1 << 64) - PAGE
    transport.dma_map(fd, 0, 0x10000, PAGE)
    transport.dma_map(fd, PAGE, last_page, PAGE)
    with pytest.raises(ValueError, match=r"refused 0x3000 bytes at bus address 0xf000: Invalid argument"):
        transport.dma_map(fd, 0, 0xF000, 3 * PAGE)
    for iova in (0x10000, last_page):
        transport.dma_unmap(iova, PAGE)
        with pytest.raises(ValueError, match="not mapped \\(No such file or directory\\)"):
            transport.dma_unmap(iova, PAGE)
    transport.close()
    os.close(fd)


@pytest.mark.parametrize("name", ["gpio-pci-idio-16", "null"])
def test_a_device_without_msix_is_served_without_interrupts(start: Start, name: str) -> None:
    transport = connect(start(name))
    assert transport.interrupt_count() == 0
    transport.set_interrupts([])
    with pytest.raises(ValueError, match="has 0 vectors, not 1"):
        transport.set_interrupts([0])
    transport.close()


def test_the_sdk_refuses_somebody_elses_device_and_leaves_it_alone(start: Start) -> None:
    served = start("gpio-pci-idio-16")
    with pytest.raises(ContractMismatch, match=r"is PCI function 494f:0dc8 with 0 bytes .* not b7c4:4e50 with 65536"):
        Device(f"vfio-user:{served.path}")
    transport = connect(served)
    assert transport.config_read(4, 2) == b"\x00\x00"
    transport.close()


def test_our_channel_takes_an_interrupt_from_their_server_and_declines_its_dma_by_message(start: Start) -> None:
    """Their `server` arms a timer when BAR0 is written; then it raises INTx, writes into the second mapping directly,
    and asks for the first one by message. Our client's mappings all have files, so it declines that; the sample takes
    any refusal for fatal and ends."""
    served = start("server", "-v")
    before = open_files()
    transport = connect(served)
    assert transport.config_read(0, 4) + transport.config_read(0x2C, 4) == b"\xad\xde\xef\xbe\xfe\xca\xbe\xba"
    assert transport.regions()[1].mappable == ((0, PAGE), (2 * PAGE, PAGE))
    with pytest.raises(ContractMismatch, match="not sealed against shrinking"):
        transport.map_region(1, 0, PAGE)
    transport.write(1, 0, 0x1122_3344_5566_7788, 8)
    assert transport.read(1, 0, 8) == 0x1122_3344_5566_7788
    with pytest.raises(ContractMismatch, match="refused a read of 4 bytes at 0x0 of region 0: Invalid argument"):
        transport.read(0, 0, 4)
    transport.reset()
    assert log_says(served, "device reset callback")

    fd, eventfd = create_memory_file(2 * PAGE), os.eventfd(0)
    memory = map_memory_file(fd, 2 * PAGE)
    transport.dma_map(fd, 0, 0x10000, PAGE)
    transport.dma_map(fd, PAGE, 0x20000, PAGE)
    transport._channel.request(Command.DEVICE_SET_IRQS, vu.IRQ_SET.pack(20, CONNECT, IrqIndex.INTX, 0, 1), [eventfd])
    transport.write(0, 0, int(time.time()) + 1, 8)
    assert os.eventfd_read(eventfd) == 1
    assert log_says(served, "MESSAGE WRITE addr 0x10000 size 1024")
    assert memory[PAGE:] == b"A" * 1024 + b"B" * 1024 + b"C" * 1024 + b"D" * 1024
    assert memory[:PAGE] == bytes(PAGE)
    with pytest.raises(DeviceLost, match=r"hung up|failed"):
        while True:
            transport.read(1, 0, 8)
    assert served.process.wait(PATIENCE_S) == 1
    assert log_says(served, "vfu_sgl_write failed")
    assert not transport.alive()
    transport.close()
    for descriptor in (fd, eventfd):
        os.close(descriptor)
    assert open_files() == before


def test_their_server_may_be_killed_under_our_client(start: Start) -> None:
    served = start("gpio-pci-idio-16")
    before = open_files()
    transport = connect(served)
    served.process.send_signal(signal.SIGKILL)
    served.process.wait(PATIENCE_S)
    assert not transport.alive()
    with pytest.raises(DeviceLost):
        transport.read(2, 1, 1)
    transport.close()
    assert open_files() == before


# --- their client, our server ------------------------------------------------------------------------------------


def run_their_client(path: Path) -> subprocess.CompletedProcess[str]:
    try:
        program = sample("client")
    except PeerMissingError as missing:
        pytest.skip(str(missing))
    return subprocess.run([program, path], capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_their_client_reads_our_emulators_regions_up_to_the_first_that_comes_with_a_file(tmp_path: Path) -> None:
    """It takes no file with the short form of a region's description, which our aperture, mappable as a whole, has."""
    path = tmp_path / "npu.sock"
    command = [sys.executable, "-m", "emulator", "--kernels", "numpy", "--socket", str(path)]
    emulator = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert time.monotonic() < deadline and emulator.poll() is None
            time.sleep(POLL_S)
        opened = set()
        for _ in range(3):
            ended = run_their_client(path)
            assert ended.returncode == 1
            assert ended.stderr.splitlines() == [
                "client: failed to read from region -559038737 0-0x3: Invalid argument",  # a test of its own
                "client: failed to get device region info: Bad address",
            ]
            said = ended.stdout.splitlines()
            assert said[0] == "client: devinfo: flags 0x3, num_regions 9, num_irqs 5"
            assert [line.partition(": region_info")[2] for line in said[1:]] == [
                "[0] offset 0 flags 0x3 size 65536 cap_sz 0 #FDs 0",
                "[1] offset 0 flags 0 size 0 cap_sz 0 #FDs 0",
                "[2] offset 0 flags 0x3 size 131072 cap_sz 0 #FDs 0",
                "[3] offset 0 flags 0 size 0 cap_sz 0 #FDs 0",
            ]
            transport = VfioUserTransport.connect(path, PATIENCE_S)
            opened.add(len(os.listdir(f"/proc/{emulator.pid}/fd")))
            with on_transport(transport, timeout=PATIENCE_S) as device, device.queue() as queue:
                queue.nop().wait()
            transport.close()
        assert len(opened) == 1, "a descriptor leaked"
    finally:
        emulator.terminate()
        emulator.wait(PATIENCE_S)


class FunctionOfTheirs(SmallFunction):
    """The regions that their client expects: behind our server it comes much further."""

    def __init__(self) -> None:
        super().__init__()
        self.regions = {
            0: SmallRegion(8),
            1: SmallRegion(0x3000, mappable=((0, PAGE), (2 * PAGE, PAGE)), fd=self.file),
            vu.RegionIndex.CONFIG: SmallRegion(256),
        }
        self.memory = {index: bytearray(region.size_bytes) for index, region in self.regions.items()}
        self.memory[vu.RegionIndex.CONFIG][:4] = b"\xad\xde\xef\xbe"
        self.memory[vu.RegionIndex.CONFIG][0x2C:0x30] = b"\xfe\xca\xbe\xba"
        self.maps_left: list[int] = []

    def client_lost(self) -> None:
        self.maps_left.append(len(self.address_space))
        super().client_lost()


def test_their_client_goes_on_behind_our_server_until_it_wants_the_intx_that_we_have_not(tmp_path: Path) -> None:
    function, path = FunctionOfTheirs(), tmp_path / "small.sock"
    try:
        with serving_ours(function, path):
            before = None
            for _ in range(3):
                ended = run_their_client(path)
                assert ended.returncode == 1
                assert ended.stderr.splitlines()[-1] == (
                    "client: failed to send configure IRQs message: Invalid argument"
                )
                for line in (
                    "region_info[1] offset 0 flags 0xf size 12288 cap_sz 48 #FDs 1",
                    "area 0 offset 0 size 4096",
                    "area 1 offset 0x2000 size 4096",
                    "region_info[7] offset 0 flags 0x3 size 256 cap_sz 0 #FDs 0",
                    "IRQ MSI-X: count=4 flags=0x3",
                ):
                    assert line in ended.stdout
                with RawClient.connect(path) as following:
                    following.negotiate()
                    before = before or open_files()
                    assert open_files() == before, "a descriptor leaked"
            mapped = 2 * vu.MAX_FDS
            assert function.maps_left[::2] == [mapped] * 3, "it maps twice as many pages as we take files at a time"
            assert function.resets == [ResetCause.DEVICE_RESET] * 3
    finally:
        function.close()
