"""Binding to vfio-pci and back: the writes and their order, what is refused, and that failures are undone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from driver_shim.cards.binding import Binder, Binding, write_attribute
from driver_shim.errors import DeviceBusy, DeviceNotFound, NpuError, PermissionDenied
from tests.support.fake_host import CARD, SECOND, FakeHost

DEVICES, DRIVERS = "bus/pci/devices", "bus/pci/drivers"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def binder(host: FakeHost) -> Binder:
    return Binder(host.roots, host.write)


def test_a_free_card_is_overridden_then_probed(host: FakeHost, binder: Binder) -> None:
    host.add()
    assert binder.bind(CARD) == Binding(CARD, None, "vfio-pci", True)
    assert host.writes == [(f"{DEVICES}/{CARD}/driver_override", "vfio-pci"), ("bus/pci/drivers_probe", CARD)]


def test_another_driver_lets_go_before_the_probe(host: FakeHost, binder: Binder) -> None:
    host.add(driver="xdma")
    assert binder.bind(CARD) == Binding(CARD, "xdma", "vfio-pci", True)
    assert [path for path, _ in host.writes] == [
        f"{DEVICES}/{CARD}/driver_override",
        f"{DRIVERS}/xdma/unbind",
        "bus/pci/drivers_probe",
    ]


def test_binding_twice_writes_nothing(host: FakeHost, binder: Binder) -> None:
    host.add(driver="vfio-pci")
    assert binder.bind(CARD) == Binding(CARD, "vfio-pci", "vfio-pci", False)
    assert host.writes == []


def test_unbinding_clears_the_override_and_leaves_no_driver(host: FakeHost, binder: Binder) -> None:
    host.add()
    binder.bind(CARD)
    assert binder.unbind(CARD) == Binding(CARD, "vfio-pci", None, True)
    assert (host.driver(), host.override()) == (None, "(null)")


def test_unbinding_twice_writes_nothing(host: FakeHost, binder: Binder) -> None:
    host.add()
    assert binder.unbind(CARD) == Binding(CARD, None, None, False)
    assert host.writes == []


def test_unbinding_leaves_another_driver_alone(host: FakeHost, binder: Binder) -> None:
    host.add(driver="xdma")
    assert binder.unbind(CARD) == Binding(CARD, "xdma", "xdma", False)
    assert host.writes == []


def test_an_override_left_behind_by_somebody_is_cleared(host: FakeHost, binder: Binder) -> None:
    folder = host.add()
    host.put(folder / "driver_override", "vfio-pci")
    assert binder.unbind(CARD).changed
    assert host.override() == "(null)"


# --- refused before anything is written ------------------------------------------------------------------------


def test_a_function_that_is_not_there(binder: Binder) -> None:
    with pytest.raises(DeviceNotFound, match=f"pci:{CARD}: no such function"):
        binder.bind(CARD)


def test_without_the_module_the_error_says_modprobe(host: FakeHost, binder: Binder) -> None:
    host.add()
    (host.roots.drivers / "vfio-pci").rmdir()
    with pytest.raises(NpuError) as caught:
        binder.bind(CARD)
    assert (caught.value.code, caught.value.remedy) == ("driver-missing", "sudo modprobe vfio-pci")
    assert host.writes == []


@pytest.mark.parametrize("noiommu", [False, True])
def test_without_an_iommu_nothing_is_bound(host: FakeHost, binder: Binder, noiommu: bool) -> None:
    folder = host.add(group=12 if noiommu else None)
    if noiommu:
        host.put(folder / "iommu_group/name", "vfio-noiommu")
    with pytest.raises(NpuError) as caught:
        binder.bind(CARD)
    assert caught.value.code == "iommu-off"
    assert host.writes == []


def test_a_neighbour_with_a_kernel_driver_is_named(host: FakeHost, binder: Binder) -> None:
    host.add()
    host.add("0000:03:00.1", driver="snd_hda_intel", ids=(0x1234, 0x1), pci_class=0x040300)
    with pytest.raises(DeviceBusy) as caught:
        binder.bind(CARD)
    assert "0000:03:00.1 (snd_hda_intel)" in caught.value.message
    assert "tee /sys/bus/pci/drivers/snd_hda_intel/unbind" in str(caught.value.remedy)
    assert host.writes == []


def test_bridges_ports_and_what_vfio_has_do_not_stand_in_the_way(host: FakeHost, binder: Binder) -> None:
    host.add()
    host.add("0000:00:1c.0", driver="pcieport", ids=(1, 1), pci_class=0x060400)
    host.add("0000:00:1e.0", driver="shpchp", ids=(1, 2), pci_class=0x060400)
    host.add("0000:03:00.1", driver="vfio-pci", ids=(1, 3))
    host.add("0000:03:00.2", ids=(1, 4))
    assert binder.bind(CARD).driver == "vfio-pci"


def test_two_functions_of_one_group_are_bound_together(host: FakeHost, binder: Binder) -> None:
    host.add(driver="xdma")
    host.add(SECOND, driver="xdma")
    with pytest.raises(DeviceBusy):
        binder.bind(CARD)
    assert [binder.bind(one, (CARD, SECOND)).driver for one in (CARD, SECOND)] == ["vfio-pci"] * 2


# --- a card in use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["vfio/12", "vfio/devices/vfio3"])
def test_a_card_in_use_is_left_alone_and_its_user_named(host: FakeHost, binder: Binder, node: str) -> None:
    folder = host.add(driver="vfio-pci")
    (folder / "vfio-dev/vfio3").mkdir(parents=True)
    host.process(7, "init")
    host.process(41, "python train.py", "/dev/null", str(host.node(node)))
    with pytest.raises(DeviceBusy, match=r"used by process 41 \(python train\.py\)"):
        binder.unbind(CARD)
    assert host.writes == []
    assert host.driver() == "vfio-pci"


def test_a_process_that_has_only_the_device_open_is_told_by_its_fdinfo(host: FakeHost, binder: Binder) -> None:
    host.add(driver="vfio-pci")
    host.add(SECOND, driver="vfio-pci", group=13)
    path = f"/sys/devices/pci0000:00/0000:00:01.0/{CARD}"
    host.process(41, "qemu", "anon_inode:[vfio-device]", fdinfo=f"pos:\t0\nvfio-device-syspath: {path}\n")
    with pytest.raises(DeviceBusy, match="process 41"):
        binder.unbind(CARD)
    assert binder.unbind(SECOND).changed


def test_users_of_other_groups_do_not_count(host: FakeHost, binder: Binder) -> None:
    host.add(driver="vfio-pci")
    host.process(41, "qemu", str(host.roots.dev / "vfio/1"), str(host.roots.dev / "vfio/vfio"))
    assert binder.unbind(CARD).changed


def test_a_holder_out_of_sight_is_told_by_the_kernel(
    host: FakeHost, binder: Binder, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add(driver="vfio-pci")
    real = os.open

    def busy(path: Path, *arguments: int, **named: int) -> int:
        if path == host.roots.dev / "vfio/12":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(DeviceBusy, match="not visible to you"):
        binder.unbind(CARD)
    assert host.writes == []


# --- failures are undone -----------------------------------------------------------------------------------------


def test_without_permission_the_error_says_sudo(host: FakeHost, binder: Binder) -> None:
    host.add(driver="xdma")
    host.failing[f"{CARD}/driver_override"] = errno.EACCES
    with pytest.raises(PermissionDenied) as caught:
        binder.bind(CARD)
    assert caught.value.remedy == f"run as root: sudo npuctl bind -d pci:{CARD}"
    assert (host.driver(), host.override()) == ("xdma", "(null)")


def test_a_read_only_sysfs_is_named(host: FakeHost, binder: Binder) -> None:
    host.add()
    host.failing[f"{CARD}/driver_override"] = errno.EROFS
    with pytest.raises(PermissionDenied, match="read-only"):
        binder.bind(CARD)


@pytest.mark.parametrize("step", ["xdma/unbind", "pci/drivers_probe"])
def test_a_step_that_fails_gives_the_card_its_driver_back(host: FakeHost, binder: Binder, step: str) -> None:
    host.add(driver="xdma")
    host.failing[step] = errno.EINVAL
    with pytest.raises(NpuError, match=rf"bind failed: Invalid argument .*{step}.*undone, its driver is xdma"):
        binder.bind(CARD)
    assert (host.driver(), host.override()) == ("xdma", "(null)")


def test_a_probe_that_binds_nothing_is_a_failure(host: FakeHost, binder: Binder) -> None:
    folder = host.add(driver="xdma")
    host.put(folder / "driver_override", "xdma")
    host.refused.add(CARD)
    with pytest.raises(NpuError, match="vfio-pci did not take it"):
        binder.bind(CARD)
    assert (host.driver(), host.override()) == ("xdma", "xdma")


def test_an_unbind_that_fails_leaves_the_card_bound(host: FakeHost, binder: Binder) -> None:
    host.add()
    binder.bind(CARD)
    host.failing["pci/drivers_probe"] = errno.EIO
    with pytest.raises(NpuError, match="undone, its driver is vfio-pci"):
        binder.unbind(CARD)
    assert (host.driver(), host.override()) == ("vfio-pci", "vfio-pci")


def test_an_undo_that_fails_is_said(host: FakeHost, binder: Binder) -> None:
    host.add(driver="xdma")
    host.failing["pci/drivers_probe"] = errno.EINVAL
    host.failing["xdma/bind"] = errno.ENODEV
    with pytest.raises(NpuError, match=r"could not be undone .*No such device.* its driver is now none"):
        binder.bind(CARD)


def test_attributes_are_written_by_one_write(tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.touch()
    write_attribute(path, "vfio-pci")
    assert path.read_bytes() == b"vfio-pci"
