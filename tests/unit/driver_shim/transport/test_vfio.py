"""What the VFIO transport decides before, and beside, talking to the kernel. The rest is tried in a guest."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver_shim.errors import Closed, DeviceLost, DeviceNotFound, HostMemoryLimit
from driver_shim.protocol.config_space import (
    COMMAND_MEMORY,
    COMMAND_OFFSET,
    CONFIG_BYTES,
    EXPRESS,
    POWER_MANAGEMENT,
)
from driver_shim.protocol.registers import BAR0
from driver_shim.protocol.vfio_user import RegionIndex
from driver_shim.transport.base import RegionInfo
from driver_shim.transport.mapping import DeviceMapping, create_memory_file
from driver_shim.transport.vfio import VfioTransport, _may_stop_decoding, _Region, _UnplugWatch
from driver_shim.transport.vfio_iommu import Iommu, IovaRanges, undisturbed
from tests.support import sysfs
from tests.support.waiting import PATIENCE_S

BAR_BYTES = 0x1_0000
CARD = "0000:03:00.0"


def descriptors() -> set[str]:
    """Open descriptors of this process."""
    gc.collect()  # what earlier tests left goes now, not while this one counts
    return set(os.listdir("/proc/self/fd"))


def opening(root: Path) -> VfioTransport:
    return VfioTransport(CARD, root / "devices", root / "dev")


def test_a_function_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFound, match=f"pci:{CARD}: no such function"):
        opening(tmp_path)


@pytest.mark.parametrize(("driver", "shown"), [("nvme", "nvme"), (None, "no driver")])
def test_another_driver_is_named_with_the_command_that_mends_it(tmp_path: Path, driver: str | None, shown: str) -> None:
    folder = sysfs.add_function(tmp_path / "devices", CARD)
    if driver:
        sysfs.link(folder, "driver", driver)
    with pytest.raises(DeviceNotFound, match=f"bound to {shown}, not to vfio-pci") as caught:
        opening(tmp_path)
    assert caught.value.remedy == f"npuctl bind -d pci:{CARD}"


def test_without_an_iommu_the_remedy_is_to_switch_it_on(tmp_path: Path) -> None:
    sysfs.link(sysfs.add_function(tmp_path / "devices", CARD), "driver", "vfio-pci")
    with pytest.raises(DeviceNotFound, match="in no IOMMU group") as caught:
        opening(tmp_path)
    assert "npuctl doctor" in str(caught.value.remedy)


@pytest.mark.parametrize("with_cdev", [False, True], ids=["type1", "iommufd"])
def test_a_missing_node_is_named_and_nothing_stays_open(tmp_path: Path, with_cdev: bool) -> None:
    folder = sysfs.add_function(tmp_path / "devices", CARD)
    sysfs.link(folder, "driver", "vfio-pci")
    sysfs.link(folder, "iommu_group", "12")
    if with_cdev:
        (folder / "vfio-dev/vfio3").mkdir(parents=True)
    before = descriptors()
    with pytest.raises(DeviceNotFound, match="cannot open .*dev/iommu" if with_cdev else "cannot open .*dev/vfio/vfio"):
        opening(tmp_path)
    assert descriptors() == before


@pytest.mark.parametrize(
    ("offset", "data", "may"),
    [
        (0x04, "0600", False),  # COMMAND with memory decoding and bus mastering
        (0x04, "0400", True),  # without memory decoding
        (0x00, "c4b7504e0400", True),
        (0x05, "04", False),  # its upper half alone
        (0x10, "00000000", False),  # base addresses are the kernel's
        (0x3C, "01", False),
        (POWER_MANAGEMENT.offset + 4, "0300", True),
        (EXPRESS.offset + 8, "1080", True),  # a function level reset, perhaps
        (0x3F, "0000", True),
        (0x100, "00000000", False),
    ],
)
def test_mappings_are_revoked_before_what_may_stop_the_decoding(offset: int, data: str, may: bool) -> None:
    assert _may_stop_decoding(offset, bytes.fromhex(data)) == may


def hung_up(fd: int, patience_ms: int) -> bool:
    poller = select.poll()
    poller.register(fd, 0)
    return any(event & select.POLLHUP for _, event in poller.poll(patience_ms))


def test_the_kernels_request_is_answered_whatever_the_program_does() -> None:
    told = threading.Event()
    watch = _UnplugWatch(told.set)
    assert not hung_up(watch.hang_up_fd, 0)
    os.eventfd_write(watch.request_fd, 1)
    assert told.wait(30)
    assert hung_up(watch.hang_up_fd, 30_000)
    watch.close()


def test_closing_ends_the_watch_without_a_call() -> None:
    before = descriptors()
    called = threading.Event()
    watch = _UnplugWatch(called.set)
    watch.close()
    watch.close()
    assert not called.is_set()
    assert descriptors() == before


def test_the_watch_may_be_closed_by_what_it_calls() -> None:
    done = threading.Event()

    def let_go() -> None:
        watch.close()
        done.set()

    watch = _UnplugWatch(let_go)
    os.eventfd_write(watch.request_fd, 1)
    assert done.wait(30)


def test_somebody_elses_function_is_not_opened(tmp_path: Path) -> None:
    folder = sysfs.add_function(tmp_path / "devices", CARD, vendor="0x10de", device="0x2330")
    sysfs.link(folder, "driver", "vfio-pci")
    sysfs.link(folder, "iommu_group", "12")
    with pytest.raises(DeviceNotFound, match="10de:2330, not one of ours"):
        opening(tmp_path)


class FakeIommu(Iommu):
    """What a device was opened with, without a kernel: maps, and what to be interrupted or refused by."""

    kind = "none"

    def __init__(self) -> None:
        super().__init__("pci:test")
        self.device = os.memfd_create("device", os.MFD_CLOEXEC)
        os.ftruncate(self.device, CONFIG_BYTES + BAR_BYTES)
        os.pwrite(self.device, bytes([0, 0, 0, 0, COMMAND_MEMORY]), 0)
        self._fds.append(self.device)
        self.maps: dict[int, int] = {}
        self.after_map: BaseException | None = None

    def ranges(self) -> IovaRanges:
        return ()

    def _map(self, address: int, iova: int, size: int) -> None:
        if iova in self.maps:
            raise OSError(errno.EEXIST, "File exists")
        self.maps[iova] = size
        if self.after_map is not None:
            raise self.after_map

    def _unmap(self, iova: int, size: int) -> None:
        if iova not in self.maps:
            raise OSError(errno.ENOENT, "nothing is mapped")
        del self.maps[iova]


@pytest.fixture
def transport() -> Iterator[tuple[VfioTransport, FakeIommu]]:
    """A transport over a file in place of a device: configuration space, and one BAR behind it."""
    made = VfioTransport.__new__(VfioTransport)
    iommu = FakeIommu()
    made.address = "pci:test"
    made._lock = threading.RLock()
    made._iommu = iommu
    made._windows, made._mappings, made._mapped, made._ended = {}, [], {}, None
    made._ranges = ((0, (1 << 64) - 1),)
    made._power_at = None
    made._can_reset = True
    made._regions = {
        BAR0: _Region(RegionInfo(BAR0, BAR_BYTES, True, True, ((0, BAR_BYTES),)), CONFIG_BYTES),
        int(RegionIndex.CONFIG): _Region(RegionInfo(7, CONFIG_BYTES, True, True, ()), 0),
    }
    made._unplug = _UnplugWatch(made._let_go)
    made.hang_up_fd = made._unplug.hang_up_fd
    yield made, iommu
    made.close()


Made = tuple[VfioTransport, FakeIommu]


def test_registers_are_reached_through_a_mapping_until_it_is_revoked(transport: Made) -> None:
    made, iommu = transport
    made.write(BAR0, 0x10, 0x1234_5678, 4)
    assert os.pread(iommu.device, 4, CONFIG_BYTES + 0x10) == b"\x78\x56\x34\x12"
    view = made.map_region(BAR0, 0, 4096)
    assert view[0x10] == 0x78
    made.config_write(COMMAND_OFFSET, b"\0\0")  # decoding goes off: what was mapped is the device's no more
    assert view[0x10] == 0
    view[0x10] = 1
    assert made.read(BAR0, 0x10, 4) == 0x1234_5678  # through the kernel
    with pytest.raises(ValueError, match="decoding is off"):
        made.map_region(BAR0, 0, 4096)
    made.config_write(COMMAND_OFFSET, bytes([COMMAND_MEMORY, 0]))
    assert made.map_region(BAR0, 0, 4096)[0x10] == 0x78


def test_a_misaligned_access_goes_through_the_kernel_and_a_strange_width_nowhere(transport: Made) -> None:
    made, _ = transport
    made.write(BAR0, 0x20, 0x1122_3344_5566_7788, 8)
    assert made.read(BAR0, 0x21, 4) == 0x4455_6677
    for width in (0, 3, 16):
        with pytest.raises(ValueError, match="registers are 1, 2, 4 or 8 bytes wide"):
            made.read(BAR0, 0, width)


def test_ctrl_c_after_the_kernel_mapped_leaves_a_map_that_can_be_taken_back(transport: Made) -> None:
    made, iommu = transport
    fd = create_memory_file(4096)
    iommu.after_map = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        made.dma_map(fd, 0, 0x1000, 4096)
    iommu.after_map = None
    made.dma_unmap(0x1000, 4096)
    assert not iommu.maps
    made.dma_map(fd, 0, 0x1000, 4096)
    os.close(fd)


def test_the_kernels_refusal_says_how_much_may_be_locked(transport: Made) -> None:
    made, iommu = transport
    fd = create_memory_file(8192)
    made.dma_map(fd, 0, 0x1000, 4096)
    iommu.after_map = OSError(errno.ENOMEM, "Cannot allocate memory")
    with pytest.raises(HostMemoryLimit, match=r"4096 bytes for DMA .*: 4096 are pinned, the limit of locked memory is"):
        made.dma_map(fd, 4096, 0x2000, 4096)
    with pytest.raises(ValueError, match="not mapped"):
        made.dma_unmap(0x2000, 4096)
    os.close(fd)


def test_an_end_that_was_cut_short_is_completed_by_the_next(transport: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made, iommu = transport
    view = made.map_region(BAR0, 0, 4096)

    def interrupted(self: DeviceMapping) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(DeviceMapping, "revoke", interrupted)
        made.close()
    made.close()
    assert not is_open(iommu.device)
    view[0] = 1
    with pytest.raises(Closed):
        made.read(BAR0, 0, 4)


def test_the_kernels_request_ends_all_work_and_tells(transport: Made) -> None:
    made, iommu = transport
    told: list[DeviceLost] = []
    heard = threading.Event()

    def hear(error: DeviceLost) -> None:
        told.append(error)
        heard.set()

    made.on_unplug = hear
    view = made.map_region(BAR0, 0, 4096)
    os.eventfd_write(made._unplug.request_fd, 1)
    assert heard.wait(30)
    assert not is_open(iommu.device)
    view[0] = 1
    for use in (lambda: made.read(BAR0, 0, 4), lambda: made.config_read(0, 2), made.reset):
        with pytest.raises(DeviceLost, match="being unplugged"):
            use()
    assert not made.alive()


def test_four_threads_go_on_while_the_device_is_reset_over_and_over(
    transport: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is cut short during each reset, as the kernel takes the pages: whoever touched one would be killed."""
    made, iommu = transport
    content = 0xABCD.to_bytes(4, "little") * (BAR_BYTES // 4)
    os.pwrite(iommu.device, content, CONFIG_BYTES)

    def kernel(fd: int, request: int, argument: int) -> int:
        os.ftruncate(fd, CONFIG_BYTES)
        time.sleep(0.0005)
        os.ftruncate(fd, CONFIG_BYTES + BAR_BYTES)
        os.pwrite(fd, content, CONFIG_BYTES)
        return 0

    monkeypatch.setattr("driver_shim.transport.vfio.fcntl.ioctl", kernel)
    stop, wrong = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            value = made.read(BAR0, 0x40, 4)
            made.write(BAR0, 0x80, 0xABCD, 4)
            if value != 0xABCD:
                wrong.append(value)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        made.reset()
    stop.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not wrong


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_ctrl_c_while_a_card_is_opened_leaves_nothing_open() -> None:
    made: list[int] = []

    def slow() -> Iommu:
        os.kill(os.getpid(), signal.SIGINT)  # arrives in the main thread, which waits
        time.sleep(0.1)
        iommu = FakeIommu()
        made.append(iommu.device)
        return iommu

    with pytest.raises(KeyboardInterrupt):
        undisturbed(slow)
    assert len(made) == 1
    assert not is_open(made[0])


def test_what_opening_raises_is_raised() -> None:
    def fails() -> Iommu:
        raise DeviceNotFound("no")

    with pytest.raises(DeviceNotFound):
        undisturbed(fails)


def test_a_device_that_nobody_got_to_see_is_let_go() -> None:
    fd = FakeIommu().device
    assert not is_open(fd)


def test_closing_while_the_request_is_answered_does_not_wait_for_the_answer() -> None:
    answering, go_on = threading.Event(), threading.Event()

    def answer() -> None:
        answering.set()
        go_on.wait(30)

    watch = _UnplugWatch(answer)
    os.eventfd_write(watch.request_fd, 1)
    assert answering.wait(30)
    closer = threading.Thread(target=watch.close)
    closer.start()
    closer.join(30)
    assert not closer.is_alive()
    go_on.set()
