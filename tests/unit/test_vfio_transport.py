"""What the VFIO transport decides before, and beside, talking to the kernel. The rest is tried in a guest."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from pathlib import Path

import pytest

from driver_shim.errors import DeviceNotFound
from driver_shim.protocol.config_space import EXPRESS, POWER_MANAGEMENT
from driver_shim.transport.vfio import VfioTransport, _may_stop_decoding, _UnplugWatch
from driver_shim.transport.vfio_iommu import Iommu, IovaRanges, undisturbed
from tests.support import sysfs

CARD = "0000:03:00.0"


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
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceNotFound, match="cannot open .*dev/iommu" if with_cdev else "cannot open .*dev/vfio/vfio"):
        opening(tmp_path)
    assert set(os.listdir("/proc/self/fd")) == before


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
    before = set(os.listdir("/proc/self/fd"))
    called = threading.Event()
    watch = _UnplugWatch(called.set)
    watch.close()
    watch.close()
    assert not called.is_set()
    assert set(os.listdir("/proc/self/fd")) == before


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
    """What a device was opened with, without a kernel."""

    kind = "none"

    def __init__(self) -> None:
        super().__init__("pci:test")
        self.device = os.eventfd(0, os.EFD_CLOEXEC)
        self._fds.append(self.device)

    def ranges(self) -> IovaRanges:
        return ()

    def _map(self, address: int, iova: int, size: int) -> None: ...

    def _unmap(self, iova: int, size: int) -> None: ...


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
